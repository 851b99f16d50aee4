"""Conditions nested with all, any and not."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.attributes import compile_path
from steer_policies.conditions import (
    ALWAYS,
    MAX_CONDITIONS,
    MAX_DEPTH,
    AllOf,
    AnyOf,
    Condition,
    ConditionError,
    Not,
    When,
    compile_when,
    conditions_in,
    parse_when,
)
from steer_policies.operators import Operator


def asks(name: str, value: Any = True) -> dict[str, Any]:
    return {"attribute": name, "operator": "equals", "value": value}


def holds(when: When, request: Any) -> bool:
    """Ask as an in-process planner does: a path is a path in the request itself."""
    return compile_when(when, compile_path)(request)


def nested(depth: int) -> Any:
    when: Any = asks("a")
    for _ in range(depth):
        when = {"not": when}
    return when


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (asks("yes"), True),
        (asks("no"), False),
        ({"not": asks("no")}, True),
        ({"not": {"not": asks("no")}}, False),
        ({"all": [asks("yes")]}, True),
        ({"all": [asks("yes"), asks("no")]}, False),
        ({"all": [asks("yes"), asks("yes")]}, True),
        ({"any": [asks("no")]}, False),
        ({"any": [asks("no"), asks("yes")]}, True),
        ({"any": [asks("no"), asks("no")]}, False),
        ({"all": [asks("yes"), {"any": [asks("no"), {"not": asks("no")}]}]}, True),
        ({"not": asks("absent")}, True),
        ({"attribute": "yes", "operator": "exists"}, True),
    ],
)
def test_conditions_combine(when: Any, expected: bool) -> None:
    """As logic has it; a condition on what is absent does not hold, and its negation does."""
    assert holds(parse_when(when), {"yes": True, "no": False}) is expected


def test_no_conditions_at_all() -> None:
    """All of nothing holds, any of nothing does not."""
    assert holds(ALWAYS, {})
    assert not holds(AnyOf(()), {})


def test_reading_gives_values() -> None:
    """What is read can be compared, and asked for its single conditions with their places."""
    one, two = Condition("a", Operator.EXISTS), Condition("b", Operator.GT, 1)
    when = parse_when(
        {
            "all": [
                {"attribute": "a", "operator": "exists"},
                {"any": [{"not": {"attribute": "b", "operator": "gt", "value": 1}}]},
            ]
        }
    )
    assert when == AllOf((one, AnyOf((Not(two),))))
    assert list(conditions_in(when)) == [(".all[0]", one), (".all[1].any[0].not", two)]


@pytest.mark.parametrize(
    ("when", "place", "message"),
    [
        ("x", "", "a condition is {attribute, operator, value}"),
        (None, "", "a condition is"),
        ({}, ".attribute", "the dotted path of an attribute is missing"),
        ({"attribute": ""}, ".attribute", "is missing"),
        ({"attribute": 1}, ".attribute", "is missing"),
        ({"attribute": "a"}, ".operator", "an operator is missing"),
        (
            {"attribute": "a", "operator": "equal"},
            ".operator",
            "unknown operator 'equal', did you mean equals?; known: equals, not_equals",
        ),
        ({"attribute": "a", "operator": "~"}, ".operator", "unknown operator '~'; known: equals"),
        ({"attribute": "a", "operator": []}, ".operator", "unknown operator '[]'"),
        (
            {"attribute": "a", "operator": "equals", "vlaue": 1},
            ".vlaue",
            "unknown key 'vlaue', did you mean value?",
        ),
        ({"all": []}, ".all", "all takes a list of at least one condition"),
        ({"any": asks("a")}, ".any", "any takes a list"),
        ({"all": [asks("a"), 1]}, ".all[1]", "a condition is"),
        ({"not": [asks("a")]}, ".not", "a condition is"),
        ({"any": [{"all": [{}]}]}, ".any[0].all[0].attribute", "is missing"),
        ({"all": [asks("a")], "any": [asks("a")]}, "", "all stands alone; move any into it"),
        ({"not": asks("a"), "value": 1}, "", "not stands alone; move value into it"),
        (nested(MAX_DEPTH), ".not" * MAX_DEPTH, f"at most {MAX_DEPTH} deep"),
        (
            {"all": [asks("a")] * (MAX_CONDITIONS + 1)},
            f".all[{MAX_CONDITIONS}]",
            f"at most {MAX_CONDITIONS} conditions",
        ),
    ],
)
def test_what_cannot_be_read_names_its_place(when: Any, place: str, message: str) -> None:
    """The place leads through all, any and not to the key at fault."""
    with pytest.raises(ConditionError) as caught:
        parse_when(when)
    assert caught.value.place == place
    assert message in str(caught.value)


def test_the_deepest_and_largest_conditions_are_read() -> None:
    """The bounds themselves are allowed."""
    assert holds(parse_when(nested(MAX_DEPTH - 1)), {"a": True}) is (MAX_DEPTH % 2 == 1)
    assert holds(parse_when({"all": [asks("a")] * MAX_CONDITIONS}), {"a": True})


@pytest.mark.parametrize(
    ("when", "place", "message"),
    [
        (Condition("a..b", Operator.EQUALS), ".attribute", "has an empty step"),
        (Condition("a", Operator.GT, []), ".value", "gt takes a number or text"),
        (Not(AllOf((Condition("a", Operator.IN, 1),))), ".not.all[0].value", "take a list"),
    ],
)
def test_what_cannot_be_compiled_names_its_place(when: When, place: str, message: str) -> None:
    """Operands and paths are checked before any request is."""
    with pytest.raises(ConditionError, match=message) as caught:
        compile_when(when, compile_path)
    assert caught.value.place == place
