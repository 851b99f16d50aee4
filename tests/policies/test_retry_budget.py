"""The retry budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.retry_budget import RetryBudget


def spend(budget: RetryBudget, now: float, wanted: int = 1000) -> int:
    """How many of the wanted retries the budget gives."""
    return sum(budget.take(now) for _ in range(wanted))


@pytest.mark.parametrize(
    ("ratio", "floor", "window", "calls", "retries"),
    [
        pytest.param(0.2, 10.0, 10.0, 0, 100, id="Finagle's defaults, idle: 10/s over 10 s"),
        pytest.param(0.2, 10.0, 10.0, 500, 200, id="Finagle's defaults: 20 % more"),
        pytest.param(0.2, 0.0, 10.0, 4, 0, id="no share of a retry"),
        pytest.param(0.2, 0.0, 10.0, 5, 1, id="a whole retry for five calls"),
        pytest.param(0.29, 0.0, 10.0, 100, 29, id="0.29 * 100 is a little less than 29"),
        pytest.param(0.0, 0.0, 10.0, 1000, 0, id="no retries at all"),
        pytest.param(2.0, 0.0, 10.0, 3, 6, id="more retries than calls"),
    ],
)
def test_retries_are_a_share_of_the_calls_and_a_floor(
    ratio: float, floor: float, window: float, calls: int, retries: int
) -> None:
    """Within a window, ratio * calls + floor * window retries are given and no more."""
    budget = RetryBudget(ratio, floor, window)
    for _ in range(calls):
        budget.on_call(0.0)
    assert spend(budget, 0.0) == retries


def test_asking_takes_nothing() -> None:
    """`allows` is the same answer as `take`, without taking."""
    budget = RetryBudget(0.0, 0.1, 10.0)
    assert [budget.allows(0.0) for _ in range(3)] == [True] * 3
    assert budget.take(0.0)
    assert not budget.allows(0.0)
    assert not budget.take(0.0)


def test_a_refused_retry_is_not_counted() -> None:
    """Who keeps asking does not postpone the next retry."""
    budget = RetryBudget(0.0, 0.1, 10.0)
    assert budget.take(0.0)
    assert spend(budget, 5.0) == 0
    assert spend(budget, 10.0) == 1


def test_an_outage_is_not_amplified() -> None:
    """When every call fails and wants three retries, the upstream sees 20 % more, not 300 %."""
    budget = RetryBudget(0.2, 0.0, 10.0)
    sent = 0
    for call in range(2000):
        now = call / 100.0
        budget.on_call(now)
        sent += 1 + spend(budget, now, 3)
    assert sent <= 2000 * 1.2 + 1


@given(st.lists(st.tuples(st.integers(0, 24), st.booleans()), max_size=80))
def test_no_window_sees_more_retries_than_its_share(events: list[tuple[int, bool]]) -> None:
    """Over any 0.9 windows: retries <= ratio * calls of the last window + floor * window."""
    budget, now = RetryBudget(0.5, 0.25, 8.0), 0.0
    calls: list[float] = []
    retries: list[float] = []
    for step, is_call in events:
        now += step / 8.0
        if is_call:
            budget.on_call(now)
            calls.append(now)
        elif budget.take(now):
            retries.append(now)
            recent = sum(now - at <= 7.2 for at in retries)
            assert recent <= 0.5 * sum(now - at <= 8.0 for at in calls) + 2.0
