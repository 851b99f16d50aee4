"""What has to be written down before anything of a call is sent, and a slot is no place to wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

#: How long a slot is held meanwhile, in seconds: many times what a ledger takes that is well.
MOMENT: Final = 0.1


class Announcement(Protocol):
    """That a call is about to be sent, as somebody must be able to know after a crash."""

    @property
    def announced(self) -> bool:
        """Whether it may be sent at once."""

    async def announce(self) -> None:
        """See to it that it may; ends the call when it raises."""


@contextlib.asynccontextmanager
async def announcing(announcement: Announcement) -> AsyncIterator[asyncio.Task[None]]:
    """The announcement on its way; who leaves before it has come there calls it back."""
    task = asyncio.create_task(announcement.announce())
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def soon(task: asyncio.Task[None]) -> bool:
    """Whether it is done within a moment."""
    await asyncio.wait((task,), timeout=MOMENT)
    return task.done()
