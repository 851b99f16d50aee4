"""The only attempt of a call that went well is told by the call's own row.

Nearly all calls are of that kind, and a second row for each cost more than the first: an
identifier, its indexes, and most of what the call's row says already. `attempts` keeps the rows
that say something of their own: of attempts that failed, and of calls that took more than one.
`v_attempts` has every attempt, wherever it is written.

`v_spend` takes what a call wasted from its attempts where its own row does not know it.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"
branch_labels: Final = None
depends_on: Final = None

_TEXT: Final = sa.Text()
_NUMBER: Final = sa.BigInteger()
_FLAG: Final = sa.SmallInteger()

#: What `requests` says of an only attempt: the columns of `attempts` that it did not have.
_OWN: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "model": _TEXT,
    "credential": _TEXT,
    "upstream_request_id": _TEXT,
    "started_us": _NUMBER,
    "duration_us": _NUMBER,
    "connect_us": _NUMBER,
    "headers_us": _NUMBER,
    "first_token_us": _NUMBER,
    "wait_source": _TEXT,
    "reused_conn": _FLAG,
    "bytes_sent": _NUMBER,
    "bytes_received": _NUMBER,
}

#: Every column of `attempts`, and where it is in the row of a call that went well at once. What is
#: always the same has a column's type: SQLite (17h of its query flattener) looks into both parts of
#: a view only where their types agree, else it makes all of it for whoever joins it.
_SAME: Final = {
    "request": "id",
    "n": "CAST(1 AS BIGINT)",
    "failure_class": "CAST(NULL AS TEXT)",
    "outcome": "CAST('ok' AS TEXT)",
    "executed": "CAST('yes' AS TEXT)",
    "wasted": "CAST(0 AS SMALLINT)",
}
_COLUMNS: Final = (
    "request",
    "n",
    "upstream",
    "model",
    "credential",
    "upstream_request_id",
    "started_us",
    "duration_us",
    "connect_us",
    "headers_us",
    "first_token_us",
    "wait_us",
    "wait_source",
    "status",
    "outcome",
    "failure_class",
    "executed",
    "reused_conn",
    "bytes_sent",
    "bytes_received",
    "tokens_in",
    "tokens_cached",
    "tokens_out",
    "tokens_reasoning",
    "cost_nusd",
    "cost_source",
    "wasted",
)


def upgrade() -> None:
    """Add the columns, and let the views look at both places."""
    for name, kind in _OWN.items():
        op.add_column("requests", sa.Column(f"attempt_{name}", kind))
    op.execute("DROP VIEW v_upstream_health")
    op.execute(f"CREATE VIEW v_attempts AS {_every()}")
    _make_health("v_attempts")
    _make_spend(_WASTED)


def downgrade() -> None:
    """Give every attempt a row again."""
    op.execute("DROP VIEW v_upstream_health")
    op.execute("DROP VIEW v_attempts")
    op.execute(f"INSERT INTO attempts ({', '.join(_COLUMNS)}) {_only()} ON CONFLICT DO NOTHING")
    for name in reversed(_OWN):
        op.drop_column("requests", f"attempt_{name}")
    _make_health("attempts")
    _make_spend("wasted_nusd")


def _only(*more: str) -> str:
    """The attempts that are told by their calls' rows."""
    found = [
        f"{_SAME.get(name, f'attempt_{name}' if name in _OWN else name)} AS {name}"
        for name in _COLUMNS
    ]
    columns = ", ".join([*found, *more])
    return f"SELECT {columns} FROM requests WHERE attempt_started_us IS NOT NULL"  # noqa: S608


def _every() -> str:
    """All attempts, with a time that an index finds them by, wherever they are told: no join, and
    nothing computed, or SQLite would look at all of them."""
    rows = ", ".join(_COLUMNS)
    return (
        f"SELECT {rows}, started_us AS called_us FROM attempts "  # noqa: S608 - ours
        f"UNION ALL {_only('started_us AS called_us')}"
    )


#: What a call wasted, as far as known: its row says nothing where the price of one of its attempts
#: is not known, or another process had taken its key over before it knew.
_WASTED: Final = (
    "COALESCE(wasted_nusd, (SELECT SUM(a.cost_nusd) FROM attempts AS a "
    "WHERE a.request = requests.id AND a.wasted = 1))"
)


def _make_spend(wasted: str) -> None:
    """What the view of the first revision says, with another way to tell the waste."""
    if op.get_context().dialect.name == "postgresql":
        shape = 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
        date = f"to_char(to_timestamp((started_us / 1000) / 1000.0) AT TIME ZONE 'UTC', '{shape}')"
        make = "CREATE OR REPLACE VIEW"  # who may read it still may
    else:
        date = "strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch')"
        make = "CREATE VIEW"
        op.execute("DROP VIEW v_spend")
    view = f"""{make} v_spend AS
SELECT
    id,
    request_id,
    {date} AS started_at,
    substr({date}, 1, 10) AS day,
    substr({date}, 1, 13) || ':00Z' AS hour,
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
    {wasted} / 1000000000.0 AS wasted_usd,
    avoided_nusd / 1000000000.0 AS avoided_usd,
    (COALESCE(cost_nusd, 0) + COALESCE({wasted}, 0)) / 1000000000.0 AS spent_usd
FROM requests
"""  # noqa: S608 - nothing foreign
    # text() takes a word after a colon for a parameter.
    op.execute(sa.text(view.replace(":", "\\:")))


def _make_health(source: str) -> None:
    """What the view of the first revision says, over attempts from this table or view.

    Hours are numbers until the end: sorting a million rows by their texts took twice as long.
    """
    if op.get_context().dialect.name == "postgresql":
        shape = 'YYYY-MM-DD"T"HH24":00Z"'
        hour = f"to_char(to_timestamp(hours * 3600) AT TIME ZONE 'UTC', '{shape}')"
    else:
        hour = "strftime('%Y-%m-%dT%H:00Z', hours * 3600, 'unixepoch')"
    view = f"""CREATE VIEW v_upstream_health AS
SELECT
    upstream,
    model,
    {hour} AS hour,
    substr({hour}, 1, 10) AS day,
    attempts,
    ok,
    throttled,
    failed,
    p50_us / 1000.0 AS p50_ms,
    p95_us / 1000.0 AS p95_ms
FROM (
    SELECT
        upstream,
        model,
        hours,
        COUNT(*) AS attempts,
        SUM(CASE WHEN outcome = 'ok' THEN 1 ELSE 0 END) AS ok,
        SUM(CASE WHEN outcome = 'throttled' THEN 1 ELSE 0 END) AS throttled,
        SUM(CASE WHEN outcome IN ('upstream_5xx', 'timeout', 'network', 'broken') THEN 1 ELSE 0 END)
            AS failed,
        MIN(CASE WHEN good = 1 AND place * 100 >= 50 * places THEN duration_us END) AS p50_us,
        MIN(CASE WHEN good = 1 AND place * 100 >= 95 * places THEN duration_us END) AS p95_us
    FROM (
        SELECT
            *,
            ROW_NUMBER() OVER (PARTITION BY upstream, model, hours, good ORDER BY duration_us)
                AS place,
            COUNT(*) OVER (PARTITION BY upstream, model, hours, good) AS places
        FROM (
            SELECT
                upstream,
                model,
                started_us / 3600000000 AS hours,
                outcome,
                duration_us,
                CASE WHEN outcome = 'ok' AND duration_us IS NOT NULL THEN 1 ELSE 0 END AS good
            FROM {source}
        ) AS timed
    ) AS ranked
    GROUP BY upstream, model, hours
) AS hourly
"""  # noqa: S608 - nothing foreign
    # text() takes a word after a colon for a parameter.
    op.execute(sa.text(view.replace(":", "\\:")))
