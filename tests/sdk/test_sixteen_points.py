"""Sixteen things that systems of this kind got wrong: each has a test that fails where ours does.

Numbers are those of the list in the guide's notes on what to avoid; more cases are in the test
modules of each part.
"""

from __future__ import annotations

import asyncio
import copy
import json
from contextlib import suppress
from typing import Any

import pytest

from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    ConflictError,
    OrchestrationConfig,
    OrchestratorError,
    RunTimeout,
    ToolExecutionError,
)
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    ToolMetadata,
)
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.reliability.idempotency import (
    IdempotencyManager,
    NotStorableError,
    StoreUnavailableError,
)
from steer_llm_sdk.streaming.manager import EventManager
from tests.sdk.stubs import Ear, Scripted, always, lasting, reliable, unwell


def keyed(key: str = "key-1", **options: Any) -> OrchestrationConfig:
    return OrchestrationConfig(idempotency_key=key, **options)


async def test_01_a_request_is_not_changed() -> None:
    """Neither by the run nor by a tool; each attempt sees it as given, and so does the key."""

    async def meddle(request: Any, options: Any, _: Any) -> Any:
        request["items"].append("more")
        request["new"] = True
        options["k"]["deep"] = 9
        raise unwell()

    tool = Scripted("tool", meddle, meddle, "done")
    orchestrator = reliable(tool)
    request: dict[str, Any] = {"items": ["one"]}
    options = {"k": {"deep": 1}}
    before = copy.deepcopy((request, options))
    await orchestrator.run(request, tool_options=options, options=keyed())
    assert (request, options) == before
    assert tool.requests[2] == request
    assert tool.options[2]["k"] == {"deep": 1}
    await orchestrator.run(request, options=keyed())  # no conflict: it is the same request
    assert tool.calls == 3


async def test_01_a_request_changed_meanwhile_is_the_one_that_was_given() -> None:
    """What is fingerprinted, and executed, is a copy."""
    tool = Scripted("tool", unwell(), "done")
    orchestrator = reliable(tool)
    request = {"amount": 5}
    running = asyncio.create_task(orchestrator.run(request, options=keyed()))
    await asyncio.sleep(0.1)
    request["amount"] = 500
    await running
    assert tool.requests[1] == {"amount": 5}
    await orchestrator.run({"amount": 5}, options=keyed())
    assert tool.calls == 2


async def test_02_concurrent_duplicates_execute_once() -> None:
    """The others wait for that result."""
    tool = Scripted("tool", lasting(3.0, {"receipt": 1}), {"receipt": 2})
    orchestrator = reliable(tool)
    results = await asyncio.gather(*(orchestrator.run("pay", options=keyed()) for _ in range(100)))
    assert tool.calls == 1
    assert all(each == results[0] for each in results)


async def test_03_a_key_is_bound_to_request_and_named_tool() -> None:
    """Another explicit tool conflicts; which tool the planner chose is not part of it."""
    one, other = Scripted("one", unwell(), "by one"), Scripted("other", "by other")
    orchestrator = reliable(
        one,
        other,
        retry={"max_attempts": 1},
        circuit_breaker_configs={"default": CircuitBreakerConfig(failure_threshold=1)},
    )
    first = await orchestrator.run("pay", options=keyed("planned"))
    assert first.metadata["tool_name"] == "other"
    # Another instance of the service, whose circuit of `one` is closed.
    again = await orchestrator.run("pay", options=keyed("planned"))
    assert again == first
    await orchestrator.run("pay", tool_name="other", options=keyed("named"))
    with pytest.raises(ConflictError):
        await orchestrator.run("pay", tool_name="one", options=keyed("named"))
    with pytest.raises(ConflictError):
        await orchestrator.run("pay", options=keyed("named"))
    with pytest.raises(ConflictError):
        await orchestrator.run("pay more", tool_name="other", options=keyed("named"))
    assert other.calls == 2


class Shelf(IdempotencyManager):
    """A store of one's own that takes JSON only."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.fails: Exception | None = None

    async def get(self, key: str) -> Any:
        if self.fails is not None:
            raise self.fails
        return json.loads(self.held[key]) if key in self.held else None

    async def store(self, key: str, value: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.held[key] = json.dumps(value)


async def test_04_what_is_stored_is_json() -> None:
    """And the first result is what its replay is, down to a tuple that became a list."""
    shelf = Shelf()
    tool = Scripted("tool", {"pair": (1, 2)})
    first = await reliable(tool, manager=shelf).run("go", options=keyed())
    second = await reliable(tool, manager=shelf).run("go", options=keyed())
    assert first == second
    assert first.content == {"pair": [1, 2]}
    assert tool.calls == 1


async def test_04_a_result_that_cannot_be_stored_is_an_error_at_once() -> None:
    """It names the place; the tool is not run again for the key."""
    tool = Scripted("tool", {"when": {"at": object()}})
    orchestrator = reliable(tool)
    with pytest.raises(NotStorableError, match=r"content\.when\.at"):
        await orchestrator.run("go", options=keyed())
    with pytest.raises(OrchestratorError):
        await orchestrator.run("go", options=keyed())
    assert tool.calls == 1
    # Without a key it may be anything.
    assert isinstance((await orchestrator.run("go")).content, dict)


async def test_04_a_storage_outage_is_seen() -> None:
    """An event and an error; never a silent second run."""
    shelf, ear = Shelf(), Ear()
    tool = Scripted("tool")
    orchestrator = reliable(tool, manager=shelf)
    shelf.fails = ConnectionRefusedError("no store")
    with pytest.raises(StoreUnavailableError):
        await orchestrator.run("go", options=keyed(), event_manager=ear.manager)
    assert tool.calls == 0
    assert ear.of("idempotency_store_unavailable")
    assert ear.types[-1] == "run_failed"


async def test_05_a_run_is_stored_before_callbacks() -> None:
    """A raising callback cannot cause a second run."""
    shelf = Shelf()
    seen: list[int] = []

    async def burst(event: Any) -> None:
        seen.append(len(shelf.held))
        raise RuntimeError("who watches fails")

    tool = Scripted("tool", {"usage": {"total_tokens": 3}})
    orchestrator = reliable(tool, manager=shelf)
    manager = EventManager(on_usage=burst, on_complete=burst)
    first = await orchestrator.run("go", options=keyed(), event_manager=manager)
    assert seen == [1, 1]
    assert await orchestrator.run("go", options=keyed()) == first
    assert tool.calls == 1


async def test_06_budgets_are_held_before() -> None:
    """By what a tool declares, planned or named."""
    tool = Scripted("tool", needs={"cost_usd": 0.5})
    orchestrator = reliable(tool)
    for name in (None, "tool"):
        with pytest.raises(BudgetExceeded) as caught:
            await orchestrator.run(
                "go", tool_name=name, options=OrchestrationConfig(budget={"cost_usd": 0.1})
            )
        error = caught.value
        assert (error.budget_type, error.limit, error.actual) == ("cost_usd", 0.1, 0.5)
    assert tool.calls == 0


async def test_06_budgets_are_held_during() -> None:
    """The budget's time, the run's and each attempt's."""
    loop = asyncio.get_running_loop()
    slow = Scripted("slow", lasting(60.0))
    for options, kind, seconds in (
        (OrchestrationConfig(budget={"ms": 500}), BudgetExceeded, 0.5),
        (OrchestrationConfig(timeout_ms=700), RunTimeout, 0.7),
        (OrchestrationConfig(per_agent_timeout_ms=200, max_retries=0), ToolExecutionError, 0.2),
    ):
        began = loop.time()
        with pytest.raises(kind):
            await reliable(slow).run("go", options=options)
        assert loop.time() - began == pytest.approx(seconds, abs=0.01)


async def test_06_budgets_are_held_after() -> None:
    """By what the tool says it took; the result is not lost."""
    tool = Scripted("tool", {"text": "dear", "usage": {"total_tokens": 900}, "cost_usd": 0.02})
    with pytest.raises(BudgetExceeded) as caught:
        await reliable(tool).run("go", options=OrchestrationConfig(budget={"tokens": 100}))
    assert (caught.value.budget_type, caught.value.actual) == ("tokens", 900)
    assert caught.value.output is not None
    assert caught.value.output.content == tool.script[0]


@pytest.mark.parametrize(
    "error",
    [
        unwell(429),
        TimeoutError(),
        ConnectionError(),
        ConnectionResetError(),
        OSError(101, "Network is unreachable"),
    ],
    ids=repr,
)
async def test_07_these_are_retried(error: Exception) -> None:
    """Rate limits, bare time-outs and errors of the network."""
    tool = Scripted("tool", error, "done")
    assert (await reliable(tool).run("go")).content == "done"


@pytest.mark.parametrize(
    "error",
    [ValueError("rate limit exceeded: 429, timeout"), TypeError("connection reset by peer, 503")],
    ids=repr,
)
async def test_07_these_are_not(error: Exception) -> None:
    """Whatever their message says; nor does a fallback make up for a bad request."""
    tool, spare = Scripted("tool", error), Scripted("spare")
    with pytest.raises(ToolExecutionError) as caught:
        await reliable(tool, spare).run("go")
    assert caught.value.__cause__ is error
    assert (tool.calls, spare.calls) == (1, 0)


async def test_08_a_long_retry_after_is_waited_for() -> None:
    """Longer than max_delay, in full; never early."""
    tool = Scripted("tool", unwell(429, retry_after=40.0), "done")
    await reliable(tool, retry={"max_delay": 5.0}).run("go")
    assert 40.0 <= tool.waits[0] <= 41.0


async def test_08_or_given_up() -> None:
    """At once where it does not fit, and the delay is passed on."""
    loop = asyncio.get_running_loop()
    tool = Scripted("tool", unwell(429, retry_after=40.0), "done")
    began = loop.time()
    with pytest.raises(ToolExecutionError) as caught:
        await reliable(tool, retry={"max_total_delay": 30.0}).run("go")
    assert (tool.calls, loop.time()) == (1, began)
    assert caught.value.retry_after == 40.0


async def test_09_circuits_without_a_default() -> None:
    """Tools of providers that are not configured work, and have circuits of their own."""
    tool = Scripted("tool", unwell(), provider="nobody")
    orchestrator = reliable(
        tool,
        retry={"max_attempts": 1},
        circuit_breaker_configs={"openai": CircuitBreakerConfig(failure_threshold=1)},
    )
    for _ in range(5):
        with pytest.raises(ToolExecutionError):
            await orchestrator.run("go")
    assert orchestrator.circuit_breaker_states() == {"nobody:tool": "open"}


async def test_09_bad_input_trips_nothing() -> None:
    """However often."""
    tool = Scripted("tool", ValueError("no"))
    orchestrator = reliable(tool)
    for _ in range(20):
        with pytest.raises(ToolExecutionError):
            await orchestrator.run("go")
    assert orchestrator.circuit_breaker_states() == {"default:tool": "closed"}
    assert tool.calls == 20


ONE = {"default": CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=30.0)}


async def test_09_a_permit_is_always_given_back() -> None:
    """A cancelled probe leaves room for the next."""
    config = {"default": CircuitBreakerConfig(1, 1, 30.0, half_open_requests=1)}
    tool = Scripted("tool", unwell(), lasting(900.0), "well")
    orchestrator = reliable(tool, retry={"max_attempts": 1}, circuit_breaker_configs=config)
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go")
    await asyncio.sleep(31.0)
    probe = asyncio.create_task(orchestrator.run("go"))
    await asyncio.sleep(1.0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert (await orchestrator.run("go")).content == "well"


async def test_09_the_window_is_cleared_on_close() -> None:
    """Failures from before the outage do not count after it."""
    tool = Scripted("tool", unwell(), unwell(), "well", unwell(), "well")
    orchestrator = reliable(tool, retry={"max_attempts": 1}, circuit_breaker_configs=ONE)
    for _ in range(2):
        with pytest.raises(ToolExecutionError):
            await orchestrator.run("go")
    await asyncio.sleep(31.0)
    assert (await orchestrator.run("go")).content == "well"
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go")
    assert orchestrator.circuit_breaker_states() == {"acme:tool": "closed"}


async def test_09_open_circuits_fall_back_and_recovered_tools_are_probed() -> None:
    """Even while there is an alternative that works."""
    tool, spare = Scripted("tool", unwell(), unwell(), "well"), Scripted("spare")
    orchestrator = reliable(tool, spare, retry={"max_attempts": 1}, circuit_breaker_configs=ONE)
    for _ in range(4):
        assert (await orchestrator.run("go")).metadata["tool_name"] == "spare"
    assert tool.calls == 2
    await asyncio.sleep(31.0)
    assert (await orchestrator.run("go")).metadata["tool_name"] == "tool"


async def test_10_who_answered_is_named() -> None:
    """In metadata, per_agent and events."""
    ear = Ear()
    tool, spare = Scripted("tool", unwell()), Scripted("spare", "by spare", provider="bolt")
    result = await reliable(tool, spare, retry={"max_attempts": 1}).run(
        "go", event_manager=ear.manager
    )
    assert result.metadata["tool_name"] == "spare"
    assert result.metadata["fallback_used"] is True
    assert result.per_agent["spare"]["status"] == "succeeded"
    assert result.per_agent["tool"]["status"] == "failed"
    assert ear.of("fallback")[0]["tool_name"] == "spare"
    done = next(each for each in ear.events if each.type == "complete")
    assert (done.metadata["tool_name"], done.provider) == ("spare", "bolt")


@pytest.mark.parametrize(
    ("path", "operator", "value", "matches"),
    [
        ("amount", "gt", 5, False),  # of a text
        ("amount", "lt", "z", True),
        ("tags", "contains", "b", True),
        ("tags", "contains", "bee", False),
        ("amount", "contains", 3, False),
        ("nothing", "equals", None, True),
        ("absent", "equals", None, False),
        ("tags", "gt", 1, False),
        ("amount.deeper", "exists", True, False),
    ],
)
async def test_11_comparisons_never_raise(
    path: str, operator: str, value: Any, matches: bool
) -> None:
    """Unlike types do not match; `contains` on a list is membership; `equals None` can match."""
    request = {"amount": "many", "tags": ["a", "b"], "nothing": None}
    rule = PlanningRule("rule", 1, [RuleCondition(path, operator, value)], RuleAction("special"))
    orchestrator = reliable(
        Scripted("usual"), Scripted("special"), planner=RuleBasedPlanner([rule])
    )
    result = await orchestrator.run(request)
    assert result.metadata["tool_name"] == ("special" if matches else "usual")


def test_11_an_unknown_operator_is_refused() -> None:
    """At construction, with the nearest known one."""
    with pytest.raises(ValueError, match=r"operator: .*did you mean equals"):
        RuleCondition("type", "equal", "x")


async def test_12_whose_options_win() -> None:
    """The caller's over the plan's, the plan's over the tool's defaults."""
    tool = Scripted("tool", defaults={"a": "tool", "b": "tool", "c": "tool"})
    planner = always("tool", tool_options={"b": "plan", "c": "plan"})
    await reliable(tool, planner=planner).run("go", tool_options={"c": "caller"})
    given = {key: tool.options[0][key] for key in "abc"}
    assert given == {"a": "tool", "b": "plan", "c": "caller"}


@pytest.mark.parametrize(
    ("context", "selected"),
    [
        (PlanRequest(), "first"),
        (PlanRequest(previous_failures=["first"]), "second"),
        (PlanRequest(user_preferences={"preferred_tools": ["second"]}), "second"),
        (PlanRequest(user_preferences={"excluded_tools": ["first", "second"]}), "third"),
        (PlanRequest(quality_requirements={"min_confidence": 0.9}), "third"),
        (PlanRequest(budget={"cost_usd": 0.15}), "second"),
        (PlanRequest(budget={"ms": 100}), "third"),
        (PlanRequest(circuit_breaker_states={"first": "open"}), "second"),
        (PlanRequest(circuit_breaker_states={"acme:first": "open"}), "second"),
        (PlanRequest(circuit_breaker_states={"first": "half_open"}), "first"),
    ],
)
async def test_13_a_planner_reads_all_of_its_context(context: PlanRequest, selected: str) -> None:
    """Failures, preferences, quality, estimated cost and time, circuits."""
    tools = [
        ToolMetadata(
            "first",
            provider="acme",
            resource_requirements={"quality": 0.5, "cost_usd": 0.3, "ms": 500},
        ),
        ToolMetadata("second", resource_requirements={"quality": 0.5, "cost_usd": 0.1, "ms": 500}),
        ToolMetadata("third", resource_requirements={"quality": 0.95, "cost_usd": 0.2}),
    ]
    decision = await always("first", "second", "third").plan("go", tools, context)
    assert decision.selected_tool == selected
    if selected != "first":
        assert len(decision.metadata["reasons"]) > 1
        assert decision.reasoning == "; ".join(decision.metadata["reasons"])


async def test_14_the_switches_do_what_they_say() -> None:
    """Circuit, fallback, retries, their number, dice."""

    async def calls(options: OrchestrationConfig, **config: Any) -> tuple[int, int]:
        tool, spare = Scripted("tool", unwell()), Scripted("spare")
        orchestrator = reliable(tool, spare, **config)
        with suppress(ToolExecutionError):
            await orchestrator.run("go", options=options)
        return tool.calls, spare.calls

    assert await calls(OrchestrationConfig()) == (3, 1)
    assert await calls(OrchestrationConfig(enable_fallback=False)) == (3, 0)
    assert await calls(OrchestrationConfig(), enable_fallback=False) == (3, 0)
    assert await calls(OrchestrationConfig(retry_on_failure=False)) == (1, 1)
    assert await calls(OrchestrationConfig(max_retries=0)) == (1, 1)
    patient = {"default": CircuitBreakerConfig(failure_threshold=99)}
    many = OrchestrationConfig(max_retries=5)
    assert await calls(many, circuit_breaker_configs=patient) == (6, 1)
    trigger = {"default": CircuitBreakerConfig(failure_threshold=1)}
    assert await calls(OrchestrationConfig(), circuit_breaker_configs=trigger) == (1, 1)
    off = OrchestrationConfig(enable_circuit_breaker=False)
    assert await calls(off, circuit_breaker_configs=trigger) == (3, 1)

    tool = Scripted("tool", unwell(), unwell(), "done")
    orchestrator = reliable(tool, retry={"jitter_factor": 1.0, "initial_delay": 3.0})
    await orchestrator.run("go", options=OrchestrationConfig(deterministic=True))
    assert tool.waits == [3.0, 6.0]


async def test_15_every_event_carries_the_ids_and_is_redacted() -> None:
    """Whatever it tells."""
    ear = Ear()

    async def stream(_: Any, __: Any, manager: Any) -> Any:
        await manager.delta({"event_type": "piece", "text": "secret piece", "n": [1, "secret"]})
        return {"text": "secret", "usage": {"model": "secret-1", "total_tokens": 2}}

    tool = Scripted("tool", unwell(provider="secret"), stream)
    options = keyed(
        "secret-key",
        request_id="r-1",
        trace_id="t-1",
        streaming=True,
        redactor_cb=lambda text: text.replace("secret", "***").replace("not now", "***"),
    )
    orchestrator = reliable(tool)
    await orchestrator.run("go", options=options, event_manager=ear.manager)
    await orchestrator.run("go", options=options, event_manager=ear.manager)
    with pytest.raises(ConflictError):
        await orchestrator.run("secret", options=options, event_manager=ear.manager)
    assert {(each.request_id, each.trace_id) for each in ear.events} == {("r-1", "t-1")}
    assert set(ear.types) == {
        "run_started",
        "plan_selected",
        "retry_attempt",
        "piece",
        "usage",
        "run_completed",
        "idempotent_replay",
        "conflict",
        "run_failed",
    }
    told = json.dumps([dict(each.metadata) for each in ear.events])
    assert "secret" not in told
    assert "not now" not in told
    assert "***" in told


@pytest.mark.parametrize(
    "value", ["text", "", {"a": 1}, [1, 2], 3, 2.5, True, None, {"status": "failed"}], ids=repr
)
async def test_16_a_tool_may_return_any_json(value: Any) -> None:
    """With a key as without."""
    orchestrator = reliable(Scripted("tool", value))
    plain = await orchestrator.run("go")
    first = await orchestrator.run("go", options=keyed())
    assert plain.content == first.content == value
    assert (plain.status, type(plain.content)) == ("succeeded", type(value))
    assert await orchestrator.run("go", options=keyed()) == first
