"""The reliable orchestrator: planned, retried, protected, and once for each key."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from steer_llm_sdk import telemetry
from steer_llm_sdk.checks import shown
from steer_llm_sdk.copies import copied
from steer_llm_sdk.errors import InvalidValue, OrchestratorError, PlanningError, words_of
from steer_llm_sdk.orchestration.attempt import Candidate
from steer_llm_sdk.orchestration.base import Orchestrator
from steer_llm_sdk.orchestration.config import OrchestrationConfig
from steer_llm_sdk.orchestration.execution import ReliableExecutor
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning.planner import Planner, RuleBasedPlanner
from steer_llm_sdk.orchestration.planning.values import PlanDecision, PlanRequest
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig
from steer_llm_sdk.orchestration.retrying import RetryManager
from steer_llm_sdk.orchestration.run import Run, loop_clock
from steer_llm_sdk.orchestration.tools import ToolRegistry
from steer_llm_sdk.reliability.breakers import Breakers
from steer_llm_sdk.streaming.events import Told
from steer_llm_sdk.streaming.manager import EventManager
from steer_policies.outcome import Executed
from steer_proxy.engine.clock import Clock

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.idempotency import IdempotencyManager
    from steer_llm_sdk.reliability.once import Caller, Once


_NO_STATES: Final[Mapping[str, str]] = MappingProxyType({})


class ReliableOrchestrator(Orchestrator):
    """Runs a request at the tool that fits: planned, retried, protected, and once for each key.

    Args:
        planner: chooses the tool of requests that name none; by default a `RuleBasedPlanner`
            without rules.
        reliability_config: retries, fallbacks, circuits.
        idempotency_manager: remembers what was run for a key; by default in memory.
        registry: where tools are found; by default the global one.
        clock: for tests.
    """

    def __init__(
        self,
        planner: Planner | None = None,
        reliability_config: OrchestratorReliabilityConfig | None = None,
        idempotency_manager: IdempotencyManager | None = None,
        *,
        registry: ToolRegistry | None = None,
        clock: Clock | None = None,
    ) -> None:
        if planner is not None and not callable(getattr(planner, "plan", None)):
            raise InvalidValue("planner", f"must have a coroutine plan, not {shown(planner)}")
        config = (
            OrchestratorReliabilityConfig() if reliability_config is None else reliability_config
        )
        if not isinstance(config, OrchestratorReliabilityConfig):
            raise InvalidValue("reliability_config", "must be an OrchestratorReliabilityConfig")
        for name in ("get", "store"):
            if idempotency_manager is not None and not callable(
                getattr(idempotency_manager, name, None)
            ):
                raise InvalidValue(
                    "idempotency_manager", f"{shown(idempotency_manager)} has no method {name}"
                )
        time = clock or loop_clock()
        # Circuits of one process need not be spread: they stay open for exactly as long as told.
        exact = Clock(now=time.now, wall=time.wall, jitter=lambda: 0.5)
        self._breakers = Breakers(config.circuit_breaker_configs, exact)
        self._setup(registry, clock, ReliableExecutor(RetryManager(config), self._breakers))
        self._planner = planner or RuleBasedPlanner()
        self._manager = idempotency_manager
        self._once: Once | None = None
        self._calm: tuple[object, int, Mapping[str, str]] = (None, 0, {})
        self._last_context: tuple[object, object, PlanRequest | None] = (None, None, None)

    @property
    def planner(self) -> Planner:
        """What chooses the tool of requests that name none."""
        return self._planner

    async def run(
        self,
        request: str | dict[str, Any],
        tool_name: str | None = None,
        tool_options: Mapping[str, Any] | None = None,
        options: OrchestrationConfig | None = None,
        event_manager: EventManager | None = None,
    ) -> OrchestrationOutput:
        """Run the request: at the tool named, or at the one the planner chooses.

        With an idempotency key it is run once: concurrent duplicates wait for that run, later ones
        are given its result.

        Raises:
            InvalidValue: a ValueError for an argument that cannot be used, naming it.
            UnknownTool: a LookupError when the tool named is not registered.
            PlanningError: no tool can take the request.
            ToolExecutionError: no tool gave a result; the last one's error is the `__cause__`.
            CircuitOpen: nothing was tried, since every tool's circuit is open.
            BudgetExceeded: a budget would be, or was, exceeded.
            RunTimeout: a TimeoutError when `timeout_ms` passed.
            ConflictError: the idempotency key belongs to another request.
            IdempotencyError: by its subclass, when the key's record does not allow the run.
        """
        return await self._run(request, tool_name, tool_options, options, event_manager)

    def circuit_breaker_states(self) -> dict[str, str]:
        """The state of every tool's circuit, by `provider:tool`: closed, open or half_open."""
        provider = self.reliable_executor.provider
        tools = self.registry.metadata.values()
        return self._breakers.states((provider(each), each.name) for each in tools)

    def _get_circuit_breaker_states(self) -> dict[str, str]:
        """The older name of `circuit_breaker_states`."""
        return self.circuit_breaker_states()

    # --- Once for a key -----------------------------------------------------------------------

    async def _outcome(self, run: Run, tool_name: str | None) -> OrchestrationOutput:
        key = run.options.idempotency_key
        if key is None:
            return await self._work(run, tool_name)
        if tool_name is not None:
            self.registry.get_tool(tool_name)  # a key is not for what cannot be run
        from steer_llm_sdk.reliability.once import Identity

        async def work() -> dict[str, Any]:
            return (await self._work(run, tool_name)).to_dict()

        async def tell(what: str, facts: dict[str, Any]) -> None:
            if run.events is not None:
                await run.events.delta({"event_type": what, **facts})

        outcome = await self._keyed().run(
            # A copy: what is bound to the key is the request as it was given.
            Identity(key, {"request": copied(run.request), "tool": tool_name}),
            work,
            caller=_caller(run, tool_name),
            executed=lambda error: _executed(run, error),
            tell=tell,
        )
        output = OrchestrationOutput.from_dict(outcome.value)
        run.replayed = outcome.replayed or outcome.joined
        if run.replayed:
            await run.tell(
                Told.IDEMPOTENT_REPLAY,
                idempotency_key=key,
                joined=outcome.joined,
                tool_name=output.metadata.get("tool_name"),
                original_request_id=output.metadata.get("request_id"),
            )
        return output

    def _keyed(self) -> Once:
        if self._once is None:
            from steer_llm_sdk.reliability.idempotency import IdempotencyManager, once_of

            if self._manager is None:
                self._manager = IdempotencyManager()
            self._once = once_of(self._manager)
        return self._once

    # --- The plan -----------------------------------------------------------------------------

    async def _planned(self, run: Run) -> tuple[PlanDecision, list[Candidate]]:
        """The plan and its tools, each with its options.

        Raises:
            PlanningError: no tool can take the request.
            BudgetExceeded: none can within the budget.
        """
        if run.tracer is None:
            plan = await self._plan(run)
        else:
            with telemetry.span(run.tracer, telemetry.PLAN, {}) as span:
                plan = await self._plan(run)
                span.note(
                    {
                        telemetry.TOOL: plan.selected_tool,
                        telemetry.RULE: plan.metadata.get("matched_rule"),
                        telemetry.CONFIDENCE: plan.confidence,
                    }
                )
        if run.events is not None:
            await run.tell(
                Told.PLAN_SELECTED,
                tool_name=plan.selected_tool,
                fallback_tools=list(plan.fallback_tools),
                execution_strategy=str(plan.execution_strategy),
                matched_rule=plan.metadata.get("matched_rule"),
                confidence=plan.confidence,
                estimated_cost=plan.estimated_cost,
                estimated_duration_ms=plan.estimated_duration_ms,
                reasoning=plan.reasoning,
            )
        names: Sequence[str] = (plan.selected_tool,)
        config = self.reliable_executor.retry_manager.config
        if plan.fallback_tools and config.enable_fallback and run.options.enable_fallback:
            names = tuple(dict.fromkeys((plan.selected_tool, *plan.fallback_tools)))
        tools, options = self.registry.metadata, plan.tool_options
        if plan.selected_tool not in tools:
            self.registry.get_tool(plan.selected_tool)  # which says so
        found = [self._candidate(run, tools[name], options) for name in names if name in tools]
        return plan, found

    async def _plan(self, run: Run) -> PlanDecision:
        tools, context = self.registry.metadata, self._context(run)
        planner = self._planner
        try:
            if type(planner) is RuleBasedPlanner:
                return planner.choose_among(run.request, tools, context)
            plan = await planner.plan(copied(run.request), dict(tools), context)
        except OrchestratorError:
            raise
        except Exception as error:
            # Whatever a planner of somebody's own raises: the run ends in our words, with its.
            told = f"{type(error).__name__}: {words_of(error)}"
            raise PlanningError(f"the planner failed: {told}") from error
        if not isinstance(plan, PlanDecision):
            raise PlanningError(f"the planner must return a PlanDecision, not {shown(plan)}")
        return plan

    def _context(self, run: Run) -> PlanRequest:
        """What the planner may consider."""
        options = run.options
        states = self._states() if options.enable_circuit_breaker else _NO_STATES
        # The terms cannot change, and neither can what is made of them.
        before, of, context = self._last_context
        if context is None or before is not options or of is not states:
            given = options.metadata
            context = PlanRequest(
                budget=options.budget,
                quality_requirements=options.quality_requirements,
                previous_failures=given.get("previous_failures") or (),
                circuit_breaker_states=states,
                user_preferences=given.get("user_preferences") or {},
                metadata=given,
            )
            self._last_context = (options, states, context)
        return context

    def _states(self) -> Mapping[str, str]:
        """The states of all circuits; while every one is closed, no run has to look."""
        if not self._breakers.calm:
            return self.circuit_breaker_states()
        tools, revision, states = self._calm
        if tools is not self.registry.metadata or revision != self._breakers.revision:
            states = MappingProxyType(self.circuit_breaker_states())
            self._calm = (self.registry.metadata, self._breakers.revision, states)
        return states


def _executed(run: Run, error: BaseException) -> Executed:
    """Whether a tool was run, by the error that ended a run with a key."""
    from steer_llm_sdk.reliability.once import executed_by

    if isinstance(error, asyncio.CancelledError):
        # Cut off while waiting or planning, it has done no more than its attempts until then.
        return Executed.MAYBE if run.doubtful else Executed.NO
    return executed_by(error)


def _caller(run: Run, tool_name: str | None) -> Caller:
    """Who asks, for the ledger's row; labels are those given as `metadata["labels"]`."""
    from steer_llm_sdk.reliability.once import Caller

    given = run.options.metadata.get("labels")
    labels = given if isinstance(given, Mapping) else {}
    return Caller(
        run.request_id,
        run.trace_id,
        tool_name,
        {key: value for key, value in labels.items() if isinstance(value, str)},
        () if run.records is None else run.records,
    )
