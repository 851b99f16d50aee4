"""The views say what the tables mean: states as others see them, dates, dollars, percentiles."""

from __future__ import annotations

import time
from typing import Final

import pytest

from tests.support.filled import (  # noqa: F401 - fixtures
    Filled,
    filled,
    filled_postgres,
    filled_sqlite,
)
from tests.support.ledger_data import BASE_US, SECOND

VIEWS: Final = ("v_attempts", "v_idempotency", "v_spend", "v_wasted", "v_upstream_health")


@pytest.mark.parametrize("view", VIEWS)
def test_both_databases_give_the_same(
    view: str,
    filled_sqlite: Filled,  # noqa: F811
    filled_postgres: Filled,  # noqa: F811
) -> None:
    """The same columns in the same order, and the same rows; but for an age, which is now's."""
    names = filled_sqlite.ask(f"SELECT * FROM {view}")[0]
    assert names == filled_postgres.ask(f"SELECT * FROM {view}")[0]
    # JSON comes back in another spelling.
    told = ", ".join(name for name in names if name not in ("age_s", "labels"))
    order = {"v_upstream_health": "upstream, hour", "v_attempts": "request, n"}
    query = f"SELECT {told} FROM {view} ORDER BY {order.get(view, 'started_us, 1')}"
    assert filled_sqlite.rows(query) == filled_postgres.rows(query) != []


def test_states_are_as_others_see_them(filled: Filled) -> None:  # noqa: F811
    """A lease that is over makes a sent record uncertain and a claimed one abandoned."""
    assert filled.rows("SELECT idem_key, written_state, state FROM v_idempotency ORDER BY 1") == [
        ("order-1", "completed", "completed"),
        ("order-2", "sent", "uncertain"),
        ("order-3", "claimed", "abandoned"),
        ("order-4", "sent", "sent"),
        ("order-5", "uncertain", "uncertain"),
        ("order-7", "completed", "completed"),
        ("order-8", "completed", "completed"),
    ]


def test_a_missing_owner_is_a_lapsed_one(filled_sqlite: Filled) -> None:  # noqa: F811
    """Nobody renews the lease of a process that is not there."""
    import sqlite3

    with sqlite3.connect(":memory:") as copy:
        with sqlite3.connect(filled_sqlite.path) as source:  # type: ignore[attr-defined]
            source.backup(copy)
        source.close()
        copy.execute("DELETE FROM owners")
        found = copy.execute("SELECT state FROM v_idempotency WHERE idem_key = 'order-4'")
        assert found.fetchall() == [("uncertain",)]
    copy.close()


def test_duplicates_are_counted_with_what_they_saved(filled: Filled) -> None:  # noqa: F811
    """Per key: how many were served by its call, and for how much."""
    assert filled.rows(
        "SELECT idem_key, duplicates, avoided_usd, expired, epoch FROM v_idempotency "
        "WHERE duplicates > 0 OR expired = 1 ORDER BY 1"
    ) == [
        ("order-1", 3, 0.15, 0, 1),
        ("order-7", 1, 0.03, 0, 2),
        ("order-8", 0, 0, 1, 1),
    ]


def test_age_is_from_now(filled: Filled) -> None:  # noqa: F811
    """Seconds since the call began, by the database's clock."""
    ((age, started),) = filled.rows(
        "SELECT age_s, started_us FROM v_idempotency WHERE idem_key = 'order-1'"
    )
    assert abs(age - (time.time() - started / SECOND)) < 60


def test_money_is_in_dollars(filled: Filled) -> None:  # noqa: F811
    """Sums of all calls: what the answers cost, what was wasted beside them, what was saved."""
    ((cost, wasted, avoided, spent),) = filled.rows(
        "SELECT SUM(cost_usd), SUM(wasted_usd), SUM(avoided_usd), SUM(spent_usd) FROM v_spend"
    )
    assert cost == pytest.approx(0.334, abs=1e-9)
    assert wasted == pytest.approx(0.016, abs=1e-9)
    assert avoided == pytest.approx(0.190, abs=1e-9)
    assert spent == pytest.approx(cost + wasted, abs=1e-9)


def test_an_unknown_cost_is_not_zero(filled: Filled) -> None:  # noqa: F811
    """Nobody knows what the house model costs; what was spent counts only what is known."""
    assert filled.rows(
        "SELECT DISTINCT cost_usd, spent_usd FROM v_spend WHERE model = 'house-model'"
    ) == [(None, 0)]


def test_dates_are_utc_text(filled: Filled) -> None:  # noqa: F811
    """ISO 8601 to milliseconds, with the day and the hour beside it."""
    assert filled.rows(
        "SELECT started_at, day, hour, started_us FROM v_spend WHERE request_id = 'req-16'"
    ) == [
        (
            "2026-03-03T09:00:00.000Z",
            "2026-03-03",
            "2026-03-03T09:00Z",
            BASE_US + 33 * 3600 * SECOND,
        )
    ]


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (999, "2026-03-02T00:00:00.000Z"),
        (1_999, "2026-03-02T00:00:00.001Z"),
        (59_999_999, "2026-03-02T00:00:59.999Z"),
        (86_399_999_999, "2026-03-02T23:59:59.999Z"),
        (57_001_000, "2026-03-02T00:00:57.001Z"),
    ],
)
def test_times_are_cut_not_rounded(micros: int, text: str, filled: Filled) -> None:  # noqa: F811
    """A time is never told as a later minute or day than it was, on either database."""
    names, rows = filled.ask("SELECT 1")
    assert (len(names), len(rows)) == (1, 1)
    definition = filled.rows(
        "SELECT sql FROM sqlite_master WHERE name = 'v_spend'"
        if filled.name == "sqlite"
        else "SELECT pg_get_viewdef('v_spend'::regclass)"
    )[0][0]
    column = next(
        part.rpartition(" AS ")[0].strip(" ,")
        for part in definition.splitlines()
        if part.rstrip(" ,").endswith(" AS started_at")
    )
    assert filled.rows(f"SELECT {column} FROM (SELECT {BASE_US + micros} AS started_us) AS t") == [
        (text,)
    ]


def test_waste_is_what_may_have_been_billed(filled: Filled) -> None:  # noqa: F811
    """One line per attempt, with the call it belonged to."""
    assert filled.rows(
        "SELECT request_id, n, failure_class, executed, cost_usd, call_outcome, idem_key "
        "FROM v_wasted ORDER BY started_us"
    ) == [
        ("req-17", 1, "first_byte_timeout", "maybe", 0.008, "ok", None),
        ("req-20", 1, "cancelled", "yes", 0.003, "cancelled", None),
        ("req-28", 1, "reset", "maybe", 0.005, "network", "order-5"),
    ]


def test_health_counts_and_ranks_by_hour(filled: Filled) -> None:  # noqa: F811
    """Percentiles are nearest ranks of the attempts that ended well; failures do not blur them."""
    assert filled.rows(
        "SELECT hour, attempts, ok, throttled, failed, p50_ms, p95_ms FROM v_upstream_health "
        "WHERE upstream = 'openai' ORDER BY hour"
    ) == [
        ("2026-03-02T08:00Z", 5, 5, 0, 0, 3000, 5000),
        ("2026-03-02T09:00Z", 5, 5, 0, 0, 8000, 10000),
        ("2026-03-03T09:00Z", 2, 0, 0, 2, None, None),
        ("2026-03-03T10:00Z", 2, 1, 1, 0, 1000, 1000),
        ("2026-03-03T11:00Z", 3, 0, 0, 3, None, None),
        ("2026-03-03T12:00Z", 1, 0, 0, 0, None, None),
        ("2026-03-03T14:00Z", 5, 3, 0, 1, 2000, 2000),
    ]


def test_labels_are_read_in_the_same_words(filled: Filled) -> None:  # noqa: F811
    """`->>` reads a label on both databases."""
    assert filled.keyed(
        "SELECT COALESCE(labels->>'team', '-'), COUNT(*) FROM v_spend WHERE day = '2026-03-04' "
        "GROUP BY 1"
    ) == {"-": 1, "support": 3}
