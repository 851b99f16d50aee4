"""Budgets and limits of time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    OrchestrationConfig,
    OrchestrationOutput,
    Orchestrator,
    RunTimeout,
    ToolExecutionError,
)
from steer_llm_sdk.orchestration.budget import tokens_of
from tests.sdk.stubs import Scripted, lasting, registry_of, reliable


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, None),
        ({"total_tokens": 5, "prompt_tokens": 99}, 5.0),
        ({"tokens": 4}, 4.0),
        ({"prompt_tokens": 2, "completion_tokens": 3}, 5.0),
        ({"input_tokens": 2, "output_tokens": 4}, 6.0),
        ({"output_tokens": 4}, 4.0),
        ({"total_tokens": "5"}, None),
        ({"total_tokens": True}, None),
        ({"total_tokens": -1}, None),
    ],
)
def test_tokens(usage: dict[str, Any], tokens: float | None) -> None:
    """A total, or the sum of what there is; what is no number says nothing."""
    assert tokens_of(usage) == tokens


@pytest.mark.parametrize(
    ("budget", "needs", "said", "kind"),
    [
        ({"tokens": 10}, {"tokens": 11}, {}, "tokens"),
        ({"ms": 10}, {"ms": 11}, {}, "ms"),
        ({"cost_usd": 0.1}, {}, {"cost_usd": 0.11}, "cost_usd"),
        ({"tokens": 10}, {"tokens": 10}, {"usage": {"total_tokens": 11}}, "tokens"),
        ({"tokens": 10}, {"tokens": 10}, {"usage": {"total_tokens": 10}}, None),
        ({"cost_usd": 0.1, "tokens": 5}, {}, {}, None),
    ],
)
async def test_before_and_after(
    budget: dict[str, float], needs: dict[str, float], said: dict[str, Any], kind: str | None
) -> None:
    """Exactly at the limit is within; what nobody tells exceeds nothing."""
    tool = Scripted("tool", said, needs=needs)
    run = reliable(tool).run("go", options=OrchestrationConfig(budget=budget))
    if kind is None:
        await run
        return
    with pytest.raises(BudgetExceeded, match=f"^budget.{kind}: ") as caught:
        await run
    assert caught.value.budget_type == kind
    assert caught.value.limit == budget[kind]
    assert (caught.value.output is None) == (tool.calls == 0)


async def test_a_result_beyond_its_budget_is_kept_for_its_key() -> None:
    """It was paid for: its duplicate is told the same, and nothing is run again."""
    tool = Scripted("tool", {"cost_usd": 2.0})
    orchestrator = reliable(tool)
    for _ in range(2):
        with pytest.raises(BudgetExceeded) as caught:
            await orchestrator.run(
                "go", options=OrchestrationConfig(budget={"cost_usd": 1.0}, idempotency_key="k")
            )
        assert isinstance(caught.value.output, OrchestrationOutput)
    assert (
        await orchestrator.run("go", options=OrchestrationConfig(idempotency_key="k"))
    ).cost_usd == 2.0
    assert tool.calls == 1


async def test_a_replay_takes_no_time() -> None:
    """How long the first run took is not held against it."""
    tool = Scripted("tool", lasting(5.0))
    orchestrator = reliable(tool)
    await orchestrator.run("go", options=OrchestrationConfig(idempotency_key="k"))
    options = OrchestrationConfig(idempotency_key="k", budget={"ms": 100})
    assert (await orchestrator.run("go", options=options)).content == "done"


@pytest.mark.parametrize(
    ("options", "error", "after"),
    [
        ({"timeout_ms": 500}, RunTimeout, 0.5),
        ({"budget": {"ms": 500}}, BudgetExceeded, 0.5),
        ({"timeout_ms": 700, "budget": {"ms": 500}}, BudgetExceeded, 0.5),
        ({"timeout_ms": 300, "budget": {"ms": 500}}, RunTimeout, 0.3),
        ({"timeout_ms": 300, "idempotency_key": "k"}, RunTimeout, 0.3),
        ({"timeout_ms": 5_000, "per_agent_timeout_ms": 100}, ToolExecutionError, None),
    ],
)
async def test_limits_of_time(options: dict[str, Any], error: Any, after: float | None) -> None:
    """The earliest ends the run, by its own name; an attempt's is the tool's failure."""
    tool = Scripted("tool", lasting(60.0))
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(error) as caught:
        await reliable(tool).run("go", options=OrchestrationConfig(**options))
    if after is not None:
        assert loop.time() - began == pytest.approx(after, abs=0.01)
        assert isinstance(caught.value, TimeoutError) == (error is RunTimeout)
    else:
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert tool.calls == 3
    assert tool.running == 0


async def test_a_limit_covers_planning_and_waiting() -> None:
    """And a duplicate's waiting, though the first goes on."""
    tool = Scripted("tool", lasting(3.0))
    orchestrator = reliable(tool)
    first = asyncio.create_task(
        orchestrator.run("go", options=OrchestrationConfig(idempotency_key="k"))
    )
    await asyncio.sleep(0.1)
    with pytest.raises(RunTimeout):
        await orchestrator.run(
            "go", options=OrchestrationConfig(idempotency_key="k", timeout_ms=200)
        )
    assert (await first).content == "done"
    assert tool.calls == 1


async def test_the_callers_own_limit_stays_its_own() -> None:
    """A time-out around a run is not taken for the run's."""
    tool = Scripted("tool", lasting(60.0))
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(1.0):
            await reliable(tool).run("go", options=OrchestrationConfig(timeout_ms=9_000))
    assert not isinstance(caught.value, RunTimeout)


async def test_the_base_keeps_budgets_too() -> None:
    """Before, during, after."""
    tool = Scripted("tool", lasting(60.0), needs={"tokens": 5})
    orchestrator = Orchestrator(registry=registry_of(tool))
    with pytest.raises(BudgetExceeded):
        await orchestrator.run("go", "tool", options=OrchestrationConfig(budget={"tokens": 4}))
    with pytest.raises(RunTimeout):
        await orchestrator.run("go", "tool", options=OrchestrationConfig(timeout_ms=100))
