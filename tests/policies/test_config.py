"""Configuration values: read from text, and never invalid."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from steer_policies.config import (
    BreakerPolicy,
    ByteSize,
    CallTimeouts,
    ConcurrencyLimit,
    ModelFacts,
    RetryPolicy,
    Seconds,
    Timeouts,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("250ms", 0.25),
        ("7us", 7e-6),
        (" 5 m ", 300.0),
        ("24h", 86400.0),
        ("30d", 2_592_000.0),
        ("1.5s", 1.5),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    """Seconds, or text with a unit."""
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "5", "-1s", "1 year", -1, float("nan"), float("inf"), True])
def test_what_is_no_duration(value: object) -> None:
    """Refused, not guessed at."""
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (5, 5),
        ("64KiB", 65536),
        ("10 MB", 10_000_000),
        ("1GiB", 2**30),
        ("12", 12),
        ("3B", 3),
    ],
)
def test_sizes(value: object, size: int) -> None:
    """Bytes, or text with a unit."""
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "1.5MB", "-1", -1, 1.5, True, "5 parsecs", None])
def test_what_is_no_size(value: object) -> None:
    """Refused, not guessed at."""
    with pytest.raises(ValueError, match="a size is"):
        parse_size(value)


@given(st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.none(), st.binary()))
def test_reading_is_total(value: object) -> None:
    """Whatever comes, it is a number that is not negative, or a ValueError."""
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            assert parse(value) >= 0


def test_pydantic_reads_them_by_the_same_rules() -> None:
    """And describes both forms in its schema."""
    assert TypeAdapter(Seconds).validate_python("250ms") == 0.25
    assert TypeAdapter(ByteSize).validate_python("1KiB") == 1024
    with pytest.raises(ValidationError, match="a duration is"):
        TypeAdapter(Seconds).validate_python("soon")
    number, text = TypeAdapter(Seconds).json_schema()["anyOf"]
    assert number == {"type": "number", "minimum": 0}
    assert text["pattern"].startswith("^")


INVALID: list[tuple[type[Any], dict[str, Any], str]] = [
    (Timeouts, {"connect": 0}, "connect"),
    (Timeouts, {"idle": -1}, "idle"),
    (CallTimeouts, {"total": 0}, "total"),
    (CallTimeouts, {"max_stream": 0}, "max_stream"),
    (RetryPolicy, {"max_attempts": 0}, "max_attempts"),
    (RetryPolicy, {"max_attempts": 21}, "max_attempts"),
    (RetryPolicy, {"max_total_attempts": 0}, "max_total_attempts"),
    (RetryPolicy, {"initial_delay": 31}, "initial_delay"),
    (RetryPolicy, {"backoff_factor": 0.5}, "backoff_factor"),
    (RetryPolicy, {"jitter_factor": 1.5}, "jitter_factor"),
    (RetryPolicy, {"budget_ratio": -1}, "budget_ratio"),
    (RetryPolicy, {"budget_floor": -1}, "budget_floor"),
    (RetryPolicy, {"budget_window": 0}, "budget_window"),
    (BreakerPolicy, {"failure_threshold": 0}, "failure_threshold"),
    (BreakerPolicy, {"failure_rate": 0}, "failure_rate"),
    (BreakerPolicy, {"min_calls": 0}, "min_calls"),
    (BreakerPolicy, {"window": 0}, "window"),
    (BreakerPolicy, {"open_duration": 0}, "open_duration"),
    (BreakerPolicy, {"open_duration": 400}, "max_open_duration"),
    (BreakerPolicy, {"success_threshold": 0}, "success_threshold"),
    (BreakerPolicy, {"probes": 0}, "probes"),
    (BreakerPolicy, {"slow_call": 0}, "slow_call"),
    (ConcurrencyLimit, {"limit": 0}, "limit"),
    (ConcurrencyLimit, {"queue": -1}, "queue"),
    (ModelFacts, {"quality": 1.1}, "quality"),
    (ModelFacts, {"context_tokens": 0}, "context_tokens"),
    (ModelFacts, {"input_usd_per_mtok": -1}, "input_usd_per_mtok"),
    (ModelFacts, {"output_usd_per_mtok": -1}, "output_usd_per_mtok"),
]


@pytest.mark.parametrize(("kind", "values", "name"), INVALID)
def test_nothing_invalid_exists(kind: type[Any], values: dict[str, Any], name: str) -> None:
    """A value out of bounds is refused by its name, and the defaults are within them."""
    assert kind() is not None
    with pytest.raises(ValueError, match=name):
        kind(**values)
