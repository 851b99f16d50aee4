"""Request bodies that can be sent again: in memory while small, in a temporary file when large."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Final

from aiohttp import StreamReader

from steer_proxy.engine.config import Limits

#: Bytes read from or written to a spool file at once.
PIECE: Final = 256 * 1024


class BodyTooLarge(Exception):
    """The body exceeds the configured limit."""


class BodyTooSlow(Exception):
    """The caller stopped sending its body."""


class MemoryBudget:
    """How much memory all request bodies together may use, in bytes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def reserve(self, size: int) -> bool:
        """Take `size` bytes if they are there."""
        if self.used + size > self.total:
            return False
        self.used += size
        return True

    def free(self, size: int) -> None:
        """Give bytes back."""
        self.used -= size


class ReplayBody:
    """A whole request body; send it as often as needed, then `close` it.

    `memory` holds it when it is small; otherwise `pieces` reads it from its file.
    """

    __slots__ = ("_budget", "_file", "_reserved", "memory", "size")

    def __init__(
        self,
        memory: bytes | None,
        size: int,
        *,
        file: IO[bytes] | None = None,
        budget: MemoryBudget | None = None,
        reserved: int = 0,
    ) -> None:
        self.memory = memory
        self.size = size
        self._file = file
        self._budget = budget
        self._reserved = reserved

    async def read(self) -> bytes:
        """The whole body; for a spooled one this takes its size in memory, so let go of it soon."""
        if self.memory is not None:
            return self.memory
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body from its beginning, in pieces. Every reader has its own position."""
        if self.memory is not None:
            yield self.memory
            return
        position = 0
        while position < self.size:
            piece = await asyncio.to_thread(self._piece, position)
            if not piece:
                return
            position += len(piece)
            yield piece

    def _piece(self, position: int) -> bytes:
        if self._file is None:
            return b""
        self._file.seek(position)
        return self._file.read(PIECE)

    def close(self) -> None:
        """Give back the memory or remove the file. Idempotent."""
        if self._budget is not None:
            self._budget.free(self._reserved)
            self._budget = None
        if self._file is not None:
            self._file.close()
            self._file = None
        self.memory = b"" if self.memory is None else self.memory


EMPTY: Final = ReplayBody(b"", 0)


async def read_body(
    content: StreamReader, declared: int | None, limits: Limits, budget: MemoryBudget
) -> ReplayBody:
    """Read a caller's body to its end.

    Raises:
        BodyTooLarge: as soon as it is known, before reading when `declared` says so.
        BodyTooSlow: when nothing came for `limits.body_timeout` seconds.
    """
    if declared is not None and declared > limits.max_body:
        raise BodyTooLarge
    if content.is_eof() and content.total_bytes == 0:
        return EMPTY
    held = bytearray()
    reserved = 0
    file: IO[bytes] | None = None
    size = 0
    try:
        while True:
            piece = await _next_piece(content, limits.body_timeout)
            if not piece:
                break
            size += len(piece)
            if size > limits.max_body:
                raise BodyTooLarge
            held += piece
            if len(held) > reserved:
                wanted = len(held) - reserved
                fits = size <= limits.spool_above and budget.reserve(wanted)
                reserved += wanted if fits else 0
                if not fits:
                    if file is None:
                        file = tempfile.TemporaryFile(prefix="steer-body-")  # noqa: SIM115
                    await asyncio.to_thread(file.write, held)
                    held = bytearray()
        if file is None:
            return ReplayBody(bytes(held), size, budget=budget, reserved=reserved)
        if held:
            await asyncio.to_thread(file.write, held)
        await asyncio.to_thread(file.flush)
        budget.free(reserved)
        return ReplayBody(None, size, file=file)
    except BaseException:
        budget.free(reserved)
        if file is not None:
            file.close()
        raise


async def _next_piece(content: StreamReader, patience: float) -> bytes:
    if (piece := content.read_nowait(-1)) or content.at_eof():
        return piece
    try:
        async with asyncio.timeout(patience):
            return await content.readany()
    except TimeoutError:
        raise BodyTooSlow from None
