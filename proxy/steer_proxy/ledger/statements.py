"""The ledger's SQL, where one text serves both databases.

Parameters are written `:name`; `:now` is the time in Unix microseconds (PostgreSQL puts its own
clock in its place). Every write of a record is fenced: it names the row, the epoch, and the states
that `steer_policies.idempotency` allows the move from.

Columns and states are ours and are put together here; what comes from outside is a parameter.
"""
# ruff: noqa: S608 - see above

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from steer_policies.idempotency import Move, State, sources
from steer_proxy.ledger.values import (
    RESULT_COLUMNS,
    CallRow,
    ChunkRow,
)

#: The columns of a stored answer, and all that finishing a record sets besides state and life.
ANSWER_COLUMNS: Final = ("keyring_id", "resp_headers", "resp_bytes", "resp_chunks", "resp_sha256")
FINISH_COLUMNS: Final = (*RESULT_COLUMNS, "expires_us", *ANSWER_COLUMNS)

#: By which move a record comes to the state it is finished with.
FINISHING: Final = {
    State.COMPLETED: Move.COMPLETE,
    State.UNCERTAIN: Move.DOUBT,
    State.RELEASED: Move.RELEASE,
}


def states(move: Move) -> str:
    """The states a move is allowed from, for `IN (...)`."""
    return ", ".join(f"'{state.value}'" for state in sources(move))


def _insert(table: str, columns: Iterable[str]) -> str:
    names = tuple(columns)
    values = ", ".join(f":{name}" for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values}) ON CONFLICT DO NOTHING"


_MINE: Final = "id = :id AND idem_epoch = :epoch AND idem_live = 1"
_ALIVE: Final = (
    "EXISTS (SELECT 1 FROM owners WHERE owners.id = requests.owner_id "
    "AND owners.lease_until_us > :now)"
)
_RUNNING: Final = "idem_state IN ('claimed', 'sent')"
_NO_ANSWER: Final = ", ".join(f"{name} = NULL" for name in ANSWER_COLUMNS)
_GIVEN_UP: Final = "CASE idem_state WHEN 'claimed' THEN 'released' ELSE idem_state END"
#: Nobody runs it, and its time is over or its outcome is uncertain.
_FREE: Final = f"""(
    ({_RUNNING} AND NOT {_ALIVE})
    OR idem_state = 'uncertain'
    OR (idem_state = 'completed' AND expires_us <= :now)
)"""

# --- Encryption keys ------------------------------------------------------------------------------

#: The check values of keys that were ever used with this ledger.
KEY_CHECKS: Final = """
SELECT substr(name, 5) AS name, value FROM steer_meta WHERE substr(name, 1, 4) = 'key:'
"""

#: One more, unless its name has one.
ADD_KEY_CHECK: Final = """
INSERT INTO steer_meta (name, value) VALUES ('key:' || :name, :value) ON CONFLICT DO NOTHING
"""

# --- Owners ---------------------------------------------------------------------------------------

#: When a process's lease ends or ended.
LEASE: Final = "SELECT lease_until_us FROM owners WHERE id = :owner"

#: Register a process, or extend its lease.
RENEW: Final = """
INSERT INTO owners (id, instance, version, started_us, lease_until_us)
VALUES (:owner, :instance, :version, :now, :until)
ON CONFLICT (id) DO UPDATE SET lease_until_us = excluded.lease_until_us
"""

#: Whether a record is still its owner's.
STILL_OWNED: Final = "SELECT 1 FROM requests WHERE id = :id AND owner_id = :owner AND idem_live = 1"

#: End a process's lease.
RETIRE: Final = (
    "UPDATE owners SET lease_until_us = :now WHERE id = :owner AND lease_until_us > :now"
)

#: End all leases (SQLite: whoever had one is dead, or we could not have opened the file).
RETIRE_ALL: Final = "UPDATE owners SET lease_until_us = :now WHERE lease_until_us > :now"

# --- Records --------------------------------------------------------------------------------------

#: Make a key's live record, unless there is one. Also a row of the log, unless it is there.
INSERT_CALL: Final = _insert("requests", CallRow._fields)

_RECORD: Final = f"""
SELECT id, idem_epoch, idem_state, idem_fp, owner_id,
    (idem_live IS NULL OR NOT {_ALIVE}) AS lapsed,
    (expires_us IS NOT NULL AND expires_us <= :now) AS expired,
    (resp_chunks IS NOT NULL) AS stored,
    cost_nusd, outcome, model_answered, upstream, status, resp_headers, keyring_id
FROM requests
"""

#: A key's live record.
FIND: Final = f"{_RECORD} WHERE idem_scope = :scope AND idem_live = 1"

#: A record by its row, live or not, with the head of its answer.
FIND_ROW: Final = f"{_RECORD} WHERE id = :id"

#: Take-over, first half: the old row's life ends, if nobody runs it. `:successor` takes its place;
#: it is named so that a repeated take-over does not end what it made. `:found_state` is the state
#: the taker has decided by: a row that has moved on since is decided on anew.
END_FOR: Final = f"""
UPDATE requests SET idem_state = {_GIVEN_UP}, idem_live = NULL, {_NO_ANSWER}
WHERE {_MINE} AND id <> :successor AND idem_state = :found_state AND {_FREE}
"""

#: Nothing was sent so far; from now on the call may have been executed.
MARK_SENT: Final = f"""
UPDATE requests SET idem_state = 'sent', sent_us = :now
WHERE {_MINE} AND idem_state IN ({states(Move.SEND)})
"""

#: Whether that had been written before.
IS_SENT: Final = f"SELECT 1 FROM requests WHERE {_MINE} AND idem_state = 'sent'"

#: Finish a record, by the state it is finished with.
FINISH: Final = {
    state: f"""
UPDATE requests
SET {", ".join(f"{name} = :{name}" for name in FINISH_COLUMNS)},
    idem_state = '{state.value}', idem_live = {"NULL" if state is State.RELEASED else "1"}
WHERE {_MINE} AND idem_state IN ({states(move)})
"""
    for state, move in FINISHING.items()
}

#: How a record was finished, to recognise a repeated finish whose first reply was lost.
ENDING: Final = """
SELECT idem_epoch, idem_state, ended_us, resp_sha256 FROM requests WHERE id = :id
"""

#: The head of a running call's answer.
BEGIN_ANSWER: Final = f"""
UPDATE requests SET status = :status, resp_headers = :headers, keyring_id = :keyring_id
WHERE {_MINE} AND idem_state IN ({states(Move.COMPLETE)})
"""

#: The head of an answer that is not stored after all; nothing when it is not the caller's.
FORGET_HEAD: Final = f"""
UPDATE requests SET resp_headers = NULL, keyring_id = NULL
WHERE {_MINE} AND (idem_state IN ({states(Move.COMPLETE)})
    OR (idem_state = 'completed' AND resp_chunks IS NULL))
"""

#: By hand: made, its answer lost.
SETTLE: Final = f"""
UPDATE requests SET idem_state = 'completed', {_NO_ANSWER}
WHERE id = :id AND idem_live = 1 AND idem_state IN ({states(Move.SETTLE)})
    AND NOT ({_RUNNING} AND {_ALIVE})
"""

#: By hand: the key may be used again.
REOPEN: Final = f"""
UPDATE requests SET idem_state = 'released', idem_live = NULL, {_NO_ANSWER}
WHERE id = :id AND idem_live = 1 AND idem_state IN ({states(Move.REOPEN)})
    AND NOT ({_RUNNING} AND {_ALIVE})
"""

# --- Stored answers -------------------------------------------------------------------------------

#: A chunk that is known to belong to a record of ours.
INSERT_CHUNK: Final = _insert("response_chunks", ChunkRow._fields)

#: A chunk of a running call; nothing when the call is over for its key.
ADD_CHUNK: Final = f"""
INSERT INTO response_chunks ({", ".join(ChunkRow._fields)})
SELECT {", ".join(f":{name}" for name in ChunkRow._fields)}
WHERE EXISTS (
    SELECT 1 FROM requests
    WHERE id = :request AND idem_live = 1 AND idem_state IN ({states(Move.COMPLETE)})
)
ON CONFLICT DO NOTHING
"""

#: The first chunks of a running call's answer, as far as a byte.
TRIM_CHUNKS: Final = f"""
DELETE FROM response_chunks WHERE request = :id AND byte_offset < :before
    AND EXISTS (SELECT 1 FROM requests WHERE {_MINE} AND idem_state IN ({states(Move.COMPLETE)}))
"""

#: All chunks of an answer.
DELETE_CHUNKS: Final = "DELETE FROM response_chunks WHERE request = :id"

#: A completed record's answer without its body.
ANSWER: Final = """
SELECT id, status, resp_headers, resp_bytes, resp_chunks, resp_sha256, keyring_id FROM requests
WHERE id = :id AND idem_state = 'completed' AND resp_chunks IS NOT NULL
"""

#: The next chunks of an answer.
CHUNKS: Final = f"""
SELECT {", ".join(ChunkRow._fields)} FROM response_chunks
WHERE request = :id AND seq > :after ORDER BY seq LIMIT :limit
"""

# --- Purge (SQLite) -------------------------------------------------------------------------------
# Many rows at a time, named in JSON: each statement costs its thread a turn of the interpreter.

_THESE: Final = "(SELECT value FROM json_each(:ids))"
_THESE_PAIRS: Final = (
    "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:pairs))"
)

#: Live records whose time is over and that nobody runs.
EXPIRED: Final = f"""
SELECT id FROM requests WHERE idem_live = 1 AND expires_us <= :now AND {_FREE}
ORDER BY expires_us LIMIT :limit
"""

#: Free expired keys; their rows stay for the history.
EXPIRE: Final = f"""
UPDATE requests SET idem_state = {_GIVEN_UP}, idem_live = NULL, {_NO_ANSWER}
WHERE id IN {_THESE} AND +idem_live = 1 AND +expires_us <= :now AND {_FREE}
"""

#: Which of some calls are not live (any more), as a JSON array.
NOT_LIVE: Final = f"""
SELECT json_group_array(id) FROM requests WHERE id IN {_THESE} AND idem_live IS NULL
"""

#: Answers are about to be removed: nobody is to begin reading them.
FORGET_ANSWERS: Final = f"""
UPDATE requests SET {_NO_ANSWER} WHERE id IN {_THESE} AND idem_state IN ('completed', 'uncertain')
"""

#: The first chunks of some answers, and their sizes.
FIRST_CHUNKS: Final = f"""
SELECT request, seq, LENGTH(body) FROM response_chunks WHERE request IN {_THESE}
ORDER BY request, seq LIMIT :limit
"""

#: How many bytes of answers those chunks hold.
SIZE_OF_CHUNKS: Final = f"""
SELECT COALESCE(SUM(raw_bytes), 0) FROM response_chunks WHERE (request, seq) IN {_THESE_PAIRS}
"""

#: Those chunks.
DELETE_THESE_CHUNKS: Final = f"""
DELETE FROM response_chunks WHERE (request, seq) IN {_THESE_PAIRS}
"""

#: Rows that are over, never a live record's, from a time on.
OLD_CALLS: Final = """
SELECT id, started_us FROM requests
WHERE started_us >= :after AND started_us < :before AND idem_live IS NULL
    AND (ended_us IS NULL OR ended_us < :before)
ORDER BY started_us LIMIT :limit
"""

#: Which of some calls have chunks.
WITH_CHUNKS: Final = f"SELECT DISTINCT request FROM response_chunks WHERE request IN {_THESE}"

#: Those calls, unless they have come to life.
DELETE_CALLS: Final = f"DELETE FROM requests WHERE id IN {_THESE} AND idem_live IS NULL"

#: What was tried for them.
DELETE_ATTEMPTS: Final = f"DELETE FROM attempts WHERE request IN {_THESE}"

#: Old attempts of calls that are not there (any more).
STRAY_ATTEMPTS: Final = """
SELECT request, n FROM attempts
WHERE started_us < :before
    AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.id = attempts.request)
ORDER BY started_us LIMIT :limit
"""

#: Those.
DELETE_THESE_ATTEMPTS: Final = f"DELETE FROM attempts WHERE (request, n) IN {_THESE_PAIRS}"

#: Old events.
DELETE_EVENTS: Final = """
DELETE FROM breaker_events WHERE id IN (
    SELECT id FROM breaker_events WHERE at_us < :before ORDER BY at_us LIMIT :limit
)
"""

#: Processes that ended long ago.
DELETE_OWNERS: Final = (
    "DELETE FROM owners WHERE lease_until_us < :before AND lease_until_us <= :now"
)

#: How many bytes all stored answers take.
STORED_BYTES: Final = "SELECT COALESCE(SUM(LENGTH(body)), 0) FROM response_chunks"

#: Parts of answers whose calls ended uncertain. They are never replayed: they go first.
OLDEST_PARTS: Final = """
SELECT id, (SELECT SUM(LENGTH(body)) FROM response_chunks WHERE request = id) FROM requests
WHERE idem_live = 1 AND expires_us > 0 AND idem_state = 'uncertain'
    AND EXISTS (SELECT 1 FROM response_chunks WHERE request = id)
ORDER BY expires_us LIMIT :limit
"""

#: Answers that may be dropped for room, oldest first: ids are UUIDv7, they sort by time.
OLDEST_ANSWERS: Final = """
SELECT request, SUM(LENGTH(body)) FROM response_chunks
WHERE EXISTS (
    SELECT 1 FROM requests WHERE requests.id = request AND idem_state = 'completed'
)
GROUP BY request ORDER BY request LIMIT :limit
"""

# --- Parameters -----------------------------------------------------------------------------------

_PARAMETER: Final = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")


class Positional(NamedTuple):
    """A statement with its parameters by position."""

    text: str
    names: tuple[str, ...]
    """Which parameter belongs at which position."""


def positional(statement: str) -> Positional:
    """A statement with a question mark for every `:name`, repeated ones included."""
    return Positional(_PARAMETER.sub("?", statement), tuple(_PARAMETER.findall(statement)))
