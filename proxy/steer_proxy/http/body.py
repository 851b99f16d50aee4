"""Request bodies that can be sent again: in memory while small, in a temporary file when large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from steer_proxy.engine.config import Limits
from steer_proxy.http.spool import Spool

#: Bytes read from or written to a spool file at once.
PIECE: Final = 256 * 1024

#: A caller whose body comes more slowly than this is not waited for longer than for one that does
#: not come at all, in bytes per second: else a byte now and then would hold a connection for ever.
LEAST_RATE: Final = 256


class BodyTooLarge(Exception):
    """The body exceeds the configured limit."""


class BodyTooSlow(Exception):
    """The caller stopped sending its body."""


class BodyBroken(Exception):
    """The body's framing is wrong; the message says how."""


class BodyNotKept(Exception):
    """The body fits neither in the memory set aside nor on the disk."""


class MemoryBudget:
    """How much memory all request bodies together may use, in bytes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        #: Held by whoever has a body from the disk in memory for a moment.
        self.one_large = asyncio.Lock()

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

    __slots__ = ("_budget", "_reserved", "_spool", "memory", "size")

    def __init__(
        self,
        memory: bytes | None,
        size: int,
        *,
        spool: Spool | None = None,
        budget: MemoryBudget | None = None,
        reserved: int = 0,
    ) -> None:
        self.memory = memory
        self.size = size
        self._spool = spool
        self._budget = budget
        self._reserved = reserved

    async def read(self) -> bytes:
        """The whole body; for a spooled one this takes its size in memory, so let go of it soon."""
        if self.memory is not None:
            return self.memory
        return b"" if self._spool is None else await self._spool.read(0, self.size)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body from its beginning, in pieces. Every reader has its own position."""
        if self.memory is not None:
            yield self.memory
            return
        position = 0
        while position < self.size and self._spool is not None:
            piece = await self._spool.read(position, PIECE)
            if not piece:
                return
            position += len(piece)
            yield piece

    def close(self) -> None:
        """Give back the memory or remove the file. Idempotent."""
        if self._budget is not None:
            self._budget.free(self._reserved)
            self._budget = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self.memory is not None:
            self.memory = b""


EMPTY: Final = ReplayBody(b"", 0)


async def read_body(
    content: StreamReader, declared: int | None, limits: Limits, budget: MemoryBudget
) -> ReplayBody:
    """Read a caller's body to its end.

    Raises:
        BodyTooLarge: as soon as it is known, before reading when `declared` says so.
        BodyTooSlow: when nothing came for `limits.body_timeout` seconds, or hardly anything.
        BodyBroken: when its framing is wrong.
        BodyNotKept: when it cannot be written to disk.
    """
    if declared is not None and declared > limits.max_body:
        raise BodyTooLarge
    if (
        declared is not None
        and content.is_eof()
        and declared == content.total_bytes <= limits.spool_above
        and content.exception() is None
        and budget.reserve(declared)
    ):
        # Nearly always: small, and all there already.
        return ReplayBody(content.read_nowait(-1), declared, budget=budget, reserved=declared)
    keeping = _Keeping(limits, budget)
    pieces = _Pieces(content, limits.body_timeout)
    try:
        while piece := await pieces.next():
            if pieces.size > limits.max_body:
                raise BodyTooLarge
            await keeping.add(piece)
        return await keeping.body()
    finally:
        keeping.let_go()


class _Pieces:
    """What comes of a body, with a limit on each wait and on all of them together."""

    def __init__(self, content: StreamReader, patience: float) -> None:
        self._content = content
        self._patience = patience
        self._began = asyncio.get_running_loop().time()
        self.size = 0

    async def next(self) -> bytes:
        """The next bytes; b"" at the end."""
        content = self._content
        try:
            piece = content.read_nowait(-1)
            if not piece and not content.at_eof():
                piece = await self._wait()
        except RequestPayloadError as error:
            raise BodyBroken(str(error)) from error
        self.size += len(piece)
        return piece

    async def _wait(self) -> bytes:
        now = asyncio.get_running_loop().time()
        earned = self._began + self._patience + self.size / LEAST_RATE
        try:
            async with asyncio.timeout_at(min(now + self._patience, earned)):
                return await self._content.readany()
        except TimeoutError:
            raise BodyTooSlow from None


class _Keeping:
    """Where a body that is being read is kept: in memory, and all of it on disk from some size on.

    The memory of all bodies together is bounded; when it is used up, smaller ones go to disk, too.
    """

    def __init__(self, limits: Limits, budget: MemoryBudget) -> None:
        self._limits = limits
        self._budget = budget
        self._held: bytes | bytearray = b""
        self._size = 0
        self._reserved = 0
        self._spool: Spool | None = None

    async def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if not self._held:
            self._held = piece
        else:
            if isinstance(self._held, bytes):
                self._held = bytearray(self._held)
            self._held += piece
        if self._spool is None:
            if self._size <= self._limits.spool_above and self._budget.reserve(len(piece)):
                self._reserved += len(piece)
                return
            self._spool = Spool()
        if len(self._held) >= PIECE:
            await self._write()

    async def _write(self) -> None:
        if self._spool is None or not self._held:
            return
        data, self._held = self._held, b""
        self._budget.free(self._reserved)
        self._reserved = 0
        try:
            await self._spool.append(data)
        except OSError as error:
            raise BodyNotKept(error.strerror or type(error).__name__) from error

    async def body(self) -> ReplayBody:
        """The body, complete; memory and file are its own from now on."""
        await self._write()
        if self._spool is None:
            memory = bytes(self._held)  # the very same object when it came in one piece
            body = ReplayBody(memory, self._size, budget=self._budget, reserved=self._reserved)
        else:
            body = ReplayBody(None, self._size, spool=self._spool)
        self._spool, self._reserved, self._held = None, 0, b""
        return body

    def let_go(self) -> None:
        """Give back what no body has taken over."""
        self._budget.free(self._reserved)
        self._reserved = 0
        if self._spool is not None:
            self._spool.close()
