"""What every orchestrator does: a run's beginning, its bounds, its end, and the telling of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from steer_llm_sdk import checks, telemetry
from steer_llm_sdk.checks import shown
from steer_llm_sdk.current import RunTerms
from steer_llm_sdk.errors import ConflictError, InvalidValue, OrchestratorError, words_of
from steer_llm_sdk.orchestration.attempt import Candidate
from steer_llm_sdk.orchestration.budget import (
    NO_DEADLINE,
    check_after,
    check_before,
    deadline_error,
    deadline_of,
)
from steer_llm_sdk.orchestration.config import DEFAULT, OrchestrationConfig
from steer_llm_sdk.orchestration.execution import ReliableExecutor
from steer_llm_sdk.orchestration.metadata import ToolMetadata
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.parallel import race
from steer_llm_sdk.orchestration.planning.values import ExecutionStrategy, PlanDecision
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.orchestration.result import output_of
from steer_llm_sdk.orchestration.retrying import RetryManager
from steer_llm_sdk.orchestration.run import Run, loop_clock, request_copy
from steer_llm_sdk.orchestration.tools import Request, ToolRegistry, get_global_registry
from steer_llm_sdk.streaming.events import PLAIN, Redactor, Told
from steer_llm_sdk.streaming.manager import EventManager
from steer_proxy.engine.clock import Clock, new_id

LOGGER: Final = logging.getLogger("steer.sdk")

#: One attempt at the tool that was named.
_ONCE: Final = OrchestratorReliabilityConfig(
    retry_policy=RetryPolicy(max_attempts=1),
    enable_fallback=False,
    max_fallback_attempts=0,
    max_total_attempts=1,
)


class Orchestrator:
    """Runs the tool that its caller names, once: no planner, no retries, no circuits, no keys.

    Everything else is as with `ReliableOrchestrator`: budgets, time-outs, events, ids, redaction.

    `registry` is where tools are found, by default the global one. `clock` is for tests.
    """

    def __init__(self, *, registry: ToolRegistry | None = None, clock: Clock | None = None) -> None:
        self._setup(registry, clock, ReliableExecutor(RetryManager(_ONCE), None))

    def _setup(
        self, registry: ToolRegistry | None, clock: Clock | None, executor: ReliableExecutor
    ) -> None:
        if registry is not None and not isinstance(registry, ToolRegistry):
            raise InvalidValue("registry", f"must be a ToolRegistry, not {shown(registry)}")
        self.registry = get_global_registry() if registry is None else registry
        self.reliable_executor = executor
        self._clock = clock
        self._here: tuple[asyncio.AbstractEventLoop | None, Clock] = (None, clock or loop_clock())

    async def run(
        self,
        request: str | dict[str, Any],
        tool_name: str | None = None,
        tool_options: Mapping[str, Any] | None = None,
        options: OrchestrationConfig | None = None,
        event_manager: EventManager | None = None,
    ) -> OrchestrationOutput:
        """Run the tool.

        Raises:
            InvalidValue: a ValueError for an argument that cannot be used, naming it.
            UnknownTool: a LookupError when no such tool is registered.
            ToolExecutionError: the tool failed; its error is the `__cause__`.
            BudgetExceeded: a budget would be, or was, exceeded.
            RunTimeout: a TimeoutError when `timeout_ms` passed.
        """
        if tool_name is None:
            raise InvalidValue("tool_name", "is missing: only ReliableOrchestrator plans")
        if getattr(options, "idempotency_key", None) is not None:
            raise InvalidValue("idempotency_key", "only ReliableOrchestrator runs once for a key")
        return await self._run(request, tool_name, tool_options, options, event_manager)

    async def _run(
        self,
        request: Request,
        tool_name: str | None,
        tool_options: Mapping[str, Any] | None,
        options: OrchestrationConfig | None,
        event_manager: EventManager | None,
    ) -> OrchestrationOutput:
        run = self._begin(request, tool_options, options or DEFAULT, event_manager)
        if run.tracer is None:
            return await self._told(run, tool_name)
        facts = {
            telemetry.REQUEST_ID: run.request_id,
            telemetry.TRACE_ID: run.trace_id,
            telemetry.TOOL: tool_name,
        }
        with telemetry.span(run.tracer, telemetry.RUN, facts) as span:
            output = await self._told(run, tool_name)
            span.note(
                {
                    telemetry.TOOL: output.metadata.get("tool_name"),
                    telemetry.OUTCOME: output.status,
                    telemetry.ATTEMPTS: output.metadata.get("retry_attempts"),
                    telemetry.REPLAYED: run.replayed,
                }
            )
            return output

    def _begin(
        self,
        request: Request,
        tool_options: Mapping[str, Any] | None,
        options: OrchestrationConfig,
        event_manager: EventManager | None,
    ) -> Run:
        """A run, with copies of what its caller could change meanwhile."""
        if not isinstance(options, OrchestrationConfig):
            raise InvalidValue("options", f"must be an OrchestrationConfig, not {shown(options)}")
        if tool_options is not None:
            checks.mapping("tool_options", tool_options)
        if event_manager is not None and not isinstance(event_manager, EventManager):
            raise InvalidValue(
                "event_manager", f"must be an EventManager, not {shown(event_manager)}"
            )
        clock = self._clock_here()
        request_id = options.request_id or new_id(clock.wall())
        trace_id = options.trace_id or request_id
        redactor = PLAIN if options.redactor_cb is None else Redactor(options.redactor_cb)
        events = None
        if event_manager is not None:
            events = event_manager.of_run(request_id, trace_id, redactor, clock.wall)
        now = clock.now()
        deadline = deadline_of(options, now)
        return Run(
            request=request_copy(request),
            tool_options=dict(tool_options) if tool_options else None,
            options=options,
            request_id=request_id,
            trace_id=trace_id,
            began=now,
            deadline=deadline,
            clock=clock,
            redactor=redactor,
            events=events,
            tracer=telemetry.tracer(),
            terms=_terms(options, deadline.at),
            records=None if options.idempotency_key is None else [],
        )

    def _clock_here(self) -> Clock:
        """The clock of this event loop, kept: asking which loop runs costs more than its time."""
        loop, clock = self._here
        if self._clock is None and (running := asyncio.get_running_loop()) is not loop:
            clock = Clock(now=running.time, wall=clock.wall, jitter=clock.jitter)
            self._here = (running, clock)
        return clock

    async def _told(self, run: Run, tool_name: str | None) -> OrchestrationOutput:
        """The run, with its beginning and its end told to whoever listens."""
        if run.events is not None:
            await run.events.start({"event_type": "run_started", "tool_name": tool_name})
        try:
            output = await self._bounded(run, tool_name)
        except Exception as error:
            if isinstance(error, OrchestratorError) and error.request_id is None:
                # All who waited for one run with a key get the same error.
                error.request_id, error.trace_id = run.request_id, run.trace_id
            LOGGER.info("request %s failed: %s", run.request_id, type(error).__name__)
            await _tell_failure(run, error)
            raise
        await _tell_success(run, output)
        return output

    async def _bounded(self, run: Run, tool_name: str | None) -> OrchestrationOutput:
        """The run within its time and its budget."""
        if run.deadline is NO_DEADLINE:
            output = await self._outcome(run, tool_name)
        else:
            limit = asyncio.timeout_at(run.deadline.at)
            try:
                async with limit:
                    output = await self._outcome(run, tool_name)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise deadline_error(run.options, run.deadline, run.elapsed_ms()) from None
        check_after(output, run.options.limits, replayed=run.replayed)
        return output

    async def _outcome(self, run: Run, tool_name: str | None) -> OrchestrationOutput:
        """What is to come of the run: here, what its tool gives."""
        return await self._work(run, tool_name)

    async def _work(self, run: Run, tool_name: str | None) -> OrchestrationOutput:
        """Find the tools, execute them, and put the result together."""
        if tool_name is None:
            plan, candidates = await self._planned(run)
        else:
            plan, candidates = None, [self._named(run, tool_name)]
        if plan is not None and plan.execution_strategy is ExecutionStrategy.PARALLEL:
            answer = await race(self.reliable_executor, run, candidates)
        else:
            answer = await self.reliable_executor.execute(run, candidates)
        return output_of(run, plan, answer)

    async def _planned(self, run: Run) -> tuple[PlanDecision, list[Candidate]]:
        """The tools of a plan: only `ReliableOrchestrator` makes one."""
        raise NotImplementedError

    def _named(self, run: Run, tool_name: str) -> Candidate:
        """The tool that the caller named.

        Raises:
            UnknownTool: there is none of this name.
            BudgetExceeded: it declares that it would exceed the budget.
        """
        self.registry.get_tool(tool_name)
        metadata = self.registry.metadata[tool_name]
        check_before(metadata.entrant, run.options.limits)
        return self._candidate(run, metadata, None)

    def _candidate(
        self, run: Run, metadata: ToolMetadata, planned: Mapping[str, Any] | None
    ) -> Candidate:
        """A tool with its options: the caller's win over the plan's, those over the tool's own."""
        options: dict[str, Any] = dict(metadata.default_options)
        if planned:
            options.update(planned)
        if run.tool_options is not None:
            options.update(run.tool_options)
        options["request_id"] = run.request_id
        options["trace_id"] = run.trace_id
        return Candidate(self.registry.get_tool(metadata.name), metadata, options)


_NO_TERMS: Final = RunTerms()


def _terms(options: OrchestrationConfig, deadline: float) -> RunTerms:
    """What tools may hand on."""
    if options is DEFAULT:
        return _NO_TERMS
    return RunTerms(options.idempotency_key, options.budget, options.quality_requirements, deadline)


async def _tell_failure(run: Run, error: Exception) -> None:
    if run.events is None:
        return
    told = words_of(error)
    if isinstance(error, ConflictError):
        await run.tell(Told.CONFLICT, idempotency_key=run.options.idempotency_key, error=told)
    await run.events.error(
        {
            "event_type": "run_failed",
            "error_type": type(error).__name__,
            "error": told,
            "tool_name": getattr(error, "tool_name", None),
        }
    )


async def _tell_success(run: Run, output: OrchestrationOutput) -> None:
    if run.events is None:
        return
    metadata = output.metadata
    name = metadata.get("tool_name", "")
    about = output.per_agent.get(name)
    provider = about.get("provider") if isinstance(about, Mapping) else None
    if (output.usage or output.cost_usd is not None) and not run.replayed:
        usage = {
            "event_type": "usage",
            "tool_name": name,
            "usage": output.usage,
            "cost_usd": output.cost_usd,
        }
        await run.events.usage(usage, provider=provider)
    await run.events.complete(
        {
            "event_type": "run_completed",
            "tool_name": name,
            "status": output.status,
            "elapsed_ms": output.elapsed_ms,
            "retry_attempts": metadata.get("retry_attempts"),
            "fallback_used": metadata.get("fallback_used"),
            "replayed": run.replayed,
        },
        provider=provider,
    )
