"""The planner's choice, and the reasons it gives."""

from __future__ import annotations

from typing import Any

import pytest

from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    OrchestrationConfig,
    PlanningError,
    ReliableOrchestrator,
)
from steer_llm_sdk.orchestration.planning import (
    ExecutionStrategy,
    PlanDecision,
    Planner,
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    ToolMetadata,
    create_budget_aware_rule,
    create_type_based_rule,
)
from tests.sdk.stubs import Scripted, always, registry_of

ONE = ToolMetadata("one", capabilities=["report"])
TWO = ToolMetadata("two", provider="acme", resource_requirements={"cost_usd": 0.5, "ms": 100})
BOTH = [ONE, TWO]


def to(tool: str, priority: int = 0, **action: Any) -> PlanningRule:
    return PlanningRule(f"to {tool}", priority, action=RuleAction(tool, **action))


async def test_priority_and_ties() -> None:
    """Highest first; ties in the order they were added; removed rules are not asked."""
    planner = RuleBasedPlanner([to("one"), to("two")])
    assert (await planner.plan("go", BOTH)).selected_tool == "one"
    planner.add_rule(to("two", 1))
    assert (await planner.plan("go", BOTH)).selected_tool == "two"
    assert [rule.priority for rule in planner.rules] == [1, 0, 0]
    assert planner.remove_rule("to two")
    assert not planner.remove_rule("to two")
    assert (await planner.plan("go", BOTH)).selected_tool == "one"


async def test_a_decision() -> None:
    """It tells the estimates, the strategy, how sure it is, and why."""
    rule = to(
        "two",
        tool_options={"k": 3},
        fallback_tools=["gone", "one"],
        execution_strategy=ExecutionStrategy.PARALLEL,
    )
    decision = await RuleBasedPlanner([rule]).plan("go", BOTH)
    assert (decision.selected_tool, decision.fallback_tools) == ("two", ["one"])
    assert decision.tool_options == {"k": 3}
    assert decision.execution_strategy is ExecutionStrategy.PARALLEL
    assert (decision.estimated_cost, decision.estimated_duration_ms) == (0.5, 100)
    assert decision.confidence is not None
    assert 0 < decision.confidence <= 1
    assert decision.metadata["matched_rule"] == "to two"
    assert decision.reasoning == "rule to two matched; gone left out: it is not registered"


@pytest.mark.parametrize(
    ("request_", "tools", "selected", "word"),
    [
        ({"type": "report"}, [TWO, ONE], "one", "capability"),
        ({"type": "other"}, [TWO, ONE], "two", "comes first among"),
        ("text", [ONE], "one", "only tool"),
        ({"type": ["report"]}, [TWO, ONE], "two", "comes first"),
    ],
)
async def test_without_a_rule(
    request_: Any, tools: list[ToolMetadata], selected: str, word: str
) -> None:
    """By capability, or else by order; nothing unrelated takes the tool's place."""
    decision = await RuleBasedPlanner().plan(request_, tools)
    assert decision.selected_tool == selected
    assert decision.fallback_tools == []
    assert word in decision.reasoning
    asked = await RuleBasedPlanner([create_type_based_rule("x", "one")]).plan(request_, tools)
    assert asked.selected_tool == selected
    assert asked.reasoning.startswith("no rule matched")


async def test_tools_of_one_capability_take_each_others_place() -> None:
    """In their order."""
    other = ToolMetadata("other", capabilities=["report"])
    decision = await RuleBasedPlanner().plan({"type": "report"}, [TWO, other, ONE])
    assert (decision.selected_tool, decision.fallback_tools) == ("other", ["one"])


async def test_a_rule_without_a_tool_to_offer() -> None:
    """The next one is asked, and each dropped tool is told once."""
    planner = RuleBasedPlanner([to("gone", 3), to("two", 2), to("one", 1)])
    context = PlanRequest(budget={"cost_usd": 0.1})
    decision = await planner.plan("go", BOTH, context)
    assert decision.selected_tool == "one"
    assert decision.metadata["reasons"] == [
        "rule to gone matched",
        "gone left out: it is not registered",
        "rule to two matched",
        "two left out: about 0.5 cost_usd exceed the budget of 0.1",
        "rule to one matched",
    ]


async def test_nothing_left() -> None:
    """BudgetExceeded by the least, when the budget is why; else PlanningError with the reasons."""
    with pytest.raises(BudgetExceeded) as exceeded:
        await always("two").plan("go", [TWO], PlanRequest(budget={"ms": 50}))
    assert (exceeded.value.budget_type, exceeded.value.actual) == ("ms", 100)
    with pytest.raises(PlanningError, match="one left out: the caller excludes it"):
        await always("one").plan(
            "go", [ONE], PlanRequest(user_preferences={"excluded_tools": ["one"]})
        )
    with pytest.raises(PlanningError, match="no tool is registered"):
        await RuleBasedPlanner().plan("go", [])


async def test_options_that_cannot_be_made() -> None:
    """A rule whose function fails is passed over."""

    def burst(options: Any) -> Any:
        raise KeyError("k")

    planner = RuleBasedPlanner([to("two", 2, option_transformer=burst), to("one", 1)])
    decision = await planner.plan("go", BOTH)
    assert decision.selected_tool == "one"
    assert "rule to two passed over: its option_transformer failed" in decision.reasoning


@pytest.mark.parametrize(
    ("budget", "k"),
    [(None, 5), ({"tokens": 1999}, 2), ({"tokens": 2000}, 5), ({"cost_usd": 0.09}, 2)],
)
async def test_the_budget_aware_rule(budget: Any, k: int) -> None:
    """A low budget asks for less."""
    planner = RuleBasedPlanner([create_budget_aware_rule("one")])
    decision = await planner.plan("go", [ONE], PlanRequest(budget=budget))
    assert decision.tool_options == {"k": k}


async def test_tools_in_any_shape() -> None:
    """A dictionary, a list, tools themselves or what they declare."""
    for tools in (
        {"a": Scripted("a")},
        [Scripted("a")],
        {"a": ToolMetadata("a")},
        (ToolMetadata("a"),),
    ):
        assert (await RuleBasedPlanner().plan("go", tools)).selected_tool == "a"


async def test_what_an_orchestrator_tells_its_planner() -> None:
    """Everything: bounds, demands, circuits, failures, preferences, metadata; copies of all."""
    seen: list[Any] = []

    class Curious(Planner):
        async def plan(self, request: Any, available_tools: Any, context: Any) -> PlanDecision:
            seen.append((dict(request), dict(available_tools), context))
            request["spoiled"] = True
            available_tools.clear()
            return PlanDecision("one", {"k": 1}, ["two", "made up"])

    tool, spare = Scripted("one", provider="acme"), Scripted("two")
    orchestrator = ReliableOrchestrator(Curious(), registry=registry_of(tool, spare))
    metadata = {
        "previous_failures": ["two"],
        "user_preferences": {"preferred_tools": ["one"]},
        "team": "blue",
    }
    options = OrchestrationConfig(
        budget={"tokens": 10}, quality_requirements={"min_confidence": 0.5}, metadata=metadata
    )
    await orchestrator.run({"q": 1}, options=options)
    result = await orchestrator.run({"q": 1}, options=options)
    assert tool.requests == [{"q": 1}] * 2
    assert tool.options[0]["k"] == 1
    assert (result.metadata["tool_name"], result.metadata["matched_rule"]) == ("one", None)
    assert "confidence" not in result.metadata
    request, tools, context = seen[1]
    assert request == {"q": 1}
    assert tools["one"].provider == "acme"
    assert context == PlanRequest(
        budget={"tokens": 10},
        quality_requirements={"min_confidence": 0.5},
        previous_failures=["two"],
        circuit_breaker_states={"acme:one": "closed", "default:two": "closed"},
        user_preferences={"preferred_tools": ["one"]},
        metadata=metadata,
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [(KeyError("oops"), "the planner failed: KeyError"), ("one", "must return a PlanDecision")],
)
async def test_a_planner_that_fails(answer: Any, message: str) -> None:
    """Its error becomes ours, with its own as the cause."""

    class Broken(Planner):
        async def plan(self, request: Any, available_tools: Any, context: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    orchestrator = ReliableOrchestrator(Broken(), registry=registry_of(Scripted("one")))
    with pytest.raises(PlanningError, match=message):
        await orchestrator.run("go")
