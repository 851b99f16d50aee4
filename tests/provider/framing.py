"""From structured steps to bytes on the wire (RFC 9112 sections 4 to 7)."""

from __future__ import annotations

from http import HTTPStatus

from tests.provider.steps import Answer, Data, Finish, Head, Send


def reason_phrase(status: int) -> str:
    """The usual words for a status; "Unknown" for those without (529)."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class Framer:
    """Frames one answer; knows whether the connection has to be closed after it."""

    def __init__(self, method: str = "POST", *, version: str = "1.1", close: bool = False) -> None:
        self._bodiless = method == "HEAD"
        self._old = version == "1.0"
        self._framing = "none"
        self.must_close = close

    def head(self, head: Head) -> bytes:
        """The bytes of a head, with the header that announces its framing."""
        framing = head.framing
        if self._old and framing == "chunked":
            framing = "close"  # a 1.0 client knows no chunks
        lines = [f"HTTP/1.1 {head.status} {head.reason or reason_phrase(head.status)}"]
        lines += [f"{name}: {value}" for name, value in head.headers]
        if framing == "length":
            lines.append(f"Content-Length: {head.length}")
        elif framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
        if framing == "close" and not self._bodiless:
            self.must_close = True
        if (head.header("connection") or "").lower() == "close":
            self.must_close = True
        elif self.must_close:
            lines.append("Connection: close")
        self._framing = "none" if self._bodiless else framing
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    def data(self, data: bytes, promised: int | None = None) -> bytes:
        """The bytes of a piece of body; with `promised`, of an unfinished chunk of that size."""
        if self._framing == "chunked":
            if promised is not None:
                return b"%x\r\n%b" % (promised, data)
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return b"" if self._framing == "none" else data

    def finish(self) -> bytes:
        """The end of the body."""
        return b"0\r\n\r\n" if self._framing == "chunked" else b""


def immediate(answer: Answer) -> bytes | None:
    """The whole answer as bytes when it is plain and ends no connection, else None.

    Made once for each distinct healthy answer: the benchmark's plain path is one write of it.
    """
    framer = Framer()
    pieces = []
    for step in answer.steps:
        match step:
            case Head():
                pieces.append(framer.head(step))
            case Data():
                pieces.append(framer.data(step.data))
            case Finish():
                pieces.append(framer.finish())
            case Send():
                pieces.append(step.data)
            case _:
                return None
    return None if framer.must_close else b"".join(pieces)
