"""A route's policy: checks and merged options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.budget import BudgetPolicy
from steer_policies.conditions import parse_when
from steer_policies.config import CallTimeouts, CandidateSpec, DialectName, UpstreamPolicy
from steer_policies.idempotency import IdempotencyPolicy
from steer_policies.route import Order, RoutePolicy, merged, places
from steer_policies.rules import Rule

AS_LONG = r", as long as a call may take \(timeouts.total \+ timeouts.max_stream\)"
OPENAI, ANTHROPIC = DialectName.OPENAI, DialectName.ANTHROPIC
UPSTREAMS = {
    "a": UpstreamPolicy(name="a", dialect=OPENAI),
    "b": UpstreamPolicy(name="b", dialect=OPENAI),
    "claude": UpstreamPolicy(name="claude", dialect=ANTHROPIC),
}


def spec(upstream: str, **options: Any) -> CandidateSpec:
    return CandidateSpec(upstream=upstream, options=options)


def route(**keys: Any) -> RoutePolicy:
    defaults: dict[str, Any] = {
        "name": "chat",
        "dialect": OPENAI,
        "candidates": (spec("a"),),
        "upstreams": UPSTREAMS,
    }
    return RoutePolicy(**(defaults | keys))


ASKS_C = parse_when({"all": [{"attribute": "upstream.c.breaker", "operator": "exists"}]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"candidates": ()}, "candidates: a route needs at least one"),
        ({"candidates": (spec("a"), spec("c"))}, "candidates[1].upstream: unknown upstream 'c'"),
        (
            {"candidates": (spec("a"), spec("claude"))},
            "candidates[1].upstream: claude speaks anthropic, the route speaks openai",
        ),
        ({"candidates": (spec("a", model=1),)}, "candidates[0].options.model: must be text"),
        (
            {"rules": (Rule(name="r", use=spec("c")),)},
            "rules[0].use.upstream: unknown upstream 'c'",
        ),
        (
            {"rules": (Rule(name="r", use=spec("a"), fallbacks=(spec("b"), spec("c"))),)},
            "rules[0].fallbacks[1].upstream: unknown upstream 'c'",
        ),
        (
            {"rules": (Rule(name="r"), Rule(name="r"))},
            "rules[1].name: 'r' is taken by another rule",
        ),
        (
            {"rules": (Rule(name="r", when=ASKS_C),)},
            "rules[0].when.all[0].attribute: unknown upstream 'c'",
        ),
        (
            {"idempotency": IdempotencyPolicy(retention=4199.0)},
            rf"idempotency.retention: must be at least 4200 s{AS_LONG}",
        ),
        (
            {"rules": (Rule(name="r", timeouts=CallTimeouts(total=86_400.0, max_stream=1.0)),)},
            rf"idempotency.retention: must be at least 86401 s{AS_LONG}",
        ),
    ],
)
def test_a_route_cannot_be_made_wrong(keys: Any, message: str) -> None:
    """Naming the place."""
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[") + "$"):
        route(**keys)


def test_every_candidate_has_a_place() -> None:
    """The route's own, then the rules'."""
    rules = (Rule(name="r"), Rule(name="s", use=spec("b"), fallbacks=(spec("a"),)))
    assert [place for place, _ in places((spec("a"), spec("b")), rules)] == [
        "candidates[0]",
        "candidates[1]",
        "rules[1].use",
        "rules[1].fallbacks[0]",
    ]


COSTS = parse_when({"attribute": "estimate.cost_usd", "operator": "gt", "value": 1})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, False),
        ({"rules": (Rule(name="r"),)}, False),
        ({"order": Order.CHEAPEST}, True),
        ({"budget": BudgetPolicy(cost_usd=1)}, True),
        ({"budget": BudgetPolicy(tokens=1)}, False),
        ({"rules": (Rule(name="r", when=COSTS),)}, True),
    ],
)
def test_when_prices_are_needed(keys: Any, expected: bool) -> None:
    """The price list is large: it is loaded only for routes that ask for it."""
    assert route(**keys).needs_prices is expected


def test_routes_compare_by_what_was_configured() -> None:
    """What is prepared from it does not take part."""
    one, other = route(), route()
    one.plan_of(one.own, "m")
    assert one == other
    assert one != route(order=Order.CHEAPEST)


@pytest.mark.parametrize(
    ("under", "over", "expected"),
    [
        ({}, {}, {}),
        ({"a": 1}, {}, {"a": 1}),
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": {"b": 1}}, {"a": {"b": None}}, {"a": {"b": None}}),
    ],
)
def test_patches_merge(under: Any, over: Any, expected: Any) -> None:
    """At every depth; null means "remove" and is kept."""
    assert merged(under, over) == expected


PATCH: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(0, 2) | st.just([]),
    lambda inner: st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


def apply_patch(target: Any, patch: Any) -> Any:
    """RFC 7396 section 2, as written there."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply_patch(result.get(name), value)
    return result


@given(
    target=st.dictionaries(st.sampled_from("ab"), PATCH),
    under=st.dictionaries(st.sampled_from("ab"), PATCH),
    over=st.dictionaries(st.sampled_from("ab"), PATCH),
)
def test_a_merged_patch_does_what_both_do_in_turn(target: Any, under: Any, over: Any) -> None:
    """Wherever one patch can: an object laid over a scalar or over a removal cannot be said."""

    def replaces_a_leaf(low: Any, high: Any) -> bool:
        return any(
            isinstance(value, Mapping)
            and key in low
            and (not isinstance(low[key], Mapping) or replaces_a_leaf(low[key], value))
            for key, value in high.items()
        )

    if not replaces_a_leaf(under, over):
        one_by_one = apply_patch(apply_patch(target, under), over)
        assert apply_patch(target, merged(under, over)) == one_by_one
