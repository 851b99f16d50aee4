"""Circuits of tools: per provider, as configured, and told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steer_llm_sdk.orchestration import ReliableOrchestrator, ToolExecutionError
from steer_llm_sdk.reliability import CircuitBreakerConfig, CircuitState
from steer_llm_sdk.reliability.breakers import Breakers
from steer_policies.breaker import PermitPair
from steer_policies.outcome import SUCCESS, Failure, failed
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.registry import MAX_REMEMBERED
from tests.sdk.stubs import Ear, Scripted, lasting, reliable, unwell

ONCE = {"max_attempts": 1}


def config(**other: Any) -> dict[str, CircuitBreakerConfig]:
    terms = {"failure_threshold": 2, "success_threshold": 1, "timeout": 30.0, **other}
    return {"default": CircuitBreakerConfig(**terms)}


async def fail(orchestrator: ReliableOrchestrator, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ToolExecutionError):
            await orchestrator.run("go")


async def test_failures_within_the_window_count() -> None:
    """Though others succeeded between them; older ones do not."""
    tool = Scripted("tool", unwell(), "well", unwell())
    orchestrator = reliable(
        tool, retry=ONCE, circuit_breaker_configs=config(failure_threshold=3, window_size=100.0)
    )
    await fail(orchestrator)
    await orchestrator.run("go")
    await fail(orchestrator)
    assert set(orchestrator.circuit_breaker_states().values()) == {"closed"}
    await fail(orchestrator)
    assert set(orchestrator.circuit_breaker_states().values()) == {"open"}
    slow = Scripted("tool", unwell())
    orchestrator = reliable(
        slow, retry=ONCE, circuit_breaker_configs=config(failure_threshold=3, window_size=100.0)
    )
    for _ in range(10):
        await fail(orchestrator)
        await asyncio.sleep(60.0)
    assert slow.calls == 10


async def test_it_stays_open_for_exactly_as_long() -> None:
    """The second time, too; then it is half-open."""
    tool = Scripted("tool", unwell())
    orchestrator = reliable(tool, retry=ONCE, circuit_breaker_configs=config())
    await fail(orchestrator, 2)
    for _ in range(2):
        await asyncio.sleep(29.9)
        assert set(orchestrator.circuit_breaker_states().values()) == {"open"}
        await asyncio.sleep(0.2)
        assert set(orchestrator.circuit_breaker_states().values()) == {"half_open"}
        calls = tool.calls
        await fail(orchestrator)
        assert tool.calls == calls + 1
        await fail(orchestrator)
        assert tool.calls == calls + 1


async def test_probes() -> None:
    """So many at a time; so many successes close it."""
    tool = Scripted("tool", unwell(), unwell(), lasting(5.0))
    orchestrator = reliable(
        tool,
        retry=ONCE,
        circuit_breaker_configs=config(half_open_requests=2, success_threshold=3),
    )
    await fail(orchestrator, 2)
    await asyncio.sleep(31.0)
    runs = [asyncio.create_task(orchestrator.run("go")) for _ in range(4)]
    done = await asyncio.gather(*runs, return_exceptions=True)
    assert [isinstance(each, ToolExecutionError) for each in done] == [False, False, True, True]
    assert set(orchestrator.circuit_breaker_states().values()) == {"half_open"}
    await orchestrator.run("go")
    assert set(orchestrator.circuit_breaker_states().values()) == {"closed"}


async def test_only_connecting_is_the_whole_providers_affair() -> None:
    """Two tools of one provider: a refused connection opens both, another failure one."""
    for error, other in ((ConnectionRefusedError(), "open"), (unwell(), "closed")):
        one, two = Scripted("one", error, provider="acme"), Scripted("two", provider="acme")
        orchestrator = reliable(one, two, retry=ONCE, circuit_breaker_configs=config())
        for _ in range(2):
            with pytest.raises(ToolExecutionError):
                await orchestrator.run("go", tool_name="one")
        assert orchestrator.circuit_breaker_states() == {"acme:one": "open", "acme:two": other}


async def test_tools_without_a_provider_share_nothing() -> None:
    """What one cannot connect to is not the other's."""
    one, two = Scripted("one", ConnectionRefusedError()), Scripted("two")
    orchestrator = reliable(one, two, retry=ONCE, circuit_breaker_configs=config())
    for _ in range(2):
        with pytest.raises(ToolExecutionError):
            await orchestrator.run("go", tool_name="one")
    states = {"default:one": "open", "default:two": "closed"}
    assert orchestrator.circuit_breaker_states() == states
    assert orchestrator._get_circuit_breaker_states() == states


async def test_a_result_names_its_provider() -> None:
    """From then on the tool stands under that one's circuit; so does the result itself."""
    tool = Scripted("tool", {"provider": "bolt"}, unwell(), provider="acme")
    orchestrator = reliable(
        tool,
        retry=ONCE,
        circuit_breaker_configs={"bolt": CircuitBreakerConfig(failure_threshold=1)},
    )
    result = await orchestrator.run("go")
    assert result.per_agent["tool"]["provider"] == "bolt"
    assert orchestrator.circuit_breaker_states() == {"bolt:tool": "closed"}
    await fail(orchestrator)
    assert orchestrator.circuit_breaker_states() == {"bolt:tool": "open"}
    # A successor of the same name begins anew.
    orchestrator.registry.register_tool(Scripted("tool", provider="acme"))
    assert orchestrator.circuit_breaker_states()["acme:tool"] == "closed"
    assert (await orchestrator.run("go")).status == "succeeded"


async def test_an_error_names_its_provider() -> None:
    """Where the tool declares none; every failure counts, the first one too."""
    tool = Scripted("tool", unwell(provider="bolt"))
    orchestrator = reliable(tool, retry=ONCE, circuit_breaker_configs=config())
    await fail(orchestrator, 2)
    assert orchestrator.circuit_breaker_states() == {"bolt:tool": "open"}
    declared = Scripted("tool", unwell(provider="bolt"), provider="acme")
    orchestrator = reliable(declared, retry=ONCE, circuit_breaker_configs=config())
    await fail(orchestrator, 2)
    assert orchestrator.circuit_breaker_states() == {"acme:tool": "open"}


async def test_changes_are_told() -> None:
    """By events, and by the configuration's own functions, whatever they take or raise."""
    called: list[Any] = []

    async def later(name: str) -> None:
        called.append(("half", name))

    def burst() -> None:
        called.append("closed")
        raise RuntimeError("who watches fails")

    ear = Ear()
    tool = Scripted("tool", unwell(), unwell(), "well", provider="acme")
    orchestrator = reliable(
        tool,
        retry=ONCE,
        circuit_breaker_configs=config(
            on_open=lambda name: called.append(("open", name)), on_half_open=later, on_close=burst
        ),
    )
    for _ in range(2):
        with pytest.raises(ToolExecutionError):
            await orchestrator.run("go", event_manager=ear.manager)
    await asyncio.sleep(31.0)
    assert (await orchestrator.run("go", event_manager=ear.manager)).content == "well"
    told = [
        (each["circuit"], each["before"], each["state"]) for each in ear.of("circuit_breaker_state")
    ]
    assert told == [
        ("acme:tool", "closed", "open"),
        ("acme:tool", "open", "half_open"),
        ("acme:tool", "half_open", "closed"),
    ]
    assert called == [("open", "acme:tool"), ("half", "acme:tool"), "closed"]


def test_configurations_of_those_who_have_none() -> None:
    """Their own, else the given default, else ours."""
    clock = Clock(now=lambda: 0.0, jitter=lambda: 0.5)

    def threshold(configs: dict[str, CircuitBreakerConfig], provider: str) -> int:
        return Breakers(configs, clock)._config(provider).failure_threshold

    given = {"openai": CircuitBreakerConfig(7), "default": CircuitBreakerConfig(9)}
    assert [threshold(given, each) for each in ("openai", "anthropic", "acme")] == [7, 9, 9]
    del given["default"]
    assert [threshold(given, each) for each in ("openai", "anthropic", "acme")] == [7, 3, 5]
    assert CircuitState("half_open") is CircuitState.HALF_OPEN


def test_circuits_are_bounded() -> None:
    """Closed ones make room first; what is open stays known."""
    breakers = Breakers(config(failure_threshold=1), Clock(now=lambda: 0.0, jitter=lambda: 0.5))
    broken = failed(Failure.SERVER_ERROR)
    breakers.credit("acme", "broken", broken)
    assert not breakers.calm
    for number in range(2 * MAX_REMEMBERED):
        permit = breakers.acquire(f"provider-{number}", "tool")
        assert isinstance(permit, PermitPair)
        breakers.settle(f"provider-{number}", "tool", permit, SUCCESS)
    assert len(breakers.states(())) <= MAX_REMEMBERED
    assert breakers.state("acme", "broken") == "open"
    for number in range(MAX_REMEMBERED + 1):
        breakers.credit("acme", f"broken-{number}", broken)
    assert len(breakers.states(())) <= MAX_REMEMBERED
