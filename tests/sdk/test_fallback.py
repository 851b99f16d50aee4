"""Fallback tools, one after the other, and tools at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steer_llm_sdk.orchestration import CircuitOpen, OrchestrationConfig, ToolExecutionError
from steer_llm_sdk.orchestration.planning import ExecutionStrategy
from steer_llm_sdk.reliability import CircuitBreakerConfig
from tests.sdk.stubs import Ear, Scripted, always, lasting, reliable, unwell

ONCE = {"max_attempts": 1}


async def test_at_most_so_many() -> None:
    """Fallbacks that were tried count; those behind an open circuit do not."""
    tools = [Scripted(name, unwell()) for name in ("a", "b", "c", "d")]
    with pytest.raises(ToolExecutionError):
        await reliable(*tools, retry=ONCE).run("go")
    assert [tool.calls for tool in tools] == [1, 1, 1, 0]
    tools = [Scripted(name, unwell()) for name in ("a", "b")]
    with pytest.raises(ToolExecutionError):
        await reliable(*tools, retry=ONCE, max_fallback_attempts=0).run("go")
    assert [tool.calls for tool in tools] == [1, 0]


async def test_a_named_tool_has_no_fallback() -> None:
    """What the caller chose is what runs."""
    tools = [Scripted("a", unwell()), Scripted("b")]
    with pytest.raises(ToolExecutionError) as caught:
        await reliable(*tools, retry=ONCE).run("go", tool_name="a")
    assert tools[1].calls == 0
    error = caught.value
    assert (error.tool_name, error.attempts, error.maybe_executed) == ("a", 1, False)
    assert isinstance(error.__cause__, type(tools[0].script[0]))
    assert error.details == (
        {
            "tool": "a",
            "provider": "default",
            "attempt": 1,
            "outcome": "upstream_5xx",
            "failure": "overloaded",
        },
    )


async def test_a_tool_that_refuses_a_request() -> None:
    """By returning False, or raising, at once or not: it is not executed, the next is asked."""

    async def later(_: Any) -> bool:
        return False

    def raises(_: Any) -> bool:
        raise ValueError("too long")

    for valid in (lambda _: False, later, raises):
        tool, spare = Scripted("tool", valid=valid), Scripted("spare")
        result = await reliable(tool, spare).run("go")
        assert (tool.calls, result.metadata["tool_name"]) == (0, "spare")
        with pytest.raises(ToolExecutionError, match="tool: refuses the request") as caught:
            await reliable(tool).run("go", tool_name="tool")
        assert (caught.value.attempts, caught.value.maybe_executed) == (0, False)


async def test_every_circuit_open() -> None:
    """Nothing is tried, and the wait until the first probe is told."""
    config = {"default": CircuitBreakerConfig(failure_threshold=1, timeout=50.0)}
    tools = [Scripted("a", unwell()), Scripted("b", unwell())]
    orchestrator = reliable(*tools, retry=ONCE, circuit_breaker_configs=config)
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go")
    await asyncio.sleep(20.0)
    with pytest.raises(CircuitOpen) as caught:
        await orchestrator.run("go")
    assert caught.value.retry_after == pytest.approx(30.0)
    assert [tool.calls for tool in tools] == [1, 1]


def at_once(*tools: Scripted, **config: Any) -> Any:
    planner = always(
        tools[0].name,
        *(tool.name for tool in tools[1:]),
        execution_strategy=ExecutionStrategy.PARALLEL,
    )
    return reliable(*tools, planner=planner, retry=ONCE, **config)


async def test_the_first_result_of_several_tools_counts() -> None:
    """The others are cancelled; who answered is named."""
    slow, quick = Scripted("slow", lasting(9.0)), Scripted("quick", lasting(1.0, "soon"))
    failing = Scripted("failing", unwell())
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await at_once(slow, failing, quick).run("go")
    assert result.content == "soon"
    assert loop.time() - began == pytest.approx(1.0)
    assert result.metadata["tool_name"] == "quick"
    assert result.metadata["fallback_used"] is True
    assert result.metadata["retry_attempts"] == 3
    assert {name: each["status"] for name, each in result.per_agent.items()} == {
        "slow": "cancelled",
        "failing": "failed",
        "quick": "succeeded",
    }
    assert slow.running == 0


async def test_at_most_so_many_at_once() -> None:
    """`max_parallel`; with one, they run one after the other."""
    running = most = 0

    async def step(*_: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1.0)
        running -= 1
        return unwell()

    for width in (1, 2):
        most = 0
        tools = [Scripted(name, step) for name in ("a", "b", "c")]
        with pytest.raises(ToolExecutionError) as caught:
            await at_once(*tools).run("go", options=OrchestrationConfig(max_parallel=width))
        assert most == width
        assert caught.value.attempts == 3
        assert [each["tool"] for each in caught.value.details] == ["a", "b", "c"]


async def test_switches_of_parallel_tools() -> None:
    """Without fallbacks there is one tool; more than may be tried are not."""
    tools = [Scripted(name, unwell()) for name in ("a", "b", "c", "d")]
    with pytest.raises(ToolExecutionError):
        await at_once(*tools).run("go")
    assert [tool.calls for tool in tools] == [1, 1, 1, 0]
    tools = [Scripted(name, unwell()) for name in ("a", "b")]
    with pytest.raises(ToolExecutionError):
        await at_once(*tools).run("go", options=OrchestrationConfig(enable_fallback=False))
    assert [tool.calls for tool in tools] == [1, 0]


async def test_fallbacks_are_told() -> None:
    """From which tool to which, and why."""
    ear = Ear()
    tools = [Scripted("a", unwell()), Scripted("b", unwell(401)), Scripted("c")]
    await reliable(*tools, retry=ONCE).run("go", event_manager=ear.manager)
    told = [(each["from_tool"], each["to_tool"], each["reason"]) for each in ear.of("fallback")]
    assert told == [("a", "b", "overloaded"), ("b", "c", "credential")]
