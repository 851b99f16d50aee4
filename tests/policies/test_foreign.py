"""Reading JSON that somebody else wrote."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.foreign import MAX_LABEL, code, count, items, label, load, mapping


@given(st.binary(max_size=100))
def test_anything_is_loaded_or_not(data: bytes) -> None:
    """Never an exception."""
    load(data)


def test_load() -> None:
    """JSON, or None: also for what is nested too deep."""
    assert load(b'{"a": [1]}') == {"a": [1]}
    assert load(b"[" * 5000 + b"]" * 5000) is None
    assert load(b"\xff") is None


@pytest.mark.parametrize("value", [None, True, 3, "x", [], {}])
def test_containers(value: Any) -> None:
    """The value if it is of the kind, else an empty one."""
    assert mapping(value) == {}
    assert items(value) == []
    assert mapping({"a": value}) == {"a": value}
    assert items([value]) == [value]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("gpt-4o", "gpt-4o"),
        ("модель 1", "модель 1"),
        ("x" * MAX_LABEL, "x" * MAX_LABEL),
        ("x" * (MAX_LABEL + 1), None),
        ("", None),
        ("a\nb", None),
        (3, None),
        (None, None),
    ],
)
def test_labels(value: Any, expected: str | None) -> None:
    """Short, printable, and text."""
    assert label(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("rate_limit_exceeded", "rate_limit_exceeded"),
        ("a.b:c/d-e", "a.b:c/d-e"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("", None),
        ("two words", None),
        ("a\n", None),
        (429, None),
    ],
)
def test_codes(value: Any, expected: str | None) -> None:
    """Bounded, and of safe characters."""
    assert code(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (2**40, 2**40), (2**40 + 1, None), (-1, None), (True, None), (1.0, None), ("1", None)],
)
def test_counts(value: Any, expected: int | None) -> None:
    """Whole numbers that a counter can have."""
    assert count(value) == expected
