"""Rules of a route."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.attributes import Home, Scope
from steer_policies.conditions import ConditionError, parse_when
from steer_policies.config import CandidateSpec
from steer_policies.dialects.base import RequestFacts
from steer_policies.facts import CallFacts, Calm
from steer_policies.rules import Rule, by_priority

HOME = Home(upstream="a", options={}, models={}, prices=None, assumed_completion=0)


def rule(**keys: Any) -> Rule:
    return Rule(**({"name": "r"} | keys))


def test_a_rule_can_be_asked_as_soon_as_it_exists() -> None:
    """Its conditions are compiled when it is made."""
    made = rule(when=parse_when({"attribute": "model", "operator": "equals", "value": "m"}))
    for model, expected in (("m", True), ("n", False), (None, False)):
        facts = CallFacts(request=RequestFacts("chat", True, model))
        assert made.matches(Scope(facts, Calm(), HOME)) is expected


def test_a_rule_without_conditions_always_matches() -> None:
    """And says so."""
    facts = CallFacts(request=RequestFacts("chat", True))
    assert rule().always
    assert rule().matches(Scope(facts, Calm(), HOME))
    assert not rule(when=parse_when({"attribute": "model", "operator": "exists"})).always


def test_highest_priority_first_and_ties_keep_their_order() -> None:
    """As they were written."""
    rules = [rule(name=name, priority=int(name[1:])) for name in ("a5", "b20", "c5", "d-1", "e20")]
    assert [each.name for each in by_priority(rules)] == ["b20", "e20", "a5", "c5", "d-1"]


def test_targets_are_use_and_then_its_fallbacks() -> None:
    """In the order in which they will be asked."""
    use, fallback = CandidateSpec(upstream="a"), CandidateSpec(upstream="b")
    assert rule().targets == ()
    assert rule(use=use, fallbacks=(fallback,)).targets == (use, fallback)


def test_a_rule_knows_what_it_asks_for() -> None:
    """Prices are loaded, and upstreams looked up, only for rules that need them."""
    asking = rule(
        when=parse_when(
            {
                "any": [
                    {"attribute": "estimate.cost_usd", "operator": "gt", "value": 1},
                    {"attribute": "upstream.b.breaker", "operator": "equals", "value": "open"},
                ]
            }
        )
    )
    assert asking.asks_for_cost
    assert asking.asks_about == ((".any[1]", "b"),)
    assert not rule().asks_for_cost
    assert rule().asks_about == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": " "}, "name must not be empty"),
        ({"fallbacks": (CandidateSpec(upstream="b"),)}, "fallbacks need use"),
    ],
)
def test_a_rule_cannot_be_made_wrong(keys: Any, message: str) -> None:
    """The value cannot exist."""
    with pytest.raises(ValueError, match=message):
        rule(**keys)


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "cookie"])
def test_rules_do_not_read_credentials(name: str) -> None:
    """They may ask whether one was presented."""
    exists = {"attribute": f"header.{name}", "operator": "exists"}
    rule(when=parse_when(exists))
    reads = exists | {"operator": "starts_with", "value": "sk-"}
    with pytest.raises(ConditionError, match="carries a credential") as caught:
        rule(when=parse_when({"not": {"all": [reads]}}))
    assert caught.value.place == ".not.all[0].operator"
