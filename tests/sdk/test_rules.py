"""Conditions, rules, and the ready-made ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleCondition,
    create_keyword_based_rule,
)
from steer_llm_sdk.orchestration.planning.rules import OPERATORS, scope_of

REQUEST = {
    "type": "analysis",
    "query": "A Deep look",
    "score": 5,
    "none": None,
    "tags": ["Red", "blue"],
    "metadata": {"quality": "high", "items": [{"kind": "x"}]},
}
CONTEXT = PlanRequest(
    budget={"tokens": 500},
    quality_requirements={"min_confidence": 0.5, "tone": "dry"},
    previous_failures=["old"],
    user_preferences={"language": "de"},
    metadata={"team": "blue"},
)


def holds(condition: RuleCondition, request: Any = REQUEST) -> bool:
    return condition.holds(scope_of(request, CONTEXT))


@pytest.mark.parametrize(
    ("path", "operator", "value"),
    [
        ("type", "equals", "analysis"),
        ("type", "not_equals", "other"),
        ("query", "contains", "Deep"),
        ("tags", "contains", "blue"),
        ("type", "in", ["analysis", "other"]),
        ("type", "not_in", ["other"]),
        ("query", "regex", "(?i)deep +l"),
        ("metadata", "exists", None),
        ("nowhere", "exists", False),
        ("score", "gt", 4.5),
        ("score", "gte", 5),
        ("score", "lt", 6),
        ("score", "lte", 5),
        ("query", "starts_with", "A "),
        ("query", "ends_with", "look"),
        ("metadata.items.0.kind", "equals", "x"),
        ("metadata.items[-1].kind", "equals", "x"),
        ("none", "equals", None),
        ("context.budget.tokens", "lt", 1000),
        ("context.quality_requirements.tone", "equals", "dry"),
        ("context.previous_failures", "contains", "old"),
        ("context.user_preferences.language", "equals", "de"),
        ("context.metadata.team", "equals", "blue"),
    ],
)
def test_every_operator_and_path(path: str, operator: str, value: Any) -> None:
    """Each holds here, and does not for a request without the attribute."""
    condition = RuleCondition(path, operator, value)
    assert holds(condition)
    if not path.startswith("context") and value is not False:
        assert not holds(condition, {})


def test_what_the_context_does_not_have() -> None:
    """It is absent; and a request's own `context` comes first."""
    assert holds(RuleCondition("context.circuit_breaker_states.x", "exists", False))
    assert holds(RuleCondition("context.weather", "exists", False))
    scope = scope_of("text", PlanRequest())
    assert not RuleCondition("context.budget.ms", "gt", 0).holds(scope)
    own = {"context": {"budget": {"tokens": 9000}}}
    assert holds(RuleCondition("context.budget.tokens", "equals", 9000), own)


def test_a_text_is_a_query() -> None:
    """A request that is a text."""
    assert holds(RuleCondition("query", "contains", "deep"), "how deep")
    assert not holds(RuleCondition("type", "exists"), "how deep")


def test_a_matcher_of_ones_own() -> None:
    """It takes the value, or the value and what to compare with; one that raises does not match."""
    assert holds(RuleCondition("score", "custom", 4, lambda found, least: found > least))
    assert holds(RuleCondition("score", "equals", 99, lambda found: found == 5))
    assert holds(RuleCondition("absent", "custom", None, lambda found: found is None))
    assert not holds(RuleCondition("type", "custom", 4, lambda found, least: found > least))


@given(
    operator=st.sampled_from(OPERATORS),
    value=st.sampled_from([None, True, 3, 2.5, "a", ["a", 1], [], {"a": 1}]),
    found=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=4,
    ),
)
def test_no_comparison_raises(operator: str, value: Any, found: Any) -> None:
    """A condition that exists answers, whatever a request holds."""
    try:
        condition = RuleCondition("x", operator, value)
    except ValueError:
        return
    assert condition.holds(scope_of({"x": found}, CONTEXT)) in (True, False)


def test_a_rule_is_all_of_its_conditions() -> None:
    """And without any it is always."""
    scope = scope_of(REQUEST, CONTEXT)
    yes, no = RuleCondition("score", "equals", 5), RuleCondition("score", "equals", 6)
    assert PlanningRule("rule").matches(scope)
    assert PlanningRule("rule", conditions=[yes]).matches(scope)
    assert not PlanningRule("rule", conditions=[yes, no]).matches(scope)
    assert (PlanningRule("rule").priority, PlanningRule("rule").description) == (0, None)


@pytest.mark.parametrize(
    ("request_", "attribute", "matches"),
    [
        ({"query": "a DEEP one"}, "query", True),
        ({"query": "shallow"}, "query", False),
        ({"query": 7}, "query", False),
        ({}, "query", False),
        ({"metadata": {"tags": ["Thorough"]}}, "metadata.tags", True),
        ({"metadata": {"tags": ["thoroughly"]}}, "metadata.tags", False),
        ("thorough", "query", True),
    ],
)
def test_keywords(request_: Any, attribute: str, matches: bool) -> None:
    """Any of them, in any case: in a text anywhere, in a list as a member."""
    rule = create_keyword_based_rule(["deep", "Thorough"], attribute, "tool", priority=3, k=1)
    assert rule.matches(scope_of(request_, CONTEXT)) is matches
    assert rule.action is not None
    assert (rule.priority, rule.action.tool_options) == (3, {"k": 1})


@pytest.mark.parametrize(
    "transformer",
    [
        lambda options: {**options, "b": 2},
        lambda options, request: {**options, "b": len(request) - 4},
        lambda options, request, context: {**options, "b": int(context.budget["tokens"] / 250)},
    ],
)
def test_options_made_anew(transformer: Any) -> None:
    """From the rule's own, the request and the context, as many as the function takes."""
    action = RuleAction("tool", {"a": 1}, option_transformer=transformer)
    assert action.options(REQUEST, CONTEXT) == {"a": 1, "b": 2}
    assert action.tool_options == {"a": 1}
    assert RuleAction("a", fallback_tools=["b", "a", "b"]).tools == ("a", "b")
