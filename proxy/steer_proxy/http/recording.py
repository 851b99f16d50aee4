"""An answer on its way: written once, read by everyone who asked for the same.

One call is made for a key, however many ask. What it brings goes into a `Recording`, and each
caller reads it from there at its own pace: a slow one delays nobody. While the answer is small
enough to be stored it is kept whole, so that who comes late gets all of it. Beyond that it is a
window that moves on with its readers, and nobody else can join.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from steer_policies.headers import Field
from steer_proxy.http.body import MemoryBudget

#: How much of an answer that is too large to keep its readers may differ by, in bytes.
WINDOW: Final = 1024 * 1024

#: How long the slowest reader may hold up such an answer, in seconds: then it is dropped.
PATIENCE: Final = 30.0

#: How many of its last bytes tell whether an answer ends where an event does.
_TAIL: Final = 4


@dataclass(frozen=True, slots=True)
class RecordedHead:
    """Status and header of a recorded answer; `own` are lines that Steer adds for every reader."""

    status: int
    reason: str | None
    fields: Sequence[Field]
    own: Sequence[bytes]
    content_type: str = ""


class TooLate(Exception):
    """The beginning of the answer is gone."""


class TooSlow(Exception):
    """The reader fell behind further than is kept."""


class Recording:
    """One answer, with a place for each of its readers."""

    def __init__(self, most: int, memory: MemoryBudget) -> None:
        """`most` bytes are kept, as far as `memory` allows."""
        self.head: RecordedHead | None = None
        self.size = 0
        """How many bytes the answer has so far."""
        self.released = 0
        """How many of them readers may have."""
        self.ended = False
        self.broken = False
        """Whether it ended in the middle."""
        self.kept = True
        """Whether all of it is still here."""
        self.readers: set[Reader] = set()
        self._most = most
        self._memory = memory
        self._reserved = 0
        self._pieces: deque[bytes] = deque()
        self._first = 0  # the number of the first piece that is still here
        self._start = 0  # its offset
        self._tail = b""  # the last bytes of what is not here any more
        self._news: list[asyncio.Future[None]] = []
        self._room: asyncio.Future[None] | None = None

    # --- Writing ----------------------------------------------------------------------------------

    def begin(self, head: RecordedHead) -> None:
        """Make the head known."""
        self.head = head
        self._tell()

    def put(self, data: bytes) -> None:
        """Add bytes without waiting: a few."""
        if not data:
            return
        if self.kept and not self._keep(len(data)):
            self.kept = False
        self._pieces.append(data)
        self.size += len(data)

    async def write(self, data: bytes) -> None:
        """Add bytes; waits only where the answer is too large to keep and its readers are slow."""
        self.put(data)
        if not self.kept:
            self._forget()
            while self.readers and self.released - self._start > WINDOW:
                await self._wait_for_room()

    def release(self, upto: int | None = None) -> None:
        """Let readers have the bytes up to an offset, or all there are."""
        self.released = self.size if upto is None else max(self.released, upto)
        self._tell()

    def end(self, *, broken: bool = False) -> None:
        """Nothing more follows; `broken` says that something should have. Idempotent."""
        if self.ended:
            return
        self.released = self.size
        self.ended, self.broken = True, broken
        self._tell()

    def withdraw(self) -> None:
        """Take back what no reader may have yet: it is not the answer after all."""
        while self._pieces and self.size > self.released:
            size = len(self._pieces.pop())
            self.size -= size
            self._free(size)

    def forget(self) -> None:
        """Let go of it piece by piece: no reader will come any more, those there are may finish."""
        self.kept = False
        self._forget()

    def pieces(self, since: int = 0) -> list[bytes]:
        """What is here from piece number `since` on."""
        return [
            self._pieces[index] for index in range(max(0, since - self._first), len(self._pieces))
        ]

    @property
    def tail(self) -> bytes:
        """The last bytes of the answer so far."""
        tail = b""
        for piece in reversed(self._pieces):
            tail = piece[-_TAIL:] + tail
            if len(tail) >= _TAIL:
                return tail[-_TAIL:]
        return (self._tail + tail)[-_TAIL:]

    @property
    def count(self) -> int:
        """How many pieces there have been."""
        return self._first + len(self._pieces)

    def _keep(self, size: int) -> bool:
        if self.size + size > self._most or not self._memory.reserve(size):
            return False
        self._reserved += size
        return True

    def _forget(self) -> None:
        """Drop the pieces that every reader has had."""
        needed = min((reader.next for reader in self.readers), default=self.count)
        while self._pieces and self._first < needed and self._start < self.released:
            piece = self._pieces.popleft()
            self._tail = (self._tail + piece[-_TAIL:])[-_TAIL:]
            size = len(piece)
            self._start += size
            self._first += 1
            self._free(size)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _free(self, size: int) -> None:
        freed = min(size, self._reserved)
        self._memory.free(freed)
        self._reserved -= freed

    async def _wait_for_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._room
        except TimeoutError:
            # Whom it is to be, before the first one's leaving moves the window.
            for reader in [each for each in self.readers if each.next == self._first]:
                reader.drop()
            self._forget()
            self._tell()
        finally:
            self._room = None

    # --- Reading ----------------------------------------------------------------------------------

    @property
    def too_late(self) -> bool:
        """Whether the beginning is gone."""
        return self._first > 0

    def read(self) -> Reader:
        """A place at the beginning of the answer.

        Raises:
            TooLate: when the beginning is gone.
        """
        if self.too_late:
            raise TooLate
        reader = Reader(self)
        self.readers.add(reader)
        return reader

    def _tell(self) -> None:
        news, self._news = self._news, []
        for waiter in news:
            if not waiter.done():
                waiter.set_result(None)

    async def news(self) -> None:
        """Wait for the next change."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.append(waiter)
        try:
            await waiter
        finally:
            if waiter.cancelled() and waiter in self._news:  # whoever waited has left
                self._news.remove(waiter)

    def available(self, number: int, offset: int) -> bytes | None:
        """A piece, as far as it is released; None when there is none yet."""
        if number >= self.count or offset >= self.released:
            return None
        return self._pieces[number - self._first]

    def passed(self, reader: Reader) -> None:
        """A reader has moved on, or left."""
        if not self.kept and (reader not in self.readers or reader.next > self._first):
            self._forget()


class Reader:
    """One reader's place in a recording; `close` it."""

    __slots__ = ("_dropped", "_offset", "_recording", "next")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._offset = 0
        self._dropped = False
        self.next = 0

    @property
    def kept(self) -> bool:
        """Whether all of the answer is still there."""
        return self._recording.kept

    @property
    def dropped(self) -> bool:
        """Whether it fell behind further than is kept."""
        return self._dropped

    def drop(self) -> None:
        """It fell behind: it gets nothing more."""
        self._dropped = True
        self.close()

    def close(self) -> None:
        """Leave. Idempotent."""
        self._recording.readers.discard(self)
        self._recording.passed(self)

    async def head(self) -> RecordedHead:
        """The head, once it is known."""
        recording = self._recording
        while recording.head is None:
            await recording.news()
        return recording.head

    def ready(self) -> list[bytes]:
        """What can be read without waiting.

        Raises:
            TooSlow: when the reader was dropped.
        """
        if self._dropped:
            raise TooSlow
        recording, pieces = self._recording, []
        while (piece := recording.available(self.next, self._offset)) is not None:
            pieces.append(piece)
            self.next += 1
            self._offset += len(piece)
        recording.passed(self)
        return pieces

    def rest(self) -> list[bytes]:
        """All that has come and was not read, released or not; then the reader is closed."""
        pieces = self._recording.pieces(self.next)
        self.close()
        return pieces

    async def read(self) -> bytes:
        """The next bytes; b"" at the end, proper or not.

        Raises:
            TooSlow: when the reader was dropped.
        """
        recording = self._recording
        while True:
            if self._dropped:
                raise TooSlow
            piece = recording.available(self.next, self._offset)
            if piece is not None:
                self.next += 1
                self._offset += len(piece)
                recording.passed(self)
                return piece
            if recording.ended:
                return b""
            await recording.news()
