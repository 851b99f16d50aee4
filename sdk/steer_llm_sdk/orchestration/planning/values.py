"""What a planner is given, and what it decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from steer_llm_sdk import checks
from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.orchestration.config import demands_of, limits_of
from steer_llm_sdk.orchestration.metadata import ToolMetadata
from steer_policies.operators import ABSENT
from steer_policies.shortlist import Demands, Entrant, Preferences, parse_preferences

__all__ = ["ExecutionStrategy", "PlanDecision", "PlanRequest", "ToolMetadata"]

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_NO_PREFERENCES: Final = Preferences()


class ExecutionStrategy(StrEnum):
    """How a plan's tools are run."""

    SINGLE = "single"
    """The selected tool; the fallback tools, one after the other, only when it failed."""
    PARALLEL = "parallel"
    """The selected tool and its fallback tools at once, at most `max_parallel` of them; the first
    result counts, and the others are cancelled."""


def strategy_of(value: str) -> ExecutionStrategy:
    """A strategy by its name.

    Raises:
        InvalidValue: there is none of this name.
    """
    try:
        return ExecutionStrategy(value)
    except ValueError:
        known = ", ".join(ExecutionStrategy)
        raise InvalidValue("execution_strategy", f"must be one of {known}") from None


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a planner may consider beside the request itself.

    Attributes:
        budget: bounds of the run: `ms`, `tokens`, `cost_usd`.
        quality_requirements: `min_confidence`, `capabilities`, `min_context_tokens`; other keys are
            for rules.
        previous_failures: tools that failed before; they come after the others.
        circuit_breaker_states: closed, open or half_open, by tool or by `provider:tool`; a tool
            behind an open circuit comes last, one that is half-open keeps its place.
        user_preferences: `preferred_tools`, `preferred_providers`, `excluded_tools`; other keys are
            for rules.
        metadata: anything, for rules.

    Raises:
        InvalidValue: naming the field.
    """

    budget: Mapping[str, float] | None = None
    quality_requirements: Mapping[str, Any] | None = None
    previous_failures: Sequence[str] = field(default_factory=list)
    circuit_breaker_states: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    user_preferences: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    _demands: Demands | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        demands = None
        if (
            self.budget
            or self.quality_requirements
            or self.previous_failures
            or self.user_preferences
        ):
            demands = Demands(
                budget=limits_of("budget", self.budget),
                quality=demands_of("quality_requirements", self.quality_requirements),
                preferences=self._preferences(),
                failed=self._failures(),
            )
        checks.mapping("circuit_breaker_states", self.circuit_breaker_states)
        checks.mapping("metadata", self.metadata)
        object.__setattr__(self, "_demands", demands)

    def _preferences(self) -> Preferences:
        if not self.user_preferences:
            return _NO_PREFERENCES
        try:
            return parse_preferences(self.user_preferences)
        except ValueError as error:
            raise InvalidValue("user_preferences", str(error)) from None

    def _failures(self) -> frozenset[str]:
        if not self.previous_failures:
            return frozenset()
        checks.names("previous_failures", self.previous_failures)
        return frozenset(self.previous_failures)

    def demands(self, entrants: Iterable[Entrant]) -> Demands | None:
        """What is asked of these tools; None when nothing is."""
        behind = self._open(entrants)
        if not behind:
            return self._demands
        known = self._demands or Demands()
        return Demands(
            budget=known.budget,
            quality=known.quality,
            preferences=known.preferences,
            failed=known.failed,
            open=behind,
        )

    def _open(self, entrants: Iterable[Entrant]) -> frozenset[str]:
        behind: set[str] = set()
        if "open" not in self.circuit_breaker_states.values():
            return frozenset()
        for name, state in self.circuit_breaker_states.items():
            if state == "open" and isinstance(name, str):
                behind.update((name, name.partition(":")[2]))
        return frozenset(each.name for each in entrants if each.name in behind)

    @property
    def undemanding(self) -> bool:
        """Whether nothing is asked of any tool."""
        return self._demands is None and "open" not in self.circuit_breaker_states.values()

    def attribute(self, name: str) -> object:
        """A part of this context by its name, for conditions on `context.*`."""
        if name not in _PARTS:
            return ABSENT
        value: object = getattr(self, name)
        return ABSENT if value is None else value


_PARTS: Final = (
    "budget",
    "quality_requirements",
    "previous_failures",
    "circuit_breaker_states",
    "user_preferences",
    "metadata",
)


@dataclass(frozen=True, slots=True)
class PlanDecision:
    """Which tool runs, with which options, and what may take its place.

    Attributes:
        selected_tool: the tool to run.
        tool_options: options for it and for the fallback tools; the caller's own win over them.
        fallback_tools: what is tried after it, in order.
        execution_strategy: how they are run.
        estimated_cost: US dollars that the selected tool declares for one run, if it does.
        estimated_duration_ms: milliseconds that it declares for one run, if it does.
        confidence: how sure the planner is of its choice, 0 to 1; None when it does not say.
        reasoning: why this tool, and why each of the others dropped out or stands behind.
        metadata: `matched_rule`, and `reasons` as a list.

    Raises:
        InvalidValue: naming the field.
    """

    selected_tool: str
    tool_options: Mapping[str, Any] = field(default_factory=dict)
    fallback_tools: Sequence[str] = field(default_factory=list)
    execution_strategy: ExecutionStrategy = ExecutionStrategy.SINGLE
    estimated_cost: float | None = None
    estimated_duration_ms: float | None = None
    confidence: float | None = None
    reasoning: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.text("selected_tool", self.selected_tool)
        checks.mapping("tool_options", self.tool_options)
        checks.mapping("metadata", self.metadata)
        checks.names("fallback_tools", self.fallback_tools)
        if type(self.execution_strategy) is not ExecutionStrategy:
            object.__setattr__(self, "execution_strategy", strategy_of(self.execution_strategy))
