"""One TCP connection: requests in, scripted answers out, one at a time and in order.

A plain Protocol rather than streams: the plain healthy answer is parsed, looked up and written
within `data_received`, without a task.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Protocol, cast

from tests.provider.attempt import Attempt
from tests.provider.choosing import Fault
from tests.provider.framing import Framer
from tests.provider.player import play
from tests.provider.steps import Answer
from tests.provider.wire import BadRequest, RequestHead, RequestReader

WRITE_BUFFER = 64 * 1024


class Host(Protocol):
    """What a connection asks of the provider it belongs to."""

    def opened(self, connection: Connection) -> bool:
        """Note a new connection; False when it was disposed of at once."""

    def lost(self, connection: Connection) -> None:
        """Note the end of a connection."""

    def arrived(self, connection: Connection, head: RequestHead) -> Attempt:
        """Log a request whose head is complete."""

    def choose_at_head(self, attempt: Attempt) -> Fault | None:
        """What to do with a request, if that is known before its body; see `Script`."""

    def answer(self, attempt: Attempt, chosen: Fault | None) -> tuple[Answer, bytes | None]:
        """The answer, and the whole of it as bytes when it can be written at once."""

    def failed(self, error: Exception) -> None:
        """Keep an error of the script for the test to see."""


class Connection(asyncio.Protocol):
    """Reads requests, plays answers, notices when the peer goes."""

    transport: asyncio.Transport

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._reader = RequestReader()
        self._attempt: Attempt | None = None
        self._head: RequestHead | None = None
        self._chosen: Fault | None = None
        self._body_complete = True
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ending = False
        self.tail: asyncio.StreamReader | None = None
        """Where bytes go once the connection is upgraded."""
        self.number = 0
        self.requests = 0
        self.closed = asyncio.Event()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._host.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.tail is not None:
            self.tail.feed_data(data)
            return
        self._reader.feed(data)
        self._advance()

    def eof_received(self) -> bool:
        self._peer_gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer_gone()
        self.closed.set()
        self._writable.set()
        self._host.lost(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- what players and sessions use

    def write(self, attempt: Attempt, data: bytes) -> None:
        """Hand bytes to the socket."""
        if data and not self.transport.is_closing():
            attempt.bytes_written += len(data)
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait while the peer reads more slowly than we write."""
        if not self._writable.is_set():
            await self._writable.wait()

    async def flush(self) -> None:
        """Wait until the kernel has every byte written so far."""
        self.transport.set_write_buffer_limits(high=0)
        await self.drain()
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def upgrade(self) -> asyncio.StreamReader:
        """From here on bytes are no requests: read them here."""
        self.tail = asyncio.StreamReader(limit=1 << 30, loop=self._loop)
        self.tail.feed_data(self._reader.take_rest())
        return self.tail

    def close(self) -> None:
        """FIN after what was written."""
        self._ending = True
        self.transport.close()

    def reset(self) -> None:
        """RST: what the peer has not received is lost."""
        self._ending = True
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def ignore(self) -> None:
        """Never read what comes, nor answer it."""
        self._ending = True
        self.transport.pause_reading()

    def stop(self) -> asyncio.Task[None] | None:
        """Drop the connection at the provider's end; returns the task still to be awaited."""
        self._ending = True
        task = self._task
        if task is not None:
            task.cancel()
        self.transport.abort()
        return task

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._attempt is None

    # --- requests

    def _advance(self) -> None:
        """Go as far as the bytes at hand allow."""
        try:
            while not self._ending and self._step():
                pass
        except BadRequest as error:
            self._refuse(error)

    def _step(self) -> bool:
        """One move; False when more bytes, or the end of the answer, have to come first."""
        if self._body_complete:
            return self._attempt is None and self._begin()
        if not self._reader.read_body():
            return False
        self._body_complete = True
        attempt = self._attempt
        if attempt is not None:
            attempt.body = bytes(self._reader.body)
            attempt.trailers = self._reader.trailers
            attempt.received.set()
            if self._task is None:
                self._answer(attempt)
        return True

    def _begin(self) -> bool:
        head = self._reader.read_head()
        if head is None:
            return False
        self._head = head
        self.requests += 1
        self._attempt = attempt = self._host.arrived(self, head)
        self._body_complete = False
        self._chosen = chosen = self._host.choose_at_head(attempt)
        if chosen is not None and chosen.before_body:
            if not chosen.reads_on:
                self.transport.pause_reading()
            self._answer(attempt)
        elif head.expects_continue and head.length and (chosen is None or chosen.continues):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _answer(self, attempt: Attempt) -> None:
        head = self._head
        assert head is not None
        try:
            answer, wire = self._host.answer(attempt, self._chosen)
        except Exception as error:  # noqa: BLE001 -- a mistake in a script fails its test
            self._host.failed(error)
            self.reset()
            return
        if wire is not None and not head.wants_close and head.method != "HEAD":
            attempt.status = answer.head.status
            self.write(attempt, wire)
            self._attempt = None
            attempt.finished.set()
            return
        framer = Framer(head.method, version=head.version, close=head.wants_close)
        self._task = self._loop.create_task(self._play(attempt, answer, framer))

    async def _play(self, attempt: Attempt, answer: Answer, framer: Framer) -> None:
        try:
            await play(self, attempt, answer, framer)
        except Exception as error:  # noqa: BLE001 -- likewise
            self._host.failed(error)
            self.reset()
        finally:
            self._task = None
            self._attempt = None
            attempt.finished.set()
        if framer.must_close:
            self.close()
        elif not self.transport.is_closing():
            self._advance()

    def _refuse(self, error: BadRequest) -> None:
        self._ending = True
        body = str(error).encode()
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()
        self._host.failed(error)

    def _peer_gone(self) -> None:
        attempt, task = self._attempt, self._task
        if attempt is not None and not self._ending and attempt.closed_by_peer_at is None:
            attempt.closed_by_peer_at = self._loop.time()
        self._ending = True
        if task is not None:
            task.cancel()
        elif attempt is not None:
            self._attempt = None
            attempt.finished.set()
        if self.tail is not None and not self.tail.at_eof():
            self.tail.feed_eof()
