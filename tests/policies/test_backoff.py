"""Exponential backoff."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.backoff import backoff
from steer_policies.config import RetryPolicy

ALMOST_ONE = 1.0 - 2.0**-53


@pytest.mark.parametrize(
    ("retry", "jitter", "expected"),
    [
        (0, 0.0, 0.0),
        (0, 0.5, 0.25),
        (1, 0.5, 0.5),
        (2, 0.5, 1.0),
        (3, 0.25, 1.0),
        (6, 0.5, 15.0),
        (7, 0.5, 15.0),
    ],
)
def test_full_jitter_is_uniform_below_the_exponential(
    retry: int, jitter: float, expected: float
) -> None:
    """U(0, min(cap, base * 2^n)), as in AWS's "Exponential Backoff and Jitter"."""
    assert backoff(RetryPolicy(), retry, jitter) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("factor", "retry", "jitter", "expected"),
    [
        (0.0, 2, 0.9, 4.0),
        (0.1, 0, 0.0, 0.9),
        (0.1, 0, 0.5, 1.0),
        (0.1, 1, 0.75, 2.1),
        (1.0, 1, 0.0, 0.0),
        (0.5, 9, 0.0, 5.0),
        (0.5, 9, 0.9, 10.0),
    ],
)
def test_a_jitter_factor_spreads_around_the_exponential(
    factor: float, retry: int, jitter: float, expected: float
) -> None:
    """The exponential delay times U(1 - j, 1 + j), never above max_delay."""
    policy = RetryPolicy(initial_delay=1.0, max_delay=10.0, jitter_factor=factor)
    assert backoff(policy, retry, jitter) == pytest.approx(expected)


def test_no_initial_delay_means_no_delay() -> None:
    """Zero stays zero, however often it is doubled."""
    assert backoff(RetryPolicy(initial_delay=0.0), 10**6, 0.9) == 0.0


@pytest.mark.parametrize("jitter_factor", [None, 0.3])
def test_a_power_beyond_floats_is_the_longest_delay(jitter_factor: float | None) -> None:
    """Overflow ends at the cap, not in an exception."""
    policy = RetryPolicy(max_delay=30.0, jitter_factor=jitter_factor)
    assert 0.0 <= backoff(policy, 10**9, 0.9) <= 30.0


@given(
    initial=st.floats(0.0, 100.0),
    extra=st.floats(0.0, 1000.0),
    factor=st.floats(1.0, 10.0),
    jitter_factor=st.none() | st.floats(0.0, 1.0),
    retry=st.integers(0, 5000),
    jitter=st.floats(0.0, ALMOST_ONE),
)
def test_a_delay_is_within_its_bounds(
    initial: float,
    extra: float,
    factor: float,
    jitter_factor: float | None,
    retry: int,
    jitter: float,
) -> None:
    """Never negative, never above max_delay, for any policy that can exist."""
    policy = RetryPolicy(
        initial_delay=initial,
        max_delay=initial + extra,
        backoff_factor=factor,
        jitter_factor=jitter_factor,
    )
    assert 0.0 <= backoff(policy, retry, jitter) <= policy.max_delay
