"""The `X-Steer-*` request headers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from steer_policies.budget import Budget
from steer_policies.quality import Quality
from steer_policies.steering import (
    MAX_BYTES,
    MAX_DEPTH,
    NONE,
    Steering,
    SteeringError,
    read_steering,
)

METADATA = "X-Steer-Metadata"


def metadata(text: str) -> Mapping[str, Any]:
    return read_steering({METADATA: text}).metadata


def refusal(headers: Mapping[str, str]) -> str:
    with pytest.raises(SteeringError) as caught:
        read_steering(headers)
    return str(caught.value)


def outcome(headers: Mapping[str, str]) -> str:
    """The refusal, or the name of the header that was obeyed."""
    try:
        read_steering(headers)
    except SteeringError as error:
        return str(error)
    return next(iter(headers))


def test_nothing_asked() -> None:
    """The usual call."""
    assert read_steering({"X-Steer-Else": "1"}) is NONE
    assert Steering() == NONE


def test_everything_asked() -> None:
    """Each header becomes its value."""
    steering = read_steering(
        CIMultiDict(
            {
                "X-Steer-Upstream": " azure-eu ",
                "X-Steer-Metadata": '{"tier": "gold", "n": [1, 2.5, null, true]}',
                "X-Steer-Budget": '{"ms": 2000, "tokens": 5000, "cost_usd": 0.05}',
                "X-Steer-Quality": '{"min_confidence": 0.9}',
                "X-Steer-Timeout": "12.5",
            }
        )
    )
    assert steering.upstream == "azure-eu"
    assert steering.metadata == {"tier": "gold", "n": [1, 2.5, None, True]}
    assert steering.budget == Budget(ms=2000.0, tokens=5000, cost_usd=0.05)
    assert steering.quality == Quality(min_confidence=0.9, attributes={"min_confidence": 0.9})
    assert steering.timeout == 12.5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), (" 0.25 ", 0.25), ("250ms", 0.25), ("2 m", 120.0), ("1h", 3600.0)],
)
def test_timeouts(text: str, seconds: float) -> None:
    """Seconds, or a duration as configuration writes it."""
    assert read_steering({"X-Steer-Timeout": text}).timeout == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "0s", "-1", "soon", "inf", "nan", "1e3", "1_000", "٣", "5 fortnights"]
)
def test_timeouts_that_are_none(text: str) -> None:
    """A bound that is misread is no bound."""
    assert refusal({"X-Steer-Timeout": text}).startswith("X-Steer-Timeout must be a number of sec")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON: Expecting value at position 0."),
        ("{", "is not valid JSON: Expecting property name enclosed in double quotes at position 1"),
        ('{"a": }', "is not valid JSON: Expecting value at position 6."),
        ('{"a": 1} x', "is not valid JSON: Extra data at position 9."),
        ('{"a": "\x01"}', "is not valid JSON: Invalid control character at at position 7."),
        ("[]", "must be a JSON object at position 0."),
        ("1", "must be a JSON object at position 0."),
        ('{"a": 1, "a": 2}', "is not accepted: the member 'a' appears twice."),
        ('{"b": {"a": 1, "a": 1}}', "is not accepted: the member 'a' appears twice."),
        ('{"a": NaN}', "is not accepted: NaN is not a JSON number."),
        ('{"a": -Infinity}', "is not accepted: -Infinity is not a JSON number."),
        ('{"a": 1e999}', "is not accepted: 1e999 is beyond all numbers."),
        ('{"a": "\\ud800"}', "is not accepted: half a surrogate pair."),
        ('{"\\udfff": 1}', "is not accepted: half a surrogate pair."),
        ('{"a": "\udce9"}', "is not UTF-8 at position 7."),
        ('{"a": "' + "x" * MAX_BYTES + '"}', f"is longer than {MAX_BYTES} bytes."),
        ('{"a": "' + "é" * (MAX_BYTES // 2) + '"}', f"is longer than {MAX_BYTES} bytes."),
        ('{"a":' + "[" * 8 + "]" * 8 + "}", f"is nested deeper than {MAX_DEPTH} levels at pos"),
        ('{"a":' + "[" * 8, f"is nested deeper than {MAX_DEPTH} levels at position 12."),
        ("[" * MAX_BYTES, f"is nested deeper than {MAX_DEPTH} levels at position 8."),
    ],
)
def test_json_that_cannot_be_obeyed(text: str, said: str) -> None:
    """The header and the place are named."""
    message = refusal({METADATA: text})
    assert message.startswith(f"{METADATA} {said}"), message


def test_a_number_of_too_many_digits() -> None:
    """Python's own bound on the conversion of digits holds."""
    assert refusal({METADATA: '{"a": ' + "9" * 5000 + "}"}).startswith(f"{METADATA} is not acc")


@pytest.mark.parametrize(
    ("header", "text", "said"),
    [
        (
            "X-Steer-Budget",
            '{"ms": 0}',
            "X-Steer-Budget: ms must be a finite number greater than 0.",
        ),
        ("X-Steer-Budget", '{"ms": "1"}', "X-Steer-Budget: ms must be a number."),
        ("X-Steer-Budget", '{"eur": 1}', "X-Steer-Budget: unknown budget 'eur'; known: ms, tokens"),
        ("X-Steer-Budget", '{"ms": 1', "X-Steer-Budget is not valid JSON: Expecting ',' delimiter"),
        ("X-Steer-Quality", '{"min_confidence": "high"}', "X-Steer-Quality: min_confidence must"),
        ("X-Steer-Quality", "[]", "X-Steer-Quality must be a JSON object at position 0."),
    ],
)
def test_values_that_cannot_be_obeyed(header: str, text: str, said: str) -> None:
    """What the value's own parser says, under the header's name."""
    assert refusal({header: text}).startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "[[[[[[[[[[{{{{{{{{{{"}',
        '{"a": "\\"[[[[[[[[[[[[["}',
        '{"[[[[[[[[[[": "\\\\"}',
        '{"a":' + "[" * 7 + "]" * 7 + "}",
        '{"a": [' + ", ".join(["[]"] * 50) + "]}",
    ],
)
def test_brackets_that_nest_nothing(text: str) -> None:
    """Those in strings, and those that stand side by side."""
    assert metadata(text) == json.loads(text)


@pytest.mark.parametrize(
    "header", ["Upstream", "Metadata", "Budget", "Quality", "Timeout"], ids=str.lower
)
def test_a_header_given_twice(header: str) -> None:
    """Neither of the two is obeyed: nobody can say which was meant."""
    headers: CIMultiDict[str] = CIMultiDict()
    for _ in range(2):
        headers.add(f"x-steer-{header.lower()}", "{}")
    assert refusal(headers) == f"X-Steer-{header} is given 2 times; once is clear."


@pytest.mark.parametrize("text", ['"\\"' * 2700, '{"a": "' + "\\\\" * 4000, '"' * 8192])
def test_no_text_takes_long(text: str) -> None:
    """The depth is found in one pass, whatever strings are left open."""
    began = time.process_time()
    refusal({METADATA: text})
    assert time.process_time() - began < 0.2


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), _JSON, max_size=4))
def test_every_object_within_the_bounds(value: dict[str, Any]) -> None:
    """Is read as it was meant; one beyond them is refused, and nothing else happens."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode()) <= MAX_BYTES and _depth(value) <= MAX_DEPTH:
        assert metadata(text) == value
    else:
        assert METADATA in refusal({METADATA: text})


@given(
    st.text(max_size=60)
    | st.binary(max_size=60).map(lambda raw: raw.decode(errors="surrogateescape"))
)
def test_any_text(text: str) -> None:
    """Is read or refused by name: every reader is total."""
    for header in ("Upstream", "Metadata", "Budget", "Quality", "Timeout"):
        name = f"X-Steer-{header}"
        assert outcome({name: text}).startswith(name)
