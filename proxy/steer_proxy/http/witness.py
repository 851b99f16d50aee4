"""What tells whether an answer was cut that is relayed as it comes, by its framing alone.

Framing is no proof: a gateway ends it properly when the server behind it has died, and where the
connection's end is the body's, any end will do.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

from multidict import CIMultiDictProxy

from steer_policies.dialects.base import Progress, StreamReader

#: Names that stand for no coding: RFC 9110 (section 8.4.1) has only `identity`; servers that mean
#: to say nothing, or the charset, write the others.
_NO_CODINGS: Final = frozenset({"", "identity", "none", "utf-8", "utf8", "us-ascii", "iso-8859-1"})

#: The codings that can be undone; `x-gzip` is the same as `gzip`.
_UNDONE: Final = frozenset({"gzip", "x-gzip", "deflate"})

#: Let zlib see which of its two formats it is given.
_BY_ITSELF: Final = zlib.MAX_WBITS | 32

#: How many decoded bytes are looked at at once, and of one read; what grows beyond that is no
#: stream of a model's, and to look at it would hold up everybody else.
_PIECE: Final = 64 * 1024
_MOST: Final = 8 * 1024 * 1024


class Witness(Protocol):
    """Is fed an answer's bytes as they come."""

    @property
    def cut(self) -> bool:
        """Whether what came cannot be all of it; to be asked at its end."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""


def content_coding(headers: CIMultiDictProxy[str]) -> str:
    """The coding of an answer's body, lower-case; "" for none, several separated by commas."""
    if "Content-Encoding" not in headers:
        return ""
    names = ",".join(headers.getall("Content-Encoding")).lower().split(",")
    return ",".join(name for name in map(str.strip, names) if name not in _NO_CODINGS)


def seen_through(coding: str, witness: Witness) -> Witness | None:
    """The witness of what a coding hides; None where it cannot be undone here."""
    if not coding:
        return witness
    return _Undoing(witness) if coding in _UNDONE else None


class StreamEnd:
    """Knows by its dialect whether a stream that nobody holds back has said everything."""

    __slots__ = ("_reader",)

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    @property
    def cut(self) -> bool:
        """Whether it broke off, or failed."""
        self._reader.finish()
        return self._reader.error is not None or self._reader.progress < Progress.FINISHED

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._reader.feed(data)


class _Undoing:
    """Decodes a copy of gzip or deflate; what cannot be decoded is not judged."""

    __slots__ = ("_decoder", "_judged", "_witness")

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._decoder = zlib.decompressobj(wbits=_BY_ITSELF)
        self._judged = True

    @property
    def cut(self) -> bool:
        """Whether the decoded text cannot be all of it."""
        return self._judged and self._witness.cut

    def feed(self, data: bytes) -> None:
        """Take the next bytes as they came."""
        if not self._judged:
            return
        left = _MOST
        try:
            for plain in self._decoded(data):
                self._witness.feed(plain)
                left -= len(plain)
                if left < 0:
                    self._judged = False
                    return
        except zlib.error:
            self._judged = False

    def _decoded(self, data: bytes) -> Iterator[bytes]:
        """The plain text, piece by piece; a body may be several compressed ones in a row."""
        while True:
            plain = self._decoder.decompress(data, _PIECE)
            if plain:
                yield plain
            if self._decoder.eof:
                data = self._decoder.unused_data
                self._decoder = zlib.decompressobj(wbits=_BY_ITSELF)
            else:
                data = self._decoder.unconsumed_tail
            if not data and len(plain) < _PIECE:
                return
