"""One caller's connection: aiohttp's `RequestHandler` with the bounds and the caution it lacks.

What aiohttp does not do, and this does:

- bound the wait for a request's head, its total size, and what a chunked body may waste on framing;
- bound the wait for a caller that does not read: a closed connection stays as long as something
  of its last answer is not sent, and a write as long as nobody takes what came before;
- tell the reader of a body that its framing broke, instead of leaving it to wait;
- refuse to go on after a message whose end is in doubt. Its parser keeps the last trailer field of
  a chunked request and gives it to the next request on the connection as a header, and it throws
  away what was received after a request for an upgrade it does not know. Both would let one
  request change the meaning of another.
- answer malformed messages in the shape of our other errors, their route's dialect where the
  request line tells it, and without a traceback in the log.

This module and `server` are the only ones that lean on the internals of `RequestHandler`; the tests
pin what they rely on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest

from steer_policies.dialects.base import Dialect
from steer_policies.request_line import read_request_line
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.config import Limits
from steer_proxy.http.errors import bare
from steer_proxy.http.problems import INTERNAL, PLAIN, problem_response

#: How a request with this method and target is answered when it cannot be served.
Speaks = Callable[[str, str], Dialect]

LOGGER: Final = logging.getLogger("steer.http")

#: Longest request line and longest header field, and all of a head together, in bytes. SDKs send
#: two or three KiB; prompts do not travel in headers.
MAX_FIELD: Final = 32 * 1024
MAX_HEAD: Final = 64 * 1024
MAX_HEADERS: Final = 256

#: What the framing of a chunked body may cost: so many bytes, and so many for each byte of content.
#: One-byte chunks cost five; RFC 9112 §7.1.1 wants the total of chunk extensions limited.
OVERHEAD: Final = 64 * 1024
OVERHEAD_PER_BYTE: Final = 16

#: How long a caller may take nothing while more is written for it, in seconds. A stream's own bound
#: is its route's; this one is for whoever does not read his answers, however small.
UNREAD: Final = 3600.0

#: How long it may take nothing of the rest of an answer when its connection is closed but for that,
#: and how long that may take in all, in seconds.
FAREWELL: Final = 10.0
FAREWELLS: Final = 600.0

#: How a chunked body ends that has neither trailers nor anything after it (RFC 9112 §7.1).
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"

#: What a caller gets who is one too many. Written without reading: the caller may be a flood.
_BUSY_BODY: Final = PLAIN.error(
    503,
    "steer_overloaded",
    "Steer has as many connections open as limits.max_connections, or the system, allows.",
)
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%b"
    % (_BUSY_BODY.content_type.encode(), len(_BUSY_BODY.body), _BUSY_BODY.body)
)


class Connection(RequestHandler):
    """One caller's connection, unless `full` says that there are as many as may be."""

    __slots__ = (
        "_body",
        "_broken",
        "_chunked",
        "_farewell",
        "_full",
        "_head_size",
        "_head_timer",
        "_limits",
        "_line",
        "_outlet",
        "_overhead",
        "_raw_end",
        "_shape",
        "_speaks",
        "_unread",
        "reusable",
    )

    def __init__(
        self,
        server: web.Server,
        limits: Limits,
        full: Callable[[], bool],
        speaks: Speaks,
        *,
        loop: asyncio.AbstractEventLoop,
        **options: Any,
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._limits = limits
        self._full = full
        self._speaks = speaks
        self._head_timer: asyncio.TimerHandle | None = None
        #: The transport until the connection is lost: aiohttp's own forgets it when it closes.
        self._outlet: asyncio.Transport | None = None
        #: What ends a wait for a caller that does not read.
        self._unread: asyncio.TimerHandle | None = None
        self._farewell: asyncio.TimerHandle | None = None
        #: Bytes that have come of a head that is not complete.
        self._head_size = 0
        #: Those bytes, up to the segment with the end of their first line.
        self._line = b""
        #: How a request is answered that cannot be understood.
        self._shape = PLAIN
        #: The body of the newest request while it is not complete.
        self._body: StreamReader | None = None
        self._chunked = False
        self._overhead = 0
        #: The last bytes received, while a chunked body is not complete.
        self._raw_end = b""
        #: Set when nothing that comes can be understood any more.
        self._broken = False
        #: False when this connection must not carry another request.
        self.reusable = True

    @property
    def busy(self) -> bool:
        """Whether a request is arriving or being served, or an answer not yet in the kernel."""
        transport = self.transport
        return (
            self._request_in_progress
            or bool(self._messages)
            or self._head_size > 0
            or (transport is not None and transport.get_write_buffer_size() > 0)
        )

    def give_way(self) -> bool:
        """Close, if that is news and takes nothing from anybody who has asked for something."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        if self._request_in_progress or self._messages:
            return False
        if transport.get_write_buffer_size() > 0:
            transport.abort()  # it would wait for who does not read
        else:
            transport.close()
        return True

    # --- the connection's life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve, unless as many as may are being served."""
        if self._full():
            # `close` sends what was written first. (uvloop's transports are no asyncio.Transport.)
            self._close = True
            transport.write(_BUSY)  # type: ignore[attr-defined]
            transport.close()
            return
        super().connection_made(transport)
        self._outlet = self.transport
        self._start_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what is under way."""
        self._stop_head_timer()
        self._body = self._outlet = None
        for timer in (self._unread, self._farewell):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    async def start(self) -> None:
        """Serve one request after the other."""
        try:
            await super().start()
        except asyncio.CancelledError as error:
            # The task keeps it, aiohttp's frame keeps the task, and the last request besides.
            raise bare(error)  # noqa: B904 - itself
        finally:
            self._see_off(math.inf, self._loop.time() + FAREWELLS)

    def _see_off(self, before: float, until: float) -> None:
        """Let the caller have the rest of its last answer, for as long as it takes some of it."""
        outlet = self._outlet
        left = 0 if outlet is None else outlet.get_write_buffer_size()
        if outlet is None or left == 0:
            return  # the transport ends by itself
        if left < before and self._loop.time() < until:
            self._farewell = self._loop.call_later(FAREWELL, self._see_off, left, until)
        else:
            outlet.abort()

    def pause_writing(self) -> None:
        """More is written than the caller takes; it may take its time, but not for ever."""
        super().pause_writing()
        if self._outlet is not None:
            self._unread = self._loop.call_later(UNREAD, self._outlet.abort)

    def resume_writing(self) -> None:
        """It reads on."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def abort(self) -> asyncio.Task[None] | None:
        """Drop the connection and whatever it does; returns the task that is ending."""
        task = self._task_handler
        transport = self._outlet
        self.force_close()
        if transport is not None:
            transport.abort()
        if task is not None:
            task.cancel()
        return task

    # --- heads in time

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._limits.head_timeout, self._head_overdue)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._request_in_progress or self._messages:
            self.close()  # what came before is still answered
        else:
            self.force_close()

    def _process_keepalive(self) -> None:
        if self._head_timer is None:
            super()._process_keepalive()
        else:
            # A head has begun: its own limit holds.
            self._keepalive_handle = None

    # --- what comes in

    def data_received(self, data: bytes) -> None:
        """Have the parser read on, and look at what it made of it."""
        if self._broken:
            return  # read and thrown away: a socket closed with unread bytes resets the answer
        body = self._body
        before = 0 if body is None else body.total_bytes
        seen = self._request_count
        super().data_received(data)
        if self._request_count != seen:
            self._heads_came(self._request_count - seen, data)
        elif body is not None:
            self._body_came(body, data, before)
        elif data and not self._upgraded and self._payload_parser is None:
            if b"\n" not in self._line.lstrip():
                self._line += data
            self._head_size += len(data)
            self._start_head_timer()
            if self._head_size > MAX_HEAD:
                if (line := read_request_line(self._line)) is not None:
                    self._shape = self._speaks(*line)
                self._head_too_large()

    def _heads_came(self, count: int, data: bytes) -> None:
        self._stop_head_timer()
        messages = self._messages
        message, payload = messages[-1]
        if isinstance(message, _ErrInfo):
            self._framing_broke(message, data)
            return
        new = [message]
        if count > 1:
            new = [each for each, _ in list(messages)[-count:] if not isinstance(each, _ErrInfo)]
        if self._head_size + len(data) > MAX_HEAD and any(map(_too_large, new)):
            for _ in new:
                messages.pop()
            self._shape = self._speaks(new[0].method, new[0].path)
            self._head_too_large()
            return
        self._head_size = 0
        self._line = b""
        body, self._body = self._body, None if payload.is_eof() else payload
        if (body is not None and self._chunked) or any(each.chunked for each in new[:-1]):
            # Messages after a chunked one: whether it had trailers cannot be told.
            self.reusable = False
        self._chunked = bool(message.chunked)
        self._overhead = 0
        if self._chunked:
            self._raw_end = data[-len(_LAST_CHUNK) :]
            if self._body is None:
                self._chunks_ended(len(messages) - 1)

    def _body_came(self, body: StreamReader, data: bytes, before: int) -> None:
        if self._chunked:
            self._raw_end = (self._raw_end + data)[-len(_LAST_CHUNK) :]
        if body.is_eof():
            self._body = None
            if self._chunked:
                waiting = sum(payload is not body for _, payload in self._messages)
                self._chunks_ended(waiting)
        elif self._chunked:
            self._overhead += len(data) - (body.total_bytes - before)
            if self._overhead > OVERHEAD + OVERHEAD_PER_BYTE * body.total_bytes:
                self._body_broke(body, "its chunks are mostly framing")

    def _chunks_ended(self, waiting: int) -> None:
        """A chunked body is complete: the next request is safe only after a plain, lonely end."""
        if waiting or self._raw_end != _LAST_CHUNK:
            self.reusable = False

    # --- what is wrong with it

    def _framing_broke(self, error: _ErrInfo, data: bytes) -> None:
        """The parser gave up, in the middle of a body or where a head should have been."""
        bare(error.exc)
        body = self._body
        if body is not None and not body.is_eof():
            # The call whose body it is tells its caller; there is no other request to answer.
            self._messages.pop()
            self._body_broke(body, _brief(error.message))
            return
        if body is None and (line := read_request_line(self._line + data)) is not None:
            self._shape = self._speaks(*line)
        self._messages[-1] = (error, self._endless())
        self._broken = True

    def _body_broke(self, body: StreamReader, reason: str) -> None:
        self._broken = True
        self.reusable = False
        body.set_exception(RequestPayloadError(reason))

    def _head_too_large(self) -> None:
        self._stop_head_timer()
        self._head_size = 0
        error = LineTooLong(b"the head", MAX_HEAD)
        self._messages.append((_ErrInfo(431, error, error.message), self._endless()))
        self._request_count += 1
        self._broken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _endless(self) -> StreamReader:
        """A body that never ends: aiohttp then waits for a while before it hangs up, so that the
        answer is not lost to a reset (RFC 9112 §9.6)."""
        return StreamReader(self, 2**16, loop=self._loop)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed, or a bug of ours, and close the connection.

        Raises:
            ConnectionError: when an answer has begun, which can then only be cut.
        """
        speaks = self._shape
        if status >= 500:
            speaks = self._speaks(request.method, request.raw_path)
            self.log_exception("Unhandled error in a call", exc_info=exc)
            problem = INTERNAL
        else:
            brief = _brief(message or "")
            LOGGER.debug("a request was refused: %s", brief)
            if isinstance(exc, LineTooLong) or "Too many headers" in brief:
                status, brief = 431, "its head is too large"
            problem = Problem(
                status, "steer_bad_request", f"The request is not valid HTTP: {brief}."
            )
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; it can only be cut")
        return problem_response(speaks, problem, close=True)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a bug with its traceback; a caller's broken body or hang-up is none."""
        error = kw.get("exc_info")
        if isinstance(error, (RequestPayloadError, HttpProcessingError, ConnectionError)):
            LOGGER.debug("a connection ended: %s", _brief(str(error)))
        else:
            LOGGER.error(*args, **kw)


def _too_large(message: RawRequestMessage) -> bool:
    """Whether a head that the parser took is larger than all of it together may be."""
    fields = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return fields + len(message.path) > MAX_HEAD


def _brief(message: str) -> str:
    """What the parser found, without the bytes in which it did: those may hold a credential."""
    text = " ".join(message.partition("b'")[0].partition('b"')[0].split())
    return text.rstrip(" :.")[:120]
