"""Concurrency limits: so many calls at once to an upstream, so many more waiting, no others."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from steer_policies.config import ConcurrencyLimit


class QueueFull(Exception):
    """No slot is free and as many callers wait as may."""


class QueueTimeout(Exception):
    """No slot became free within the time given."""


class Slots:
    """A fair, bounded semaphore: first come, first served, and never more waiters than `queue`."""

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self.limit: Final = limit
        self.busy = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many callers wait for a slot."""
        return len(self._waiters)

    @property
    def free(self) -> bool:
        """Whether a slot is free and nobody waits for it."""
        return self.busy < self.limit.limit and not self._waiters

    def try_acquire(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self.free:
            self.busy += 1
            return True
        return False

    async def acquire(self, timeout: float) -> None:
        """Take a slot, waiting at most `timeout` seconds.

        Raises:
            QueueFull: at once, when the queue has no room.
            QueueTimeout: when the time passed.
        """
        if self.try_acquire():
            return
        if len(self._waiters) >= self.limit.queue:
            raise QueueFull
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                # The slot was handed over in the same instant as we stopped waiting: pass it on.
                self.release()
            else:
                with suppress(ValueError):  # a release may have dropped us already
                    self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise QueueTimeout from None
            raise

    def release(self) -> None:
        """Give a slot back, or hand it to who has waited longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.busy -= 1
