"""Planners: which tool a request goes to when its caller names none."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from steer_llm_sdk.checks import shown
from steer_llm_sdk.errors import BudgetExceeded, InvalidValue, PlanningError
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleAction, scope_of
from steer_llm_sdk.orchestration.planning.values import (
    ExecutionStrategy,
    PlanDecision,
    PlanRequest,
    ToolMetadata,
)
from steer_llm_sdk.orchestration.tools import Request, Tool
from steer_policies.rules import by_priority
from steer_policies.shortlist import Overrun, shortlist

LOGGER: Final = logging.getLogger("steer.sdk")

AvailableTools: TypeAlias = Mapping[str, ToolMetadata | Tool] | Iterable[ToolMetadata | Tool]

#: How sure a choice is: by a rule, by a capability that is the request's type, by being the only
#: tool there is, or merely by being the first that was registered.
BY_RULE: Final = 0.9
BY_CAPABILITY: Final = 0.7
BY_LACK_OF_CHOICE: Final = 0.6
BY_ORDER: Final = 0.3


class Planner(ABC):
    """Chooses a tool."""

    @abstractmethod
    async def plan(
        self, request: Request, available_tools: AvailableTools, context: PlanRequest
    ) -> PlanDecision:
        """The tool a request goes to, and what may take its place.

        Orchestrators give `available_tools` as a dictionary of `ToolMetadata` by name.

        Raises:
            PlanningError: no tool can take it.
            BudgetExceeded: none can within the budget.
        """


class RuleBasedPlanner(Planner):
    """Asks its rules, highest priority first; the first that matches with a tool to offer decides.

    A rule's tools are those of its action that are registered, within the budget and good enough;
    a tool behind an open circuit, or that failed before, comes after the others. When no rule has
    one to offer, the choice is among all tools: those whose capabilities hold the request's `type`,
    or else the first that was registered; only tools of such a capability take each other's place.
    """

    def __init__(self, rules: Iterable[PlanningRule] | None = None) -> None:
        self._rules: tuple[PlanningRule, ...] = ()
        given = _listed(rules or ())
        for index, rule in enumerate(given):
            _check(rule, f"rules[{index}]")
        self._rules = by_priority(given)

    @property
    def rules(self) -> tuple[PlanningRule, ...]:
        """The rules in the order they are asked."""
        return self._rules

    def add_rule(self, rule: PlanningRule) -> None:
        """Add a rule; it comes after those of the same priority.

        Raises:
            InvalidValue: for what is no rule, or has no action.
        """
        _check(rule, "rule")
        self._rules = by_priority((*self._rules, rule))

    def remove_rule(self, name: str) -> bool:
        """Remove every rule of this name; False when there was none."""
        kept = tuple(rule for rule in self._rules if rule.name != name)
        found = len(kept) < len(self._rules)
        self._rules = kept
        return found

    async def plan(
        self,
        request: Request,
        available_tools: AvailableTools,
        context: PlanRequest | None = None,
    ) -> PlanDecision:
        """The first matching rule's choice, or the best there is without one."""
        return self.choose(request, available_tools, context)

    def choose(
        self,
        request: Request,
        available_tools: AvailableTools,
        context: PlanRequest | None = None,
    ) -> PlanDecision:
        """The same at once: nothing has to be waited for."""
        return self.choose_among(request, described(available_tools), context or PlanRequest())

    def choose_among(
        self, request: Request, tools: Mapping[str, ToolMetadata], context: PlanRequest
    ) -> PlanDecision:
        """The same among tools that are described already."""
        choosing = _Choosing(request, tools, context)
        scope = scope_of(request, choosing.context)
        for rule in self._rules:
            if (
                rule.action is not None
                and rule.matches(scope)
                and (decision := choosing.by_rule(rule, rule.action)) is not None
            ):
                return decision
        return choosing.without_rule(asked=bool(self._rules))


class _Choosing:
    """One choice, with its reasons so far."""

    def __init__(
        self, request: Request, tools: Mapping[str, ToolMetadata], context: PlanRequest
    ) -> None:
        self.context = context
        self._request = request
        self._tools = tools
        self._reasons: list[str] = []
        self._overrun: Overrun | None = None

    def by_rule(self, rule: PlanningRule, action: RuleAction) -> PlanDecision | None:
        """A rule's choice; None when none of its tools is to be had."""
        self._reasons.append(f"rule {rule.name} matched")
        known = []
        for name in action.tools:
            if name in self._tools:
                known.append(name)
            else:
                self._reasons.append(f"{name} left out: it is not registered")
        names = self._listed(known)
        if not names:
            return None
        try:
            options = action.options(self._request, self.context)
        except Exception as error:  # noqa: BLE001 - a user's function must not fail the run
            kind = type(error).__name__
            LOGGER.warning("the option_transformer of rule %s failed: %s", rule.name, kind)
            self._reasons.append(f"rule {rule.name} passed over: its option_transformer failed")
            return None
        return self._decision(names, BY_RULE, options, rule.name, action.execution_strategy)

    def without_rule(self, *, asked: bool) -> PlanDecision:
        """The choice among all tools.

        Raises:
            PlanningError: none can take it.
            BudgetExceeded: none can within the budget.
        """
        if asked and not self._reasons:
            self._reasons.append("no rule matched")
        names = self._listed(self._tools)
        if not names:
            self._refuse()
        able = self._able(names)
        if able:
            self._reasons.append(f"{able[0]} has the capability that the request's type names")
            return self._decision(able, BY_CAPABILITY, {})
        if len(names) == 1:
            self._reasons.append(f"{names[0]} is the only tool that can take it")
            return self._decision(names, BY_LACK_OF_CHOICE, {})
        self._reasons.append(f"{names[0]} comes first among {', '.join(names)}")
        return self._decision(names[:1], BY_ORDER, {})

    def _listed(self, names: Iterable[str]) -> Sequence[str]:
        names = tuple(names)
        if self.context.undemanding:
            return names
        entrants = tuple(self._tools[name].entrant for name in names)
        demands = self.context.demands(entrants)
        if demands is None:
            return names
        found = shortlist(entrants, demands)
        self._reasons += [each for each in found.reasons if each not in self._reasons]
        self._overrun = self._overrun or found.overrun
        return found.names

    def _able(self, names: Sequence[str]) -> Sequence[str]:
        kind = self._request.get("type") if isinstance(self._request, (dict, Mapping)) else None
        if not isinstance(kind, str):
            return ()
        return [name for name in names if kind in self._tools[name].capabilities]

    def _decision(
        self,
        names: Sequence[str],
        confidence: float,
        options: Mapping[str, Any],
        rule: str | None = None,
        strategy: ExecutionStrategy = ExecutionStrategy.SINGLE,
    ) -> PlanDecision:
        selected = self._tools[names[0]].entrant
        return PlanDecision(
            selected_tool=names[0],
            tool_options=options,
            fallback_tools=list(names[1:]),
            execution_strategy=strategy,
            estimated_cost=selected.cost_usd,
            estimated_duration_ms=selected.ms,
            confidence=confidence,
            reasoning="; ".join(self._reasons),
            metadata={"matched_rule": rule, "reasons": list(self._reasons)},
        )

    def _refuse(self) -> None:
        reasons = tuple(self._reasons)
        if self._overrun is not None:
            exceeded = self._overrun
            raise BudgetExceeded(exceeded.kind, exceeded.limit, exceeded.estimated)
        if not self._tools:
            raise PlanningError("no tool is registered", reasons)
        raise PlanningError(f"no tool can take the request: {'; '.join(reasons)}", reasons)


def described(tools: AvailableTools) -> Mapping[str, ToolMetadata]:
    """Tools by name, each as what it declares of itself."""
    values = tools.values() if isinstance(tools, Mapping) else tools
    return {
        each.name: each if isinstance(each, ToolMetadata) else ToolMetadata.of(each)
        for each in values
    }


def _listed(rules: object) -> tuple[PlanningRule, ...]:
    if not isinstance(rules, Iterable):  # one alone is easily given by mistake
        raise InvalidValue("rules", f"must be a list of PlanningRule, not {shown(rules)}")
    return tuple(rules)


def _check(rule: object, place: str) -> None:
    if not isinstance(rule, PlanningRule):
        raise InvalidValue(place, f"must be a PlanningRule, not {shown(rule)}")
    if rule.action is None:
        raise InvalidValue(f"{place}.action", f"rule {rule.name!r} leads nowhere without one")
