"""The caller's side of a call: its response, exactly as given, with back-pressure."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

from aiohttp import hdrs
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_writer import StreamWriter
from aiohttp.web import StreamResponse
from aiohttp.web_request import BaseRequest

from steer_proxy.http.lines import Field, head, line

#: Statuses and methods whose answers have no body (RFC 9110 §6.4.1).
BODILESS: Final = frozenset({204, 304})

_LENGTH: Final = b"content-length"

#: Bytes written between two looks at whether the caller keeps up.
WRITE_AHEAD: Final = 64 * 1024

#: How many of its last bytes tell whether an answer ends where an event does.
_TAIL: Final = 4


class CallerResponse(StreamResponse):
    """A response whose head is written as given.

    aiohttp's own adds `Server`, `Date` and a default `Content-Type`; a proxy has no business doing
    so. What remains here is framing: the length when it is known, chunks when it is not, and the
    connection's end for HTTP/1.0 callers.
    """

    def __init__(
        self,
        status: int,
        reason: str | None,
        fields: Sequence[Field] = (),
        own: Sequence[bytes] = (),
        *,
        body: bytes = b"",
        length: int | None = None,
        content_type: str = "",
    ) -> None:
        """A response with a provider's fields and lines of our own, and no others.

        `body` is written when it ends. `length` is that of the whole body, when one is to be
        announced that `fields` do not announce; `content_type` is remembered for an error event.
        """
        super().__init__(status=status, reason=reason)
        self._fields = fields
        self._own = own
        self._rest = body
        self._given = 0
        #: The last bytes that were given: whether they end an event.
        self.tail = b""
        #: The loop time at which a duplicate was given its first bytes, for its row.
        self.began: float | None = None
        self._announced = length
        self._closing = False
        self.media_type = content_type

    def abandon(self) -> None:
        """End the response in the middle, so that nobody takes it for whole."""
        if self._req is not None:
            abandon(self._req)

    def close_connection(self) -> None:
        """Ask for the connection to be closed after this response."""
        self._closing = True
        self.force_close()

    async def _prepare_headers(self) -> None:
        request, writer = self._req, self._payload_writer
        if request is None or not isinstance(writer, StreamWriter):
            raise RuntimeError("the response has not been started")
        lines = list(self._own)
        if self.status == 101:
            writer.length = 0  # what follows is not written through it
        else:
            self._frame(request, writer, lines)
        # Our own version, whatever the caller's (RFC 9110 §6.2).
        first_line = f"HTTP/1.1 {self.status} {self.reason}"
        writer._headers_buf = head(first_line, self._fields, lines)  # noqa: SLF001 - see `lines`
        self._fields = self._own = ()  # a stream may last an hour

    def _frame(self, request: BaseRequest, writer: StreamWriter, lines: list[bytes]) -> None:
        """Say where the body ends, and whether the connection outlives it (RFC 9112 §6, §9.3)."""
        version = request.version
        keep_alive = request.keep_alive and not self._closing and _reusable(request)
        length = self._announced
        if length is None:
            length = length_in(self._fields)
        else:
            lines.append(line("Content-Length", str(length)))
        if request.method == hdrs.METH_HEAD or self.status in BODILESS:
            writer.length = 0
        elif length is not None:
            writer.length = length
        elif version >= HttpVersion11:
            writer.enable_chunking()
            lines.append(b"Transfer-Encoding: chunked\r\n")
        else:
            keep_alive = False
        self._keep_alive = keep_alive
        if not keep_alive:
            lines.append(b"Connection: close\r\n")
        elif version == HttpVersion10:
            lines.append(b"Connection: keep-alive\r\n")

    async def _write_headers(self) -> None:
        """The head is written already, with the first part of the body to follow."""

    @property
    def given(self) -> int:
        """How many bytes of the body the caller was given, or will be; without framing."""
        return self._given + len(self._rest)

    @property
    def ended(self) -> bool:
        """Whether the response has ended properly."""
        return self._eof_sent

    def send_head(self) -> None:
        """Write the head now, without waiting for a first part of the body."""
        if self._payload_writer is not None:
            self._payload_writer.send_headers()

    async def write(self, data: bytes) -> None:  # type: ignore[override]
        """Write a part of the body.

        Chunks that follow the head, nearly all of a stream, skip the detours of aiohttp's writer
        (compression, clipping, signals), which take longer than what they lead to.
        """
        if len(data) > WRITE_AHEAD:
            # In parts: all that a caller does not take would wait in the transport.
            for start in range(0, len(data), WRITE_AHEAD):
                await self.write(data[start : start + WRITE_AHEAD])
            return
        self._given += len(data)
        if data:
            self.tail = (self.tail + data[-_TAIL:])[-_TAIL:]
        writer = self._payload_writer
        if not isinstance(writer, StreamWriter) or not writer.chunked or writer._headers_buf:  # noqa: SLF001
            await super().write(data)
        elif data:
            writer._write(b"%x\r\n%b\r\n" % (len(data), data))  # noqa: SLF001
            if writer.buffer_size > WRITE_AHEAD:
                writer.buffer_size = 0
                await writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the response properly.

        A caller that is still sending what nobody will read learns at once that this was all, while
        the server goes on to read for a moment: hanging up would reset the answer (RFC 9112 §9.6).
        """
        request = self._req
        rest, self._rest = data or self._rest, b""
        if len(rest) > WRITE_AHEAD:
            await self.write(rest)
            rest = b""
        self._given += len(rest)
        await super().write_eof(rest)
        if request is not None and not self._keep_alive and not request.content.is_eof():
            if request.content.exception() is not None:
                # A broken body: forgotten, or the server would hang up on reading it.
                request.content.set_exception(None)  # type: ignore[arg-type]
            transport = request.transport
            if transport is not None and not transport.is_closing() and transport.can_write_eof():
                transport.write_eof()


def length_in(fields: Sequence[Field]) -> int | None:
    """The length that a provider's fields announce."""
    for name, value in fields:
        if len(name) == len(_LENGTH) and name.lower() == _LENGTH:
            return int(value)
    return None


def _reusable(request: BaseRequest) -> bool:
    """Whether another request may follow this one on its connection.

    Not when its body was not read to the end (RFC 9112 §9.3): a caller that was refused before it
    sent the body might send it or not (RFC 9110 §10.1.1). Nor when `Connection` has its doubts.
    """
    return request.content.is_eof() and getattr(request.protocol, "reusable", True)


def abandon(request: BaseRequest) -> None:
    """End a response in the middle: what was written is flushed, no proper end follows.

    A caller that counts bytes or chunks sees that the answer is cut. For one that takes the
    connection's end for the answer's (HTTP/1.0) only a reset says so.
    """
    transport, writer = request.transport, request.writer
    if transport is None:
        return
    if isinstance(writer, StreamWriter) and not transport.is_closing():
        writer.send_headers()  # one that waits for a first part of the body is told of all the same
    if isinstance(writer, StreamWriter) and not writer.chunked and writer.length is None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    transport.close()
