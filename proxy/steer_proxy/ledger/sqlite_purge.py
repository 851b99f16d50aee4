"""Removing what is over from a SQLite ledger, so that nobody notices.

What to remove is looked up beside the writer, by a reader of the purge's own, however long that
takes; the writer gets the rows to remove in portions of about a millisecond, and other work between
them. Every removal asks again whether the row may go: in the meantime it may have come to life.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from steer_proxy.ledger import statements
from steer_proxy.ledger.statements import positional
from steer_proxy.ledger.values import Purge, Purged

#: Rows removed in one go, with their indexes' entries.
PORTION: Final = 25
#: Chunks removed in one go: of up to 64 KiB each, with a page to free for every 4 KiB.
CHUNKS: Final = 16
#: Measuring all answers may take no more than this part of the time.
SHARE: Final = 0.01

_T = TypeVar("_T")


class Run(Protocol):
    """Has a function of a connection called in that connection's thread."""

    def __call__(self, function: Callable[..., _T], *arguments: Any) -> Awaitable[_T]:
        """Wait for what it returns."""
        ...


@dataclass(slots=True)
class _Count:
    requests: int = 0
    attempts: int = 0
    chunks: int = 0
    events: int = 0

    @property
    def rows(self) -> int:
        return self.requests + self.attempts + self.chunks + self.events


class Purger:
    """Removes slices. `write` is the writer, `read` reads what is committed."""

    def __init__(self, write: Run, read: Run) -> None:
        self._write = write
        self._read = read
        self._doomed: deque[str] = deque()
        """Records whose chunks are to go. If this process dies first, they go with their rows."""
        self._excess = 0
        """Bytes of answers that are still too many."""
        self._measure_after = 0.0

    async def slice(self, purge: Purge, now: int) -> Purged:
        """Remove one slice: about `purge.limit` rows."""
        count = _Count()
        more = await self._chunks(count, purge.limit)
        if not more:
            more = await self._expire(purge, now)
            more |= await self._evict(purge)
            more |= await self._chunks(count, purge.limit)
        if count.rows < purge.limit:
            more |= await self._calls(count, purge)
        if count.rows < purge.limit:
            more |= await self._strays(count, purge)
            count.events = await self._write(_delete_events, purge.before_us, purge.limit)
            more |= count.events >= purge.limit
            await self._write(_delete_owners, purge.before_us, now)
        return Purged(count.requests, count.attempts, count.chunks, count.events, more=more)

    async def _expire(self, purge: Purge, now: int) -> bool:
        """Free expired keys; whether there may be more."""
        ids = await self._read(_expired, now, purge.limit)
        for portion in _portions(ids):
            self._doomed.extend(await self._write(_expire, portion, now))
        return len(ids) >= purge.limit

    async def _evict(self, purge: Purge) -> bool:
        """Doom the oldest answers if they are too many bytes; whether there may be more."""
        if purge.max_bytes is None:
            return False
        if self._excess <= 0:
            self._excess = await self._measure(purge.max_bytes)
        if self._excess <= 0:
            return False
        oldest = await self._read(_oldest, purge.limit)
        if not oldest:
            self._excess = 0
        chosen: list[str] = []
        for id_, size in oldest:
            if self._excess <= 0:
                break
            chosen.append(id_)
            self._excess -= size
        for portion in _portions(chosen):
            await self._write(_forget, portion)
            self._doomed.extend(portion)
        return self._excess > 0

    async def _measure(self, max_bytes: int) -> int:
        """How many bytes of answers are too many. Measuring reads all of them, so it is done only
        when the file is larger than they may be, and seldom where it takes long."""
        if time.monotonic() < self._measure_after:
            return 0
        excess, took = await self._read(_excess, max_bytes)
        if took * SHARE >= 0.0001:
            self._measure_after = time.monotonic() + took / SHARE
        return excess

    async def _chunks(self, count: _Count, limit: int) -> bool:
        """Remove chunks of doomed answers; whether some are left."""
        while self._doomed and count.rows < limit:
            portion = list(self._doomed)[:PORTION]
            done, removed = await self._write(_delete_chunks, portion)
            count.chunks += removed
            for _ in range(done):
                self._doomed.popleft()
        return bool(self._doomed)

    async def _calls(self, count: _Count, purge: Purge) -> bool:
        ids = await self._read(_old_calls, purge.before_us, purge.limit)
        for portion in _portions(ids):
            requests, attempts, chunks = await self._write(_delete_calls, portion)
            count.requests += requests
            count.attempts += attempts
            count.chunks += chunks
            if count.rows >= purge.limit:
                return True
        return len(ids) >= purge.limit

    async def _strays(self, count: _Count, purge: Purge) -> bool:
        keys = await self._read(_strays, purge.before_us, purge.limit)
        for portion in _portions(keys):
            count.attempts += await self._write(_delete_attempts, portion)
        return len(keys) >= purge.limit


def _portions(items: Sequence[_T]) -> list[Sequence[_T]]:
    return [items[start : start + PORTION] for start in range(0, len(items), PORTION)]


# --- In the readers' thread -----------------------------------------------------------------------

_EXPIRED: Final = positional(statements.EXPIRED).text
_OLD_CALLS: Final = positional(statements.OLD_CALLS).text
_STRAY_ATTEMPTS: Final = positional(statements.STRAY_ATTEMPTS).text
_OLDEST_ANSWERS: Final = positional(statements.OLDEST_ANSWERS).text


def _expired(connection: sqlite3.Connection, now: int, limit: int) -> list[str]:
    return [id_ for (id_,) in connection.execute(_EXPIRED, (now, now, now, limit))]


def _old_calls(connection: sqlite3.Connection, before: int, limit: int) -> list[str]:
    return [id_ for (id_,) in connection.execute(_OLD_CALLS, (before, before, limit))]


def _strays(connection: sqlite3.Connection, before: int, limit: int) -> list[tuple[str, int]]:
    return connection.execute(_STRAY_ATTEMPTS, (before, limit)).fetchall()


def _oldest(connection: sqlite3.Connection, limit: int) -> list[tuple[str, int]]:
    return connection.execute(_OLDEST_ANSWERS, (limit,)).fetchall()


def _excess(connection: sqlite3.Connection, max_bytes: int) -> tuple[int, float]:
    """Bytes of answers beyond the most allowed, and the seconds it took to find out."""
    began = time.monotonic()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    if (pages - free) * size <= max_bytes:
        return 0, 0.0
    (stored,) = connection.execute(statements.STORED_BYTES).fetchone()
    return stored - max_bytes, time.monotonic() - began


# --- In the writer's thread -----------------------------------------------------------------------

_EXPIRE: Final = positional(statements.EXPIRE).text
_FORGET_ANSWER: Final = positional(statements.FORGET_ANSWER).text
_DELETE_SOME_CHUNKS: Final = positional(statements.DELETE_SOME_CHUNKS).text
_DELETE_CHUNKS: Final = positional(statements.DELETE_CHUNKS).text
_DELETE_CALL: Final = positional(statements.DELETE_CALL).text
_DELETE_ATTEMPTS: Final = positional(statements.DELETE_ATTEMPTS).text
_DELETE_ATTEMPT: Final = positional(statements.DELETE_ATTEMPT).text
_DELETE_EVENTS: Final = positional(statements.DELETE_EVENTS).text
_DELETE_OWNERS: Final = positional(statements.DELETE_OWNERS).text


def _expire(connection: sqlite3.Connection, ids: Sequence[str], now: int) -> list[str]:
    """Free keys; which of them."""
    return [id_ for id_ in ids if connection.execute(_EXPIRE, (id_, now, now, now)).rowcount]


def _forget(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Have nobody begin to read answers that are about to go; their keys stay used."""
    for id_ in ids:
        connection.execute(_FORGET_ANSWER, (id_,))


def _delete_chunks(connection: sqlite3.Connection, ids: Sequence[str]) -> tuple[int, int]:
    """Remove at most CHUNKS chunks; how many of the answers are gone, and how many chunks."""
    removed = 0
    for place, id_ in enumerate(ids):
        room = CHUNKS - removed
        removed += connection.execute(_DELETE_SOME_CHUNKS, (id_, id_, room)).rowcount
        if removed >= CHUNKS:
            return place, removed
    return len(ids), removed


def _delete_calls(connection: sqlite3.Connection, ids: Sequence[str]) -> tuple[int, int, int]:
    """Remove rows that are over, with what belongs to them; how many of each table."""
    requests = attempts = chunks = 0
    for id_ in ids:
        if connection.execute(_DELETE_CALL, (id_,)).rowcount:
            requests += 1
            attempts += connection.execute(_DELETE_ATTEMPTS, (id_,)).rowcount
            chunks += connection.execute(_DELETE_CHUNKS, (id_,)).rowcount
    return requests, attempts, chunks


def _delete_attempts(connection: sqlite3.Connection, keys: Sequence[tuple[str, int]]) -> int:
    return sum(connection.execute(_DELETE_ATTEMPT, key).rowcount for key in keys)


def _delete_events(connection: sqlite3.Connection, before: int, limit: int) -> int:
    return connection.execute(_DELETE_EVENTS, (before, limit)).rowcount


def _delete_owners(connection: sqlite3.Connection, before: int, now: int) -> None:
    connection.execute(_DELETE_OWNERS, (before, now))
