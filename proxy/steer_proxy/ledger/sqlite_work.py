"""What the ledger does inside SQLite: plain functions of a connection, called in its thread.

A function that makes more than one change runs inside a savepoint of its batch (see
`sqlite.SqliteLedger`): all of it happens, or none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from steer_policies.idempotency import Move, State
from steer_proxy.ledger import statements
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.sqlite_insert import Table
from steer_proxy.ledger.statements import FINISH_COLUMNS, positional
from steer_proxy.ledger.values import (
    AttemptRow,
    Batch,
    BreakerEventRow,
    CallRow,
    ChunkRow,
    Finish,
    Following,
    Lease,
    Record,
    Ref,
    StoredAnswer,
)


class _Statement:
    """A named statement, executed with its parameters by name."""

    def __init__(self, text: str) -> None:
        self.text, self.names = positional(text)

    def __call__(self, connection: sqlite3.Connection, **values: Any) -> sqlite3.Cursor:
        return connection.execute(self.text, [values[name] for name in self.names])


_ADD_KEY_CHECK = _Statement(statements.ADD_KEY_CHECK)
_LEASE = _Statement(statements.LEASE)
_RENEW = _Statement(statements.RENEW)
_STILL_OWNED = _Statement(statements.STILL_OWNED)
_RETIRE = _Statement(statements.RETIRE)
_FIND = _Statement(statements.FIND)
_FIND_ROW = _Statement(statements.FIND_ROW)
_END_FOR = _Statement(statements.END_FOR)
_MARK_SENT = _Statement(statements.MARK_SENT)
_IS_SENT = _Statement(statements.IS_SENT)
_ENDING = _Statement(statements.ENDING)
_BEGIN_ANSWER = _Statement(statements.BEGIN_ANSWER)
_FORGET_HEAD = _Statement(statements.FORGET_HEAD)
_SETTLE = {
    Move.SETTLE: _Statement(statements.SETTLE),
    Move.REOPEN: _Statement(statements.REOPEN),
}
_TRIM_CHUNKS = _Statement(statements.TRIM_CHUNKS)
_DELETE_CHUNKS = _Statement(statements.DELETE_CHUNKS)
_ANSWER = _Statement(statements.ANSWER)
_CHUNKS = _Statement(statements.CHUNKS)

# These take whole rows, by position.
_INSERT_CHUNK: Final = positional(statements.INSERT_CHUNK).text
_ADD_CHUNK: Final = positional(statements.ADD_CHUNK).text
_FINISH: Final = {state: positional(text).text for state, text in statements.FINISH.items()}
_finished = attrgetter(*FINISH_COLUMNS)

#: Of these there are a few values each: what the configuration names, and words of our own. Not
#: what callers choose: rows that differ in everything would each be a statement of its own.
_KINDS: Final = (
    "instance",
    "config_rev",
    "route",
    "dialect",
    "operation",
    "method",
    "stream",
    "upstream",
    "rule",
    "status",
    "outcome",
    "attempts",
    "ambiguous",
    "wasted_nusd",
    "cost_source",
    "attempt_wait_source",
    "attempt_reused_conn",
)
#: In these the calls of one application agree, more often than not: who calls, for what, and that
#: nothing waited and nothing was tried again.
_AT_TIMES_ALIKE: Final = (
    ("caller", "attempt_credential"),
    ("path",),
    ("model_requested", "model_answered", "attempt_model"),
    ("wait_us", "sdk_retry"),
)
_CALLS: Final = Table("requests", CallRow._fields, _KINDS, _AT_TIMES_ALIKE)
_ATTEMPTS: Final = Table("attempts", AttemptRow._fields)
_EVENTS: Final = Table("breaker_events", BreakerEventRow._fields)

# --- Encryption keys ------------------------------------------------------------------------------


def check_keys(connection: sqlite3.Connection, checks: Mapping[str, str]) -> dict[str, str]:
    """Add the check values that are new; all there are."""
    for name, value in checks.items():
        _ADD_KEY_CHECK(connection, name=name, value=value)
    return dict(connection.execute(statements.KEY_CHECKS).fetchall())


# --- Owners ---------------------------------------------------------------------------------------


def renew(
    connection: sqlite3.Connection,
    values: dict[str, Any],
    held: Sequence[str],
    now: int,
    *,
    unsure: bool,
) -> Lease:
    """Extend a lease; after a lapse, or when unsure, say what was lost."""
    owner = values["owner"]
    there = _LEASE(connection, owner=owner).fetchone()
    lapsed = bool(held) if there is None else there[0] <= now
    _RENEW(connection, now=now, **values)
    if not (lapsed or unsure):
        return Lease(lapsed=False)
    lost = [id_ for id_ in held if _STILL_OWNED(connection, id=id_, owner=owner).fetchone() is None]
    return Lease(lapsed, lost=frozenset(lost))


def retire(connection: sqlite3.Connection, owner: str, now: int) -> None:
    """End a lease."""
    _RETIRE(connection, owner=owner, now=now)


# --- Records --------------------------------------------------------------------------------------


def claim(connection: sqlite3.Connection, row: CallRow, now: int) -> Record | None:
    """Insert a live row, or find the one that is in its way."""
    if _CALLS.insert(connection, [row]) == 1:
        return None
    there = find(connection, row.idem_scope or "", now)
    if there is None:
        # Our row is there, and not live: this is a repeated claim.
        raise LedgerUnavailable("somebody ended this claim while its reply was lost")
    return None if there.made_of(row) else there


def take_over(
    connection: sqlite3.Connection, row: CallRow, found: Record, now: int
) -> Record | None:
    """End a row that nobody runs, and claim its key with the next epoch."""
    ended = _END_FOR(
        connection,
        id=found.id,
        epoch=found.epoch,
        found_state=found.state.value,
        successor=row.id,
        now=now,
    )
    if ended.rowcount == 1:
        _DELETE_CHUNKS(connection, id=found.id)
    return claim(connection, row._replace(idem_epoch=found.epoch + 1), now)


def mark_sent(connection: sqlite3.Connection, ref: Ref, now: int) -> bool:
    """Claimed becomes sent."""
    if _MARK_SENT(connection, id=ref.id, epoch=ref.epoch, now=now).rowcount == 1:
        return True
    return _IS_SENT(connection, id=ref.id, epoch=ref.epoch).fetchone() is not None


def finish(connection: sqlite3.Connection, end: Finish) -> bool:
    """Complete, doubt or release."""
    ref, row = end.ref, end.row
    changed = connection.execute(_FINISH[end.state], (*_finished(row), ref.id, ref.epoch))
    if changed.rowcount == 0:
        there = _ENDING(connection, id=ref.id).fetchone()
        return bool(there == (ref.epoch, end.state.value, row.ended_us, row.resp_sha256))
    if end.state is not State.UNCERTAIN and row.resp_chunks is None and not end.chunks:
        _DELETE_CHUNKS(connection, id=ref.id)
    else:
        for chunk in end.chunks:
            connection.execute(_INSERT_CHUNK, chunk)
    return True


def begin_answer(
    connection: sqlite3.Connection, ref: Ref, status: int, headers: str, keyring_id: str | None
) -> bool:
    """Write the head of a running call's answer."""
    changed = _BEGIN_ANSWER(
        connection,
        id=ref.id,
        epoch=ref.epoch,
        status=status,
        headers=headers,
        keyring_id=keyring_id,
    )
    return changed.rowcount == 1


def add_chunks(connection: sqlite3.Connection, chunks: Sequence[ChunkRow]) -> None:
    """Write chunks of running calls."""
    connection.executemany(_ADD_CHUNK, [(*chunk, chunk.request) for chunk in chunks])


def trim_chunks(connection: sqlite3.Connection, ref: Ref, before: int) -> None:
    """Remove the first chunks of a running call's answer."""
    _TRIM_CHUNKS(connection, id=ref.id, epoch=ref.epoch, before=before)


def drop_chunks(connection: sqlite3.Connection, ref: Ref) -> None:
    """Remove what was written of an answer that is not stored."""
    if _FORGET_HEAD(connection, id=ref.id, epoch=ref.epoch).rowcount == 1:
        _DELETE_CHUNKS(connection, id=ref.id)


def settle(connection: sqlite3.Connection, id_: str, move: Move, now: int) -> bool:
    """Move a record by hand."""
    if _SETTLE[move](connection, id=id_, now=now).rowcount == 0:
        return False
    _DELETE_CHUNKS(connection, id=id_)
    return True


# --- Reading --------------------------------------------------------------------------------------


def find(connection: sqlite3.Connection, scope: str, now: int) -> Record | None:
    """A key's live record."""
    row = _FIND(connection, scope=scope, now=now).fetchone()
    return None if row is None else _record(row)


def answer(connection: sqlite3.Connection, id_: str, first: int) -> StoredAnswer | None:
    """A stored answer with its first chunks."""
    row = _ANSWER(connection, id=id_).fetchone()
    if row is None:
        return None
    begun = tuple(chunks(connection, id_, -1, first)) if first else ()
    id_, status, headers, size, count, sha256, keyring_id = row
    return StoredAnswer(id_, status or 0, headers or "", size, count, sha256, keyring_id, begun)


def chunks(connection: sqlite3.Connection, id_: str, after: int, limit: int) -> list[ChunkRow]:
    """The next chunks of an answer."""
    return [ChunkRow(*row) for row in _CHUNKS(connection, id=id_, after=after, limit=limit)]


def follow(connection: sqlite3.Connection, id_: str, after: int, limit: int, now: int) -> Following:
    """A record, live or not, with the next chunks of its answer."""
    row = _FIND_ROW(connection, id=id_, now=now).fetchone()
    if row is None:
        return Following(None, None, None)
    status, headers, keyring_id = row[-3:]
    new = tuple(chunks(connection, id_, after, limit))
    return Following(_record(row), headers, status, new, keyring_id)


def _record(row: tuple[Any, ...]) -> Record:
    id_, epoch, state, fingerprint, owner, lapsed, expired, stored, *told = row[:13]
    cost, outcome, model, upstream, status = told
    return Record(
        id=id_,
        epoch=epoch or 1,
        state=State(state),
        fingerprint=fingerprint or "",
        owner_id=owner or "",
        lapsed=bool(lapsed),
        expired=bool(expired),
        stored=bool(stored),
        cost_nusd=cost,
        status=status,
        outcome=outcome,
        model_answered=model,
        upstream=upstream,
    )


# --- The log --------------------------------------------------------------------------------------


def write(connection: sqlite3.Connection, batch: Batch) -> None:
    """Write rows of the log."""
    _CALLS.insert(connection, batch.calls)
    _ATTEMPTS.insert(connection, batch.attempts)
    _EVENTS.insert(connection, batch.events)
