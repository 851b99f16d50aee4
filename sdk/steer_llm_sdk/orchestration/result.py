"""From what a tool returned to a run's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from steer_llm_sdk.checks import shown
from steer_llm_sdk.errors import ToolExecutionError
from steer_llm_sdk.orchestration.attempt import Answer, Candidate
from steer_llm_sdk.orchestration.budget import is_amount
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning.values import PlanDecision
from steer_llm_sdk.orchestration.run import Run


def output_of(run: Run, plan: PlanDecision | None, answer: Answer) -> OrchestrationOutput:
    """A run's output: the tool's own word, and what only the run knows."""
    output = _told_by(answer)
    chosen = answer.candidate
    metadata = {
        **output.metadata,
        "tool_name": chosen.name,
        "tool_version": chosen.metadata.version,
        "request_id": run.request_id,
        "trace_id": run.trace_id,
        "retry_attempts": answer.attempts,
        "fallback_used": answer.fallback_used,
        "matched_rule": None,
    }
    if plan is not None:
        metadata["matched_rule"] = plan.metadata.get("matched_rule")
        if plan.reasoning:
            metadata["reasoning"] = plan.reasoning
        if plan.confidence is not None:
            metadata.setdefault("confidence", plan.confidence)
    output.metadata = metadata
    output.elapsed_ms = run.elapsed_ms()
    told = {each.name: _tried(each, answer) for each in answer.tried}
    output.per_agent = {**output.per_agent, **told} if output.per_agent else told
    return output


def _told_by(answer: Answer) -> OrchestrationOutput:
    """What the tool says of its own result.

    Raises:
        ToolExecutionError: it says it in a shape that nobody can use.
    """
    value = answer.value
    if isinstance(value, OrchestrationOutput):
        for name in ("usage", "metadata", "per_agent", "cost_breakdown"):
            if not isinstance(getattr(value, name), Mapping):
                raise _unusable(answer, name, "a dictionary")
        if value.cost_usd is not None and not is_amount(value.cost_usd):
            raise _unusable(answer, "cost_usd", "an amount of US dollars, or None")
        return replace(value, usage=dict(value.usage), metadata=dict(value.metadata))
    output = OrchestrationOutput(content=value)
    if not isinstance(value, dict):
        return output
    if (usage := value.get("usage")) is not None and isinstance(usage, Mapping):
        output.usage = dict(usage)
    if (cost := value.get("cost_usd")) is not None and is_amount(cost):
        output.cost_usd = float(cost)
    confidence = value.get("confidence")
    if confidence is not None and is_amount(confidence) and confidence <= 1:
        output.metadata["confidence"] = confidence
    return output


def _unusable(answer: Answer, field: str, expected: str) -> ToolExecutionError:
    """The tool was run, and what it returned cannot be used."""
    name = answer.candidate.name
    found = shown(getattr(answer.value, field))
    return ToolExecutionError(
        f"{name} returned an OrchestrationOutput whose {field} is not {expected}: {found}",
        tool_name=name,
        attempts=answer.attempts,
        maybe_executed=True,
    )


def _tried(each: Candidate, answer: Answer) -> dict[str, Any]:
    """What became of one tool."""
    answered = each is answer.candidate
    failure = None if each.verdict is None else each.verdict.failure
    told: dict[str, Any] = {
        "status": "succeeded" if answered else "cancelled" if failure is None else "failed",
        "provider": answer.provider if answered else each.metadata.provider,
        "attempts": each.attempts,
        "elapsed_ms": each.elapsed * 1000.0,
    }
    if not answered and failure is not None:
        told["failure"] = str(failure)
    return told
