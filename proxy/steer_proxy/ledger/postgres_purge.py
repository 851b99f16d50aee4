"""Removing what is over from a PostgreSQL ledger."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Protocol

from steer_proxy.ledger import postgres_statements as sql
from steer_proxy.ledger.parameters import Statement
from steer_proxy.ledger.values import MICROSECONDS, Purge, Purged

#: Pages of stored answers that are looked at to learn how many bytes they hold: 64 MB.
_SAMPLE: Final = 8_192


class Fetch(Protocol):
    """Runs a statement with its parameters by name."""

    def __call__(self, statement: Statement, **values: Any) -> Awaitable[list[Any]]:
        """Wait for its rows."""
        ...


async def purge_slice(fetch: Fetch, purge: Purge, wall_us: int) -> Purged:
    """Remove a slice, by some short statements, each of one kind of rows; keys expire by `wall_us`,
    the time of who purges, too."""
    limit, old = purge.limit, {"before_us": purge.before_us, "age_us": purge.age_us}
    (expired,) = await fetch(sql.EXPIRE, limit=limit, wall_us=wall_us)
    evicted = await _evict(fetch, purge)
    (calls,) = await fetch(sql.PURGE_CALLS, limit=limit, **old)
    others = []
    if calls["requests"] < limit:
        # Only now: for strays all attempts are looked at whose calls are still to go.
        for statement in (sql.PURGE_ATTEMPTS, sql.PURGE_EVENTS):
            others += await fetch(statement, limit=limit, **old)
        await fetch(sql.PURGE_OWNERS, limit=limit, **old)
    strays, events = [row["removed"] for row in others] or (0, 0)
    counts = (expired["keys"], evicted["answers"], calls["requests"], strays, events)
    return Purged(
        requests=calls["requests"],
        attempts=calls["attempts"] + strays,
        chunks=sum(row["chunks"] for row in (expired, evicted, calls)),
        events=events,
        keys=expired["keys"],
        stored_bytes=sum(row["stored_bytes"] for row in (expired, evicted, calls)),
        more=any(count >= limit for count in counts),
        # Each is a transaction of its own: the longest is what others may wait for.
        busy=max(row["busy_us"] for row in (expired, evicted, calls, *others)) / MICROSECONDS,
    )


async def _evict(fetch: Fetch, purge: Purge) -> Any:
    """Drop the oldest answers beyond the bytes allowed.

    A large table's size is reckoned from a sample: reading all of it would take too long.
    """
    nothing = {"answers": 0, "chunks": 0, "stored_bytes": 0, "busy_us": 0}
    if purge.max_bytes is None:
        return nothing
    (size,) = await fetch(sql.STORED_SIZE)
    if size["disk"] <= purge.max_bytes:
        return nothing
    percent = min(100.0, 100.0 * _SAMPLE / max(1, size["pages"]))
    ((stored,),) = await fetch(sql.STORED_BYTES, percent=percent)
    excess = stored - purge.max_bytes
    if excess <= 0:
        return nothing
    (row,) = await fetch(sql.EVICT, limit=purge.limit, excess=excess)
    return row
