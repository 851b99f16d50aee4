"""One attempt at a tool: its own copies of everything, its limit of time, its span."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

from steer_llm_sdk import telemetry
from steer_llm_sdk.copies import copied
from steer_llm_sdk.current import CURRENT, RunTerms
from steer_llm_sdk.orchestration.metadata import ToolMetadata
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.run import Run
from steer_llm_sdk.orchestration.tools import Tool
from steer_policies.outcome import Verdict

_ANYTHING: Final = Tool.validate_request


@dataclass(slots=True)
class Candidate:
    """A tool that may take the run: its options, and how it stands."""

    tool: Tool
    metadata: ToolMetadata
    options: dict[str, Any]
    attempts: int = 0
    available_at: float = 0.0
    elapsed: float = 0.0
    verdict: Verdict | None = None
    refused: str | None = None
    """Why it was not tried when it last could have been."""

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.metadata.name


@dataclass(slots=True)
class Answer:
    """What a tool gave, and what it took."""

    value: Any
    candidate: Candidate
    provider: str | None
    attempts: int
    tried: Sequence[Candidate]
    fallback_used: bool


async def attempt(run: Run, candidate: Candidate, provider: str) -> Any:
    """What the tool gives.

    Raises:
        Exception: whatever it raises; TimeoutError when its limit passed.
    """
    candidate.attempts += 1
    request, options = copied(run.request), copied(candidate.options)
    limit = run.options.per_agent_timeout_ms
    if run.tracer is None and limit is None:
        return await _execute(run, candidate, request, options, run.terms)
    facts = {
        telemetry.TOOL: candidate.name,
        telemetry.PROVIDER: provider,
        telemetry.NUMBER: candidate.attempts,
    }
    terms, until = run.terms, None
    if limit is not None:
        until = run.clock.now() + limit / 1000.0
        terms = replace(terms, deadline=min(terms.deadline, until))
    with spanned(run, telemetry.ATTEMPT, facts):
        async with asyncio.timeout_at(until):
            return await _execute(run, candidate, request, options, terms)


async def _execute(
    run: Run, candidate: Candidate, request: Any, options: Any, terms: RunTerms
) -> Any:
    events = run.events if run.options.streaming else None
    run.under_way += 1
    token = CURRENT.set(terms)
    try:
        value: Any = candidate.tool.execute(request, options, events)
        return await value if inspect.isawaitable(value) else value
    except asyncio.CancelledError:
        run.maybe_executed = True
        raise
    finally:
        CURRENT.reset(token)
        run.under_way -= 1


def has_a_say(tool: Tool) -> bool:
    """Whether a tool has a validation of its own."""
    validate = getattr(tool, "validate_request", None)
    return validate is not None and getattr(validate, "__func__", None) is not _ANYTHING


async def accepts(run: Run, candidate: Candidate) -> bool:
    """Whether the tool itself says that it can take the request.

    Raises:
        Exception: raising is another way to say no.
    """
    valid: Any = candidate.tool.validate_request(copied(run.request))
    if inspect.isawaitable(valid):
        valid = await valid
    # One that only raises where it has to complain returns nothing.
    return valid is None or bool(valid)


def spanned(run: Run, name: str, facts: dict[str, Any]) -> AbstractContextManager[Any]:
    """A span, in a process that traces."""
    if run.tracer is None:
        return nullcontext()
    return telemetry.span(run.tracer, name, facts)


def named_by(value: Any) -> str | None:
    """The provider that a result names."""
    if isinstance(value, OrchestrationOutput):
        value = value.metadata
    provider = value.get("provider") if isinstance(value, dict) else None
    return provider if isinstance(provider, str) and provider else None
