"""Two counts over a sliding window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.window import SLOTS, Window


def test_a_new_window_is_empty() -> None:
    """Nothing was counted yet, at whatever time the first question comes."""
    assert Window(10.0).totals(12_345.0) == (0, 0)


def test_calls_and_marks_are_counted_apart() -> None:
    """A mark is no call of its own."""
    window = Window(10.0)
    window.count(1.0)
    window.count(1.5)
    window.mark(1.5)
    assert window.totals(2.0) == (2, 1)


def test_a_mark_may_come_first() -> None:
    """The first thing to happen may be a mark."""
    window = Window(10.0)
    window.mark(5.0)
    assert window.totals(5.0) == (0, 1)


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        pytest.param(0.0, 1, id="at once"),
        pytest.param(8.9, 1, id="still young"),
        pytest.param(10.0, 0, id="a window later"),
        pytest.param(10.5, 0, id="more than a window later"),
        pytest.param(1e9, 0, id="a lifetime later"),
    ],
)
def test_counts_leave_with_their_slot(later: float, expected: int) -> None:
    """What was counted lives for at least nine tenths of the window and at most all of it."""
    window = Window(10.0)
    window.count(100.0)
    assert window.totals(100.0 + later) == (expected, 0)


def test_marks_leave_too() -> None:
    """Both counts age alike."""
    window = Window(10.0)
    window.mark(100.0)
    window.count(105.0)
    window.mark(105.0)
    assert window.totals(111.0) == (1, 1)


def test_clearing_forgets() -> None:
    """A cleared window counts from nothing."""
    window = Window(10.0)
    window.count(1.0)
    window.mark(1.0)
    window.clear()
    assert window.totals(1.0) == (0, 0)


def test_a_window_too_narrow_for_the_clock_still_answers() -> None:
    """Where now + width is now again, counting goes on without hanging or raising."""
    window = Window(1e-9)
    for _ in range(100):
        window.count(1e9)
    calls, marks = window.totals(1e9)
    assert 0 <= calls <= 100
    assert marks == 0


@given(st.lists(st.integers(0, 80), max_size=60))
def test_totals_are_those_of_the_window(steps: list[int]) -> None:
    """Never less than what the last 0.9 windows saw, never more than what the last window saw."""
    window, now, seen = Window(float(SLOTS)), 0.0, []
    for step in steps:
        now += step / 8.0  # exact in binary, as the slots' width of 1 is
        window.count(now)
        seen.append(now)
        calls, _ = window.totals(now)
        young = sum(now - at <= 0.9 * SLOTS for at in seen)
        assert young <= calls <= sum(now - at < SLOTS for at in seen)
