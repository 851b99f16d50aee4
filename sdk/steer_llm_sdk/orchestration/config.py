"""The terms of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from steer_llm_sdk import checks
from steer_llm_sdk.copies import own_copy
from steer_llm_sdk.errors import InvalidValue
from steer_policies.budget import Budget, parse_budget
from steer_policies.quality import Quality, parse_quality


class _Default(int):
    """A default that can be told from the same number written by someone."""

    __slots__ = ()


_MAX_RETRIES: Final = _Default(2)


@dataclass(frozen=True, slots=True)
class OrchestrationConfig:
    """The terms of one run; it cannot be changed, and cannot be made with a value out of bounds.

    Its dictionaries are copies of those it was given.

    Attributes:
        max_parallel: tools that a plan with the strategy `parallel` runs at once; 1 to 20.
        budget: bounds of the run: `ms`, `tokens`, `cost_usd`, each above 0. Estimates are held
            against it before the run, the clock during it, and what the tool reports after it.
        deterministic: no dice: delays without jitter.
        streaming: hand the event manager to the tool, so that it can stream its answer.
        retry_on_failure: False makes one attempt at each tool.
        max_retries: retries at each tool, 0 to 5; when given, it takes the place of the
            retry policy's `max_attempts` (less one).
        timeout_ms: bound of the whole run in milliseconds, at least 100.
        per_agent_timeout_ms: bound of each attempt at a tool in milliseconds, at least 100.
        trace_id: the distributed trace's id; without it the request's id.
        request_id: the request's id; made when there is none.
        idempotency_key: run once for this key; at most 255 characters.
        redactor_cb: applied to every text in events and log lines: takes text, returns text.
        quality_requirements: demands on the tool, such as `{"min_confidence": 0.9}`.
        metadata: anything for rules (`context.metadata.*`); `user_preferences` and
            `previous_failures` in it are given to the planner.
        enable_circuit_breaker: False asks no breaker and teaches none.
        enable_fallback: False tries the plan's first tool alone.

    Raises:
        InvalidValue: a ValueError that names the field.
    """

    max_parallel: int = 10
    budget: Mapping[str, float] | None = None
    deterministic: bool = False
    streaming: bool = False
    retry_on_failure: bool = True
    max_retries: int = _MAX_RETRIES
    timeout_ms: float | None = None
    per_agent_timeout_ms: float | None = None
    trace_id: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None
    redactor_cb: Callable[[str], str] | None = None
    quality_requirements: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    enable_circuit_breaker: bool = True
    enable_fallback: bool = True
    limits: Budget | None = field(init=False, repr=False, compare=False)
    """The budget as a value; None without one."""
    demands: Quality | None = field(init=False, repr=False, compare=False)
    """The quality requirements as a value; None without any."""

    def __post_init__(self) -> None:
        checks.whole("max_parallel", self.max_parallel, least=1, most=20)
        checks.whole("max_retries", self.max_retries, least=0, most=5)
        for name in _FLAGS:
            checks.flag(name, getattr(self, name))
        for name in ("timeout_ms", "per_agent_timeout_ms"):
            if (value := getattr(self, name)) is not None:
                checks.number(name, value, least=100)
        for name in ("trace_id", "request_id"):
            if (value := getattr(self, name)) is not None:
                checks.key(name, value)
        if self.idempotency_key is not None:
            checks.idempotency_key(self.idempotency_key)
        checks.plain_function("redactor_cb", self.redactor_cb)
        checks.mapping("metadata", self.metadata)
        object.__setattr__(self, "limits", limits_of("budget", self.budget))
        demands = demands_of("quality_requirements", self.quality_requirements)
        object.__setattr__(self, "demands", demands)
        for name in ("budget", "quality_requirements", "metadata"):
            if value := getattr(self, name):
                object.__setattr__(self, name, own_copy(name, value))

    @property
    def own_retries(self) -> int | None:
        """`max_retries` when the run was given any; None where it is only the default."""
        return None if isinstance(self.max_retries, _Default) else self.max_retries


_FLAGS: Final = (
    "deterministic",
    "streaming",
    "retry_on_failure",
    "enable_circuit_breaker",
    "enable_fallback",
)


def limits_of(name: str, value: Mapping[str, Any] | None) -> Budget | None:
    """A budget from its dictionary; None without one, or without a bound in it.

    Raises:
        InvalidValue: naming the key.
    """
    if not value and (value is None or isinstance(value, Mapping)):
        return None
    try:
        return parse_budget(value)
    except ValueError as error:
        raise InvalidValue(name, str(error)) from None


def demands_of(name: str, value: Mapping[str, Any] | None) -> Quality | None:
    """Quality demands from their dictionary; None without any.

    Raises:
        InvalidValue: naming the key.
    """
    if not value and (value is None or isinstance(value, Mapping)):
        return None
    try:
        return parse_quality(value)
    except ValueError as error:
        raise InvalidValue(name, str(error)) from None


#: The terms of a run that was given none.
DEFAULT: Final = OrchestrationConfig()
