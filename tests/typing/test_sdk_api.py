"""The whole public in-process API, used as its users use it: for mypy, and run as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import pytest

from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    CircuitOpen,
    ConflictError,
    InvalidValue,
    OrchestrationConfig,
    OrchestrationOutput,
    Orchestrator,
    OrchestratorError,
    PlanningError,
    ReliableOrchestrator,
    RunTimeout,
    Tool,
    ToolExecutionError,
    ToolRegistry,
    UnknownTool,
    get_global_registry,
)
from steer_llm_sdk.orchestration.planning import (
    ExecutionStrategy,
    PlanDecision,
    Planner,
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    ToolMetadata,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.reliability import (
    OrchestratorReliabilityConfig,
    ReliabilityConfig,
    RetryPolicy,
)
from steer_llm_sdk.reliability import CircuitBreakerConfig, CircuitState, ProviderError
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.streaming import Event
from steer_llm_sdk.streaming.manager import EventManager


class Properties(Tool):
    """Everything a tool may declare, as properties."""

    @property
    def name(self) -> str:
        return "properties"

    @property
    def version(self) -> str:
        return "2.1.0"

    @property
    def description(self) -> str:
        return "declares everything"

    @property
    def provider(self) -> str:
        return "openai"

    @property
    def supported_models(self) -> list[str]:
        return ["small", "large"]

    @property
    def default_options(self) -> dict[str, Any]:
        return {"k": 2}

    @property
    def capabilities(self) -> list[str]:
        return ["analysis"]

    @property
    def resource_requirements(self) -> dict[str, float]:
        return {"ms": 500, "tokens": 900, "cost_usd": 0.01, "quality": 0.9}

    def validate_request(self, request: str | dict[str, Any]) -> bool:
        return bool(request)

    async def execute(
        self,
        request: str | dict[str, Any],
        options: dict[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> dict[str, Any]:
        if event_manager is not None:
            await event_manager.delta({"text": "piece"}, provider="openai", model="small")
        return {"k": (options or {})["k"], "provider": "openai"}


class Attributes(Tool):
    """The same as plain class attributes."""

    name = "attributes"
    provider = "anthropic"
    capabilities = ("analysis",)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        raise ProviderError("too many", "anthropic", status_code=429, retry_after=1.5)


class FirstPlanner(Planner):
    """Takes the first there is."""

    async def plan(self, request: Any, available_tools: Any, context: PlanRequest) -> PlanDecision:
        tools: Mapping[str, ToolMetadata] = available_tools
        return PlanDecision(
            selected_tool=next(iter(tools)),
            tool_options={"k": 3},
            fallback_tools=[],
            execution_strategy=ExecutionStrategy.SINGLE,
            estimated_cost=0.0,
            estimated_duration_ms=1.0,
            confidence=0.5,
            reasoning="it is the first",
            metadata={},
        )


class Kept(IdempotencyManager):
    """A store of one's own."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    async def get(self, key: str) -> Any | None:
        return self.held.get(key)

    async def store(self, key: str, value: Any) -> None:
        self.held[key] = value


def rules() -> list[PlanningRule]:
    def transform(
        options: dict[str, Any], request: str | dict[str, Any], context: PlanRequest
    ) -> dict[str, Any]:
        return {**options, "long": len(request), "bounded": context.budget is not None}

    return [
        create_keyword_based_rule(["deep"], "query", "attributes", priority=20, k=9),
        create_type_based_rule("check", "properties", priority=10, k=1),
        create_budget_aware_rule("properties", low_budget_k=2, high_budget_k=5, priority=1),
        PlanningRule(
            name="precise",
            priority=30,
            conditions=[
                RuleCondition("type", "equals", "analysis"),
                RuleCondition("metadata.score", "gte", 0.5),
                RuleCondition("metadata.words", "custom", 3, lambda found, most: found < most),
            ],
            action=RuleAction(
                tool_name="properties",
                tool_options={"k": 7},
                fallback_tools=["attributes"],
                execution_strategy=ExecutionStrategy.PARALLEL,
                option_transformer=transform,
            ),
            description="precise analyses",
        ),
    ]


def reliability() -> OrchestratorReliabilityConfig:
    return ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=2, initial_delay=0.5, retry_on_timeout=False),
        circuit_breaker_configs={
            "openai": CircuitBreakerConfig(failure_threshold=3, on_open=print),
            "default": CircuitBreakerConfig(),
        },
        enable_fallback=True,
        max_fallback_attempts=1,
    )


async def test_the_public_api() -> None:
    """Every name and keyword, as the types have them."""
    registry = ToolRegistry()
    registry.register_tool(Properties())
    registry.register_tool(Attributes())
    assert_type(registry.get_tool("properties"), Tool)
    assert_type(registry.list_tools(), list[str])
    assert_type(get_global_registry(), ToolRegistry)
    planner = RuleBasedPlanner(rules()[:-1])
    planner.add_rule(rules()[-1])
    orchestrator = ReliableOrchestrator(
        planner=planner,
        reliability_config=reliability(),
        idempotency_manager=Kept(),
        registry=registry,
    )
    heard: list[Event] = []

    async def listen(event: Event) -> None:
        heard.append(event)

    manager = EventManager(on_start=listen, on_delta=listen, on_complete=listen, on_error=listen)
    result = await orchestrator.run(
        request={"type": "analysis", "metadata": {"score": 0.7, "words": 2}},
        options=OrchestrationConfig(
            max_parallel=2,
            budget={"ms": 5000, "tokens": 5000, "cost_usd": 0.25},
            streaming=True,
            max_retries=1,
            timeout_ms=4000,
            per_agent_timeout_ms=2000,
            trace_id="trail",
            request_id="call",
            idempotency_key="key",
            redactor_cb=str.upper,
            quality_requirements={"min_confidence": 0.5},
            metadata={"team": "blue"},
        ),
        event_manager=manager,
    )
    assert_type(result, OrchestrationOutput)
    assert_type(result.elapsed_ms, float)
    assert_type(result.cost_usd, float | None)
    assert isinstance(result.content, dict)
    assert result.content["k"] == 7
    assert result.metadata["matched_rule"] == "precise"
    assert_type(heard[0].metadata, Mapping[str, Any])
    states = orchestrator.circuit_breaker_states()
    assert_type(states, dict[str, str])
    assert CircuitState(states["openai:properties"]) is CircuitState.CLOSED
    metrics = orchestrator.reliable_executor.retry_manager.metrics
    assert_type(metrics.retry_attempts, int)
    assert metrics.retry_successes <= metrics.retry_attempts + 1


async def test_errors_by_class() -> None:
    """What each of them tells, by its type."""
    registry = ToolRegistry()
    registry.register_tool(Attributes())
    base = Orchestrator(registry=registry)
    with pytest.raises(ToolExecutionError) as failed:
        await base.run("go", tool_name="attributes", tool_options={"k": 1})
    assert_type(failed.value.retry_after, float | None)
    assert_type(failed.value.attempts, int)
    assert failed.value.retry_after == 1.5
    with pytest.raises(UnknownTool) as unknown:
        await base.run("go", tool_name="none")
    assert_type(unknown.value.tool_name, str)
    error = BudgetExceeded("tokens", 5, 6)
    assert_type(error.limit, float)
    assert_type(error.output, OrchestrationOutput | None)
    for kind in (CircuitOpen, ConflictError, InvalidValue, PlanningError, RunTimeout):
        assert issubclass(kind, OrchestratorError)


async def test_a_planner_of_ones_own() -> None:
    """Its decision is a value."""
    registry = ToolRegistry()
    registry.register_tool(Properties())
    result = await ReliableOrchestrator(planner=FirstPlanner(), registry=registry).run("go")
    assert result.metadata["confidence"] == 0.5
    decision = await RuleBasedPlanner(rules()).plan(
        "go deep",
        {"properties": ToolMetadata(name="properties", capabilities=["analysis"])},
        PlanRequest(budget={"tokens": 100}, previous_failures=["attributes"]),
    )
    assert_type(decision, PlanDecision)
    assert_type(decision.selected_tool, str)
    assert decision.selected_tool == "properties"
