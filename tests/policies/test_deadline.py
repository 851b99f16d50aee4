"""The limits of a call, and the SDKs' own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.deadline import (
    Deadline,
    Limit,
    call_deadline,
    earliest_deadline,
    retry_count,
    sdk_silence_limit,
)


@pytest.mark.parametrize(
    ("total", "timeout", "budget_ms", "silence", "left", "limit"),
    [
        pytest.param(600.0, None, None, None, 600.0, Limit.TOTAL, id="the route's total"),
        pytest.param(600.0, 30.0, None, None, 30.0, Limit.TIMEOUT, id="X-Steer-Timeout"),
        pytest.param(600.0, 900.0, None, None, 600.0, Limit.TOTAL, id="cannot be extended"),
        pytest.param(600.0, 30.0, 1500.0, None, 1.5, Limit.BUDGET, id="X-Steer-Budget"),
        pytest.param(600.0, None, 9e9, 570.0, 570.0, Limit.SILENCE, id="the SDK's read time-out"),
        pytest.param(5.0, 5.0, 5000.0, 5.0, 5.0, Limit.TOTAL, id="equal limits"),
        pytest.param(None, None, None, None, math.inf, Limit.TOTAL, id="no limit at all"),
        pytest.param(None, None, None, 20.0, 20.0, Limit.SILENCE, id="no total"),
        pytest.param(600.0, 0.0, None, None, 0.0, Limit.TIMEOUT, id="no time at all"),
        pytest.param(600.0, None, -1.0, None, 0.0, Limit.BUDGET, id="an overspent budget"),
    ],
)
def test_the_tightest_limit_ends_the_call(
    total: float | None,
    timeout: float | None,
    budget_ms: float | None,
    silence: float | None,
    left: float,
    limit: Limit,
) -> None:
    """The earliest of all limits counts, and is named."""
    deadline = earliest_deadline(1000.0, total, timeout, budget_ms, silence)
    assert deadline == Deadline(1000.0 + left, limit)
    assert call_deadline(1000.0, total, timeout, budget_ms, silence) == 1000.0 + left


def test_time_left_is_never_negative() -> None:
    """After the deadline nothing is left."""
    deadline = Deadline(10.0, Limit.TOTAL)
    assert deadline.left(4.0) == 6.0
    assert deadline.left(11.0) == 0.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, None, id="not an SDK"),
        pytest.param({"x-stainless-read-timeout": "600"}, 599.0, id="at most one second less"),
        pytest.param({"x-stainless-read-timeout": "600.0"}, 599.0, id="as Python writes floats"),
        pytest.param({"x-stainless-read-timeout": "10"}, 9.5, id="five percent less"),
        pytest.param({"x-stainless-read-timeout": "0.30000000000000004"}, 0.285, id="all digits"),
        pytest.param(
            {"x-stainless-read-timeout": "10", "x-stainless-timeout": "NOT_GIVEN"},
            9.5,
            id="what anthropic-python sends",
        ),
        pytest.param(
            {"x-stainless-read-timeout": "10", "x-stainless-timeout": "600"},
            9.5,
            id="the read time-out is the exact one",
        ),
        pytest.param({"x-stainless-timeout": "600"}, 599.0, id="what the TypeScript SDKs send"),
        pytest.param(
            {"x-stainless-read-timeout": "None", "x-stainless-timeout": "10"},
            9.5,
            id="the one that can be read",
        ),
        pytest.param({"x-stainless-timeout": "0"}, None, id="less than a second, cut to none"),
        pytest.param({"x-stainless-timeout": "NOT_GIVEN"}, None, id="literally not given"),
        *(
            pytest.param({"x-stainless-read-timeout": value}, None, id=repr(value))
            for value in (
                *("", "None", "inf", "nan", "-1", "+1", "1e3", "1_0", " 1", "1 ", ".5", "1."),
                *("0x10", "\u0661", "9" * 10, "1." + "0" * 21, "Timeout(connect=5.0, read=600)"),
            )
        ),
    ],
)
def test_the_silence_an_sdk_bears(headers: dict[str, str], expected: float | None) -> None:
    """The read time-out less a margin, or None where nothing usable was said."""
    limit = sdk_silence_limit(headers)
    assert limit == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("2", 2),
        ("007", 7),
        ("999999", 999_999),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.0", None),
        ("1_0", None),
        ("\u0662", None),
        ("1000000", None),
        ("two", None),
    ],
)
def test_which_retry_of_the_sdk_it_is(value: str | None, expected: int | None) -> None:
    """A plain count of at most six digits, else None."""
    headers = {} if value is None else {"x-stainless-retry-count": value}
    assert retry_count(headers) == expected


@given(st.text(), st.text(), st.text())
def test_any_header_text_gives_a_bounded_value_or_none(read: str, total: str, count: str) -> None:
    """The parsers are total."""
    headers = {
        "x-stainless-read-timeout": read,
        "x-stainless-timeout": total,
        "x-stainless-retry-count": count,
    }
    limit, retries = sdk_silence_limit(headers), retry_count(headers)
    assert limit is None or 0.0 < limit < 1e9
    assert retries is None or 0 <= retries < 10**6


@given(st.floats(0.001, 999_999_999.0))
def test_the_margin_leaves_most_of_the_time(seconds: float) -> None:
    """Steer speaks before the SDK hangs up, and at most 5 % or a second earlier."""
    limit = sdk_silence_limit({"x-stainless-read-timeout": f"{seconds:.3f}"})
    said = round(seconds, 3)
    assert limit is not None
    assert max(0.95 * said, said - 1.0) == pytest.approx(limit)
    assert limit < said
