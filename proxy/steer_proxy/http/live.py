"""Streams under way, written to a ledger that other processes read: now and then, all together.

One that grows too large to be stored is taken back, unless others follow it by then: they get the
rest, through a window that moves on with it, and what is left of it goes some time after its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.http.recording import PATIENCE, Reader
from steer_proxy.http.stored import Chunker
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import ChunkRow, Ref

LOGGER: Final = logging.getLogger("steer.ledger")

#: The most of a stream that waits for the ledger, in chunks: then its recording holds it up.
MOST_WAITING: Final = 16

#: How much of an answer that is too large to be stored is in the ledger for those who follow it, in
#: bytes: who asks four times a second for a megabyte is not so far behind.
WINDOW: Final = 4 * 1024 * 1024

#: How much more it may be, so that not every write is followed by a removal.
SLACK: Final = WINDOW // 4

#: How long its end stays for them, in seconds: as long as their slowest reader may take.
LINGER: Final = PATIENCE

#: Ends that are removed in time; others go when their keys expire.
MOST_LINGERING: Final = 1_000

#: How long a stream's new bytes may wait for others to be written with, in seconds.
EVERY: Final = 0.1


class LiveStream:
    """One stream's way into the ledger."""

    def __init__(self, books: Bookkeeper, ref: Ref, status: int, head: str, reader: Reader) -> None:
        self.ref = ref
        self.chunker = Chunker(books.sealer, ref.id)
        self.reader = reader
        self.status = status
        self.head: str | None = head
        """Its head as it is stored, until it is written."""
        self.unwritten: list[ChunkRow] = []
        self.trimmed = 0
        """How many of its first bytes are gone from the ledger."""
        self.passing = False
        """Whether it is only passed on to who follows it: it is too large to be stored."""
        self.cutting = asyncio.Lock()


class LiveStreams:
    """Writes what is new of all streams, while there are any."""

    def __init__(self, books: Bookkeeper, now_us: Callable[[], int]) -> None:
        self._books = books
        self._now_us = now_us
        self._streams: set[LiveStream] = set()
        self._lingering: deque[tuple[float, Ref]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, stream: LiveStream) -> None:
        """Write a stream as it comes, from now on."""
        self._streams.add(stream)
        self._work()

    def _work(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def passes_on(self, stream: LiveStream) -> bool:
        """Whether an answer that is too large to be stored still goes to others: to those who
        followed it before it was."""
        stream.passing = (
            stream in self._streams
            and not stream.reader.dropped
            and self._books.ledger.followed(stream.ref.id)
        )
        return stream.passing

    async def finish(self, stream: LiveStream, at_us: int) -> list[ChunkRow]:
        """The rest of a stream that has come whole: chunks that are not known to be written.

        The ledger is not waited for, however many streams are being written: what is under way is
        written once more.
        """
        self._streams.discard(stream)
        async with stream.cutting:
            stream.unwritten += await stream.chunker.cut(stream.reader.rest(), at_us)
            return stream.unwritten

    def drop(self, stream: LiveStream) -> None:
        """A stream that is over, or not to be kept. Idempotent."""
        self._streams.discard(stream)
        stream.reader.close()
        if stream.passing and len(self._lingering) < MOST_LINGERING:
            stream.passing = False
            self._lingering.append((asyncio.get_running_loop().time() + LINGER, stream.ref))
            self._work()

    async def close(self) -> None:
        """Stop writing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._streams or self._lingering:
            await asyncio.sleep(EVERY)
            await self._write()
            await self._remove()

    async def _write(self) -> None:
        at_us = self._now_us()
        chunks: list[ChunkRow] = []
        try:
            for stream in tuple(self._streams):
                if not await self._cut(stream, at_us):
                    continue
                if stream.head is not None:
                    if not await self._books.ledger.begin_answer(
                        stream.ref, stream.status, stream.head, self._books.sealer.key_id
                    ):
                        continue
                    stream.head = None
                chunks += stream.unwritten
            if chunks:
                await self._books.ledger.add_chunks(chunks)
        except LedgerUnavailable as error:
            LOGGER.debug("live chunks wait: %s", error)
            return
        for stream in tuple(self._streams):
            if stream.head is None:
                stream.unwritten = []
            if stream.passing:
                await self._trim(stream)

    async def _cut(self, stream: LiveStream, at_us: int) -> bool:
        """Cut what is new into chunks; whether the stream is to be written. Not when it has come to
        its end while others were."""
        if stream not in self._streams:
            return False
        waits = len(stream.unwritten) >= MOST_WAITING
        # Who follows a large one holds up nobody here.
        if not stream.reader.kept and (waits or not self.passes_on(stream)):
            await self._take_back(stream)
            return False
        async with stream.cutting:
            if stream not in self._streams:
                return False
            if not waits and (pieces := stream.reader.ready()):
                stream.unwritten += await stream.chunker.cut(pieces, at_us)
        return True

    async def _trim(self, stream: LiveStream) -> None:
        """Move the window on."""
        before = stream.chunker.size - WINDOW
        if before >= stream.trimmed + SLACK:
            with contextlib.suppress(LedgerUnavailable):  # the next time, then
                await self._books.ledger.trim_chunks(stream.ref, before)
                stream.trimmed = before

    async def _remove(self) -> None:
        """What stayed long enough after its end."""
        now = asyncio.get_running_loop().time()
        while self._lingering and self._lingering[0][0] <= now:
            _, ref = self._lingering.popleft()
            try:
                await self._books.ledger.drop_chunks(ref)
            except LedgerUnavailable:
                self._lingering.append((now + LINGER, ref))
                return

    async def _take_back(self, stream: LiveStream) -> None:
        """An answer that is too large to be stored is not to fill the ledger meanwhile either."""
        stream.passing = False
        self.drop(stream)
        if stream.head is None:
            await self._books.ledger.drop_chunks(stream.ref)
