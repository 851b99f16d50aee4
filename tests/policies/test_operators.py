"""The operators of conditions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.operators import (
    ABSENT,
    REGEX_PATTERN,
    REGEX_TEXT,
    Operator,
    compile_test,
    same,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)

MATCHES: list[tuple[str, Any, Any]] = [
    ("equals", "a", "a"),
    ("equals", 1, 1),
    ("equals", 1, 1.0),
    ("equals", True, True),
    ("equals", None, None),
    ("equals", [1, "a"], [1, "a"]),
    ("equals", {"a": [1]}, {"a": [1.0]}),
    ("not_equals", "a", "b"),
    ("not_equals", "1", 1),
    ("not_equals", 1, True),
    ("not_equals", "a", None),
    ("not_equals", None, "a"),
    ("contains", "b", "abc"),
    ("contains", "", "abc"),
    ("contains", "b", ["a", "b"]),
    ("contains", 2, (1, 2)),
    ("contains", None, [None]),
    ("contains", {"a": 1}, [{"a": 1}]),
    ("in", ["a", "b"], "b"),
    ("in", ["a", 2, None], None),
    ("in", (1, 2), 2.0),
    ("in", [[1]], [1]),
    ("not_in", ["a"], "b"),
    ("not_in", ["a"], None),
    ("not_in", ["1"], 1),
    ("regex", "^gpt-4o(-mini)?$", "gpt-4o-mini"),
    ("regex", "mini", "gpt-4o-mini"),
    ("regex", "(?i)URGENT", "this is urgent"),
    ("regex", "ü", "für"),
    ("exists", True, None),
    ("exists", None, 0),
    ("exists", False, ABSENT),
    ("gt", 1, 2),
    ("gt", "a", "b"),
    ("gte", 1, 1.0),
    ("lt", 0.5, 0),
    ("lte", 1, 1),
    ("lte", "b", "a"),
    ("starts_with", "gpt", "gpt-4o"),
    ("ends_with", "mini", "gpt-4o-mini"),
]

MISSES: list[tuple[str, Any, Any]] = [
    ("equals", "a", "A"),
    ("equals", "1", 1),
    ("equals", 1, "1"),
    ("equals", 1, True),
    ("equals", True, 1),
    ("equals", 0, False),
    ("equals", None, False),
    ("equals", [1], [True]),
    ("equals", [1], [1, 2]),
    ("equals", {"a": 1}, {"b": 1}),
    ("equals", {"a": 1}, [1]),
    ("not_equals", "a", "a"),
    ("not_equals", 1, 1.0),
    ("contains", "d", "abc"),
    ("contains", 1, "1"),
    ("contains", "a", {"a": 1}),
    ("contains", 1, [True]),
    ("contains", "a", None),
    ("in", ["a"], "b"),
    ("in", ["1"], 1),
    ("in", [1], True),
    ("in", ["a"], ["a"]),
    ("not_in", ["a"], "a"),
    ("regex", "^mini", "gpt-4o-mini"),
    ("regex", "1", 1),
    ("exists", False, None),
    ("gt", 1, 1),
    ("gt", 1, "2"),
    ("gt", "1", 2),
    ("gt", 0, True),
    ("gt", 1, None),
    ("gt", 1, float("nan")),
    ("lt", 1, float("nan")),
    ("gte", 1, [2]),
    ("starts_with", "a", None),
    ("starts_with", "1", 12),
    ("ends_with", "a", ["a"]),
]


@pytest.mark.parametrize(("operator", "value", "found"), MATCHES)
def test_what_matches(operator: str, value: Any, found: Any) -> None:
    """Text compares with text, numbers with numbers, null with null."""
    assert compile_test(Operator(operator), value)(found) is True


@pytest.mark.parametrize(("operator", "value", "found"), MISSES)
def test_what_does_not_match(operator: str, value: Any, found: Any) -> None:
    """Unlike types neither match nor raise; true and false are no numbers."""
    assert compile_test(Operator(operator), value)(found) is False


OPERANDS: list[tuple[str, Any]] = [
    ("equals", None),
    ("equals", "a"),
    ("equals", 1),
    ("equals", True),
    ("equals", []),
    ("not_equals", "a"),
    ("not_equals", None),
    ("contains", "a"),
    ("in", ["a"]),
    ("in", [None]),
    ("not_in", ["a"]),
    ("not_in", [1]),
    ("regex", ""),
    ("exists", True),
    ("gt", 0),
    ("gt", ""),
    ("gte", 0),
    ("lt", 0),
    ("lte", 0),
    ("starts_with", ""),
    ("ends_with", ""),
]


@pytest.mark.parametrize(("operator", "value"), OPERANDS)
def test_an_absent_attribute_matches_nothing_but_exists_false(operator: str, value: Any) -> None:
    """Not even the negative operators: "absent or other" is written with `not`."""
    assert compile_test(Operator(operator), value)(ABSENT) is False


@pytest.mark.parametrize(("operator", "value"), [*OPERANDS, ("exists", False)])
@given(found=JSON)
def test_every_operator_answers_for_every_value(operator: str, value: Any, found: Any) -> None:
    """Total: whatever a request holds, the answer is True or False."""
    assert compile_test(Operator(operator), value)(found) in (True, False)


@given(left=JSON, right=JSON)
def test_sameness_is_symmetric_and_as_strict_as_equality(left: Any, right: Any) -> None:
    """Same values are equal; the other way round only types can stand between."""
    assert same(left, right) == same(right, left)
    if same(left, right):
        assert left == right


@pytest.mark.parametrize(
    ("operator", "value", "message"),
    [
        ("in", "abc", "in and not_in take a list with at least one value"),
        ("not_in", [], "in and not_in take a list with at least one value"),
        ("regex", 1, "regex takes a pattern as text"),
        ("regex", "(", "this one is refused: missing"),
        ("regex", "(?=a)", "RE2 pattern"),
        ("regex", "a" * (REGEX_PATTERN + 1), f"at most {REGEX_PATTERN} characters"),
        ("regex", "((a{30}){30}){30}", "this one is refused"),
        ("regex", r"(\pL{1000}){1}", "this one is refused: pattern too large"),
        ("exists", "yes", "exists takes true or false"),
        ("gt", True, "gt takes a number or text"),
        ("lte", None, "lte takes a number or text"),
        ("lt", float("inf"), "finite"),
        ("equals", float("nan"), "finite"),
        ("in", [float("nan")], "finite"),
        ("starts_with", ["a"], "starts_with takes text"),
        ("ends_with", 1, "ends_with takes text"),
    ],
)
def test_an_operand_that_cannot_be_used_is_refused(operator: str, value: Any, message: str) -> None:
    """At construction, saying what is expected."""
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        compile_test(Operator(operator), value)


def test_regex_looks_at_the_beginning_of_a_long_text() -> None:
    """The text is bounded, so that no request can hold the loop."""
    test = compile_test(Operator.REGEX, "needle")
    assert test("x" * (REGEX_TEXT - 6) + "needle")
    assert not test("x" * REGEX_TEXT + "needle")


def test_regex_survives_text_that_is_not_unicode() -> None:
    """Header bytes that are no UTF-8 arrive as lone surrogates."""
    assert compile_test(Operator.REGEX, "abc$")("\udcff abc") is True


def test_absent_says_what_it_is() -> None:
    """For messages and debuggers."""
    assert repr(ABSENT) == "absent"
