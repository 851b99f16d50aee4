"""What belongs to others (requests, functions, results) cannot break a run from inside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from steer_llm_sdk.errors import InvalidValue, OrchestratorError, PlanningError, UnknownTool
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    Orchestrator,
    ReliableOrchestrator,
    ToolExecutionError,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.planning import (
    PlanDecision,
    Planner,
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    ToolMetadata,
)
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.reliability.idempotency import IdempotencyManager, StoreUnavailableError
from tests.sdk.stubs import Ear, Scripted, registry_of, reliable


def odd(value: Any = None) -> Any:
    """A value that the types would refuse."""
    return value


class Wordless(Exception):
    """Fails even at saying what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Prickly:
    """Cannot be compared, nor shown."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("the truth value of this is ambiguous")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


async def refuses(**arguments: Any) -> OrchestratorError:
    """The error of a run with an argument that is none."""
    with pytest.raises(OrchestratorError) as caught:
        await reliable(Scripted("tool")).run(**{"request": "go", **arguments})
    return caught.value


# --- Requests and what is compared with them ------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [Prickly(), {"deep": [Prickly()]}, 10**5000, math.nan, {1: 2}],
    ids=["prickly", "deep", "huge", "nan", "keys"],
)
async def test_a_request_may_hold_anything(value: Any) -> None:
    """As long as it has no key; a comparison that fails does not hold."""
    rules = [
        PlanningRule(name, 9, [RuleCondition("a", operator, wanted)], RuleAction("other"))
        for name, operator, wanted in (
            ("same", "equals", {"deep": [1]}),
            ("among", "in", [1, [2]]),
            ("has", "contains", 7),
        )
    ]
    tool, other = Scripted("tool"), Scripted("other")
    orchestrator = reliable(tool, other, planner=RuleBasedPlanner(rules))
    result = await orchestrator.run({"a": value})
    assert result.metadata["tool_name"] == "tool"
    # A result may be anything, too.
    tool.script = [value]
    assert (await orchestrator.run("go", "tool")).content is value


async def test_rules_do_not_change_what_they_look_at() -> None:
    """Neither a matcher nor a transformer reaches the request, or the options' metadata."""

    def meddling(found: Any) -> bool:
        found.append("more")
        return True

    def greedy(options: Any, request: Any, context: Any) -> Any:
        request["items"].clear()
        context.metadata["who"] = "somebody else"
        return options

    tool = Scripted("tool")
    rule = PlanningRule(
        "rule",
        conditions=[RuleCondition("items", "exists", custom_matcher=meddling)],
        action=RuleAction("tool", option_transformer=greedy),
    )
    request, metadata = {"items": ["one"]}, {"who": "me"}
    before = copy.deepcopy((request, metadata))
    await reliable(tool, planner=RuleBasedPlanner([rule])).run(
        request, options=OrchestrationConfig(metadata=metadata)
    )
    assert tool.requests == [request]
    assert (request, metadata) == before


def test_options_are_what_they_were_when_they_were_made() -> None:
    """Whatever becomes of the dictionaries they were made of."""
    budget, metadata = {"tokens": 10.0}, {"list": [1]}
    options = OrchestrationConfig(budget=budget, metadata=metadata)
    budget["tokens"] = 99.0
    metadata["list"].append(2)
    assert (options.budget, options.metadata) == ({"tokens": 10.0}, {"list": [1]})
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(InvalidValue, match="metadata: nests too deep"):
        OrchestrationConfig(metadata=endless)


# --- Exceptions -----------------------------------------------------------------------------------


async def test_exceptions_without_words() -> None:
    """From a tool, its validation, a planner, a store: the run ends in our words."""

    class Bad(Planner):
        async def plan(self, *_: Any) -> PlanDecision:
            raise Wordless

    class Store:
        async def get(self, _: str) -> Any:
            raise Wordless

        async def store(self, _: str, __: Any) -> None:
            raise Wordless

    def invalid(_: Any) -> bool:
        raise Wordless

    ear = Ear()
    with pytest.raises(ToolExecutionError, match=r"Wordless \(tool: server_error"):
        await reliable(Scripted("tool", Wordless())).run("go", event_manager=ear.manager)
    assert ear.of("retry_attempt")[0]["error"] == "Wordless"
    with pytest.raises(ToolExecutionError, match="refuses the request"):
        await reliable(Scripted("tool", valid=invalid)).run("go")
    planned = ReliableOrchestrator(Bad(), registry=registry_of(Scripted("tool")))
    with pytest.raises(PlanningError, match="the planner failed: Wordless: Wordless"):
        await planned.run("go")
    with pytest.raises(StoreUnavailableError, match="Wordless"):
        await reliable(Scripted("tool"), manager=Store()).run(
            "go", options=OrchestrationConfig(idempotency_key="k")
        )


@pytest.mark.parametrize(
    ("said", "accepted"), [(True, True), (None, True), (False, False), (0, False), ("", False)]
)
async def test_what_validation_says(said: Any, accepted: bool) -> None:
    """Nothing is no complaint; whatever is false is one, such as numpy's own False."""
    tool = Scripted("tool", valid=lambda _: said)
    if accepted:
        await reliable(tool).run("go")
    else:
        with pytest.raises(ToolExecutionError, match="refuses"):
            await reliable(tool).run("go")
    assert tool.calls == int(accepted)


# --- Results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("usage", None), ("usage", "3"), ("metadata", None), ("per_agent", [1]), ("cost_usd", "dear")],
)
@pytest.mark.parametrize("key", [None, "k"])
async def test_an_output_that_cannot_be_used(field: str, value: Any, key: str | None) -> None:
    """The error names the field; the tool was run, and is not run again for its key."""
    tool = Scripted("tool", OrchestrationOutput(content=1, **{field: value}))
    orchestrator = reliable(tool)
    for options in (
        OrchestrationConfig(idempotency_key=key),
        OrchestrationConfig(idempotency_key=key, budget={"tokens": 5, "cost_usd": 1}),
    ):
        with pytest.raises(OrchestratorError) as caught:
            await orchestrator.run("go", options=options)
        if key is None or options.budget is None:
            assert f"whose {field} is not" in str(caught.value)
    assert tool.calls == (2 if key is None else 1)


@pytest.mark.parametrize(
    "result", [{"usage": {"total_tokens": 10**400}}, {"cost_usd": 10**400}], ids=["usage", "cost"]
)
async def test_absurd_amounts_are_not_told(result: dict[str, Any]) -> None:
    """A number that no float can hold counts as none."""
    options = OrchestrationConfig(budget={"tokens": 5, "cost_usd": 1.0})
    output = await reliable(Scripted("tool", result)).run("go", options=options)
    assert (output.content, output.cost_usd) == (result, None)


# --- Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"tool_name": []}, UnknownTool, r"tool_name: no tool \[\] is registered"),
        ({"tool_name": 5}, UnknownTool, "tool_name: no tool 5"),
        ({"event_manager": 5}, InvalidValue, "event_manager: must be an EventManager, not 5"),
        ({"tool_options": 5}, InvalidValue, "tool_options: must be a dictionary, not 5"),
        ({"request": Prickly()}, InvalidValue, "request: .* not a Prickly"),
        (
            {"options": OrchestrationConfig(metadata={"previous_failures": 5})},
            InvalidValue,
            "previous_failures: must be a list of names, not 5",
        ),
    ],
)
async def test_arguments_of_a_run(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """The error is of the documented class, and names the argument."""
    error = await refuses(**arguments)
    assert isinstance(error, kind)
    with pytest.raises(kind, match=message):
        raise error


async def coroutine(*_: Any) -> Any:
    """Not what is wanted where the result is needed at once."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReliableOrchestrator(idempotency_manager=odd(5)), "idempotency_manager: 5 has"),
        (lambda: Orchestrator(registry=odd(5)), "registry: must be a ToolRegistry, not 5"),
        (lambda: ToolRegistry().register_tool(odd(Scripted)), "tool: Scripted is a class"),
        (lambda: RuleBasedPlanner(odd(PlanningRule("r"))), "rules: must be a list"),
        (lambda: RuleBasedPlanner(odd(5)), "rules: must be a list of PlanningRule, not 5"),
        (lambda: RuleAction("t", fallback_tools=odd()), "fallback_tools: must be a list of names"),
        (
            lambda: RuleAction("t", option_transformer=odd(coroutine)),
            "option_transformer: .* plain",
        ),
        (lambda: RuleCondition("a", "custom", None, coroutine), "custom_matcher: .* plain"),
        (lambda: OrchestrationConfig(redactor_cb=odd(coroutine)), "redactor_cb: .* plain"),
        (lambda: OrchestrationConfig(timeout_ms=10**400), "timeout_ms: must be a finite number"),
        (lambda: OrchestrationConfig(max_retries=10**5000), "max_retries: must be from 0 to 5"),
        (lambda: OrchestrationConfig(idempotency_key="a\n"), "idempotency_key: .* control"),
        (lambda: PlanDecision("t", tool_options=odd()), "tool_options: must be a dictionary"),
        (lambda: PlanDecision("t", metadata=odd()), "metadata: must be a dictionary, not None"),
        (lambda: PlanDecision("t", fallback_tools=odd(5)), "fallback_tools: must be a list"),
        (lambda: PlanDecision("t", execution_strategy=odd("x")), "execution_strategy: must be"),
        (lambda: PlanRequest(metadata=odd()), "metadata: must be a dictionary"),
        (lambda: ToolMetadata("t", capabilities="text"), "capabilities: must be a list of names"),
        (
            lambda: OrchestratorReliabilityConfig(retry_policy=odd()),
            "retry_policy: must be",
        ),
        (lambda: RetryPolicy(initial_delay=-1), "initial_delay: must be at least 0, not -1"),
        (lambda: CircuitBreakerConfig(timeout=odd(Prickly())), "timeout: .* not a Prickly"),
        (lambda: IdempotencyManager(encryption=[("k", b"1" * 32)]), "encryption: .*database_url"),
        (
            lambda: IdempotencyManager(encryption=[("k", b"short")], database_url="sqlite:///x.db"),
            "encryption: key k must have 32 bytes",
        ),
        (lambda: IdempotencyManager(encryption=odd(5)), "encryption: must be a list of pairs"),
    ],
)
def test_arguments_of_constructors(make: Callable[[], object], message: str) -> None:
    """Refused where they are given, by name."""
    with pytest.raises(InvalidValue, match=message):
        make()


async def test_a_strategy_by_its_name() -> None:
    """A planner of somebody's own may write it as text."""
    assert PlanDecision("t", execution_strategy=odd("parallel")).execution_strategy == "parallel"


def test_states_by_other_names_are_passed_over() -> None:
    """What is no tool's name says nothing of any tool."""
    states: Any = {5: "open", "one": "open"}
    entrants = [ToolMetadata("one").entrant, ToolMetadata("two").entrant]
    demands = PlanRequest(circuit_breaker_states=states).demands(entrants)
    assert demands is not None
    assert demands.open == {"one"}


async def test_a_store_that_holds_something_else() -> None:
    """A record whose value is no run's result is no record; nothing is run."""

    class Store:
        def __init__(self) -> None:
            self.held: dict[str, Any] = {}

        async def get(self, key: str) -> Any:
            return self.held.get(key)

        async def store(self, key: str, value: Any) -> None:
            self.held[key] = value

    store, tool = Store(), Scripted("tool")
    options = OrchestrationConfig(idempotency_key="k")
    await reliable(tool, manager=store).run("go", options=options)
    store.held["k"]["value"] = 5
    with pytest.raises(StoreUnavailableError, match="no record of a run"):
        await reliable(tool, manager=store).run("go", options=options)
    assert tool.calls == 1
