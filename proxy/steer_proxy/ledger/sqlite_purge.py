"""Removing what is over from a SQLite ledger, so that nobody notices.

What to remove is looked up beside the writer, by a reader of the purge's own, however long that
takes; the writer gets few statements with the rows to remove in them. Every removal asks again
whether the row may go: in the meantime it may have come to life.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from steer_proxy.ledger import statements
from steer_proxy.ledger.statements import positional
from steer_proxy.ledger.values import Purge, Purged

#: Bytes of chunks removed in one go, but for a first one: each page of 4 KiB has to be freed.
MOST_BYTES: Final = 2**20
#: Measuring all answers may take no more than this part of the time.
SHARE: Final = 0.01

_T = TypeVar("_T")


class Run(Protocol):
    """Has a function of a connection called in that connection's thread."""

    def __call__(self, function: Callable[..., _T], *arguments: Any) -> Awaitable[_T]:
        """Wait for what it returns."""
        ...


@dataclass(slots=True)
class _Slice:
    """What a slice may and did remove."""

    purge: Purge
    now: int
    room: int
    """Rows that may still be removed (a call's attempts go with it)."""
    requests: int = 0
    attempts: int = 0
    chunks: int = 0
    events: int = 0
    keys: int = 0
    stored_bytes: int = 0
    busy: float = 0.0

    def purged(self, *, more: bool) -> Purged:
        """What it came to."""
        return Purged(
            requests=self.requests,
            attempts=self.attempts,
            chunks=self.chunks,
            events=self.events,
            keys=self.keys,
            stored_bytes=self.stored_bytes,
            more=more,
            busy=self.busy,
        )


class Purger:
    """Removes slices. `write` is the writer, `read` reads what is committed."""

    def __init__(self, write: Run, read: Run) -> None:
        self._write = write
        self._read = read
        self._doomed: dict[str, None] = {}
        """Calls whose chunks are to go, in order. If this process dies first, they go when their
        rows do."""
        self._excess = 0
        """Bytes of answers that are still too many."""
        self._measure_after = 0.0
        self._after = 0
        """Where the search for old calls goes on: what is live is not read again and again."""

    async def slice(self, purge: Purge, now: int) -> Purged:
        """Remove one slice: about `purge.limit` rows."""
        work = _Slice(purge, now, room=purge.limit)
        more = await self._chunks(work)
        for step in (
            self._expire,
            self._evict,
            self._chunks,
            self._calls,
            self._strays,
            self._others,
        ):
            if work.room <= 0:
                more = True
                break
            more |= await step(work)
        return work.purged(more=more)

    async def _expire(self, work: _Slice) -> bool:
        """Free expired keys; whether there may be more."""
        ids = await self._read(_expired, work.now, work.room)
        if not ids:
            return False
        keys, freed = await self._remove(work, _expire, ids, work.now)
        work.keys += keys
        self._doomed.update(dict.fromkeys(freed))
        more = len(ids) >= work.room
        work.room -= len(ids)
        return more

    async def _evict(self, work: _Slice) -> bool:
        """Doom the oldest answers if they are too many bytes; whether there may be more."""
        if work.purge.max_bytes is None:
            return False
        if self._excess <= 0:
            self._excess = await self._measure(work.purge.max_bytes)
        if self._excess <= 0:
            return False
        oldest = await self._read(_oldest, work.room)
        if not oldest:
            self._excess = 0
        chosen: list[str] = []
        for id_, size in oldest:
            if self._excess <= 0:
                break
            chosen.append(id_)
            self._excess -= size
        if chosen:
            await self._remove(work, _forget, chosen)
            self._doomed.update(dict.fromkeys(chosen))
            work.room -= len(chosen)
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

    async def _chunks(self, work: _Slice) -> bool:
        """Remove chunks of doomed calls; whether some are left."""
        if not self._doomed:
            return False
        ids = list(islice(self._doomed, work.room))
        pairs, done = await self._read(_first_chunks, ids, work.room)
        if pairs:
            chunks, stored = await self._remove(work, _delete_chunks, pairs)
            work.chunks += chunks
            work.stored_bytes += stored
            work.room -= len(pairs)
        for id_ in done:
            del self._doomed[id_]
        if len(done) < len(ids):
            work.room = 0  # there are large ones
        return bool(self._doomed)

    async def _calls(self, work: _Slice) -> bool:
        """Remove old calls; whether there may be more."""
        before = work.purge.before_us
        found, chunky = await self._read(_old_calls, self._after, before, work.room)
        more = len(found) >= work.room
        self._after = found[-1][1] if more else 0
        self._doomed.update(dict.fromkeys(chunky))
        ids = [id_ for id_, _ in found if id_ not in chunky]
        if ids:
            requests, attempts = await self._remove(work, _delete_calls, ids)
            work.requests += requests
            work.attempts += attempts
            work.room -= len(ids)
        if chunky:
            self._after = 0
        return more or bool(chunky)

    async def _strays(self, work: _Slice) -> bool:
        """Remove old attempts that are left over; whether there may be more."""
        pairs = await self._read(_strays, work.purge.before_us, work.room)
        more = len(pairs) >= work.room
        if pairs:
            work.attempts += await self._remove(work, _delete_attempts, pairs)
            work.room -= len(pairs)
        return more

    async def _others(self, work: _Slice) -> bool:
        """Remove old events and processes; whether there may be more."""
        before = work.purge.before_us
        work.events += await self._remove(work, _delete_others, before, work.now, work.room)
        return work.events >= work.room

    async def _remove(self, work: _Slice, function: Callable[..., _T], *arguments: Any) -> _T:
        """Have the writer do something, and note how long it is busy with it."""
        result: _T
        result, took = await self._write(_timed, function, *arguments)
        work.busy += took
        return result


# --- In the readers' thread -----------------------------------------------------------------------

_EXPIRED: Final = positional(statements.EXPIRED).text
_OLD_CALLS: Final = positional(statements.OLD_CALLS).text
_WITH_CHUNKS: Final = positional(statements.WITH_CHUNKS).text
_FIRST_CHUNKS: Final = positional(statements.FIRST_CHUNKS).text
_STRAY_ATTEMPTS: Final = positional(statements.STRAY_ATTEMPTS).text
_OLDEST_PARTS: Final = positional(statements.OLDEST_PARTS).text
_OLDEST_ANSWERS: Final = positional(statements.OLDEST_ANSWERS).text

_Pairs = list[tuple[str, int]]


def _expired(connection: sqlite3.Connection, now: int, limit: int) -> list[str]:
    return [id_ for (id_,) in connection.execute(_EXPIRED, (now, now, now, limit))]


def _first_chunks(
    connection: sqlite3.Connection, ids: Sequence[str], limit: int
) -> tuple[_Pairs, list[str]]:
    """Chunks that can go at once, and the calls that have no others."""
    found = connection.execute(_FIRST_CHUNKS, (json.dumps(ids), limit)).fetchall()
    pairs: _Pairs = []
    size = 0
    for request, seq, length in found:
        size += length
        if pairs and size > MOST_BYTES:
            break
        pairs.append((request, seq))
    if len(pairs) == len(found) < limit:
        return pairs, list(ids)
    last = pairs[-1][0]
    return pairs, [id_ for id_ in ids if id_ < last]


def _old_calls(
    connection: sqlite3.Connection, after: int, before: int, limit: int
) -> tuple[_Pairs, set[str]]:
    """Old calls with when they began, and which of them have chunks: those must go first."""
    found = connection.execute(_OLD_CALLS, (after, before, before, limit)).fetchall()
    ids = json.dumps([id_ for id_, _ in found])
    return found, {id_ for (id_,) in connection.execute(_WITH_CHUNKS, (ids,))}


def _strays(connection: sqlite3.Connection, before: int, limit: int) -> _Pairs:
    return connection.execute(_STRAY_ATTEMPTS, (before, limit)).fetchall()


def _oldest(connection: sqlite3.Connection, limit: int) -> _Pairs:
    parts: _Pairs = connection.execute(_OLDEST_PARTS, (limit,)).fetchall()
    return parts or connection.execute(_OLDEST_ANSWERS, (limit,)).fetchall()


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
_NOT_LIVE: Final = positional(statements.NOT_LIVE).text
_FORGET_ANSWERS: Final = positional(statements.FORGET_ANSWERS).text
_SIZE_OF_CHUNKS: Final = positional(statements.SIZE_OF_CHUNKS).text
_DELETE_THESE_CHUNKS: Final = positional(statements.DELETE_THESE_CHUNKS).text
_DELETE_CALLS: Final = positional(statements.DELETE_CALLS).text
_DELETE_ATTEMPTS: Final = positional(statements.DELETE_ATTEMPTS).text
_DELETE_THESE_ATTEMPTS: Final = positional(statements.DELETE_THESE_ATTEMPTS).text
_DELETE_EVENTS: Final = positional(statements.DELETE_EVENTS).text
_DELETE_OWNERS: Final = positional(statements.DELETE_OWNERS).text


def _timed(
    connection: sqlite3.Connection, function: Callable[..., _T], *arguments: Any
) -> tuple[_T, float]:
    began = time.perf_counter()
    result = function(connection, *arguments)
    return result, time.perf_counter() - began


def _expire(connection: sqlite3.Connection, ids: Sequence[str], now: int) -> tuple[int, list[str]]:
    """Free keys: how many, and which of them are free now."""
    these = json.dumps(ids)
    freed = connection.execute(_EXPIRE, (these, now, now, now)).rowcount
    (free,) = connection.execute(_NOT_LIVE, (these,)).fetchone()
    return freed, list(json.loads(free))


def _forget(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Have nobody begin to read answers that are about to go; their keys stay used."""
    connection.execute(_FORGET_ANSWERS, (json.dumps(ids),))


def _delete_chunks(
    connection: sqlite3.Connection, pairs: Sequence[tuple[str, int]]
) -> tuple[int, int]:
    """Remove chunks: how many, and how many bytes of answers they held."""
    these = (json.dumps(pairs),)
    (stored,) = connection.execute(_SIZE_OF_CHUNKS, these).fetchone()
    return connection.execute(_DELETE_THESE_CHUNKS, these).rowcount, stored


def _delete_calls(connection: sqlite3.Connection, ids: Sequence[str]) -> tuple[int, int]:
    """Remove rows that are over, with their attempts; how many of each table."""
    (these,) = connection.execute(_NOT_LIVE, (json.dumps(ids),)).fetchone()
    requests = connection.execute(_DELETE_CALLS, (these,)).rowcount
    return requests, connection.execute(_DELETE_ATTEMPTS, (these,)).rowcount


def _delete_attempts(connection: sqlite3.Connection, pairs: Sequence[tuple[str, int]]) -> int:
    return connection.execute(_DELETE_THESE_ATTEMPTS, (json.dumps(pairs),)).rowcount


def _delete_others(connection: sqlite3.Connection, before: int, now: int, limit: int) -> int:
    """Remove old events, and processes that ended long ago; how many events."""
    connection.execute(_DELETE_OWNERS, (before, now))
    return connection.execute(_DELETE_EVENTS, (before, limit)).rowcount
