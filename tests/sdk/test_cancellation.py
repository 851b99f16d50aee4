"""Cancelled at any await, a run leaves no permit, no claim and no task behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from steer_llm_sdk.orchestration import OrchestrationConfig, ReliableOrchestrator
from steer_llm_sdk.orchestration.planning import ExecutionStrategy
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.reliability.idempotency import IdempotencyManager, UncertainOutcomeError
from tests.sdk.stubs import Ear, Scripted, always, lasting, reliable, unwell

#: More suspensions than any run of these tests has.
MANY = 200

CIRCUITS = {
    "default": CircuitBreakerConfig(
        failure_threshold=2, success_threshold=1, timeout=20.0, half_open_requests=1
    )
}


class CutAt:
    """Awaits something, but is cancelled at its n-th suspension (the first is 1)."""

    def __init__(self, work: Awaitable[Any], at: int) -> None:
        self._work = work
        self._at = at
        self.suspensions = 0
        self.cut = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                future = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as done:
                return done.value
            error = None
            self.suspensions += 1
            if self.suspensions == self._at:
                # As a task does: what is waited for is cancelled, or else the wait itself.
                self.cut = True
                if future is not None and not future.cancelled():
                    future.cancel()
                    future._asyncio_future_blocking = False
                error = asyncio.CancelledError()
                continue
            try:
                yield future
            except BaseException as thrown:  # noqa: BLE001 - handed on to what is awaited
                error = thrown


Scene = Callable[[], tuple[ReliableOrchestrator, list[Scripted], dict[str, Any]]]


def retries_and_falls_back() -> tuple[ReliableOrchestrator, list[Scripted], dict[str, Any]]:
    """A retry, a circuit that opens, a fallback, a streamed answer; everything is told."""

    async def streams(_: Any, __: Any, manager: Any) -> Any:
        await asyncio.sleep(1.0)
        await manager.delta({"event_type": "piece"})
        return {"usage": {"total_tokens": 3}}

    tools = [Scripted("tool", unwell()), Scripted("spare", streams)]
    orchestrator = reliable(*tools, circuit_breaker_configs=CIRCUITS)
    return orchestrator, tools, {"options": OrchestrationConfig(streaming=True)}


def within_bounds() -> tuple[ReliableOrchestrator, list[Scripted], dict[str, Any]]:
    """Under a deadline, with a limit of each attempt."""
    tools = [Scripted("tool", lasting(5.0), lasting(1.0))]
    options = OrchestrationConfig(timeout_ms=60_000, per_agent_timeout_ms=2_000)
    return reliable(*tools, circuit_breaker_configs=CIRCUITS), tools, {"options": options}


def at_once() -> tuple[ReliableOrchestrator, list[Scripted], dict[str, Any]]:
    """Three tools in parallel, two of them at once."""
    tools = [
        Scripted("tool", lasting(4.0, unwell())),
        Scripted("spare", lasting(9.0)),
        Scripted("third", lasting(2.0)),
    ]
    orchestrator = reliable(
        *tools,
        retry={"max_attempts": 1},
        planner=always("tool", "spare", "third", execution_strategy=ExecutionStrategy.PARALLEL),
        circuit_breaker_configs=CIRCUITS,
    )
    return orchestrator, tools, {"options": OrchestrationConfig(max_parallel=2)}


@pytest.mark.parametrize("scene", [retries_and_falls_back, within_bounds, at_once])
async def test_cut_at_every_suspension(scene: Scene) -> None:
    """Afterwards nothing runs, and every circuit admits what it admitted before."""
    for at in range(1, MANY):
        orchestrator, tools, arguments = scene()
        ear = Ear()
        run = CutAt(orchestrator.run("go", event_manager=ear.manager, **arguments), at)
        try:
            await run
        except asyncio.CancelledError:
            assert run.cut
        for _ in range(3):
            await asyncio.sleep(0)
        assert [tool.running for tool in tools] == [0] * len(tools)
        current = asyncio.current_task()
        assert [task for task in asyncio.all_tasks() if task is not current] == []
        await _admits(orchestrator, tools)
        if not run.cut:
            break
    else:
        pytest.fail("the scene never ended")
    assert at > 3


@pytest.mark.parametrize("at", range(1, 8))
async def test_a_probe_cut_at_every_suspension(at: int) -> None:
    """Half-open, one probe at a time: the next one is admitted."""
    tool = Scripted("tool", unwell(), unwell(), lasting(1.0), "well")
    orchestrator = reliable(tool, retry={"max_attempts": 1}, circuit_breaker_configs=CIRCUITS)
    for _ in range(2):
        with pytest.raises(Exception, match="not now"):
            await orchestrator.run("go")
    await asyncio.sleep(21.0)
    ear = Ear()
    run = CutAt(orchestrator.run("go", event_manager=ear.manager), at)
    try:
        await run
    except asyncio.CancelledError:
        assert run.cut
    tool.script = ["well"]
    assert (await orchestrator.run("go")).content == "well"


async def _admits(orchestrator: ReliableOrchestrator, tools: list[Scripted]) -> None:
    """Every tool's circuit, once due, lets a probe through: no permit is out."""
    await asyncio.sleep(25.0)
    for tool in tools:
        tool.script = ["well"]
        result = await orchestrator.run("again", tool_name=tool.name)
        assert result.content == "well"


async def cancelled_after(steps: int, work: Any) -> bool:
    """Run in a task of its own and cancel it after so many turns of the loop."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    if task.done():
        await task
        return False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


async def test_a_key_cut_at_every_turn() -> None:
    """Its claim is free where no tool was run, uncertain where one may have been; never held."""
    free = doubtful = 0
    for turns in range(60):
        tool = Scripted("tool", unwell(429), lasting(0.0, "done"))
        manager = IdempotencyManager()
        orchestrator = reliable(tool, manager=manager, retry={"initial_delay": 0.0})
        ear = Ear()
        options = OrchestrationConfig(idempotency_key="key")
        run = orchestrator.run("go", options=options, event_manager=ear.manager)
        cut = await cancelled_after(turns, run)
        assert tool.running == 0
        calls = tool.calls
        tool.script = ["again"]
        try:
            result = await orchestrator.run("go", options=options)
        except UncertainOutcomeError:
            assert cut
            assert calls
            assert tool.calls == calls
            doubtful += 1
        else:
            assert result.content in ("done", "again")
            free += cut
    assert free
    assert doubtful


async def test_waiting_for_a_retry_leaves_the_key_free() -> None:
    """A 429 was not executed: cancelled while backing off, the key may be used again."""
    tool = Scripted("tool", unwell(429), "done")
    orchestrator = reliable(tool, manager=IdempotencyManager())
    options = OrchestrationConfig(idempotency_key="key")
    run = asyncio.create_task(orchestrator.run("go", options=options))
    await asyncio.sleep(0.5)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert tool.calls == 1
    assert (await orchestrator.run("go", options=options)).content == "done"


async def test_one_callers_cancellation_costs_the_others_nothing() -> None:
    """The run goes on for those who still wait."""
    tool = Scripted("tool", lasting(3.0))
    orchestrator = reliable(tool, manager=IdempotencyManager())
    options = OrchestrationConfig(idempotency_key="key")
    first, second = (asyncio.create_task(orchestrator.run("go", options=options)) for _ in "ab")
    await asyncio.sleep(1.0)
    first.cancel()
    assert (await second).content == "done"
    assert tool.calls == 1
    with pytest.raises(asyncio.CancelledError):
        await first
