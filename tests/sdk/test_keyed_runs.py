"""Runs with a key, from the orchestrator's side: points 1 to 5 of what must not go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.errors import ConflictError, InvalidValue, RunTimeout, ToolExecutionError
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.planning import RuleBasedPlanner, create_type_based_rule
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.reliability.idempotency import (
    IdempotencyManager,
    NotStorableError,
    ResultNotStoredError,
    StoreUnavailableError,
    UncertainOutcomeError,
)
from steer_llm_sdk.streaming.events import Event
from steer_llm_sdk.streaming.manager import EventManager
from tests.sdk.stubs import always, unwell
from tests.sdk.test_once import OnShelf, Shelf

KEYED = OrchestrationConfig(idempotency_key="pay-7")


class Payment(Tool):
    """Counts what it was asked for, changes what it is given, and plays a script."""

    def __init__(self, name: str = "payment", *results: Any, seconds: float = 0.0) -> None:
        self._name = name
        self.results = list(results) or [{"paid": True}]
        self.seconds = seconds
        self.made = 0

    @property
    def name(self) -> str:
        return self._name

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.made += 1
        result = self.results[min(self.made, len(self.results)) - 1]
        if isinstance(request, dict):
            request["changed"] = True
        await asyncio.sleep(self.seconds)
        if isinstance(result, Exception):
            raise result
        return result


def orchestrator(*tools: Tool, manager: Any = None, **more: Any) -> ReliableOrchestrator:
    """One that knows these tools alone."""
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    return ReliableOrchestrator(registry=registry, idempotency_manager=manager, **more)


Managers = dict[str, Callable[[Path], IdempotencyManager]]
MANAGERS: Managers = {
    "memory": lambda _: IdempotencyManager(),
    "custom": lambda _: OnShelf(Shelf()),
    "sqlite": lambda folder: IdempotencyManager(database_url=f"sqlite:///{folder / 'steer.db'}"),
}


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> IdempotencyManager:
    """Every kind of manager."""
    return MANAGERS[request.param](tmp_path)


async def test_point_1_what_is_bound_is_a_copy_of_the_request(manager: IdempotencyManager) -> None:
    """Neither tool nor caller changes it: the same request again is the same one."""
    tool = Payment(seconds=1.0)
    async with manager:
        runs = orchestrator(tool, manager=manager)
        request: dict[str, Any] = {"order": {"number": 7}}
        first = asyncio.create_task(runs.run(request, "payment", options=KEYED))
        await asyncio.sleep(0.5)
        request["order"]["number"] = 8
        await first
        assert request == {"order": {"number": 8}}
        again = await runs.run({"order": {"number": 7}}, "payment", options=KEYED)
        assert again == await first
    assert tool.made == 1


async def test_point_2_a_hundred_runs_are_one(manager: IdempotencyManager) -> None:
    """One execution; all results are equal."""
    tool = Payment("payment", {"receipt": 1}, {"receipt": 2}, seconds=3.0)
    async with manager:
        runs = orchestrator(tool, manager=manager)
        results = await asyncio.gather(
            *[runs.run("Pay order 7", "payment", options=KEYED) for _ in range(100)]
        )
    assert tool.made == 1
    assert all(result == results[0] for result in results)


async def test_point_3_another_tool_by_name_is_a_conflict(manager: IdempotencyManager) -> None:
    """And so is none, where one was named; nothing more is run."""
    tools = [Payment("payment"), Payment("refund")]
    async with manager:
        runs = orchestrator(*tools, manager=manager)
        await runs.run("Pay order 7", "payment", options=KEYED)
        for name in ("refund", None):
            with pytest.raises(ConflictError, match="pay-7"):
                await runs.run("Pay order 7", name, options=KEYED)
    assert [tool.made for tool in tools] == [1, 0]


async def test_point_3_a_planned_tool_is_not_part_of_it() -> None:
    """The planner may choose another one the next time: it is the same run."""
    tools = [Payment("one"), Payment("two")]
    manager = IdempotencyManager()
    request = {"type": "pay"}
    for name in ("one", "two"):
        planner = RuleBasedPlanner([create_type_based_rule("pay", name)])
        runs = orchestrator(*tools, manager=manager, planner=planner)
        result = await runs.run(request, options=KEYED)
        assert result.metadata["tool_name"] == "one"
    assert [tool.made for tool in tools] == [1, 0]


async def test_point_4_what_cannot_be_stored_is_an_error_at_once(
    manager: IdempotencyManager,
) -> None:
    """It names the place and holds the result; a duplicate is not run."""
    tool = Payment("payment", {"receipt": {1, 2}})
    async with manager:
        runs = orchestrator(tool, manager=manager)
        with pytest.raises(NotStorableError, match=r"content\.receipt is a set") as caught:
            await runs.run("Pay order 7", "payment", options=KEYED)
        value: Any = caught.value.value
        assert value["content"] == {"receipt": {1, 2}}
        with pytest.raises(ResultNotStoredError):
            await runs.run("Pay order 7", "payment", options=KEYED)
    assert tool.made == 1


async def test_point_4_a_store_that_is_down_is_seen() -> None:
    """By an error, an event, and nothing run."""
    told: list[Event] = []
    shelf, tool = Shelf(), Payment()
    shelf.get_fails = 1
    with pytest.raises(StoreUnavailableError, match="Nothing was run"):
        await orchestrator(tool, manager=OnShelf(shelf)).run(
            "Pay order 7", "payment", options=KEYED, event_manager=EventManager(told.append)
        )
    assert tool.made == 0


async def test_point_4_a_store_that_is_down_tells_an_event() -> None:
    """A delta, as the other steps of a run."""
    told: list[Event] = []
    shelf = Shelf()
    shelf.get_fails = 1
    with pytest.raises(StoreUnavailableError):
        await orchestrator(Payment(), manager=OnShelf(shelf)).run(
            "Pay order 7",
            "payment",
            options=KEYED,
            event_manager=EventManager(on_delta=told.append),
        )
    (event,) = told
    assert event.metadata["event_type"] == "idempotency_store_unavailable"
    assert event.metadata["error"] == "the store is away"


async def test_point_5_a_raising_callback_cannot_cause_a_second_run(
    manager: IdempotencyManager,
) -> None:
    """The result is stored before anybody is told of it."""
    tool = Payment()

    async def raising(_: Event) -> None:
        raise RuntimeError("a bug of the caller's")

    events = EventManager(on_complete=raising, on_delta=raising, on_error=raising)
    async with manager:
        runs = orchestrator(tool, manager=manager)
        for _ in range(2):
            result = await runs.run("Pay", "payment", options=KEYED, event_manager=events)
            assert result.content == {"paid": True}
    assert tool.made == 1


async def test_point_5_nor_can_one_that_is_cut_off(manager: IdempotencyManager) -> None:
    """A caller that is cancelled within its callback has a stored result."""
    tool = Payment()
    async with manager:
        runs = orchestrator(tool, manager=manager)
        telling = asyncio.Event()

        async def hanging(_: Event) -> None:
            telling.set()
            await asyncio.Event().wait()

        run = asyncio.create_task(
            runs.run(
                "Pay", "payment", options=KEYED, event_manager=EventManager(on_complete=hanging)
            )
        )
        async with asyncio.timeout(60.0):
            await telling.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (await runs.run("Pay", "payment", options=KEYED)).content == {"paid": True}
    assert tool.made == 1


async def test_a_run_whose_time_is_up_leaves_its_key_uncertain(
    manager: IdempotencyManager,
) -> None:
    """`timeout_ms` cut its tool off in the middle: nobody runs it again by itself."""
    tool = Payment(seconds=10.0)
    options = OrchestrationConfig(idempotency_key="pay-7", timeout_ms=1_000)
    async with manager:
        runs = orchestrator(tool, manager=manager)
        with pytest.raises(RunTimeout):
            await runs.run("Pay", "payment", options=options)
        with pytest.raises(UncertainOutcomeError):
            await runs.run("Pay", "payment", options=options)
    assert tool.made == 1


@pytest.mark.parametrize(
    "trouble",
    [TimeoutError(), ConnectionResetError(), unwell(502), unwell(None), RuntimeError(), KeyError()],
    ids=repr,
)
async def test_what_may_have_been_executed_is_not_repeated(
    manager: IdempotencyManager, trouble: Exception
) -> None:
    """Neither by a retry, nor by a fallback, nor by the next run: one key pays once."""
    tool, spare = Payment("payment", trouble), Payment("spare")
    planner = always("payment", "spare")
    async with manager:
        runs = orchestrator(tool, spare, manager=manager, planner=planner)
        with pytest.raises(ToolExecutionError) as caught:
            await runs.run("Pay", options=KEYED)
        assert caught.value.maybe_executed
        with pytest.raises(UncertainOutcomeError):
            await runs.run("Pay", options=KEYED)
    assert [tool.made, spare.made] == [1, 0]


@pytest.mark.parametrize("trouble", [unwell(429), unwell(503), ConnectionRefusedError()], ids=repr)
async def test_what_provably_had_no_effect_is_repeated(
    manager: IdempotencyManager, trouble: Exception
) -> None:
    """By retries and fallbacks; and when they do not help either, the key is free."""
    tools = Payment("payment", trouble), Payment("spare", trouble)
    async with manager:
        runs = orchestrator(*tools, manager=manager, planner=always("payment", "spare"))
        with pytest.raises(ToolExecutionError) as caught:
            await runs.run("Pay", options=KEYED)
        assert not caught.value.maybe_executed
        assert [tool.made for tool in tools] == [3, 3]
        tools[0].results = [{"paid": True}]
        assert (await runs.run("Pay", options=KEYED)).content == {"paid": True}


async def test_an_idempotent_tool_is_repeated_and_nobody_else_asked() -> None:
    """It hands the key on; another tool would not know what this one has done."""

    class Careful(Payment):
        idempotent = True

    spare = Payment("spare")
    planner, manager = always("payment", "spare"), IdempotencyManager()
    tool = Careful("payment", TimeoutError(), ConnectionResetError(), {"paid": True})
    runs = orchestrator(tool, spare, manager=manager, planner=planner)
    assert (await runs.run("Pay", options=KEYED)).content == {"paid": True}
    assert tool.made == 3
    lost = Careful("payment", TimeoutError())
    broken = OrchestratorReliabilityConfig(
        circuit_breaker_configs={"default": CircuitBreakerConfig(failure_threshold=1)}
    )
    for config, made in ((None, 3), (broken, 1)):
        lost.made, manager = 0, IdempotencyManager()
        runs = orchestrator(
            lost, spare, manager=manager, planner=planner, reliability_config=config
        )
        with pytest.raises(ToolExecutionError):
            await runs.run("Pay", options=KEYED)
        assert (lost.made, spare.made) == (made, 0)


async def test_who_wants_it_otherwise() -> None:
    """`ambiguous="retry"` for runs with a key, `ambiguous="fail"` for those without."""
    for ambiguous, options, made in (
        ("retry", KEYED, 3),
        ("fail", OrchestrationConfig(), 1),
        (None, OrchestrationConfig(), 3),
    ):
        tool = Payment("payment", TimeoutError())
        config = OrchestratorReliabilityConfig(retry_policy=RetryPolicy(ambiguous=ambiguous))
        with pytest.raises(ToolExecutionError):
            await orchestrator(tool, reliability_config=config).run("Pay", options=options)
        assert tool.made == made
    with pytest.raises(InvalidValue, match="ambiguous: must be retry or fail"):
        RetryPolicy(ambiguous="perhaps")


async def test_one_failure_names_the_run_that_met_it(manager: IdempotencyManager) -> None:
    """All who waited get the same error, and it is not renamed under the eyes of the first."""
    steer = orchestrator(Payment("payment", ValueError("no such account")), manager=manager)
    async with manager:
        runs = [
            steer.run(
                "Pay order 7",
                "payment",
                options=OrchestrationConfig(idempotency_key="pay-7", request_id=name),
            )
            for name in ("one", "two", "three")
        ]
        errors = await asyncio.gather(*runs, return_exceptions=True)
    assert {getattr(error, "request_id", None) for error in errors} == {"one"}


async def test_a_failed_run_may_be_run_again(manager: IdempotencyManager) -> None:
    """Its tool said itself that the request was at fault."""
    tool = Payment("payment", ValueError("no such order"), {"paid": True})
    async with manager:
        runs = orchestrator(tool, manager=manager)
        with pytest.raises(ToolExecutionError):
            await runs.run("Pay", "payment", options=KEYED)
        assert (await runs.run("Pay", "payment", options=KEYED)).content == {"paid": True}
    assert tool.made == 2


@pytest.mark.parametrize("content", ["text", [1, {"a": None}], 1.5, 7, True, None, {"a": {}}])
async def test_any_json_value_is_stored(manager: IdempotencyManager, content: Any) -> None:
    """And comes back as it was."""
    async with manager:
        runs = orchestrator(Payment("payment", content), manager=manager)
        first, again = [await runs.run("Pay", "payment", options=KEYED) for _ in range(2)]
    assert isinstance(again, OrchestrationOutput)
    assert first == again
    assert again.content == content
