"""What a tool's failure means, and when it is tried again."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import urllib.error
from typing import Any

import aiohttp
import anthropic
import httpx2
import openai
import pytest

from steer_llm_sdk.orchestration import (
    CircuitOpen,
    ConflictError,
    OrchestrationConfig,
    ToolExecutionError,
)
from steer_llm_sdk.orchestration.failures import verdict_on
from steer_llm_sdk.orchestration.retrying import Count
from steer_llm_sdk.orchestration.run import loop_clock
from steer_llm_sdk.reliability import ProviderError
from steer_llm_sdk.reliability.breakers import Breakers
from steer_policies.outcome import Executed, Failure
from steer_proxy.engine.registry import MAX_REMEMBERED
from tests.sdk.stubs import Ear, Scripted, lasting, reliable, unwell
from tests.sdk.test_cancellation import CutAt

WALL = 1_800_000_000.0
REQUEST = httpx2.Request("POST", "http://api.test/v1")


def status_error(kind: Any, status: int, **headers: str) -> Exception:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx2.Response(status, headers=fields, request=REQUEST)
    error: Exception = kind("said so", response=response, body=None)
    return error


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "failure", "executed"),
    [
        (ValueError("503"), Failure.REJECTED, Executed.NO),
        (UnicodeEncodeError("ascii", "ü", 0, 1, "x"), Failure.REJECTED, Executed.NO),
        # The answer may have been what was not as expected.
        (TypeError("timeout"), Failure.REJECTED, Executed.MAYBE),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), Failure.REJECTED, Executed.MAYBE),
        (json.JSONDecodeError("x", "", 0), Failure.REJECTED, Executed.MAYBE),
        (caused(ValueError("x"), TimeoutError()), Failure.REJECTED, Executed.NO),
        (TimeoutError(), Failure.FIRST_BYTE_TIMEOUT, Executed.MAYBE),
        (ConnectionRefusedError(), Failure.CONNECT, Executed.NO),
        (socket.gaierror(-2, "Name or service not known"), Failure.CONNECT, Executed.NO),
        (ssl.SSLCertVerificationError(), Failure.CONNECT, Executed.NO),
        (OSError(113, "No route to host"), Failure.CONNECT, Executed.NO),
        (ConnectionError(), Failure.RESET, Executed.MAYBE),
        (BrokenPipeError(), Failure.RESET, Executed.MAYBE),
        (OSError(107, "not connected"), Failure.RESET, Executed.MAYBE),
        (ssl.SSLError(), Failure.RESET, Executed.MAYBE),
        (FileNotFoundError(2, "no file"), Failure.FAULT, Executed.MAYBE),
        (PermissionError(13, "no"), Failure.FAULT, Executed.MAYBE),
        (OSError("a library's own"), Failure.SERVER_ERROR, Executed.MAYBE),
        (KeyError("choices"), Failure.FAULT, Executed.MAYBE),
        (AttributeError("x"), Failure.FAULT, Executed.MAYBE),
        (ZeroDivisionError(), Failure.FAULT, Executed.MAYBE),
        (NotImplementedError(), Failure.FAULT, Executed.MAYBE),
        (caused(KeyError("x"), unwell(503)), Failure.OVERLOADED, Executed.NO),
        (ConflictError("x"), Failure.FAULT, Executed.MAYBE),
        (caused(ToolExecutionError("x"), unwell(503)), Failure.OVERLOADED, Executed.NO),
        (ToolExecutionError("x"), Failure.SERVER_ERROR, Executed.MAYBE),
        (asyncio.IncompleteReadError(b"", 1), Failure.TRUNCATED, Executed.MAYBE),
        (urllib.error.URLError("x"), Failure.RESET, Executed.MAYBE),
        (RuntimeError("what"), Failure.SERVER_ERROR, Executed.MAYBE),
        (caused(RuntimeError("x"), ConnectionRefusedError()), Failure.CONNECT, Executed.NO),
        (unwell(None), Failure.SERVER_ERROR, Executed.MAYBE),
        (unwell(200), Failure.SERVER_ERROR, Executed.MAYBE),
        (unwell(400), Failure.REJECTED, Executed.NO),
        (unwell(401), Failure.CREDENTIAL, Executed.NO),
        (unwell(402), Failure.QUOTA, Executed.NO),
        (unwell(408), Failure.BUSY, Executed.MAYBE),
        (unwell(429), Failure.THROTTLED, Executed.NO),
        (unwell(500), Failure.SERVER_ERROR, Executed.NO),
        (unwell(503), Failure.OVERLOADED, Executed.NO),
        (unwell(504), Failure.SERVER_ERROR, Executed.MAYBE),
        (unwell(521), Failure.SERVER_ERROR, Executed.NO),
        (unwell(522), Failure.SERVER_ERROR, Executed.MAYBE),
        (unwell(529), Failure.OVERLOADED, Executed.NO),
        (status_error(openai.RateLimitError, 429), Failure.THROTTLED, Executed.NO),
        (status_error(openai.BadRequestError, 400), Failure.REJECTED, Executed.NO),
        (status_error(anthropic.InternalServerError, 500), Failure.SERVER_ERROR, Executed.NO),
        (
            caused(openai.APITimeoutError(request=REQUEST), httpx2.ReadTimeout("x")),
            Failure.FIRST_BYTE_TIMEOUT,
            Executed.MAYBE,
        ),
        (
            caused(openai.APIConnectionError(request=REQUEST), httpx2.ConnectError("x")),
            Failure.CONNECT,
            Executed.NO,
        ),
        (httpx2.ConnectTimeout("x"), Failure.CONNECT, Executed.NO),
        (httpx2.ReadError("x"), Failure.RESET, Executed.MAYBE),
        (aiohttp.ServerDisconnectedError(), Failure.RESET, Executed.MAYBE),
        (aiohttp.ClientPayloadError(), Failure.TRUNCATED, Executed.MAYBE),
        (aiohttp.ServerTimeoutError(), Failure.FIRST_BYTE_TIMEOUT, Executed.MAYBE),
    ],
    ids=repr,
)
def test_what_an_error_means(error: Exception, failure: Failure, executed: Executed) -> None:
    """By its class, its status, or what it was raised from; never by its message."""
    verdict = verdict_on(error, WALL)
    assert (verdict.failure, verdict.executed) == (failure, executed)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (unwell(429, retry_after=7.0), 7.0),
        (unwell(None, retry_after=2.5), 2.5),
        (unwell(429, retry_after=-1.0), None),
        (unwell(429, retry_after=float("nan")), None),
        (status_error(openai.RateLimitError, 429, retry_after="12"), 12.0),
        (status_error(openai.RateLimitError, 429, retry_after_ms="250"), 0.25),
        (status_error(openai.RateLimitError, 429), None),
    ],
)
def test_the_delay_an_error_asks_for(error: Exception, seconds: float | None) -> None:
    """Its own attribute, or the answer's header fields."""
    hint = verdict_on(error, WALL).hint
    assert (None if hint is None else hint.seconds) == seconds


async def test_a_provider_that_says_not_to_retry() -> None:
    """`x-should-retry: false` is obeyed, as the provider's own SDK obeys it."""
    tool = Scripted("tool", status_error(openai.RateLimitError, 429, x_should_retry="false"))
    with pytest.raises(ToolExecutionError):
        await reliable(tool).run("go")
    assert tool.calls == 1


async def test_causes_are_followed_only_so_far() -> None:
    """A chain that bites its own tail ends."""
    error = RuntimeError("x")
    error.__cause__ = error
    assert verdict_on(error, WALL).failure is Failure.SERVER_ERROR


async def test_delays_grow() -> None:
    """By the factor, up to the most; spread by the jitter, which determinism leaves out."""
    policy = {"max_attempts": 6, "initial_delay": 1.0, "max_delay": 5.0, "backoff_factor": 2.0}
    tool = Scripted("tool", *[unwell()] * 4, "done")
    await reliable(tool, retry=policy).run("go")
    assert tool.waits == [1.0, 2.0, 4.0, 5.0]
    spread = Scripted("tool", *[unwell()] * 2, "done")
    await reliable(spread, retry={**policy, "jitter_factor": 0.5}).run("go")
    assert all(
        low <= wait <= high
        for wait, (low, high) in zip(spread.waits, [(0.5, 1.5), (1.0, 3.0)], strict=True)
    )
    assert spread.waits != [1.0, 2.0]


@pytest.mark.parametrize(
    ("switch", "error"),
    [
        ("retry_on_timeout", TimeoutError()),
        ("retry_on_rate_limit", unwell(429)),
        ("retry_on_rate_limit", unwell(429, retry_after=60.0)),
        ("retry_on_server_error", unwell(503)),
        ("retry_on_server_error", RuntimeError("x")),
        ("retry_on_network_error", ConnectionResetError()),
    ],
)
async def test_kinds_that_are_switched_off(switch: str, error: Exception) -> None:
    """They are not tried again, and a fallback is asked at once."""
    tool, spare = Scripted("tool", error), Scripted("spare")
    await reliable(tool, spare, retry={switch: False}).run("go")
    assert (tool.calls, spare.calls) == (1, 1)
    assert spare.moments == tool.moments
    other = Scripted("tool", error, "done")
    await reliable(other).run("go")
    assert other.calls == 2


async def test_a_retry_after_that_is_not_respected() -> None:
    """Our own pace is kept."""
    tool = Scripted("tool", unwell(429, retry_after=40.0), "done")
    await reliable(tool, retry={"respect_retry_after": False}).run("go")
    assert tool.waits == [1.0]


async def test_a_retry_after_never_comes_early() -> None:
    """Nor much later: a share of it, a second at the most; determinism adds nothing."""
    for asked in (0.2, 3.0, 250.0):
        tool = Scripted("tool", unwell(429, retry_after=asked), "done")
        await reliable(tool).run("go")
        assert asked <= tool.waits[0] <= asked + min(0.1 * asked, 1.0)
        tool = Scripted("tool", unwell(429, retry_after=asked), "done")
        await reliable(tool).run("go", options=OrchestrationConfig(deterministic=True))
        assert tool.waits == [asked]


async def test_a_long_retry_after_with_a_fallback() -> None:
    """It is asked at once; should it fail too, the first is asked again when it said."""
    tool = Scripted("tool", unwell(429, retry_after=60.0), "late")
    spare = Scripted("spare", "soon")
    assert (await reliable(tool, spare).run("go")).content == "soon"
    assert tool.moments == spare.moments
    tool.script, tool.moments = [unwell(429, retry_after=60.0), "late"], []
    spare.script = [unwell(401)]
    result = await reliable(tool, spare).run("go")
    assert (result.content, tool.waits) == ("late", [60.0])
    assert result.metadata["fallback_used"] is False
    assert result.metadata["retry_attempts"] == 3


async def test_bounds_of_a_whole_run() -> None:
    """Attempts in all, delays in all, and time since the first."""
    tools = [Scripted(name, unwell()) for name in ("a", "b", "c")]
    with pytest.raises(ToolExecutionError) as caught:
        await reliable(*tools, max_total_attempts=5).run("go")
    assert [tool.calls for tool in tools] == [3, 2, 0]
    assert caught.value.attempts == 5
    tool = Scripted("tool", unwell())
    with pytest.raises(ToolExecutionError):
        await reliable(tool, retry={"max_attempts": 9, "max_total_delay": 4.0}).run("go")
    assert tool.waits == [1.0, 2.0]
    tool = Scripted("tool", unwell())
    with pytest.raises(ToolExecutionError):
        await reliable(tool, retry={"max_attempts": 9}, max_total_retry_time=10.0).run("go")
    assert tool.waits == [1.0, 2.0, 4.0]


async def test_no_retry_begins_that_cannot_end() -> None:
    """A backoff that does not fit the time left is not begun."""
    tool = Scripted("tool", unwell())
    began = asyncio.get_running_loop().time()
    with pytest.raises(ToolExecutionError):
        await reliable(tool).run("go", options=OrchestrationConfig(timeout_ms=900))
    assert (tool.calls, asyncio.get_running_loop().time()) == (1, began)


async def test_metrics() -> None:
    """Retries, and those that brought the result; a share of none is none."""
    tool = Scripted("tool", unwell(), unwell(), "done", unwell(400))
    orchestrator = reliable(tool)
    metrics = orchestrator.reliable_executor.retry_manager.metrics
    assert metrics.retry_successes / metrics.retry_attempts == 0.0
    await orchestrator.run("go")
    assert (metrics.retry_attempts, metrics.retry_successes) == (2, 1)
    assert metrics.retry_successes / metrics.retry_attempts == 0.5
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go")
    assert metrics.retry_attempts == 2
    assert Count(3) / 2.0 == 1.5


def test_a_providers_error() -> None:
    """It keeps what it was made with."""
    error = ProviderError("no", "acme", 429, 3.0)
    assert (str(error), error.provider, error.status_code, error.retry_after) == (
        "no",
        "acme",
        429,
        3.0,
    )
    assert ProviderError("no", "acme").status_code is None


# --- The provider's wish holds for all runs -------------------------------------------------------


async def test_other_runs_keep_to_a_retry_after() -> None:
    """Whoever comes while a provider wants to be left alone waits until then, and says so."""
    tool = Scripted("tool", unwell(429, retry_after=30.0), "done")
    orchestrator, ear = reliable(tool), Ear()
    first = asyncio.create_task(orchestrator.run("go"))
    await asyncio.sleep(10.0)
    others = [
        asyncio.create_task(orchestrator.run("go", event_manager=ear.manager)) for _ in range(4)
    ]
    results = await asyncio.gather(first, *others)
    assert [result.content for result in results] == ["done"] * 5
    refused, *later = tool.moments
    assert all(moment - refused >= 30.0 for moment in later)
    # One goes ahead; the others come when it was not refused, and not all at once.
    assert later[1] > later[0]
    assert {facts["tool_name"] for facts in ear.of("throttled")} == {"tool"}
    assert all(result.metadata["retry_attempts"] == 1 for result in results[1:])
    assert orchestrator.reliable_executor.retry_manager.metrics.retry_attempts == 1


async def test_a_wish_that_is_waited_for_too_long() -> None:
    """A run whose time does not suffice asks nobody, and says when another may do better."""
    tool = Scripted("tool", unwell(429, retry_after=60.0))
    orchestrator = reliable(tool, retry={"max_attempts": 1})
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go")
    await asyncio.sleep(20.0)
    began = asyncio.get_running_loop().time()
    with pytest.raises(ToolExecutionError, match="asked not to be called yet") as caught:
        await orchestrator.run("go", options=OrchestrationConfig(timeout_ms=5_000))
    assert not isinstance(caught.value, CircuitOpen)
    assert caught.value.retry_after == pytest.approx(40.0)
    assert not caught.value.maybe_executed
    assert (tool.calls, asyncio.get_running_loop().time()) == (1, began)


async def test_a_fallback_is_asked_meanwhile() -> None:
    """At once when the wish is long; of the same provider, too, for limits are a model's own."""
    tool = Scripted("tool", unwell(429, retry_after=60.0), "late", provider="acme")
    spare = Scripted("spare", "soon", provider="acme")
    orchestrator = reliable(tool, spare)
    for _ in range(3):
        assert (await orchestrator.run("go")).content == "soon"
    assert (tool.calls, spare.calls) == (1, 3)
    assert len(set(spare.moments)) == 1
    # When the fallback cannot do it either, it is waited for.
    spare.script = [unwell(401)]
    result = await orchestrator.run("go")
    assert (result.content, result.metadata["retry_attempts"]) == ("late", 2)
    assert tool.moments[1] - tool.moments[0] >= 60.0


@pytest.mark.parametrize("switch", ["respect_retry_after", "retry_on_rate_limit"])
async def test_who_does_not_want_to_wait(switch: str) -> None:
    """Our own pace, or none at all: then nobody waits at a gate."""
    loop = asyncio.get_running_loop()
    tool = Scripted("tool", unwell(429, retry_after=60.0), "done")
    orchestrator = reliable(tool, retry={switch: False, "max_attempts": 1})
    began = loop.time()
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go")
    if switch == "respect_retry_after":
        assert (await orchestrator.run("go")).content == "done"
    else:
        with pytest.raises(ToolExecutionError, match="asked not to be called yet"):
            await orchestrator.run("go")
    assert loop.time() == began


@pytest.mark.parametrize("at", range(1, 12))
async def test_a_run_cut_at_a_gate_holds_nobody_up(at: int) -> None:
    """Also when it was the one to go ahead: the next one is."""
    tool = Scripted("tool", unwell(429, retry_after=10.0), lasting(2.0))
    orchestrator = reliable(tool, retry={"max_attempts": 1})
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go")
    run = CutAt(orchestrator.run("go", event_manager=Ear().manager), at)
    try:
        await run
    except asyncio.CancelledError:
        assert run.cut
    began = asyncio.get_running_loop().time()
    tool.script = ["done"]
    assert (await orchestrator.run("go")).content == "done"
    # As long as asked, a second of spread, and a turn's for the one that was cut while it waited.
    assert asyncio.get_running_loop().time() - began <= 12.0


async def test_gates_without_circuits() -> None:
    """They are no breakers: `enable_circuit_breaker=False` leaves them; and they are bounded."""
    off = OrchestrationConfig(enable_circuit_breaker=False, retry_on_failure=False)
    tool = Scripted("tool", unwell(429, retry_after=30.0), "done")
    orchestrator = reliable(tool)
    with pytest.raises(ToolExecutionError):
        await orchestrator.run("go", options=off)
    assert (await orchestrator.run("go", options=off)).content == "done"
    assert tool.waits[0] >= 30.0
    breakers = Breakers({}, loop_clock())
    for number in range(3 * MAX_REMEMBERED):
        breakers.throttle(f"provider-{number}", "tool", 30.0)
    assert len(breakers._states) <= MAX_REMEMBERED
