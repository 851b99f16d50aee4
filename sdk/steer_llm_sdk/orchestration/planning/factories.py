"""Rules for the usual cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from steer_llm_sdk import checks
from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.orchestration.planning.rules import (
    CUSTOM,
    PlanningRule,
    ReadsOnly,
    RuleAction,
    RuleCondition,
)
from steer_llm_sdk.orchestration.planning.values import PlanRequest
from steer_policies.operators import Operator, compile_test

#: Below so many tokens, or so many US dollars, a budget counts as low.
LOW_TOKENS: Final = 2000
LOW_COST_USD: Final = 0.10


def create_type_based_rule(
    request_type: str, tool_name: str, priority: int = 10, **tool_options: Any
) -> PlanningRule:
    """A rule for the requests whose `type` is this."""
    checks.text("request_type", request_type)
    return PlanningRule(
        name=f"type {request_type}",
        priority=priority,
        conditions=[RuleCondition("type", Operator.EQUALS, request_type)],
        action=RuleAction(tool_name, tool_options),
        description=f"requests of type {request_type} go to {tool_name}",
    )


def create_keyword_based_rule(
    keywords: Sequence[str],
    attribute: str,
    tool_name: str,
    priority: int = 5,
    **tool_options: Any,
) -> PlanningRule:
    """A rule for the requests in which an attribute holds any of the keywords.

    A text holds them anywhere, whatever their case; a list as a member. A request that is a text
    has it as its `query`.
    """
    if isinstance(keywords, str) or not keywords:
        raise InvalidValue("keywords", "must be a list of at least one word")
    for word in keywords:
        checks.text("keywords", word)
    return PlanningRule(
        name=f"keywords {', '.join(keywords)} in {attribute}",
        priority=priority,
        conditions=[RuleCondition(attribute, CUSTOM, list(keywords), _holds_any(keywords))],
        action=RuleAction(tool_name, tool_options),
        description=f"requests with any of these words go to {tool_name}",
    )


def create_budget_aware_rule(
    tool_name: str, low_budget_k: int = 2, high_budget_k: int = 5, priority: int = 8
) -> PlanningRule:
    """A rule for all requests that sets the option `k` by the budget.

    A budget of less than 2000 tokens, or less than 0.10 US dollars, is low; none at all is not.
    """
    for name, k in (("low_budget_k", low_budget_k), ("high_budget_k", high_budget_k)):
        checks.whole(name, k, least=1)

    return PlanningRule(
        name=f"budget of {tool_name}",
        priority=priority,
        action=RuleAction(tool_name, option_transformer=_ByBudget(low_budget_k, high_budget_k)),
        description=f"k = {low_budget_k} on a low budget, else {high_budget_k}",
    )


@dataclass(frozen=True, slots=True)
class _ByBudget(ReadsOnly):
    """Sets `k` by the budget."""

    low: int
    high: int

    def __call__(self, options: dict[str, Any], _: Any, context: PlanRequest) -> dict[str, Any]:
        budget = context.budget or {}
        low = (
            budget.get("tokens", LOW_TOKENS) < LOW_TOKENS
            or budget.get("cost_usd", LOW_COST_USD) < LOW_COST_USD
        )
        return {**options, "k": self.low if low else self.high}


def _holds_any(keywords: Sequence[str]) -> Callable[[object], bool]:
    tests = [compile_test(Operator.CONTAINS, word.lower()) for word in keywords]

    def matcher(found: object) -> bool:
        lower = _lower(found)
        for test in tests:  # noqa: SIM110 - a generator would cost more
            if test(lower):
                return True
        return False

    return matcher


def _lower(value: object) -> object:
    if isinstance(value, str):
        return value.lower()
    if isinstance(value, (list, tuple)):
        return [each.lower() if isinstance(each, str) else each for each in value]
    return value
