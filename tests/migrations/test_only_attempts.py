"""Revision 0002: the only attempt of a call is told by its call's row, and no question notices."""

from __future__ import annotations

from typing import Any

import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.values import AttemptRow, only_attempt
from tests.ledger.test_cookbook import COOKBOOK
from tests.migrations.places import Place, PostgresPlace, SqlitePlace
from tests.support.ledger_data import MILLI_USD, LedgerData, made_up

_HEALTH = """
SELECT upstream, model, hour, day, attempts, ok, throttled, failed, p50_ms, p95_ms
FROM v_upstream_health ORDER BY 1, 2, 3
"""


def _told() -> list[AttemptRow]:
    return [only for call in made_up().calls if (only := only_attempt(call)) is not None]


def _all(place: Place) -> list[tuple[object, ...]]:
    return place.run(f"SELECT {', '.join(AttemptRow._fields)} FROM v_attempts ORDER BY 1, 2")


def test_the_view_has_every_attempt(place: Place) -> None:
    """Those with rows, and those without, column by column as if they had."""
    migrate.upgrade(place.url)
    data = made_up()
    place.fill(data)
    assert _told()
    assert data.attempts
    assert _all(place) == sorted(tuple(row) for row in [*_told(), *data.attempts])


def test_going_back_gives_every_attempt_a_row(place: Place) -> None:
    """The version before knows only those; going up again loses nothing."""
    migrate.upgrade(place.url)
    place.fill(made_up())
    every, health = _all(place), place.run(_HEALTH)
    migrate.downgrade(place.url, "0001")
    assert place.run("SELECT * FROM attempts ORDER BY 1, 2") == every
    assert place.run(_HEALTH) == health
    migrate.upgrade(place.url)
    assert _all(place) == every
    assert place.run(_HEALTH) == health


def test_what_was_wasted_is_told_as_far_as_it_is_known(place: Place) -> None:
    """By the attempts where the call's row does not know it; the version before did not look."""
    migrate.upgrade(place.url)
    data = LedgerData()
    wasted: dict[str, Any] = {"outcome": "broken", "executed": "maybe", "wasted": 1}
    half = data.call(0, wasted_nusd=None, cost_nusd=MILLI_USD, attempts=3)
    data.attempt(half, 1, **wasted, cost_nusd=2 * MILLI_USD, cost_source="estimated")
    data.attempt(half, 2, **wasted, cost_nusd=None, cost_source="unknown")
    data.attempt(half, 3)
    nobody = data.call(1, wasted_nusd=None)
    data.attempt(nobody, 1, **wasted, cost_nusd=None, cost_source="unknown")
    data.call(2, cost_nusd=MILLI_USD)
    place.fill(data)
    assert _spent(place) == [(0.002, 0.003), (None, 0), (0, 0.001)]
    migrate.downgrade(place.url, "0001")
    assert _spent(place) == [(None, 0.001), (None, 0), (0, 0.001)]
    migrate.upgrade(place.url)
    assert _spent(place) == [(0.002, 0.003), (None, 0), (0, 0.001)]


def test_who_may_read_the_spend_still_may(postgres_place: PostgresPlace) -> None:
    """A view that is replaced keeps its grants."""
    migrate.upgrade(postgres_place.url)
    migrate.downgrade(postgres_place.url, "0001")
    postgres_place.run("GRANT SELECT ON v_spend TO PUBLIC")
    migrate.upgrade(postgres_place.url)
    granted = "SELECT relacl::text LIKE '%{=r/%' OR relacl::text LIKE '%,=r/%' FROM pg_class"
    assert postgres_place.run(f"{granted} WHERE relname = 'v_spend'") == [(True,)]


def _spent(place: Place) -> list[tuple[float | None, float]]:
    """Waste and spend of every call, with one type of number."""
    found = place.run("SELECT wasted_usd, spent_usd FROM v_spend ORDER BY started_us")
    return [(None if waste is None else float(waste), float(spent)) for waste, spent in found]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM v_attempts WHERE request = 'x' ORDER BY n",
        "SELECT * FROM v_attempts WHERE called_us > 5",
        "SELECT upstream, COUNT(*) FROM v_attempts WHERE called_us > 5 GROUP BY upstream",
        COOKBOOK["One call with all its attempts"],
    ],
)
def test_attempts_are_found_by_indexes(query: str, sqlite_place: SqlitePlace) -> None:
    """Those of a call, and those of a time: nobody else's are looked at."""
    migrate.upgrade(sqlite_place.url)
    plan = sqlite_place.run(f"EXPLAIN QUERY PLAN {query}")
    steps = [str(row[-1]) for row in plan]
    searched = ("SEARCH requests", "SEARCH attempts")
    assert all(any(step.startswith(each) for step in steps) for each in searched)
    assert not any(step.startswith(("SCAN requests", "SCAN attempts")) for step in steps)
