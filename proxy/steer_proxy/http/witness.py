"""What tells whether an answer was cut that is relayed as it comes, by its framing alone.

Framing is no proof: a gateway ends it properly when the server behind it has died, and where the
connection's end is the body's, any end will do.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from steer_policies.dialects.base import Progress, StreamReader
from steer_proxy.http.coding import UNDONE
from steer_proxy.http.coding import decoder as new_decoder

if TYPE_CHECKING:
    from steer_proxy.http.coding import Decoder

#: How many decoded bytes are looked at between two turns of the event loop: of the shortest events
#: there are, that many take some 25 ms.
TURN: Final = 16 * 1024

#: How many are looked at in all, where each line and each piece count as some more: they take as
#: long. What grows beyond that is no stream of a model's, and a few kilobytes of it could keep the
#: process busy for minutes; this many take a second or two.
MAX_SEEN: Final = 64 * 1024 * 1024
LINE: Final = 64
PIECE: Final = 256


class Judge(Protocol):
    """Is fed the text of an answer."""

    @property
    def cut(self) -> bool:
        """Whether what came cannot be all of it; to be asked at its end."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""


def seen_through(coding: str, judge: Judge) -> Witness | None:
    """The witness of what a coding hides; None where it cannot be undone here."""
    return Witness(judge, coding) if not coding or coding in UNDONE else None


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


class Witness:
    """Is fed an answer's bytes as they come, and gives a judge their text, without holding up the
    event loop. What cannot be decoded, or has no end, is not judged."""

    __slots__ = ("_decoder", "_judge", "_judged", "_left", "_turn")

    def __init__(self, judge: Judge, coding: str) -> None:
        self._judge = judge
        self._decoder = new_decoder() if coding else None
        self._judged = True
        self._left = MAX_SEEN
        self._turn = TURN

    @property
    def cut(self) -> bool:
        """Whether the text cannot be all of it; to be asked at its end."""
        return self._judged and self._judge.cut

    async def feed(self, data: bytes) -> None:
        """Take the next bytes as they came; everybody else has a turn now and then."""
        if not self._judged:
            return
        try:
            for plain in self._pieces(data):
                # Reads that need not wait leave nobody a turn either: it is theirs together.
                cost = len(plain) + PIECE
                if cost > self._turn:
                    self._turn = TURN
                    await asyncio.sleep(0)
                self._turn -= cost
                self._judge.feed(plain)
        except zlib.error:
            self._judged = False

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """The text, piece by piece, as long as it is to be judged."""
        if self._decoder is None:
            for start in range(0, len(data), TURN):
                yield data[start : start + TURN]
            return
        for plain in self._decoded(data, self._decoder):
            self._left -= len(plain) + LINE * plain.count(b"\n") + PIECE
            if self._left < 0:
                self._judged = False
                return
            yield plain

    def _decoded(self, data: bytes, decoder: Decoder) -> Iterator[bytes]:
        """The text; a body may be several compressed ones in a row."""
        while True:
            plain = decoder.decompress(data, TURN)
            yield plain
            if decoder.eof:
                data = decoder.unused_data
                decoder = self._decoder = new_decoder()
            else:
                data = decoder.unconsumed_tail
            if not data and len(plain) < TURN:
                return
