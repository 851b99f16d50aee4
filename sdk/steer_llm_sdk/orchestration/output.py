"""What a run gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias

from steer_llm_sdk.errors import InvalidValue

Content: TypeAlias = "str | dict[str, Any] | list[Any] | float | bool | None"
"""What a tool may return: any JSON value."""

Status: TypeAlias = Literal["succeeded", "failed", "partial"]

_STATUSES: Final = ("succeeded", "failed", "partial")


@dataclass(slots=True)
class OrchestrationOutput:
    """A run's result.

    A tool may return one itself, to report usage, cost, a status or errors beside its content; the
    run then fills in what only it knows.

    Attributes:
        content: what the tool returned.
        usage: tokens as the tool reports them; `total_tokens`, or the sum of the others, is held
            against the budget.
        cost_usd: what the tool says it cost in US dollars; None when it does not say.
        cost_breakdown: the same by whatever parts the tool names.
        elapsed_ms: milliseconds the run took.
        per_agent: what became of each tool that was tried, by name: status, provider, attempts,
            elapsed_ms, and the failure of one that failed.
        status: succeeded, failed or partial; the last two only when a tool says so of itself, since
            a run without a result raises.
        errors: what the tool reports to have gone wrong in spite of its result.
        metadata: tool_name, tool_version, request_id, trace_id, retry_attempts (attempts made at
            all tools, 1 when the first one gave the result), fallback_used, confidence (the tool's
            own, or the plan's), matched_rule.
    """

    content: Content = None
    usage: dict[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None
    cost_breakdown: dict[str, Any] = field(default_factory=dict)
    elapsed_ms: float = 0.0
    per_agent: dict[str, Any] = field(default_factory=dict)
    status: Status = "succeeded"
    errors: list[Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in _STATUSES:
            raise InvalidValue("status", f"must be one of {', '.join(_STATUSES)}")

    def to_dict(self) -> dict[str, Any]:
        """The output as a dictionary that holds the same values, for storing it as JSON."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> OrchestrationOutput:
        """The output that `to_dict` made a dictionary of; unknown keys are left out."""
        return cls(**{name: value[name] for name in _FIELDS if name in value})


_FIELDS: Final = tuple(each.name for each in fields(OrchestrationOutput))
