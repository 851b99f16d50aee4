"""The load: prepared bytes out, answers counted, nothing in between that could be the bottleneck.

A connection knows just enough HTTP to find the end of an answer. It keeps what it needs to check
that the proxy did its work: the first answer's body, and how many bytes and events came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_CHUNKS = b"0\r\n\r\n"


class LoadError(Exception):
    """An answer was not what it had to be, so that nothing measured means anything."""


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one call under way."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._end: int | None = None
        self._chunked = False
        self._answer: asyncio.Future[bytes] | None = None
        self._first_event: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for an answer that none will come."""
        self._fail(f"the connection was lost: {exc}")

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer."""
        self._parts.append(data)
        self._size += len(data)
        if self._end is None and not self._chunked:
            self._read_head()
        if self._first_event is not None and b"data: " in data:
            self._first_event()
            self._first_event = None
        # A chunked answer ends with its last bytes: at most one call is under way.
        if (self._chunked and data.endswith(_END_OF_CHUNKS)) or self._size == self._end:
            self._finish()

    def _read_head(self) -> None:
        data = b"".join(self._parts)
        head, found, _ = data.partition(_END_OF_HEAD)
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._fail(data[:2000].decode("latin-1"))
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self._end = len(head) + len(_END_OF_HEAD) + int(line[15:])
            elif line == b"transfer-encoding: chunked":
                self._chunked = True

    def _finish(self) -> None:
        answer, self._answer = self._answer, None
        body = b"".join(self._parts).partition(_END_OF_HEAD)[2]
        if self._chunked:
            body = _unframed(body)
        self._parts.clear()
        self._size, self._end, self._chunked = 0, None, False
        if answer is not None and not answer.done():
            answer.set_result(body)

    def hang_up(self) -> None:
        """Close the connection; nobody waits for an answer any more."""
        if self._answer is not None:
            self._answer.cancel()
        self.transport.abort()

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LoadError(reason))

    def call(
        self, request: bytes, first_event: Callable[[], None] | None = None
    ) -> asyncio.Future[bytes]:
        """Send a request; the body of its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._first_event = first_event
        self.transport.write(request)
        return self._answer


def _unframed(body: bytes) -> bytes:
    """A chunked body's content: proxies may cut it anew."""
    pieces: list[bytes] = []
    position = 0
    while True:
        line = body.index(b"\r\n", position)
        size = int(body[position:line], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[line + 2 : line + 2 + size])
        position = line + 2 + size + 2


async def connect(port: int, count: int) -> list[Connection]:
    """Open connections, a few at a time."""
    loop = asyncio.get_running_loop()
    opened: list[Connection] = []
    for start in range(0, count, 50):
        pairs = [
            loop.create_connection(Connection, "127.0.0.1", port)
            for _ in range(min(50, count - start))
        ]
        opened += [protocol for _, protocol in await asyncio.gather(*pairs)]
    return opened


@dataclass(slots=True)
class Load:
    """What a run of calls brought: seconds per call, and the body of the first answer."""

    seconds: list[float] = field(default_factory=list)
    body: bytes = b""


Request = bytes | Callable[[], bytes]
"""The bytes of every call, or what makes those of the next."""


async def run_calls(
    connections: Sequence[Connection], request: Request, each: int, interval: float = 0.0
) -> Load:
    """Make `each` calls on every connection.

    With an `interval`, each connection begins a call that often, in seconds, and the connections
    are spread over it: the load of many independent callers. Without one, every connection calls
    again as soon as it has its answer: as much as the proxy can do.
    """
    loop = asyncio.get_running_loop()
    load = Load()
    begin = loop.time() + 0.01

    async def work(index: int, connection: Connection) -> None:
        for turn in range(each):
            if interval:
                due = begin + interval * (turn + index / len(connections))
                await asyncio.sleep(max(0.0, due - loop.time()))
            started = time.perf_counter()  # uvloop's own clock counts milliseconds
            body = await connection.call(request if isinstance(request, bytes) else request())
            load.seconds.append(time.perf_counter() - started)
            if not load.body:
                load.body = body
            elif len(body) != len(load.body):
                raise LoadError("answers to the same call differ in length")

    async with asyncio.TaskGroup() as group:
        for index, connection in enumerate(connections):
            group.create_task(work(index, connection))
    return load


async def hold_streams(connections: Sequence[Connection], request: bytes) -> None:
    """Begin a stream on every connection and return when each has had its first event."""
    arrived = asyncio.Event()
    waiting = len(connections)

    def first() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            arrived.set()

    begun: list[asyncio.Future[bytes]] = []
    for index, connection in enumerate(connections):
        begun.append(connection.call(request, first))
        if index % 20 == 19:
            await asyncio.sleep(0.05)  # callers come in one after the other: 400 in a second
    async with asyncio.timeout(60):
        await arrived.wait()


def close(connections: Sequence[Connection]) -> None:
    """Hang up."""
    for connection in connections:
        connection.hang_up()
