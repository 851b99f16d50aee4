"""A ledger under test, with what a test needs around it.

Every implementation has one `Subject`; the contract's tests know nothing else of it. A test makes
its own, inside its own event loop:

    async def test_something(subjects: Subjects) -> None:
        async with subjects() as subject:
            await subject.ledger.claim(...)
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.protocol import Ledger
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.values import MICROSECONDS

#: Where walls begin: 2023-11-14 22:13:20 UTC.
EPOCH = 1_700_000_000.0

LOG_TABLES = ("requests", "attempts", "breaker_events")


class Wall:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> float:
        return self.now


class Subject(ABC):
    """An open ledger, its time, and a look at its tables."""

    ledger: Ledger

    @abstractmethod
    def now_us(self) -> int:
        """The ledger's time, in Unix microseconds: what a caller writes into `started_us`."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass for leases and expiries (a database that has its own time may shift
        those instead)."""

    @abstractmethod
    async def reopen(self) -> None:
        """Close the ledger, and open a new one on the same data (`ledger` is replaced)."""

    @abstractmethod
    async def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, as another program reads them."""

    async def row(self, id_: str) -> dict[str, Any]:
        """One row of `requests`."""
        return next(row for row in await self.rows("requests") if row["id"] == id_)


Subjects = Callable[[], AbstractAsyncContextManager[Subject]]


class MemorySubject(Subject):
    """The memory twin."""

    ledger: MemoryLedger

    def __init__(self) -> None:
        self.wall = Wall()
        self.ledger = MemoryLedger(self.wall)

    def now_us(self) -> int:
        return int(self.wall.now * MICROSECONDS)

    async def advance(self, seconds: float) -> None:
        self.wall.now += seconds

    async def reopen(self) -> None:
        """Nothing outlives it: it goes on."""
        await self.ledger.close()
        await self.ledger.open()

    async def rows(self, table: str) -> list[dict[str, Any]]:
        kept: dict[str, Any] = {
            "requests": self.ledger.calls.values(),
            "attempts": self.ledger.attempts.values(),
            "breaker_events": self.ledger.events.values(),
            "response_chunks": [
                chunk for each in self.ledger._chunks.values() for chunk in each.values()
            ],
        }
        return [row._asdict() for row in kept[table]]


class SqliteSubject(Subject):
    """A file in a folder of the test's."""

    ledger: SqliteLedger

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wall = Wall()
        self.ledger = SqliteLedger(path, self.wall)

    def now_us(self) -> int:
        return int(self.wall.now * MICROSECONDS)

    async def advance(self, seconds: float) -> None:
        self.wall.now += seconds

    async def reopen(self) -> None:
        await self.ledger.close()
        self.ledger = SqliteLedger(self.path, self.wall)
        await self.ledger.open()

    async def rows(self, table: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as reader:
            reader.row_factory = sqlite3.Row
            return [dict(row) for row in reader.execute(f"SELECT * FROM {table}")]


def memory_subjects(_: Path) -> Subjects:
    """Makes subjects in memory."""

    @asynccontextmanager
    async def subjects() -> AsyncIterator[Subject]:
        subject = MemorySubject()
        await subject.ledger.open()
        yield subject
        await subject.ledger.close()

    return subjects


def sqlite_subjects(folder: Path) -> Subjects:
    """Makes subjects in files."""

    @asynccontextmanager
    async def subjects() -> AsyncIterator[Subject]:
        subject = SqliteSubject(folder / "steer.db")
        await subject.ledger.open()
        try:
            yield subject
        finally:
            await subject.ledger.close()

    return subjects
