"""The ledger: its tables, their indexes, and the views over them.

Times and durations are BIGINT microseconds, money BIGINT nano-dollars, flags SMALLINT (so that SUM
counts them), ids UUIDv7 as text. There are no foreign keys: rows of the log are written in batches
and in any order, and are purged in slices. Every column is described in docs/ledger.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: Final = "0001"
down_revision: Final = None
branch_labels: Final = None
depends_on: Final = None

_ID: Final = sa.String(36)
_TEXT: Final = sa.Text()
_NUMBER: Final = sa.BigInteger()
_FLAG: Final = sa.SmallInteger()
_JSON: Final = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Make everything, and the secret of scopes and fingerprints."""
    postgres = op.get_context().dialect.name == "postgresql"
    _steer_meta()
    _owners()
    _requests()
    _attempts()
    _response_chunks()
    _breaker_events()
    for name, select in _views(postgres=postgres):
        # text() takes a word after a colon for a parameter.
        op.execute(sa.text(f"CREATE VIEW {name} AS{select}".replace(":", "\\:")))


def downgrade() -> None:
    """Remove everything, with all it holds."""
    for name in ("v_upstream_health", "v_wasted", "v_spend", "v_idempotency"):
        op.execute(f"DROP VIEW {name}")
    for name in (
        "breaker_events",
        "response_chunks",
        "attempts",
        "requests",
        "owners",
        "steer_meta",
    ):
        op.drop_table(name)


# --- Tables ---------------------------------------------------------------------------------------


def _steer_meta() -> None:
    """Facts about this ledger.

    A table that is there already was carried over from another database, so that this one knows
    the same keys: its secret stays.
    """
    op.create_table(
        "steer_meta",
        sa.Column("name", _TEXT, primary_key=True, nullable=False),
        sa.Column("value", _TEXT, nullable=False),
        if_not_exists=True,
    )
    facts = {"secret": secrets.token_hex(32), "min_writer": "1"}
    for name, value in facts.items():
        op.execute(
            f"INSERT INTO steer_meta (name, value) VALUES ('{name}', '{value}') "  # noqa: S608 - ours
            "ON CONFLICT (name) DO NOTHING"
        )


def _owners() -> None:
    op.create_table(
        "owners",
        sa.Column("id", _ID, primary_key=True, nullable=False),
        sa.Column("instance", _TEXT),
        sa.Column("version", _TEXT),
        sa.Column("started_us", _NUMBER, nullable=False),
        sa.Column("lease_until_us", _NUMBER, nullable=False),
    )


def _requests() -> None:
    op.create_table(
        "requests",
        # Identity
        sa.Column("id", _ID, primary_key=True, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("trace_id", _TEXT),
        sa.Column("parent_id", _TEXT),
        sa.Column("instance", _TEXT),
        sa.Column("config_rev", _TEXT),
        sa.Column("caller", _TEXT),
        sa.Column("labels", _JSON),
        # Call
        sa.Column("route", _TEXT),
        sa.Column("dialect", _TEXT),
        sa.Column("operation", _TEXT),
        sa.Column("method", _TEXT),
        sa.Column("path", _TEXT),
        sa.Column("stream", _FLAG),
        sa.Column("model_requested", _TEXT),
        sa.Column("model_answered", _TEXT),
        sa.Column("upstream", _TEXT),
        sa.Column("rule", _TEXT),
        # Time
        sa.Column("started_us", _NUMBER, nullable=False),
        sa.Column("ended_us", _NUMBER),
        sa.Column("duration_us", _NUMBER),
        sa.Column("wait_us", _NUMBER),
        sa.Column("first_token_us", _NUMBER),
        # Result
        sa.Column("status", _NUMBER),
        sa.Column("outcome", _TEXT),
        sa.Column("error_class", _TEXT),
        sa.Column("attempts", _NUMBER),
        sa.Column("ambiguous", _FLAG),
        sa.Column("sdk_retry", _NUMBER),
        sa.Column("bytes_in", _NUMBER),
        sa.Column("bytes_out", _NUMBER),
        # Money
        sa.Column("tokens_in", _NUMBER),
        sa.Column("tokens_cached", _NUMBER),
        sa.Column("tokens_out", _NUMBER),
        sa.Column("tokens_reasoning", _NUMBER),
        sa.Column("cost_nusd", _NUMBER),
        sa.Column("wasted_nusd", _NUMBER),
        sa.Column("avoided_nusd", _NUMBER),
        sa.Column("cost_source", _TEXT),
        # Key
        sa.Column("idem_key", _TEXT),
        sa.Column("idem_scope", _TEXT),
        sa.Column("idem_fp", _TEXT),
        sa.Column("idem_role", _TEXT),
        sa.Column("idem_state", _TEXT),
        sa.Column("idem_live", _FLAG),
        sa.Column("idem_epoch", _NUMBER),
        sa.Column("owner_id", _ID),
        sa.Column("served_from", _ID),
        sa.Column("sent_us", _NUMBER),
        sa.Column("expires_us", _NUMBER),
        sa.Column("keyring_id", _TEXT),
        # Stored answer. Its head is text on PostgreSQL too: it comes back as it was written.
        sa.Column("resp_headers", _TEXT),
        sa.Column("resp_bytes", _NUMBER),
        sa.Column("resp_chunks", _NUMBER),
        sa.Column("resp_sha256", _TEXT),
        # Room in each page for a row's next version: finishing a call touches no index (HOT).
        postgresql_with={"fillfactor": 70},
    )
    _index("requests_live_key", "requests", ["idem_scope"], "idem_live = 1", unique=True)
    _index("requests_started", "requests", ["started_us"])
    _index("requests_request_id", "requests", ["request_id"])
    for column in ("trace_id", "idem_key", "served_from"):
        _index(f"requests_{column}", "requests", [column], f"{column} IS NOT NULL")
    # "Not null", so that no plan of another query takes this for a short list of live rows.
    expiring = "idem_live = 1 AND expires_us IS NOT NULL"
    _index("requests_expires", "requests", ["expires_us"], expiring)


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("request", _ID, primary_key=True, nullable=False),
        sa.Column("n", _NUMBER, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("upstream", _TEXT, nullable=False),
        sa.Column("model", _TEXT),
        sa.Column("credential", _TEXT),
        sa.Column("upstream_request_id", _TEXT),
        sa.Column("started_us", _NUMBER, nullable=False),
        sa.Column("duration_us", _NUMBER),
        sa.Column("connect_us", _NUMBER),
        sa.Column("headers_us", _NUMBER),
        sa.Column("first_token_us", _NUMBER),
        sa.Column("wait_us", _NUMBER),
        sa.Column("wait_source", _TEXT),
        sa.Column("status", _NUMBER),
        sa.Column("outcome", _TEXT),
        sa.Column("failure_class", _TEXT),
        sa.Column("executed", _TEXT),
        sa.Column("reused_conn", _FLAG),
        sa.Column("bytes_sent", _NUMBER),
        sa.Column("bytes_received", _NUMBER),
        sa.Column("tokens_in", _NUMBER),
        sa.Column("tokens_cached", _NUMBER),
        sa.Column("tokens_out", _NUMBER),
        sa.Column("tokens_reasoning", _NUMBER),
        sa.Column("cost_nusd", _NUMBER),
        sa.Column("cost_source", _TEXT),
        sa.Column("wasted", _FLAG),
    )
    _index("attempts_upstream_started", "attempts", ["upstream", "started_us"])
    _index("attempts_started", "attempts", ["started_us"])


def _response_chunks() -> None:
    op.create_table(
        "response_chunks",
        sa.Column("request", _ID, primary_key=True, nullable=False),
        sa.Column("seq", _NUMBER, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("byte_offset", _NUMBER, nullable=False),
        sa.Column("at_us", _NUMBER, nullable=False),
        sa.Column("codec", _TEXT, nullable=False),
        sa.Column("key_id", _TEXT),
        sa.Column("raw_bytes", _NUMBER, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )


def _breaker_events() -> None:
    op.create_table(
        "breaker_events",
        sa.Column("id", _ID, primary_key=True, nullable=False),
        sa.Column("at_us", _NUMBER, nullable=False),
        sa.Column("instance", _TEXT),
        sa.Column("kind", _TEXT),
        sa.Column("upstream", _TEXT),
        sa.Column("model", _TEXT),
        sa.Column("credential", _TEXT),
        sa.Column("from_state", _TEXT),
        sa.Column("to_state", _TEXT),
        sa.Column("reason", _TEXT),
        sa.Column("generation", _NUMBER),
        sa.Column("until_us", _NUMBER),
        sa.Column("window_calls", _NUMBER),
        sa.Column("window_failures", _NUMBER),
        sa.Column("request", _ID),
        sa.Column("actor", _TEXT),
    )
    _index("breaker_events_at", "breaker_events", ["at_us"])


def _index(
    name: str, table: str, columns: list[str], where: str | None = None, *, unique: bool = False
) -> None:
    only = None if where is None else sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=only, postgresql_where=only)


# --- Views ----------------------------------------------------------------------------------------


def _views(*, postgres: bool) -> Iterator[tuple[str, str]]:
    """Each view's name and query: one text, but for the clock and dates."""
    now = (
        "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
        if postgres
        else "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    )

    def iso(column: str) -> str:
        """A time as ISO 8601 text in UTC, cut to milliseconds: as text it sorts by time."""
        seconds = f"({column} / 1000) / 1000.0"
        if postgres:
            shape = 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
            return f"to_char(to_timestamp({seconds}) AT TIME ZONE 'UTC', '{shape}')"
        return f"strftime('%Y-%m-%dT%H:%M:%fZ', {seconds}, 'unixepoch')"

    def calendar(column: str) -> str:
        """The day and the hour a time lies in, as text."""
        return f"""substr({iso(column)}, 1, 10) AS day,
    substr({iso(column)}, 1, 13) || ':00Z' AS hour"""

    yield (
        "v_idempotency",
        _idempotency(now, iso("r.sent_us"), iso("r.started_us"), iso("r.expires_us")),
    )
    yield "v_spend", _spend(iso("started_us"), calendar("started_us"))
    yield "v_wasted", _wasted(iso("a.started_us"), calendar("a.started_us"))
    yield "v_upstream_health", _upstream_health(calendar("started_us"))


def _idempotency(now: str, sent_at: str, started_at: str, expires_at: str) -> str:
    """Live keys, with the state that others see: a record whose owner's lease is over is uncertain
    or abandoned, though nobody has written so."""
    lapsed = f"COALESCE(o.lease_until_us, 0) <= {now}"
    duplicates = "FROM requests AS d WHERE d.served_from = r.id"
    return f"""
SELECT
    r.id,
    r.idem_key,
    r.idem_scope,
    CASE
        WHEN r.idem_state = 'sent' AND {lapsed} THEN 'uncertain'
        WHEN r.idem_state = 'claimed' AND {lapsed} THEN 'abandoned'
        ELSE r.idem_state
    END AS state,
    r.idem_state AS written_state,
    CASE WHEN r.expires_us <= {now} THEN 1 ELSE 0 END AS expired,
    r.idem_epoch AS epoch,
    r.request_id,
    r.caller,
    r.route,
    r.upstream,
    COALESCE(r.model_answered, r.model_requested) AS model,
    r.status,
    r.outcome,
    r.owner_id,
    o.instance AS owner_instance,
    {started_at} AS started_at,
    {sent_at} AS sent_at,
    {expires_at} AS expires_at,
    r.started_us,
    ({now} - r.started_us) / 1000000.0 AS age_s,
    r.resp_bytes AS stored_bytes,
    r.cost_nusd / 1000000000.0 AS cost_usd,
    (SELECT COUNT(*) {duplicates}) AS duplicates,
    (SELECT CASE WHEN COUNT(*) = 0 THEN 0 ELSE SUM(d.avoided_nusd) END {duplicates})
        / 1000000000.0 AS avoided_usd
FROM requests AS r
LEFT JOIN owners AS o ON o.id = r.owner_id
WHERE r.idem_live = 1
"""  # noqa: S608 - nothing foreign


def _spend(started_at: str, calendar: str) -> str:
    """Every call with its money, duplicates included."""
    return f"""
SELECT
    id,
    request_id,
    {started_at} AS started_at,
    {calendar},
    started_us,
    instance,
    caller,
    labels,
    route,
    dialect,
    operation,
    upstream,
    COALESCE(model_answered, model_requested) AS model,
    stream,
    status,
    outcome,
    idem_key,
    idem_role,
    served_from,
    tokens_in,
    tokens_cached,
    tokens_out,
    tokens_reasoning,
    cost_source,
    cost_nusd / 1000000000.0 AS cost_usd,
    wasted_nusd / 1000000000.0 AS wasted_usd,
    avoided_nusd / 1000000000.0 AS avoided_usd,
    (COALESCE(cost_nusd, 0) + COALESCE(wasted_nusd, 0)) / 1000000000.0 AS spent_usd
FROM requests
"""  # noqa: S608 - nothing foreign


def _wasted(started_at: str, calendar: str) -> str:
    """Attempts that may have been billed and whose answer served nobody."""
    return f"""
SELECT
    a.request,
    a.n,
    {started_at} AS started_at,
    {calendar},
    a.started_us,
    a.upstream,
    a.model,
    a.status,
    a.outcome,
    a.failure_class,
    a.executed,
    a.duration_us / 1000000.0 AS duration_s,
    a.tokens_in,
    a.tokens_out,
    a.cost_nusd / 1000000000.0 AS cost_usd,
    a.cost_source,
    r.request_id,
    r.caller,
    r.labels,
    r.route,
    r.idem_key,
    r.outcome AS call_outcome
FROM attempts AS a
LEFT JOIN requests AS r ON r.id = a.request
WHERE a.wasted = 1
"""  # noqa: S608 - nothing foreign


def _upstream_health(calendar: str) -> str:
    """Attempts by upstream, model and hour. Percentiles are nearest ranks, of attempts that ended
    well: how long a failure took says nothing about how long an answer takes."""
    return f"""
SELECT
    upstream,
    model,
    hour,
    day,
    COUNT(*) AS attempts,
    SUM(CASE WHEN outcome = 'ok' THEN 1 ELSE 0 END) AS ok,
    SUM(CASE WHEN outcome = 'throttled' THEN 1 ELSE 0 END) AS throttled,
    SUM(CASE WHEN outcome IN ('upstream_5xx', 'timeout', 'network', 'broken') THEN 1 ELSE 0 END)
        AS failed,
    MIN(CASE WHEN good = 1 AND place * 100 >= 50 * places THEN duration_us END) / 1000.0 AS p50_ms,
    MIN(CASE WHEN good = 1 AND place * 100 >= 95 * places THEN duration_us END) / 1000.0 AS p95_ms
FROM (
    SELECT
        *,
        ROW_NUMBER() OVER (PARTITION BY upstream, model, hour, good ORDER BY duration_us) AS place,
        COUNT(*) OVER (PARTITION BY upstream, model, hour, good) AS places
    FROM (
        SELECT
            upstream,
            model,
            {calendar},
            outcome,
            duration_us,
            CASE WHEN outcome = 'ok' AND duration_us IS NOT NULL THEN 1 ELSE 0 END AS good
        FROM attempts
    ) AS dated
) AS ranked
GROUP BY upstream, model, hour, day
"""  # noqa: S608 - nothing foreign
