"""Values that cannot be used are refused where they are made, by the documented class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    OrchestratorError,
    ReliableOrchestrator,
)
from steer_llm_sdk.orchestration.planning import (
    PlanDecision,
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
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.reliability.breakers import USUAL
from steer_llm_sdk.streaming.manager import EventManager


def test_defaults_of_a_run() -> None:
    """As documented."""
    config = OrchestrationConfig()
    assert (config.max_parallel, config.max_retries) == (10, 2)
    assert (config.deterministic, config.streaming) == (False, False)
    assert config.retry_on_failure
    assert config.enable_circuit_breaker
    assert config.enable_fallback
    assert config.metadata == {}
    names = "budget timeout_ms per_agent_timeout_ms trace_id request_id idempotency_key redactor_cb"
    assert all(getattr(config, name) is None for name in names.split())
    assert config.quality_requirements is None
    assert config == OrchestrationConfig(max_retries=2)
    with pytest.raises(FrozenInstanceError):
        config.streaming = True  # type: ignore[misc]


def test_defaults_of_reliability() -> None:
    """As documented; the alias is the same class."""
    assert ReliabilityConfig is OrchestratorReliabilityConfig
    config = OrchestratorReliabilityConfig()
    assert (config.enable_fallback, config.max_fallback_attempts) == (True, 2)
    assert (config.max_total_retry_time, config.max_total_attempts) == (300, 10)
    assert config.retry_policy == RetryPolicy(
        max_attempts=3,
        initial_delay=1.0,
        max_delay=60.0,
        backoff_factor=2.0,
        jitter_factor=0.1,
        retry_on_timeout=True,
        retry_on_rate_limit=True,
        retry_on_server_error=True,
        retry_on_network_error=True,
        respect_retry_after=True,
        max_total_delay=300.0,
    )
    assert CircuitBreakerConfig() == CircuitBreakerConfig(5, 2, 60.0, 3, 60.0)
    table = {
        name: (each.failure_threshold, each.timeout, each.window_size, each.success_threshold)
        for name, each in config.circuit_breaker_configs.items()
    }
    assert table == {
        "openai": (5, 60, 300, 2),
        "anthropic": (3, 120, 300, 1),
        "xai": (4, 90, 300, 2),
        "default": (5, 60, 300, 2),
    }
    assert config.circuit_breaker_configs is USUAL


def test_defaults_of_an_output() -> None:
    """A result is nothing but its content; by dictionary and back it stays the same."""
    output = OrchestrationOutput("text")
    assert (output.usage, output.cost_usd, output.cost_breakdown) == ({}, None, {})
    assert (output.per_agent, output.status, output.errors) == ({}, "succeeded", None)
    assert output.metadata == {}
    assert OrchestrationOutput.from_dict({**output.to_dict(), "newer": 1}) == output


CASES: list[tuple[str, Callable[[], Any]]] = [
    ("max_parallel", lambda: OrchestrationConfig(max_parallel=0)),
    ("max_parallel", lambda: OrchestrationConfig(max_parallel=21)),
    ("max_parallel", lambda: OrchestrationConfig(max_parallel=True)),
    ("max_retries", lambda: OrchestrationConfig(max_retries=6)),
    ("max_retries", lambda: OrchestrationConfig(max_retries=-1)),
    ("max_retries", lambda: OrchestrationConfig(max_retries=1.5)),  # type: ignore[arg-type]
    ("timeout_ms", lambda: OrchestrationConfig(timeout_ms=99)),
    ("timeout_ms", lambda: OrchestrationConfig(timeout_ms=float("nan"))),
    ("per_agent_timeout_ms", lambda: OrchestrationConfig(per_agent_timeout_ms=1)),
    ("deterministic", lambda: OrchestrationConfig(deterministic=1)),  # type: ignore[arg-type]
    ("budget", lambda: OrchestrationConfig(budget={"dollars": 1})),
    ("budget", lambda: OrchestrationConfig(budget={"tokens": 0})),
    ("budget", lambda: OrchestrationConfig(budget={"ms": -1})),
    ("budget", lambda: OrchestrationConfig(budget=5)),  # type: ignore[arg-type]
    (
        "quality_requirements",
        lambda: OrchestrationConfig(quality_requirements={"min_confidence": 2}),
    ),
    ("trace_id", lambda: OrchestrationConfig(trace_id="")),
    ("request_id", lambda: OrchestrationConfig(request_id="x" * 256)),
    ("request_id", lambda: OrchestrationConfig(request_id="half \ud800")),
    ("idempotency_key", lambda: OrchestrationConfig(idempotency_key=" ")),
    ("redactor_cb", lambda: OrchestrationConfig(redactor_cb="no")),  # type: ignore[arg-type]
    ("metadata", lambda: OrchestrationConfig(metadata=[])),  # type: ignore[arg-type]
    ("initial_delay", lambda: RetryPolicy(initial_delay=-1)),
    ("initial_delay", lambda: RetryPolicy(initial_delay=61)),
    ("max_attempts", lambda: RetryPolicy(max_attempts=0)),
    ("backoff_factor", lambda: RetryPolicy(backoff_factor=0.5)),
    ("jitter_factor", lambda: RetryPolicy(jitter_factor=1.1)),
    ("max_total_delay", lambda: RetryPolicy(max_total_delay=-0.1)),
    ("retry_on_timeout", lambda: RetryPolicy(retry_on_timeout="no")),  # type: ignore[arg-type]
    ("failure_threshold", lambda: CircuitBreakerConfig(failure_threshold=0)),
    ("timeout", lambda: CircuitBreakerConfig(timeout=0)),
    ("window_size", lambda: CircuitBreakerConfig(window_size=-5)),
    ("on_open", lambda: CircuitBreakerConfig(on_open=3)),  # type: ignore[arg-type]
    ("max_total_attempts", lambda: OrchestratorReliabilityConfig(max_total_attempts=0)),
    ("max_fallback_attempts", lambda: OrchestratorReliabilityConfig(max_fallback_attempts=-1)),
    ("max_total_retry_time", lambda: OrchestratorReliabilityConfig(max_total_retry_time=-1)),
    ("retry_policy", lambda: OrchestratorReliabilityConfig(retry_policy=3)),  # type: ignore[arg-type]
    (
        "circuit_breaker_configs['x']",
        lambda: OrchestratorReliabilityConfig(circuit_breaker_configs={"x": 3}),  # type: ignore[dict-item]
    ),
    ("operator", lambda: RuleCondition("type", "resembles", "x")),
    ("operator", lambda: RuleCondition("type", "custom", "x")),
    ("value", lambda: RuleCondition("type", "gt", None)),
    ("value", lambda: RuleCondition("type", "regex", "(")),
    ("attribute_path", lambda: RuleCondition("", "exists")),
    ("attribute_path", lambda: RuleCondition("a..b", "exists")),
    ("custom_matcher", lambda: RuleCondition("a", "custom", None, 3)),  # type: ignore[arg-type]
    ("name", lambda: PlanningRule(" ")),
    ("conditions[0]", lambda: PlanningRule("rule", 1, ["type"])),  # type: ignore[list-item]
    ("tool_name", lambda: RuleAction("")),
    ("fallback_tools", lambda: RuleAction("tool", fallback_tools="other")),
    ("execution_strategy", lambda: RuleAction("tool", execution_strategy="both")),  # type: ignore[arg-type]
    ("rules[0].action", lambda: RuleBasedPlanner([PlanningRule("rule")])),
    ("rule.action", lambda: RuleBasedPlanner().add_rule(PlanningRule("rule"))),
    ("rule", lambda: RuleBasedPlanner().add_rule(None)),  # type: ignore[arg-type]
    ("request_type", lambda: create_type_based_rule("", "tool")),
    ("keywords", lambda: create_keyword_based_rule([], "query", "tool")),
    ("keywords", lambda: create_keyword_based_rule("deep", "query", "tool")),
    ("low_budget_k", lambda: create_budget_aware_rule("tool", low_budget_k=0)),
    ("budget", lambda: PlanRequest(budget={"coins": 3})),
    ("previous_failures", lambda: PlanRequest(previous_failures="tool")),
    ("user_preferences", lambda: PlanRequest(user_preferences={"preferred_tools": "x"})),
    ("circuit_breaker_states", lambda: PlanRequest(circuit_breaker_states=["x"])),  # type: ignore[arg-type]
    ("selected_tool", lambda: PlanDecision("")),
    ("name", lambda: ToolMetadata("")),
    (
        "resource_requirements.ms",
        lambda: ToolMetadata("tool", resource_requirements={"ms": -1}),
    ),
    ("resource_requirements", lambda: ToolMetadata("t", resource_requirements={"quality": 7})),
    ("status", lambda: OrchestrationOutput(status="done")),  # type: ignore[arg-type]
    ("on_delta", lambda: EventManager(on_delta="x")),  # type: ignore[arg-type]
    ("planner", lambda: ReliableOrchestrator(planner=3)),  # type: ignore[arg-type]
    ("reliability_config", lambda: ReliableOrchestrator(reliability_config=3)),  # type: ignore[arg-type]
    ("registry", lambda: ReliableOrchestrator(registry=3)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    ("field", "make"), CASES, ids=[f"{n}-{f}" for n, (f, _) in enumerate(CASES)]
)
def test_what_is_refused(field: str, make: Callable[[], Any]) -> None:
    """A ValueError, and an OrchestratorError, that begins with the name of the field."""
    with pytest.raises(InvalidValue) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, OrchestratorError)
    assert str(caught.value).startswith(f"{field}: ")
    assert caught.value.field == field
