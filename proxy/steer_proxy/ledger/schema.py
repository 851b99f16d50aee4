"""Where a ledger's schema stands, told without Alembic, and who may write it.

A newer schema than this version knows is no error in itself: revisions add before they remove, and
`steer_meta.min_writer` says which versions may still write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from steer_proxy.ledger.protocol import LedgerUnusable

if TYPE_CHECKING:
    import asyncpg

#: Every revision, oldest first; tests hold this equal to `migrations/`.
REVISIONS: Final = ("0001", "0002")
#: The schema this version is written for.
HEAD: Final = REVISIONS[-1]
#: What this version is as a writer; a ledger whose `min_writer` is greater must not be written.
WRITER: Final = 1

#: The tables and views of a ledger, but for `steer_meta`, which may be there before it, with the
#: secret of another database; tests hold this equal to what there is.
NAMES: Final = (
    *("requests", "attempts", "response_chunks", "breaker_events", "owners"),
    *("v_attempts", "v_idempotency", "v_spend", "v_wasted", "v_upstream_health"),
)

_UPGRADE: Final = "run `steer db upgrade`"
_OF_ITS_OWN: Final = "name a database, a schema or a file of Steer's own in database.url"

#: How many names of others' tables a message has.
_NAMED: Final = 5


class Standing(StrEnum):
    """How a database's schema compares with the newest revision this version knows."""

    EMPTY = "empty"
    CURRENT = "current"
    BEHIND = "behind"
    AHEAD = "ahead"
    """A newer version of Steer migrated it."""


@dataclass(frozen=True, slots=True)
class State:
    """Where a database's schema stands; `revision` is None when it is empty, or holds nothing but
    others' tables and views. `foreign` are those of them that stand in the way of ours: on a server
    the ones with our names, in a file all, for a file has one owner."""

    standing: Standing
    revision: str | None = None
    min_writer: int = 1
    foreign: tuple[str, ...] = ()


def state_of(revision: str | None, min_writer: str | None, taken: Collection[str] = ()) -> State:
    """The state that the revision in `alembic_version` and the text in `steer_meta` amount to;
    `taken` are the tables and views that stand in the way if they are not Steer's.

    Raises:
        LedgerUnusable: when they are not Steer's.
    """
    if revision is None:
        return State(Standing.EMPTY, foreign=tuple(sorted(taken)))
    if min_writer is None or not min_writer.isdecimal():
        raise LedgerUnusable(
            f"the database is at revision {revision!r} of something that is not Steer's (there is "
            f"no steer_meta.min_writer): {_OF_ITS_OWN}"
        )
    if revision == HEAD:
        standing = Standing.CURRENT
    else:
        standing = Standing.BEHIND if revision in REVISIONS else Standing.AHEAD
    return State(standing, revision, int(min_writer))


def check(state: State) -> None:
    """Make sure that this version may write a ledger in this state.

    Raises:
        LedgerUnusable: with the remedy.
    """
    if state.min_writer > WRITER:
        raise LedgerUnusable(
            f"the ledger's schema (revision {state.revision}) may be written by versions of Steer "
            f"from writer {state.min_writer} on, this one is writer {WRITER}: use the newer version"
        )
    if state.foreign:
        names = ", ".join(state.foreign[:_NAMED])
        more = f" and {rest} more" if (rest := len(state.foreign) - _NAMED) > 0 else ""
        raise LedgerUnusable(
            f"the database has {names}{more} already, not made by Steer: {_OF_ITS_OWN}"
        )
    if state.standing is Standing.EMPTY:
        raise LedgerUnusable(f"the database has no ledger yet: {_UPGRADE}")
    if state.standing is Standing.BEHIND:
        raise LedgerUnusable(
            f"the ledger's schema is at revision {state.revision}, this version needs {HEAD}: "
            f"{_UPGRADE}"
        )


def sqlite_state(connection: sqlite3.Connection) -> State:
    """Where a SQLite file's schema stands; it reads only."""

    def one(table: str, query: str) -> str | None:
        there = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        if connection.execute(there, (table,)).fetchone() is None:
            return None
        row = connection.execute(query).fetchone()
        return None if row is None else str(row[0])

    revision = one("alembic_version", _REVISION)
    found = () if revision is not None else connection.execute(_TAKEN)
    return state_of(revision, one("steer_meta", _MIN_WRITER), [name for (name,) in found])


async def postgres_state(connection: asyncpg.Connection[Any]) -> State:
    """Where a PostgreSQL database's schema stands; it reads only.

    Within a transaction: behind PgBouncer, statements outside of one may meet different servers.
    """

    async def one(table: str, query: str) -> str | None:
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            return None
        found = await connection.fetchval(query)
        return None if found is None else str(found)

    revision = await one("alembic_version", _REVISION)
    found = () if revision is not None else await connection.fetch(_TAKEN_HERE, NAMES)
    taken = [row["relname"] for row in found]
    return state_of(revision, await one("steer_meta", _MIN_WRITER), taken)


#: But for what SQLite keeps for itself, and what may be there before a ledger.
_TAKEN: Final = """
SELECT name FROM sqlite_master WHERE type IN ('table', 'view')
AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND lower(name) NOT IN ('alembic_version', 'steer_meta')
"""
#: In the schema that ours would be made in; others of the search path are not in the way.
_TAKEN_HERE: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relname = ANY($1::text[])
"""
_REVISION: Final = "SELECT version_num FROM alembic_version"
_MIN_WRITER: Final = "SELECT value FROM steer_meta WHERE name = 'min_writer'"
