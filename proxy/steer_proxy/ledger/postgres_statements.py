"""What the ledger asks of PostgreSQL: one autocommit statement for each thing it does.

Time is the database's: processes need not agree on theirs. But what cannot be taken back, that a
key's time is over or a row is old, must be so by the clock of who asks, too: any one may be wrong.
Where a statement changes several rows, it does so with data-modifying CTEs: they are one
transaction without a lock held over a round trip. PostgreSQL runs such a CTE before whatever reads
from it.
"""
# ruff: noqa: S608 - columns and states are ours; what comes from outside is a parameter

from __future__ import annotations

from typing import Final, get_type_hints

from steer_policies.idempotency import Move, State
from steer_proxy.ledger import statements as common
from steer_proxy.ledger.parameters import Statement, numbered, numbered_once
from steer_proxy.ledger.protocol import STATEMENT_TIMEOUT
from steer_proxy.ledger.statements import ANSWER_COLUMNS, FINISH_COLUMNS, FINISHING, states
from steer_proxy.ledger.values import (
    MICROSECONDS,
    AttemptRow,
    BreakerEventRow,
    CallRow,
    ChunkRow,
    Row,
)

#: Unix microseconds, now: while a statement waits for a lock, time goes on.
_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
#: The same at the statement's beginning: a constant, which an index can be searched for.
_BEGUN: Final = "(extract(epoch FROM statement_timestamp()) * 1000000)::bigint"

_NO_ANSWER: Final = ", ".join(f"{name} = NULL" for name in ANSWER_COLUMNS)
_GIVEN_UP: Final = "CASE idem_state WHEN 'claimed' THEN 'released' ELSE idem_state END"
_RUNNING: Final = "idem_state IN ('claimed', 'sent')"
_ALIVE: Final = f"""EXISTS (
    SELECT 1 FROM owners WHERE owners.id = requests.owner_id AND owners.lease_until_us > {_NOW})"""

_JSON: Final = frozenset({"labels"})


def _expired(now: str) -> str:
    """Whether a record's time is over: a database whose clock is a day ahead would free all keys,
    and have their calls paid twice."""
    return f"expires_us <= LEAST({now}, :wall_us::bigint)"


#: A row that is looked up by its id. `idem_live = 1` would say the same, and offer the planner the
#: indexes of live rows, which it finds small, and reads from end to end.
_LIVE: Final = "idem_live IS NOT NULL"


def _common(text: str) -> str:
    """A statement of both databases about one row, as this one takes it."""
    return text.replace(":now", _NOW).replace("AND idem_live = 1", f"AND {_LIVE}")


def _look(text: str) -> str:
    """A look at a record that tells the time it was found at."""
    told = text.replace("\nFROM requests", ", :now AS now_us\nFROM requests")
    return told.replace("expires_us <= :now", _expired(_NOW)).replace(":now", _NOW)


def _columns(row: type[Row | ChunkRow]) -> str:
    return ", ".join(row._fields)


def _unnested(row: type[Row | ChunkRow], prefix: str = "") -> tuple[str, str]:
    """Rows as one array for each column: what to select, and from what."""
    kinds = {int: "bigint[]", str: "text[]", bytes: "bytea[]"}
    hints = get_type_hints(row)

    def kind(name: str) -> str:
        return next(text for each, text in kinds.items() if hints[name] in (each, each | None))

    arrays = ", ".join(f":{prefix}{name}::{kind(name)}" for name in row._fields)
    selected = ", ".join(
        f"u.{name}::jsonb" if name in _JSON else f"u.{name}" for name in row._fields
    )
    return selected, f"unnest({arrays}) AS u({_columns(row)})"


# --- Connections ----------------------------------------------------------------------------------

#: What a ledger is, asked of each new connection.
META: Final = numbered("""
SELECT (SELECT version_num FROM alembic_version) AS revision,
    (SELECT value FROM steer_meta WHERE name = 'min_writer') AS min_writer,
    (SELECT value FROM steer_meta WHERE name = 'secret') AS secret,
    current_setting('synchronous_commit') AS synchronous_commit,
    (SELECT string_agg(may || ' on ' || name, ', ' ORDER BY name, may)
        FROM unnest(ARRAY['attempts', 'breaker_events', 'owners', 'requests', 'response_chunks'])
            AS name, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS may
        WHERE NOT has_table_privilege(name, may)) AS missing
""")

#: Have what is answered on disk, which is the least that is asked of a ledger: levels that wait for
#: more, or for other servers too, are left as they are.
COMMIT: Final = "SET synchronous_commit = on"

#: Whether the database answers.
PING: Final = numbered("SELECT 1")

#: The check values of encryption keys, and one more.
KEY_CHECKS: Final = numbered(common.KEY_CHECKS)
ADD_KEY_CHECK: Final = numbered(
    common.ADD_KEY_CHECK.replace(":name", ":name::text").replace(":value", ":value::text")
)

#: Tell the other processes.
NOTIFY: Final = numbered("SELECT pg_notify(:channel, :payload)")

# --- Owners ---------------------------------------------------------------------------------------

#: Register a process, or extend its lease; with how long it had, and who may write by now. The
#: process itself is the only one to write its row: what was read before is what was replaced.
RENEW: Final = numbered_once(f"""
WITH before AS MATERIALIZED (SELECT lease_until_us FROM owners WHERE id = :owner),
renewed AS (
    INSERT INTO owners (id, instance, version, started_us, lease_until_us)
    VALUES (:owner, :instance, :version, {_NOW}, {_NOW} + :lease_us::bigint)
    ON CONFLICT (id) DO UPDATE SET
        instance = excluded.instance, lease_until_us = excluded.lease_until_us
)
SELECT (SELECT lease_until_us FROM before) AS before_us, {_BEGUN} AS now_us,
    (SELECT value FROM steer_meta WHERE name = 'min_writer') AS min_writer
""")

#: Which of the records a process held are still its own.
HELD: Final = numbered(f"""
SELECT id FROM requests WHERE id = ANY(:held::text[]) AND {_LIVE} AND owner_id = :owner
""")

#: End a lease.
RETIRE: Final = numbered(_common(common.RETIRE))

# --- Records --------------------------------------------------------------------------------------

#: Times that PostgreSQL puts in the place of the process's.
_TIMES: Final = {
    "sent_us": f"CASE WHEN :sent_us::bigint IS NOT NULL THEN {_NOW} END",
    "expires_us": f"{_NOW} + :expires_us::bigint - :started_us::bigint",
}
_CLAIMED: Final = ", ".join(_TIMES.get(name, f":{name}") for name in CallRow._fields)

#: Make a key's live record, unless there is one; its parameters are a `CallRow`.
CLAIM: Final = numbered(f"""
INSERT INTO requests ({_columns(CallRow)}) VALUES ({_CLAIMED})
ON CONFLICT DO NOTHING RETURNING id
""")

_TAKING: Final = ", ".join(
    {"idem_epoch": ":old_epoch + 1", "labels": ":labels::jsonb", **_TIMES}.get(
        name, f":{name}::{'bigint' if hint in (int, int | None) else 'text'}"
    )
    for name, hint in get_type_hints(CallRow).items()
)

#: By when a lease must be over: now, and hardly later than its taker was told, for the clock may
#: have been set since. Who was told no time does not count by it.
_SINCE: Final = int(STATEMENT_TIMEOUT * MICROSECONDS)
_JUDGED: Final = f"LEAST({_NOW}, :old_now_us::bigint + {_SINCE})"

#: Put a claim in the place of a record that may be taken: all or nothing. The old owner's row is
#: locked, so that it renews its lease before this, and keeps the record, or after, and is told.
#: Carried out after its taker gave up, and wrote down its call, it meets that row and fails.
TAKE_OVER: Final = numbered(f"""
WITH holder AS MATERIALIZED (
    SELECT lease_until_us FROM owners WHERE id = :old_owner FOR SHARE
),
gone AS (
    UPDATE requests SET idem_state = {_GIVEN_UP}, idem_live = NULL, {_NO_ANSWER}
    WHERE id = :old_id AND idem_epoch = :old_epoch::bigint AND {_LIVE} AND id <> :id
        AND idem_state = :old_state
        AND CASE
            WHEN {_RUNNING} THEN NOT EXISTS (SELECT 1 FROM holder WHERE lease_until_us > {_JUDGED})
            ELSE idem_state = 'uncertain' OR coalesce({_expired(_NOW)}, FALSE)
        END
    RETURNING id
),
dropped AS (DELETE FROM response_chunks WHERE request IN (SELECT id FROM gone))
INSERT INTO requests ({_columns(CallRow)})
SELECT {_TAKING} FROM (SELECT count(*) FROM gone) AS first
ON CONFLICT (idem_scope) WHERE idem_live = 1 DO NOTHING RETURNING id
""")

#: A key's live record.
FIND: Final = numbered(_look(common.FIND))

#: Whether a row is there at all.
EXISTS: Final = numbered("SELECT 1 FROM requests WHERE id = :id")

#: From now on the call may have been executed.
MARK_SENT: Final = numbered(f"""
UPDATE requests SET idem_state = 'sent',
    sent_us = CASE idem_state WHEN 'sent' THEN sent_us ELSE {_NOW} END
WHERE id = :id AND idem_epoch = :epoch AND {_LIVE}
    AND idem_state IN ({states(Move.SEND)}, 'sent')
RETURNING 1
""")

#: When a finished record expires: as far from now as its process says it is from the call's end.
#: A time that is right to a twentieth stays: moving it would cost an entry in every index (no HOT).
_EXPIRES: Final = ":expires_us::bigint - coalesce(:ended_us::bigint, :started_us::bigint)"
_EXPIRY: Final = f"""CASE
            WHEN abs(expires_us - {_NOW} - ({_EXPIRES})) * 20 <= {_EXPIRES} THEN expires_us
            ELSE {_NOW} + {_EXPIRES}
        END"""
_FINISHED: Final = ", ".join(
    f"{name} = {_EXPIRY if name == 'expires_us' else f':{name}'}" for name in FINISH_COLUMNS
)


def _finish(move: Move, state: State, *, with_chunks: bool) -> Statement:
    live = "NULL" if state is State.RELEASED else "1"
    selected, arrays = _unnested(ChunkRow, "chunk_")
    chunks = (
        f"""INSERT INTO response_chunks ({_columns(ChunkRow)})
    SELECT {selected} FROM {arrays} WHERE EXISTS (SELECT 1 FROM done) ON CONFLICT DO NOTHING"""
        if with_chunks
        else "DELETE FROM response_chunks WHERE request IN (SELECT id FROM done)"
    )
    # A repeated ending is known by its own time and digest.
    return numbered(f"""
WITH done AS (
    UPDATE requests SET idem_state = '{state}', idem_live = {live}, {_FINISHED}
    WHERE id = :id AND idem_epoch = :epoch AND {_LIVE} AND idem_state IN ({states(move)})
    RETURNING id
),
chunks AS ({chunks})
SELECT 1 WHERE EXISTS (SELECT 1 FROM done) OR EXISTS (
    SELECT 1 FROM requests
    WHERE id = :id AND idem_epoch = :epoch AND idem_state = '{state}'
        AND ended_us IS NOT DISTINCT FROM :ended_us
        AND resp_sha256 IS NOT DISTINCT FROM :resp_sha256)
""")


#: End a call, by its next state: keeping chunks, these among them, or dropping all there are.
FINISH: Final = {state: _finish(move, state, with_chunks=True) for state, move in FINISHING.items()}
FINISH_BARE: Final = {
    state: _finish(move, state, with_chunks=False) for state, move in FINISHING.items()
}

#: Make an answer's head known.
BEGIN_ANSWER: Final = numbered(f"{_common(common.BEGIN_ANSWER)} RETURNING 1")

_CHUNK_COLUMNS, _CHUNK_ARRAYS = _unnested(ChunkRow)

#: Write chunks of running calls.
ADD_CHUNKS: Final = numbered(f"""
INSERT INTO response_chunks ({_columns(ChunkRow)})
SELECT {_CHUNK_COLUMNS} FROM {_CHUNK_ARRAYS}
WHERE EXISTS (
    SELECT 1 FROM requests WHERE requests.id = u.request AND {_LIVE}
        AND idem_state IN ({states(Move.COMPLETE)}))
ON CONFLICT DO NOTHING
""")

#: Remove the first chunks of a running call's answer.
TRIM_CHUNKS: Final = numbered(_common(common.TRIM_CHUNKS))

#: Take back the head and the chunks of an answer that is not stored.
DROP_CHUNKS: Final = numbered(f"""
WITH ours AS ({_common(common.FORGET_HEAD)} RETURNING id)
DELETE FROM response_chunks WHERE request IN (SELECT id FROM ours)
""")

#: A completed record's answer without its body.
ANSWER: Final = numbered(common.ANSWER)

#: The next chunks of an answer.
CHUNKS: Final = numbered(common.CHUNKS)

#: A record, the head of its answer, and new chunks: a row for each of these, or one without any.
#: The head comes with the first only.
FOLLOW: Final = numbered(f"""
SELECT head.id, head.idem_epoch, head.idem_state, head.idem_fp, head.owner_id, head.lapsed,
    head.expired, head.stored, head.cost_nusd, head.status, head.outcome, head.model_answered,
    head.upstream, head.keyring_id, head.now_us,
    CASE WHEN row_number() OVER (ORDER BY c.seq) = 1 THEN head.resp_headers END AS resp_headers,
    {", ".join(f"c.{name}" for name in ChunkRow._fields)}
FROM ({_look(common.FIND_ROW)}) AS head
LEFT JOIN ({common.CHUNKS}) AS c ON TRUE
ORDER BY c.seq
""")


def _settle(update: str) -> Statement:
    return numbered_once(f"""
WITH settled AS ({_common(update)} RETURNING id),
dropped AS (DELETE FROM response_chunks WHERE request IN (SELECT id FROM settled))
SELECT 1 FROM settled
""")


#: Move an uncertain or lapsed record by hand.
SETTLE: Final = {Move.SETTLE: _settle(common.SETTLE), Move.REOPEN: _settle(common.REOPEN)}

# --- The log --------------------------------------------------------------------------------------


def _insert(table: str, row: type[Row], prefix: str) -> str:
    selected, arrays = _unnested(row, prefix)
    return f"""INSERT INTO {table} ({_columns(row)})
    SELECT {selected} FROM {arrays} ON CONFLICT DO NOTHING"""


#: Write rows of the log: for each table one array for each column.
WRITE: Final = numbered(f"""
WITH calls AS ({_insert("requests", CallRow, "call_")}),
attempts AS ({_insert("attempts", AttemptRow, "attempt_")})
{_insert("breaker_events", BreakerEventRow, "event_")}
""")

# --- What is over ---------------------------------------------------------------------------------
# Rows that somebody else has locked are left to them, so that two who purge never wait for each
# other. A locked row is looked at once more: what has changed meanwhile is left alone.

#: How long the statement has run so far.
_BUSY: Final = (
    "(extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000000)::bigint AS busy_us"
)

#: How many chunks a statement removed, and how many bytes of answers they held.
_DROPPED: Final = """(SELECT count(*) FROM dropped) AS chunks,
    (SELECT coalesce(sum(raw_bytes), 0)::bigint FROM dropped) AS stored_bytes"""

#: Free the keys whose time is over, and drop their answers.
EXPIRE: Final = numbered_once(f"""
WITH over AS (
    SELECT id FROM requests
    WHERE idem_live = 1 AND {_expired(_BEGUN)} AND NOT ({_RUNNING} AND {_ALIVE})
    ORDER BY expires_us LIMIT :limit FOR UPDATE SKIP LOCKED
),
freed AS (
    UPDATE requests SET idem_state = {_GIVEN_UP}, idem_live = NULL, {_NO_ANSWER}
    WHERE id IN (SELECT id FROM over) RETURNING id
),
dropped AS (
    DELETE FROM response_chunks WHERE request IN (SELECT id FROM freed) RETURNING raw_bytes
)
SELECT (SELECT count(*) FROM freed) AS keys, {_DROPPED}, {_BUSY}
""")

#: What the stored answers take on disk at most, and in how many pages their rows are.
STORED_SIZE: Final = numbered("""
SELECT pg_table_size('response_chunks') AS disk,
    pg_relation_size('response_chunks') / current_setting('block_size')::bigint AS pages
""")

#: How many bytes the stored answers have, from a sample of so many per cent of the pages.
STORED_BYTES: Final = numbered("""
SELECT coalesce(sum(octet_length(body)) * 100 / :percent::float8, 0)::bigint
FROM response_chunks TABLESAMPLE SYSTEM (:percent::float8)
""")

#: Drop the oldest answers that make up so many bytes; their keys stay used. Ids sort by time. Parts
#: of answers whose calls ended uncertain go first: they are never replayed.
EVICT: Final = numbered_once(f"""
WITH oldest AS (
    SELECT r.id, r.idem_state <> 'uncertain' AS whole
    FROM (SELECT DISTINCT request FROM response_chunks) AS c
    JOIN requests AS r ON r.id = c.request
    WHERE r.idem_state IN ('completed', 'uncertain')
    ORDER BY r.idem_state <> 'uncertain', c.request LIMIT :limit FOR UPDATE OF r SKIP LOCKED
),
sizes AS (
    SELECT c.request, o.whole, sum(octet_length(c.body)) AS bytes
    FROM response_chunks AS c JOIN oldest AS o ON o.id = c.request
    GROUP BY c.request, o.whole
),
reckoned AS (
    SELECT request, sum(bytes) OVER (ORDER BY whole, request) - bytes AS before FROM sizes
),
evicted AS (
    UPDATE requests SET {_NO_ANSWER}
    WHERE id IN (SELECT request FROM reckoned WHERE before < :excess::numeric) RETURNING id
),
dropped AS (
    DELETE FROM response_chunks WHERE request IN (SELECT id FROM evicted) RETURNING raw_bytes
)
SELECT (SELECT count(*) FROM evicted) AS answers, {_DROPPED}, {_BUSY}
""")

#: From when on rows stay: by the time of who purges, and by ours, where it told an age.
_BEFORE: Final = f"LEAST(:before_us::bigint, {_BEGUN} - :age_us::bigint)"

#: Remove calls that ended long ago, with all that belongs to them.
PURGE_CALLS: Final = numbered_once(f"""
WITH old AS (
    SELECT id FROM requests
    WHERE started_us < {_BEFORE} AND coalesce(ended_us, 0) < {_BEFORE} AND idem_live IS NULL
    ORDER BY started_us LIMIT :limit FOR UPDATE SKIP LOCKED
),
gone AS (DELETE FROM requests WHERE id IN (SELECT id FROM old) RETURNING id),
tried AS (DELETE FROM attempts WHERE request IN (SELECT id FROM gone) RETURNING 1),
dropped AS (
    DELETE FROM response_chunks WHERE request IN (SELECT id FROM gone) RETURNING raw_bytes
)
SELECT (SELECT count(*) FROM gone) AS requests, (SELECT count(*) FROM tried) AS attempts,
    {_DROPPED}, {_BUSY}
""")

#: Remove old attempts whose call is not there.
PURGE_ATTEMPTS: Final = numbered_once(f"""
WITH old AS (
    SELECT request, n FROM attempts AS a
    WHERE started_us < {_BEFORE}
        AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.id = a.request)
    ORDER BY started_us LIMIT :limit FOR UPDATE OF a SKIP LOCKED
),
gone AS (DELETE FROM attempts WHERE (request, n) IN (SELECT request, n FROM old) RETURNING 1)
SELECT count(*) AS removed, {_BUSY} FROM gone
""")

#: Remove old events.
PURGE_EVENTS: Final = numbered_once(f"""
WITH old AS (
    SELECT id FROM breaker_events WHERE at_us < {_BEFORE}
    ORDER BY at_us LIMIT :limit FOR UPDATE SKIP LOCKED
),
gone AS (DELETE FROM breaker_events WHERE id IN (SELECT id FROM old) RETURNING 1)
SELECT count(*) AS removed, {_BUSY} FROM gone
""")

#: Forget processes that ended long ago: without a row they count as ended too.
PURGE_OWNERS: Final = numbered_once(f"""
DELETE FROM owners WHERE id IN (
    SELECT id FROM owners WHERE lease_until_us < LEAST({_BEFORE}, {_BEGUN})
    LIMIT :limit FOR UPDATE SKIP LOCKED)
""")
