"""Reading requests (RFC 9112) from whatever bytes have come, strictly.

Strict because the wall stands behind a proxy: whatever a proxy must not forward (two ways of
framing one body, obsolete line folding, a space before the colon, bare line feeds) is refused, so
that a test sees it instead of a lenient server hiding it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 1 << 20
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~\x80-\xff]+) HTTP/(1\.[01])")
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[ \t]*;[^\r\n]*)?")


class BadRequest(Exception):
    """The request is not HTTP as RFC 9112 has it; the message says why."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its header lines."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    length: int
    """Bytes of body to come, -1 when it is chunked."""
    expects_continue: bool
    wants_close: bool


class RequestReader:
    """Cuts a stream of bytes into heads and bodies; keeps what belongs to the next request."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0
        self._state = "length"
        self.body = bytearray()
        self.trailers: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> None:
        """Add what the socket gave."""
        self._buffer += data

    def take_rest(self) -> bytes:
        """What has come and was not read: the first bytes of an upgraded connection."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def read_head(self) -> RequestHead | None:
        """The next head, or None until it is complete."""
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # RFC 9112 section 2.2: ignore empty lines before the request
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > MAX_HEAD:
                raise BadRequest("head too large")
            return None
        lines = bytes(buffer[:end]).split(b"\r\n")
        del buffer[: end + 4]
        head = _parse_head(lines)
        self.body = bytearray()
        self.trailers = []
        self._state, self._left = ("size", 0) if head.length < 0 else ("length", head.length)
        return head

    def read_body(self) -> bool:
        """Move what has come into `body`; True once the body is complete."""
        if self._state == "length":
            self._take()
            return self._left == 0
        return self._read_chunks()

    def _take(self) -> None:
        if self._left and self._buffer:
            piece = self._buffer[: self._left]
            self.body += piece
            self._left -= len(piece)
            del self._buffer[: len(piece)]

    def _read_chunks(self) -> bool:
        while True:
            if self._state == "data":
                self._take()
                if self._left:
                    return False
                self._state = "end"
            line = self._line()
            if line is None:
                return False
            if self._state == "end":
                if line:
                    raise BadRequest("chunk longer than its size")
                self._state = "size"
            elif self._state == "size":
                found = _CHUNK_SIZE.fullmatch(line)
                if found is None:
                    raise BadRequest("bad chunk size")
                self._left = int(found[1], 16)
                self._state = "data" if self._left else "trailers"
            elif line:
                self.trailers.append(_parse_field(line))
            else:
                return True

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line


def _parse_head(lines: list[bytes]) -> RequestHead:
    found = _REQUEST_LINE.fullmatch(lines[0])
    if found is None:
        raise BadRequest("bad request line")
    method, target, version = (group.decode("latin-1") for group in found.groups())
    headers = [_parse_field(line) for line in lines[1:]]
    lengths, codings, connection, expect = [], [], "", ""
    for name, value in headers:
        lower = name.lower()
        if lower == "content-length":
            lengths.append(value)
        elif lower == "transfer-encoding":
            codings.append(value.lower())
        elif lower == "connection":
            connection += "," + value.lower()
        elif lower == "expect":
            expect = value.lower()
    options = {option.strip() for option in connection.split(",")}
    return RequestHead(
        method,
        target,
        version,
        headers,
        _body_length(lengths, codings),
        expect == "100-continue",
        "close" in options or (version == "1.0" and "keep-alive" not in options),
    )


def _body_length(lengths: list[str], codings: list[str]) -> int:
    if codings and lengths:
        raise BadRequest("both Content-Length and Transfer-Encoding")
    if codings:
        if codings != ["chunked"]:
            raise BadRequest("unknown Transfer-Encoding")
        return -1
    if not lengths:
        return 0
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
        raise BadRequest("bad Content-Length")
    return int(lengths[0])


def _parse_field(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or _FIELD_NAME.fullmatch(name) is None:
        raise BadRequest("bad header line")
    if b"\r" in value or b"\n" in value or b"\0" in value:
        raise BadRequest("control character in a header")
    return name.decode("latin-1"), value.strip(b" \t").decode("latin-1")
