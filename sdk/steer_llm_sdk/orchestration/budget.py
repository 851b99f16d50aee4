"""Budgets of a run: estimates before it, the deadline during it, what was used after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from steer_llm_sdk.checks import is_finite
from steer_llm_sdk.errors import BudgetExceeded, RunTimeout
from steer_llm_sdk.orchestration.config import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_policies.budget import Budget
from steer_policies.deadline import Deadline, Limit, earliest_deadline
from steer_policies.shortlist import Entrant, overrun

#: Names by which tools tell tokens of which there is no total.
_PARTS: Final = (
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
)

#: The deadline of a run without one.
NO_DEADLINE: Final = Deadline(math.inf, Limit.TOTAL)


def deadline_of(options: OrchestrationConfig, now: float) -> Deadline:
    """When a run has to end: by its `timeout_ms`, or by its budget's `ms`."""
    limits = options.limits
    budget = None if limits is None else limits.ms
    if options.timeout_ms is None and budget is None:
        return NO_DEADLINE
    total = None if options.timeout_ms is None else options.timeout_ms / 1000.0
    return earliest_deadline(now, total, None, budget, None)


def deadline_error(
    options: OrchestrationConfig, deadline: Deadline, elapsed_ms: float
) -> RunTimeout | BudgetExceeded:
    """What is raised when a run did not end by its deadline."""
    limits = options.limits
    if deadline.limit is Limit.BUDGET and limits is not None and limits.ms is not None:
        return BudgetExceeded("ms", limits.ms, elapsed_ms)
    return RunTimeout(f"timeout_ms: the run did not end within {options.timeout_ms:g} ms")


def check_before(entrant: Entrant, limits: Budget | None) -> None:
    """Hold what a tool named explicitly declares against the budget.

    Raises:
        BudgetExceeded: it would exceed it.
    """
    if limits is not None and (found := overrun(entrant, limits)) is not None:
        raise BudgetExceeded(found.kind, found.limit, found.estimated)


def check_after(
    output: OrchestrationOutput, limits: Budget | None, *, replayed: bool = False
) -> None:
    """Hold what a run took against its budget; what the tool did not tell exceeds nothing.

    A replay takes no time of its own; that its tokens and cost exceed the budget is told again.

    Raises:
        BudgetExceeded: it was exceeded; the output is kept in it.
    """
    if limits is None:
        return
    used = {
        "ms": None if replayed else output.elapsed_ms,
        "tokens": tokens_of(output.usage),
        "cost_usd": output.cost_usd,
    }
    for kind, actual in used.items():
        limit = getattr(limits, kind)
        if limit is not None and actual is not None and actual > limit:
            raise BudgetExceeded(kind, limit, actual, output)


def tokens_of(usage: Mapping[str, Any]) -> float | None:
    """The tokens a tool says it used; None when it does not say."""
    total = usage.get("total_tokens", usage.get("tokens"))
    if is_amount(total):
        return float(total)
    for names in _PARTS:
        parts = [usage[name] for name in names if is_amount(usage.get(name))]
        if parts:
            return float(sum(parts))
    return None


def is_amount(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number that is not negative."""
    return is_finite(value) and value >= 0  # type: ignore[operator]
