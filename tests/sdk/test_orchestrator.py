"""One request in, one tool's result out."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from steer_llm_sdk.copies import copied
from steer_llm_sdk.current import CURRENT
from steer_llm_sdk.orchestration import (
    InvalidValue,
    OrchestrationConfig,
    OrchestrationOutput,
    Orchestrator,
    OrchestratorError,
    ReliableOrchestrator,
    ToolExecutionError,
    UnknownTool,
)
from tests.sdk.stubs import Ear, Scripted, always, lasting, registry_of, reliable, unwell


def base(*tools: Scripted) -> Orchestrator:
    return Orchestrator(registry=registry_of(*tools))


# --- The base


async def test_the_base_runs_a_tool_once() -> None:
    """No retry, no circuit; its error is the cause."""
    error = unwell()
    tool = Scripted("tool", error, {"x": 1})
    orchestrator = base(tool)
    with pytest.raises(ToolExecutionError) as caught:
        await orchestrator.run("go", "tool")
    assert (tool.calls, caught.value.__cause__) == (1, error)
    result = await orchestrator.run("go", "tool", {"k": 2})
    assert result.content == {"x": 1}
    assert tool.options[1]["k"] == 2
    assert result.metadata["fallback_used"] is False


async def test_the_base_does_not_plan_and_knows_no_keys() -> None:
    """It says so rather than doing something else."""
    orchestrator = base(Scripted("tool"))
    with pytest.raises(InvalidValue, match="tool_name"):
        await orchestrator.run("go")
    with pytest.raises(InvalidValue, match="idempotency_key"):
        await orchestrator.run("go", "tool", options=OrchestrationConfig(idempotency_key="key"))


# --- Arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"request": None}, "request"),
        ({"request": ["go"]}, "request"),
        ({"request": b"go"}, "request"),
        ({"request": "go", "tool_options": ["k"]}, "tool_options"),
        ({"request": "go", "options": {"streaming": True}}, "options"),
    ],
)
async def test_arguments_that_cannot_be_used(arguments: dict[str, Any], named: str) -> None:
    """They are refused by name, before anything runs."""
    tool = Scripted("tool")
    for orchestrator in (reliable(tool), base(tool)):
        with pytest.raises(InvalidValue, match=f"^{named}: "):
            await orchestrator.run(tool_name="tool", **arguments)
    assert tool.calls == 0


async def test_a_request_that_holds_itself() -> None:
    """It is refused, not followed for ever."""
    request: dict[str, Any] = {}
    request["self"] = request
    with pytest.raises(InvalidValue, match="holds itself"):
        await reliable(Scripted("tool")).run(request)


async def test_an_unknown_tool() -> None:
    """With a key as without; the key stays free."""
    tool = Scripted("tool")
    orchestrator = reliable(tool)
    for key in (None, "key"):
        with pytest.raises(UnknownTool, match="no tool 'toll' is registered, did you mean tool"):
            await orchestrator.run(
                "go", tool_name="toll", options=OrchestrationConfig(idempotency_key=key)
            )
    assert (
        await orchestrator.run("go", options=OrchestrationConfig(idempotency_key="key"))
    ).status == "succeeded"


# --- What comes out


async def test_an_output() -> None:
    """Everything a run tells of itself."""
    tool = Scripted("tool", unwell(), lasting(0.25, {"answer": 42}), provider="acme")
    result = await reliable(tool).run(
        "go", options=OrchestrationConfig(request_id="r", trace_id="t")
    )
    assert result.status == "succeeded"
    assert result.errors is None
    assert result.elapsed_ms == pytest.approx(1250.0)
    assert result.metadata == {
        "tool_name": "tool",
        "tool_version": "1.0.0",
        "request_id": "r",
        "trace_id": "t",
        "retry_attempts": 2,
        "fallback_used": False,
        "matched_rule": "always",
        "reasoning": "rule always matched",
        "confidence": 0.9,
    }
    assert result.per_agent == {
        "tool": {
            "status": "succeeded",
            "provider": "acme",
            "attempts": 2,
            "elapsed_ms": pytest.approx(250.0),
        }
    }


async def test_what_a_dictionary_says_of_itself() -> None:
    """usage, cost, confidence; what is not of their kind is content and no more."""
    said = {"usage": {"total_tokens": 3}, "cost_usd": 0.5, "confidence": 0.7, "status": "failed"}
    result = await reliable(Scripted("tool", said)).run("go")
    assert (result.content, result.usage, result.cost_usd) == (said, said["usage"], 0.5)
    assert (result.metadata["confidence"], result.status) == (0.7, "succeeded")
    odd = {"usage": 3, "cost_usd": "much", "confidence": 7, "provider": 5}
    result = await reliable(Scripted("tool", odd)).run("go")
    assert (result.usage, result.cost_usd, result.metadata["confidence"]) == ({}, None, 0.9)


async def test_a_tool_that_returns_an_output() -> None:
    """It reports status, errors, costs and agents of its own; the run fills in the rest."""
    own = OrchestrationOutput(
        ["a", "b"],
        usage={"input_tokens": 5, "output_tokens": 6},
        cost_usd=0.1,
        cost_breakdown={"a": 0.1},
        per_agent={"inner": {"status": "failed"}},
        status="partial",
        errors=["b was not found"],
        metadata={"confidence": 0.4, "provider": "bolt", "extra": 1},
    )
    orchestrator = reliable(Scripted("tool", own))
    result = await orchestrator.run("go")
    assert (result.content, result.status, result.errors) == (own.content, "partial", own.errors)
    assert (result.usage, result.cost_breakdown) == (own.usage, own.cost_breakdown)
    assert result.metadata["confidence"] == 0.4
    assert result.metadata["extra"] == 1
    assert set(result.per_agent) == {"inner", "tool"}
    assert own.metadata == {"confidence": 0.4, "provider": "bolt", "extra": 1}
    assert orchestrator.circuit_breaker_states() == {"bolt:tool": "closed"}


async def test_a_named_tool_has_no_plan() -> None:
    """No rule, no reasons, and no confidence but its own."""
    result = await reliable(Scripted("tool")).run("go", "tool")
    assert result.metadata["matched_rule"] is None
    assert "confidence" not in result.metadata
    assert "reasoning" not in result.metadata


# --- Ids and terms


@pytest.mark.parametrize(
    ("request_id", "trace_id"), [(None, None), ("r", None), (None, "t"), ("r", "t")]
)
async def test_ids(request_id: str | None, trace_id: str | None) -> None:
    """Made where there are none; the trace is the request's own; tools cannot be told others."""
    tool = Scripted("tool", defaults={"trace_id": "x"})
    options = OrchestrationConfig(request_id=request_id, trace_id=trace_id)
    result = await reliable(tool).run("go", tool_options={"request_id": "y"}, options=options)
    made = result.metadata["request_id"]
    assert made == (request_id or made)
    assert result.metadata["trace_id"] == (trace_id or made)
    assert {key: tool.options[0][key] for key in ("request_id", "trace_id")} == {
        "request_id": made,
        "trace_id": result.metadata["trace_id"],
    }


async def test_errors_know_their_run() -> None:
    """By its ids."""
    with pytest.raises(OrchestratorError) as caught:
        await reliable(Scripted("tool", unwell(400))).run(
            "go", options=OrchestrationConfig(request_id="r", trace_id="t")
        )
    assert (caught.value.request_id, caught.value.trace_id) == ("r", "t")


async def test_the_terms_a_tool_may_hand_on() -> None:
    """Key, budget, demands and deadline are the current run's; its options stay clean."""
    seen: list[Any] = []

    async def look(_: Any, options: Any, __: Any) -> Any:
        seen.append((CURRENT.get(), sorted(options)))
        return "done"

    now = asyncio.get_running_loop().time()
    options = OrchestrationConfig(
        idempotency_key="key",
        budget={"tokens": 9},
        quality_requirements={"min_confidence": 0.1},
        timeout_ms=9_000,
        per_agent_timeout_ms=4_000,
    )
    await reliable(Scripted("tool", look)).run("go", options=options)
    terms, names = seen[0]
    assert names == ["request_id", "trace_id"]
    assert (terms.idempotency_key, terms.budget) == ("key", {"tokens": 9})
    assert terms.quality_requirements == {"min_confidence": 0.1}
    assert terms.deadline == pytest.approx(now + 4.0)
    assert CURRENT.get() is None


@pytest.mark.parametrize("streaming", [True, False])
async def test_streaming_hands_the_manager_to_the_tool(streaming: bool) -> None:
    """Bound to the run's ids; without the flag it gets none."""
    tool, ear = Scripted("tool"), Ear()
    options = OrchestrationConfig(streaming=streaming, request_id="r")
    await reliable(tool).run("go", options=options, event_manager=ear.manager)
    given = tool.managers[0]
    assert (given is not None) == streaming
    if given is not None:
        await given.delta({"event_type": "late"})
        assert ear.events[-1].request_id == "r"


async def test_orchestrators_outlive_event_loops() -> None:
    """One made where no loop runs, used in one loop after the other."""
    tool = Scripted("tool")

    def elsewhere() -> tuple[OrchestrationOutput, dict[str, str]]:
        orchestrator = ReliableOrchestrator(always("tool"), registry=registry_of(tool))
        options = OrchestrationConfig(idempotency_key="key")
        asyncio.run(orchestrator.run("go", options=options))
        result = asyncio.run(orchestrator.run("go", options=options))
        return result, orchestrator.circuit_breaker_states()

    result, states = await asyncio.to_thread(elsewhere)
    assert (result.status, states, tool.calls) == ("succeeded", {"default:tool": "closed"}, 1)


async def test_logs_tell_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """Neither requests nor messages of errors; what watching functions raise is redacted."""
    caplog.set_level(logging.DEBUG, "steer")

    async def burst(_: Any) -> None:
        raise RuntimeError("the word is swordfish")

    ear = Ear()
    ear.manager._callbacks["complete"] = burst  # type: ignore[index]
    tool = Scripted("tool", RuntimeError("swordfish"), "swordfish")
    options = OrchestrationConfig(
        redactor_cb=lambda text: text.replace("swordfish", "***"), request_id="r-9"
    )
    await reliable(tool).run({"password": "swordfish"}, options=options, event_manager=ear.manager)
    told = [record.getMessage() for record in caplog.records]
    assert any("attempt 1 at tool failed for request r-9" in line for line in told)
    assert any("the word is ***" in line for line in told)
    assert not any("swordfish" in line for line in told)


def test_a_copy() -> None:
    """Dictionaries, lists and tuples are made anew; anything else is shared."""
    leaf = object()
    value = {"a": [1, (leaf, {"b": None})], "c": True}
    copy = copied(value)
    assert copy == value
    assert copy is not value
    assert copy["a"] is not value["a"]
    assert copy["a"][1][0] is leaf
    with pytest.raises(RecursionError):
        copied([[[]]], depth=2)
