"""A bookkeeper over a ledger that fails on demand, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.config import LedgerTerms
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import AttemptRow, CallRow
from tests.support.faulty_ledger import FaultyLedger
from tests.support.sidecar import EPOCH


def a_clock() -> Clock:
    """The loop's own time, a fixed date, and the middle of every die."""
    now = asyncio.get_running_loop().time
    return Clock(now=now, wall=lambda: EPOCH + now(), jitter=lambda: 0.5)


def a_call(name: str, **more: Any) -> CallRow:
    """A row of the log."""
    return CallRow(id=name, request_id=f"request of {name}", **more)


def an_attempt(name: str, n: int = 1, **more: Any) -> AttemptRow:
    """A row of one of its attempts."""
    return AttemptRow(request=name, n=n, upstream="openai", **more)


class Books:
    """A bookkeeper, the ledger it keeps, and what that ledger has."""

    def __init__(
        self, terms: LedgerTerms, clock: Clock | None = None, *, shared: bool = False, **more: Any
    ) -> None:
        self.clock = clock or a_clock()
        self.memory = MemoryLedger(self.clock.wall, shared=shared)
        self.ledger = FaultyLedger(self.memory)
        self.keeper = Bookkeeper(self.ledger, terms, self.clock, instance="here", **more)

    @property
    def calls(self) -> list[str]:
        """The ids of the calls that were written, in order."""
        return list(self.memory.calls)

    def leased(self) -> bool:
        """Whether there is a valid lease now."""
        return self.keeper.leased

    def trouble(self) -> str | None:
        """Why the ledger cannot be reached."""
        return self.keeper.trouble


@contextlib.asynccontextmanager
async def keeping(terms: LedgerTerms | None = None, **more: Any) -> AsyncIterator[Books]:
    """A bookkeeper at work, past its first renewal."""
    books = Books(terms or LedgerTerms(), **more)
    async with books.keeper:
        for _ in range(5):
            await asyncio.sleep(0)
        yield books
