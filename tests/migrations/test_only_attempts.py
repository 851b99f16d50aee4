"""Revision 0002: the only attempt of a call is told by its call's row, and no question notices."""

from __future__ import annotations

import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.values import AttemptRow, only_attempt
from tests.ledger.test_cookbook import COOKBOOK
from tests.migrations.places import Place, SqlitePlace
from tests.support.ledger_data import made_up

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
