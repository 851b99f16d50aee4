"""Which tool a request goes to: planners, rules, and the context they look at."""

from __future__ import annotations

from steer_llm_sdk.orchestration.planning.factories import (
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.planning.planner import Planner, RuleBasedPlanner
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleAction, RuleCondition
from steer_llm_sdk.orchestration.planning.values import (
    ExecutionStrategy,
    PlanDecision,
    PlanRequest,
    ToolMetadata,
)

__all__ = [
    "ExecutionStrategy",
    "PlanDecision",
    "PlanRequest",
    "Planner",
    "PlanningRule",
    "RuleAction",
    "RuleBasedPlanner",
    "RuleCondition",
    "ToolMetadata",
    "create_budget_aware_rule",
    "create_keyword_based_rule",
    "create_type_based_rule",
]
