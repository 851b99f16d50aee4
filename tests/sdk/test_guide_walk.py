"""A walk through the in-process API, topic by topic, as the code of a team that uses it would look.

Each test is one topic, with stand-ins for the tools it takes for granted. The names, keywords and
shapes used here are the public interface: what breaks a test here breaks its users.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from steer_llm_sdk.orchestration import (
    ConflictError,
    OrchestrationConfig,
    OrchestrationOutput,
    Orchestrator,
    OrchestratorError,
    ReliableOrchestrator,
    Tool,
    get_global_registry,
)
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.reliability import CircuitBreakerConfig, ProviderError
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.streaming.manager import EventManager


class Stub(Tool):
    """A tool that plays a script: gives values back, raises exceptions; the last one again."""

    def __init__(self, name: str, *script: Any, provider: str | None = None) -> None:
        self._name = name
        self._provider = provider
        self._script = list(script) or [{"by": name}]
        self.seen: list[dict[str, Any]] = []
        self.moments: list[float] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def provider(self) -> str | None:
        return self._provider

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.seen.append(dict(options or {}))
        self.moments.append(asyncio.get_running_loop().time())
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(step, BaseException):
            raise step
        return step

    @property
    def calls(self) -> int:
        return len(self.seen)


class Shelf:
    """The global registry, cleared of what a test put there."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def put(self, name: str, *script: Any, provider: str | None = None) -> Stub:
        tool = Stub(name, *script, provider=provider)
        get_global_registry().register_tool(tool)
        self._names.append(name)
        return tool

    def clear(self) -> None:
        for name in self._names:
            get_global_registry().unregister(name)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    found = Shelf()
    yield found
    found.clear()


def unwell(status: int = 503, retry_after: float | None = None) -> ProviderError:
    return ProviderError("not now", "acme", status_code=status, retry_after=retry_after)


# --- first steps


async def test_a_first_run(shelf: Shelf) -> None:
    """With nothing but a registered tool: the planner finds it, ids and key go along."""
    tool = shelf.put("reader", {"verdict": "rising"})
    result = await ReliableOrchestrator().run(
        request={"type": "report", "query": "How do umbrellas sell?"},
        options=OrchestrationConfig(idempotency_key="umbrellas-1", trace_id="trail-1"),
    )
    assert isinstance(result, OrchestrationOutput)
    assert (result.status, result.content) == ("succeeded", {"verdict": "rising"})
    assert result.metadata["tool_name"] == "reader"
    assert result.metadata["trace_id"] == "trail-1"
    assert tool.calls == 1


async def test_a_tool_named_by_hand(shelf: Shelf) -> None:
    """The planner is not asked, and the options given here reach the tool."""
    shelf.put("first")
    second = shelf.put("second")
    everything_first = RuleBasedPlanner(
        [PlanningRule(name="always", action=RuleAction(tool_name="first"))]
    )
    result = await ReliableOrchestrator(planner=everything_first).run(
        request="Sort these", tool_name="second", tool_options={"depth": 3, "tolerance": 0.5}
    )
    assert result.metadata["tool_name"] == "second"
    assert second.seen[0]["depth"] == 3
    assert second.seen[0]["tolerance"] == 0.5


# --- planning


def three_rules() -> RuleBasedPlanner:
    return RuleBasedPlanner(
        [
            create_keyword_based_rule(
                keywords=["exhaustive", "in detail"],
                attribute="query",
                tool_name="digger",
                priority=20,
            ),
            create_type_based_rule(request_type="check", tool_name="checker", priority=10),
            create_budget_aware_rule(
                tool_name="reader", low_budget_k=1, high_budget_k=6, priority=5
            ),
        ]
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"type": "check", "query": "Is it exhaustive?"}, "digger"),
        ({"type": "check", "query": "Is it so?"}, "checker"),
        ({"type": "question", "query": "Is it so?"}, "reader"),
    ],
)
async def test_rules_by_priority(shelf: Shelf, wanted: dict[str, Any], expected: str) -> None:
    """Keywords before types before budgets, whatever order they were written in."""
    for name in ("reader", "checker", "digger"):
        shelf.put(name)
    result = await ReliableOrchestrator(planner=three_rules()).run(request=wanted)
    assert result.metadata["tool_name"] == expected


@pytest.mark.parametrize(
    ("budget", "k"),
    [({"tokens": 1500}, 1), ({"cost_usd": 0.05}, 1), ({"tokens": 9000, "cost_usd": 1.0}, 6)],
)
async def test_a_small_budget_asks_for_less(shelf: Shelf, budget: dict[str, float], k: int) -> None:
    """The budget-aware rule gives the tool a smaller `k`."""
    reader = shelf.put("reader")
    await ReliableOrchestrator(planner=three_rules()).run(
        request={"type": "question"}, options=OrchestrationConfig(budget=budget)
    )
    assert reader.seen[0]["k"] == k


async def test_a_rule_of_several_conditions(shelf: Shelf) -> None:
    """All of them must hold; a rule may be added later, with options and fallbacks of its own."""
    premium = shelf.put("premium", unwell(), provider="acme")
    shelf.put("standard")
    planner = RuleBasedPlanner([create_type_based_rule("report", "standard", priority=1)])
    planner.add_rule(
        PlanningRule(
            name="the_best_for_those_who_pay",
            priority=50,
            conditions=[
                RuleCondition("type", "equals", "report"),
                RuleCondition("metadata.tier", "equals", "gold"),
                RuleCondition("metadata.allowance", "gt", 0.5),
            ],
            action=RuleAction(
                tool_name="premium",
                tool_options={"depth": 9},
                fallback_tools=["standard", "not_registered"],
            ),
        )
    )
    orchestrator = ReliableOrchestrator(planner=planner)
    poor = {"type": "report", "metadata": {"tier": "gold", "allowance": 0.5}}
    assert (await orchestrator.run(request=poor)).metadata["tool_name"] == "standard"
    assert premium.calls == 0
    rich = {"type": "report", "metadata": {"tier": "gold", "allowance": 0.6}}
    result = await orchestrator.run(request=rich)
    assert premium.seen[0]["depth"] == 9
    assert result.metadata["fallback_used"]
    assert result.metadata["matched_rule"] == "the_best_for_those_who_pay"


async def test_what_a_planner_is_told(shelf: Shelf) -> None:
    """It passes over what is broken or has just failed, and says why."""
    tools = [shelf.put("costly"), shelf.put("spare")]
    planner = RuleBasedPlanner(
        [
            PlanningRule(
                name="costly_first",
                action=RuleAction(tool_name="costly", fallback_tools=["spare"]),
            )
        ]
    )
    context = PlanRequest(
        budget={"tokens": 4000, "cost_usd": 0.3},
        quality_requirements={"min_confidence": 0.8},
        circuit_breaker_states={"costly": "open", "spare": "closed"},
        previous_failures=["costly"],
    )
    decision = await planner.plan("Weigh this", tools, context)
    assert decision.selected_tool == "spare"
    assert decision.reasoning
    result = await ReliableOrchestrator(planner=planner).run(
        request="Weigh this",
        options=OrchestrationConfig(quality_requirements={"min_confidence": 0.8}),
    )
    assert result.status == "succeeded"


# --- reliability


def patient(**other: Any) -> OrchestratorReliabilityConfig:
    return OrchestratorReliabilityConfig(
        retry_policy=RetryPolicy(
            max_attempts=4,
            initial_delay=2.0,
            max_delay=20.0,
            backoff_factor=3.0,
            jitter_factor=0.0,
            retry_on_timeout=True,
            retry_on_rate_limit=True,
            retry_on_server_error=True,
            retry_on_network_error=True,
            respect_retry_after=True,
            max_total_delay=120.0,
        ),
        **other,
    )


async def test_retries(shelf: Shelf) -> None:
    """Each kind of passing failure is tried again, after growing waits or the one asked for."""
    tool = shelf.put("flaky", unwell(503), TimeoutError(), unwell(429, retry_after=11.0), "done")
    result = await ReliableOrchestrator(reliability_config=patient()).run(
        "Try", tool_name="flaky", options=OrchestrationConfig(max_retries=5)
    )
    assert result.content == "done"
    waits = [later - before for before, later in zip(tool.moments, tool.moments[1:], strict=False)]
    assert waits[:2] == pytest.approx([2.0, 6.0])
    assert waits[2] >= 11.0
    assert result.metadata["retry_attempts"] == 4


async def test_a_circuit_for_each_provider(shelf: Shelf) -> None:
    """One provider's circuit opens after its own number of failures; the fallback answers."""
    acme = shelf.put("by_acme", unwell(), provider="acme")
    shelf.put("by_bolt", provider="bolt")
    planner = RuleBasedPlanner(
        [
            PlanningRule(
                name="acme_first",
                action=RuleAction(tool_name="by_acme", fallback_tools=["by_bolt"]),
            )
        ]
    )
    orchestrator = ReliableOrchestrator(
        planner=planner,
        reliability_config=OrchestratorReliabilityConfig(
            retry_policy=RetryPolicy(max_attempts=1),
            circuit_breaker_configs={
                "acme": CircuitBreakerConfig(
                    failure_threshold=3, timeout=40.0, window_size=200.0, success_threshold=2
                ),
                "bolt": CircuitBreakerConfig(
                    failure_threshold=9, timeout=90.0, window_size=200.0, success_threshold=1
                ),
            },
            enable_fallback=True,
            max_fallback_attempts=1,
        ),
    )
    for _ in range(5):
        assert (await orchestrator.run("Go")).metadata["tool_name"] == "by_bolt"
    assert acme.calls == 3
    assert orchestrator.circuit_breaker_states()["acme:by_acme"] == "open"
    assert orchestrator.circuit_breaker_states()["bolt:by_bolt"] == "closed"


async def test_a_tool_says_whose_it_is(shelf: Shelf) -> None:
    """By its property, by which its breaker is named; and each answer may say so, too."""

    class Translator(Tool):
        @property
        def name(self) -> str:
            return "translator"

        @property
        def provider(self) -> str:
            return "acme"

        async def execute(
            self, request: Any, options: Any = None, event_manager: Any = None
        ) -> Any:
            return {"data": str(request).upper(), "provider": "acme"}

    registry = get_global_registry()
    registry.register_tool(Translator())
    try:
        orchestrator = ReliableOrchestrator()
        result = await orchestrator.run("hola", tool_name="translator")
        assert isinstance(result.content, dict)
        assert result.content["data"] == "HOLA"
        assert orchestrator.circuit_breaker_states() == {"acme:translator": "closed"}
    finally:
        registry.unregister("translator")


# --- idempotency


async def test_the_same_key_twice(shelf: Shelf) -> None:
    """The second call gets the first one's result; the tool runs once."""
    till = shelf.put("till", {"receipt": 1}, {"receipt": 2})
    orchestrator = ReliableOrchestrator()
    results = [
        await orchestrator.run(
            request="Charge order 9",
            tool_name="till",
            options=OrchestrationConfig(idempotency_key="charge-order-9"),
        )
        for _ in range(2)
    ]
    assert results[0] == results[1]
    assert till.calls == 1


async def test_a_key_for_something_else(shelf: Shelf) -> None:
    """The same key with another request is a conflict, and nothing is run."""
    till = shelf.put("till")
    orchestrator = ReliableOrchestrator()
    options = OrchestrationConfig(idempotency_key="charge-10")
    await orchestrator.run(request="Charge 5 EUR", options=options)
    with pytest.raises(ConflictError, match="charge-10"):
        await orchestrator.run(request="Charge 50 EUR", options=options)
    assert till.calls == 1


class Cupboard:
    """Stands in for a client of Redis: text by key, with a time to live."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.lives: set[int] = set()

    async def get(self, key: str) -> str | None:
        return self.held.get(key)

    async def setex(self, key: str, seconds: int, value: str) -> None:
        self.lives.add(seconds)
        self.held[key] = value


class InCupboard(IdempotencyManager):
    """Keeps records elsewhere: two methods, and a constructor that calls no other."""

    def __init__(self, cupboard: Cupboard) -> None:
        self._cupboard = cupboard

    async def get(self, key: str) -> Any:
        text = await self._cupboard.get(f"once:{key}")
        return json.loads(text) if text else None

    async def store(self, key: str, value: Any) -> None:
        await self._cupboard.setex(f"once:{key}", 600, json.dumps(value))


async def test_storage_of_ones_own(shelf: Shelf) -> None:
    """A second process with the same store replays; what it holds is JSON."""
    till = shelf.put("till", {"receipt": 1}, {"receipt": 2})
    cupboard = Cupboard()
    options = OrchestrationConfig(idempotency_key="charge-11")
    first, second = [
        await ReliableOrchestrator(idempotency_manager=InCupboard(cupboard)).run(
            request="Charge order 11", tool_name="till", options=options
        )
        for _ in range(2)
    ]
    assert first == second
    assert till.calls == 1
    assert list(cupboard.held) == ["once:charge-11"]
    assert cupboard.lives == {600}


# --- ids


async def test_ids_are_made_up(shelf: Shelf) -> None:
    """A request id for each run, and the trace id is the same."""
    shelf.put("echo")
    one, other = [await ReliableOrchestrator().run("Hello") for _ in range(2)]
    assert one.metadata["request_id"] == one.metadata["trace_id"]
    assert len(one.metadata["request_id"]) == 36
    assert one.metadata["request_id"] != other.metadata["request_id"]


async def test_ids_are_handed_on(shelf: Shelf) -> None:
    """Given ids are kept, and the tool gets them among its options."""
    tool = shelf.put("echo")
    result = await ReliableOrchestrator().run(
        request="Hello", options=OrchestrationConfig(trace_id="trail-7", request_id="call-8")
    )
    assert (result.metadata["trace_id"], result.metadata["request_id"]) == ("trail-7", "call-8")
    assert (tool.seen[0]["trace_id"], tool.seen[0]["request_id"]) == ("trail-7", "call-8")


# --- all of it


async def test_everything_at_once(shelf: Shelf) -> None:
    """Rules, retries, key, ids, budget and quality in one run, told in its metadata."""
    quick = shelf.put("quick", unwell(429), {"mood": "warm", "confidence": 0.9})
    shelf.put("thorough")
    orchestrator = ReliableOrchestrator(
        planner=RuleBasedPlanner(
            [
                create_keyword_based_rule(
                    ["now", "at once"], "metadata.urgency", "quick", priority=90
                ),
                create_type_based_rule("survey", "thorough", priority=10, k=4),
            ]
        ),
        reliability_config=OrchestratorReliabilityConfig(
            retry_policy=RetryPolicy(max_attempts=2, initial_delay=0.25, retry_on_rate_limit=True),
            enable_fallback=True,
        ),
    )
    result = await orchestrator.run(
        request={
            "type": "survey",
            "query": "Do they like the new shop?",
            "metadata": {"urgency": "now"},
        },
        options=OrchestrationConfig(
            idempotency_key="survey-shop-3",
            trace_id="trail-3",
            request_id="call-3",
            budget={"tokens": 4000, "cost_usd": 0.2},
            quality_requirements={"min_confidence": 0.8},
        ),
    )
    assert result.status == "succeeded"
    assert result.metadata["tool_name"] == "quick"
    assert result.metadata["retry_attempts"] == 2
    assert result.metadata["confidence"] == 0.9
    assert quick.calls == 2


# --- watching it


async def test_states_of_the_circuits(shelf: Shelf) -> None:
    """By provider and tool; the older private name says the same."""
    shelf.put("by_acme", provider="acme")
    orchestrator = ReliableOrchestrator()
    await orchestrator.run("Go")
    for key, state in orchestrator._get_circuit_breaker_states().items():
        provider, _, tool = key.partition(":")
        assert (provider, tool, state) == ("acme", "by_acme", "closed")
    assert orchestrator._get_circuit_breaker_states() == orchestrator.circuit_breaker_states() != {}


async def test_counts_of_retries(shelf: Shelf) -> None:
    """Retries, and those that helped."""
    shelf.put("flaky", unwell(), unwell(), "done")
    orchestrator = ReliableOrchestrator()
    metrics = orchestrator.reliable_executor.retry_manager.metrics
    assert metrics.retry_attempts == metrics.retry_successes == 0
    await orchestrator.run("Try")
    assert metrics.retry_attempts == 2
    assert 0 < metrics.retry_successes / metrics.retry_attempts <= 1


async def test_events(shelf: Shelf) -> None:
    """A retry is told while it happens, with its number and whose it is."""
    shelf.put("flaky", unwell(), "done", provider="acme")
    told: list[tuple[int, str]] = []

    async def on_delta(event: Any) -> None:
        if event.metadata.get("event_type") == "retry_attempt":
            told.append((event.metadata["attempt"], event.metadata["source"]))

    await ReliableOrchestrator().run(
        request="Try",
        options=OrchestrationConfig(streaming=True),
        event_manager=EventManager(on_delta=on_delta),
    )
    assert len(told) == 1


# --- coming from the base orchestrator


async def test_migration(shelf: Shelf) -> None:
    """Code that names its tools runs on either; only the reliable one can do without."""
    shelf.put("echo", "hello")
    for kind in (Orchestrator, ReliableOrchestrator):
        result = await kind().run("Hello", tool_name="echo")
        assert (result.content, result.status) == ("hello", "succeeded")
    assert (await ReliableOrchestrator().run("Hello")).content == "hello"
    with pytest.raises((OrchestratorError, TypeError)):
        await Orchestrator().run("Hello")
