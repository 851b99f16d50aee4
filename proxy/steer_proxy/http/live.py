"""Streams under way, written to a ledger that other processes read: now and then, all together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.http.recording import Reader, RecordedHead
from steer_proxy.http.stored import Chunker, head_text
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import ChunkRow, Ref

LOGGER: Final = logging.getLogger("steer.ledger")

#: The most of a stream that waits for the ledger, in chunks: then its recording holds it up.
MOST_WAITING: Final = 16

#: How long a stream's new bytes may wait for others to be written with, in seconds.
EVERY: Final = 0.1


class LiveStream:
    """One stream's way into the ledger."""

    def __init__(
        self, books: Bookkeeper, ref: Ref, status: int, head: RecordedHead, reader: Reader
    ) -> None:
        self.ref = ref
        self.chunker = Chunker(books.sealer, ref.id)
        self.reader = reader
        self.status = status
        self.head: str | None = books.sealer.seal_head(ref.id, head_text(head))
        """Until it is written."""
        self.unwritten: list[ChunkRow] = []


class LiveStreams:
    """Writes what is new of all streams, while there are any."""

    def __init__(self, books: Bookkeeper, now_us: Callable[[], int]) -> None:
        self._books = books
        self._now_us = now_us
        self._streams: set[LiveStream] = set()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def add(self, stream: LiveStream) -> None:
        """Write a stream as it comes, from now on."""
        self._streams.add(stream)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def finish(self, stream: LiveStream, at_us: int) -> list[ChunkRow]:
        """The rest of a stream that has come whole: chunks that were not written yet."""
        async with self._writing:
            self._streams.discard(stream)
            stream.unwritten += await stream.chunker.cut(stream.reader.rest(), at_us)
            return stream.unwritten

    def drop(self, stream: LiveStream) -> None:
        """A stream that is not to be kept. Idempotent."""
        self._streams.discard(stream)
        stream.reader.close()

    async def close(self) -> None:
        """Stop writing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._streams:
            await asyncio.sleep(EVERY)
            async with self._writing:
                await self._write()

    async def _write(self) -> None:
        at_us = self._now_us()
        chunks: list[ChunkRow] = []
        try:
            for stream in tuple(self._streams):
                if not stream.reader.kept:
                    await self._take_back(stream)
                    continue
                waits = len(stream.unwritten) >= MOST_WAITING
                if not waits and (pieces := stream.reader.ready()):
                    stream.unwritten += await stream.chunker.cut(pieces, at_us)
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
        for stream in self._streams:
            if stream.head is None:
                stream.unwritten = []

    async def _take_back(self, stream: LiveStream) -> None:
        """An answer that is too large to be stored is not to fill the ledger meanwhile either: who
        follows it is told."""
        self.drop(stream)
        if stream.head is None:
            await self._books.ledger.drop_chunks(stream.ref)
