"""The queries of docs/ledger.md run on every database, as they are printed, and find the truth."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import duckdb
import pytest

from tests.support.filled import (  # noqa: F401 - fixtures
    Filled,
    FilledPostgres,
    FilledSqlite,
    Row,
    filled_postgres,
    filled_sqlite,
    plain,
)
from tests.support.ledger_data import BASE_US, DAY, HOUR, SECOND, LedgerData

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "ledger.md"

Ask = Callable[[str, LedgerData], list[Row]]

_RECIPE: Final = re.compile(
    r"^### (?P<title>[^\n]+)\n(?P<said>(?:(?!^#).)*?)^```sql\n(?P<query>.*?)^```",
    re.DOTALL | re.MULTILINE,
)

COOKBOOK: Final = {
    match["title"]: match["query"]
    for match in _RECIPE.finditer(DOCUMENT.read_text("utf-8").partition("\n## Cookbook\n")[2])
}

#: What the made-up ledger holds, by the query that has to find it.
TRUTH: Final[dict[str, list[Row]]] = {
    "Spend by model and day": [
        ("2026-03-02", "claude-sonnet", 5, 0.100),
        ("2026-03-02", "gpt-4o", 10, 0.100),
        ("2026-03-03", "gpt-4o", 20, 0.150),
        ("2026-03-04", "house-model", 4, 0),
    ],
    "Spend by route and month": [("2026-03", "chat", 34, 0.250), ("2026-03", "claude", 5, 0.100)],
    "Spend by label": [("search", 30, 0.250), ("support", 8, 0.100), ("(none)", 1, 0)],
    "Busiest callers": [
        ("caller-a", 30, 18_000, 0.250),
        ("caller-b", 5, 5_000, 0.100),
        ("caller-c", 4, 4_000, 0),
    ],
    "Calls whose cost nobody knows": [
        ("vllm", "house-model", 4, 4_000, 400),
    ],
    "Duplicates avoided": [("adopted", 1, 0.010), ("joined", 1, 0.050), ("replayed", 3, 0.130)],
    "Duplicates avoided by day": [("2026-03-03", 5, 0.190)],
    "Hit rate of keys by route": [("chat", 13, 4, 30.769230769)],
    "Keys that were asked for most": [
        ("order-1", "completed", 3, 0.150, "2026-03-03T14:00:00.000Z"),
        ("order-7", "completed", 1, 0.030, "2026-03-03T14:10:00.000Z"),
    ],
    "Keys at work, and those nobody works on": [
        ("abandoned", 1, "2026-03-03T14:00:03.000Z"),
        ("sent", 1, "2026-03-03T14:00:04.000Z"),
        ("uncertain", 1, "2026-03-03T14:00:02.000Z"),
    ],
    "Calls that were made again": [
        ("order-7", "uncertain", "completed", BASE_US + DAY + 14 * HOUR + 600 * SECOND, 0.030),
    ],
    "Wasted spend by cause": [
        ("openai", "first_byte_timeout", 1, 0.008),
        ("openai", "reset", 1, 0.005),
        ("openai", "cancelled", 1, 0.003),
    ],
    "Share of spend that was wasted": [
        ("2026-03-02", 0.200, 0),
        ("2026-03-03", 0.150, 10.666666667),
    ],
    "Availability by upstream": [
        ("anthropic", 5, 0, 0, 100),
        ("azure-eu", 2, 0, 0, 100),
        ("openai", 14, 6, 1, 70),
        ("vllm", 4, 0, 0, 100),
    ],
    "Time to the first token": [("claude-sonnet", 5, 300, 500)],
    "Wait time by source": [("backoff", 3, 2.0, 0.75), ("retry_after", 1, 2.0, 2.0)],
    "Retries that helped": [(2, 3, 3, 2.5), (3, 1, 0, 1.5)],
    "Where calls went instead": [
        ("openai", "azure-eu", "first_byte_timeout", 1),
        ("openai", "azure-eu", "server_error", 1),
    ],
    "Failures that callers never saw": [
        ("openai", "first_byte_timeout", 1),
        ("openai", "server_error", 1),
        ("openai", "throttled", 1),
    ],
    "Breaker openings": [("openai", "gpt-4o", 2, 90), ("openai", "(all)", 1, 30)],
    "How long throttled": [("openai", "gpt-4o", 1, 2)],
    "Retries of the callers' SDKs": [(1, 2, 2, 0), (2, 1, 0, 0)],
    "What stored answers take up": [("chat", "identity", 1, 2, 700)],
}


def same(row: Row) -> Row:
    """A row as every database gives it: 1.0 and 1 are one number."""
    return tuple(
        round(float(value), 6) if isinstance(value, int | float) else value for value in plain(row)
    )


def asked(database: Filled, title: str) -> list[Row]:
    return [same(row) for row in database.ask(COOKBOOK[title])[1]]


def test_there_is_a_cookbook() -> None:
    """Every block of SQL is a recipe of its own heading, and what we know of is there."""
    text = DOCUMENT.read_text("utf-8")
    assert len(COOKBOOK) == text.count("```sql") >= 20
    assert set(TRUTH) <= set(COOKBOOK)


@pytest.mark.parametrize("title", COOKBOOK)
def test_both_databases_say_the_same(
    title: str,
    filled_sqlite: Filled,  # noqa: F811
    filled_postgres: Filled,  # noqa: F811
) -> None:
    """The same columns and rows in the same order; and there are some."""
    ours, theirs = filled_sqlite.ask(COOKBOOK[title])[0], filled_postgres.ask(COOKBOOK[title])[0]
    assert ours == theirs
    assert asked(filled_sqlite, title) == asked(filled_postgres, title) != []


@pytest.mark.parametrize("title", TRUTH)
def test_what_they_say_is_true(title: str, filled_sqlite: Filled) -> None:  # noqa: F811
    """The figures that were put in."""
    assert asked(filled_sqlite, title) == [same(row) for row in TRUTH[title]]


def test_uncertain_calls_are_found_by_their_lease(filled_postgres: Filled) -> None:  # noqa: F811
    """Also those of which nobody has written that they are."""
    found = [row[0] for row in asked(filled_postgres, "Uncertain calls to look into")]
    assert found == ["order-2", "order-5"]


@pytest.fixture(params=["sqlite", "postgres"])
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Ask:
    """Ask either database of a ledger of some rows."""

    def ask(title: str, data: LedgerData) -> list[Row]:
        if request.param == "sqlite":
            return asked(FilledSqlite(tmp_path / "steer.db", data), title)
        return asked(FilledPostgres(request.getfixturevalue("postgres_url"), data), title)

    return ask


def test_streams_are_not_told_of_calls_that_were_refused_early(ask: Ask) -> None:
    """Nobody knows what they asked for."""
    data = LedgerData()
    data.call(0, stream=0)
    data.call(1, stream=1, outcome="timeout")
    data.call(2, stream=None, outcome="client_4xx", status=413)
    assert [(row[0], row[1], row[4]) for row in ask("Streams and plain calls", data)] == [
        ("plain", 1, 1),
        ("stream", 1, 0),
    ]


def test_calls_that_were_made_again(ask: Ask) -> None:
    """Whatever the epoch says: what went upstream after what did, and was not completed."""
    data = LedgerData()
    over: dict[str, Any] = {"idem_live": None}
    data.keyed("settled", 0, idem_state="released", outcome="network", **over)
    data.keyed("settled", 10)  # the key was free: epoch 1
    data.keyed("rerun", 1, idem_state="sent", outcome=None, **over)
    data.keyed("rerun", 11, idem_epoch=2)
    data.keyed("unswept", 2, **over)
    data.keyed("unswept", 12, idem_epoch=2)  # its retention was over: a normal call
    data.keyed("abandoned", 3, idem_state="released", sent_us=None, **over)
    data.keyed("abandoned", 13, idem_epoch=2)
    data.keyed("another's", 4, idem_scope="one", idem_state="uncertain")
    data.keyed("another's", 14, idem_scope="other")
    assert [row[:3] for row in ask("Calls that were made again", data)] == [
        ("settled", "released", "completed"),
        ("rerun", "sent", "completed"),
    ]


def test_waste_that_nobody_knows_goes_last(ask: Ask) -> None:
    """On PostgreSQL NULL would be the greatest."""
    data = LedgerData()
    wasted: dict[str, Any] = {"outcome": "broken", "executed": "maybe", "wasted": 1}
    call = data.call(0, wasted_nusd=None, attempts=2)
    data.attempt(call, 1, **wasted, failure_class="unknown", cost_nusd=None)
    data.attempt(call, 2, **wasted, failure_class="known", cost_nusd=1_000_000)
    found = ask("Wasted spend by cause", data)
    assert [(row[1], row[3]) for row in found] == [("known", 0.001), ("unknown", None)]


# --- DuckDB


@pytest.fixture(scope="module")
def filled_duckdb(
    filled_sqlite: FilledSqlite,  # noqa: F811
) -> Any:
    """DuckDB with the same rows, by way of Python, views as tables.

    Its extensions are downloaded when they are first used, so tests cannot rely on them.
    """
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        _copy(filled_sqlite, connection)
        yield connection


def _copy(source: FilledSqlite, target: duckdb.DuckDBPyConnection) -> None:
    kinds = {"BIGINT": "BIGINT", "SMALLINT": "SMALLINT", "BLOB": "BLOB"}
    listed = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name <> ?"
    for (table,) in source.rows(listed.replace("?", "'alembic_version'")):
        declared = {row[1]: row[2] for row in source.rows(f"PRAGMA table_info({table})")}
        names, rows = source.ask(f"SELECT * FROM {table}")
        columns = []
        for place, name in enumerate(names):
            values = [row[place] for row in rows if row[place] is not None]
            kind = kinds.get(declared[name], "VARCHAR")
            if values and all(isinstance(value, int | float) for value in values):
                whole = all(isinstance(value, int) for value in values)
                kind = "BIGINT" if whole else "DOUBLE"
            columns.append(f"{name} {kind}")
        target.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        if rows:
            marks = ", ".join("?" * len(names))
            target.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


@pytest.mark.parametrize("title", COOKBOOK)
def test_duckdb_says_the_same(title: str, filled_duckdb: Any, filled_sqlite: Filled) -> None:  # noqa: F811
    """The queries run in DuckDB as they are, too."""
    found = [same(row) for row in filled_duckdb.execute(COOKBOOK[title]).fetchall()]
    assert found == asked(filled_sqlite, title)
