from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.current import CURRENT, RunTerms
from steer_llm_sdk.errors import InvalidValue, ProviderError, ToolExecutionError
from steer_llm_sdk.orchestration import OrchestrationConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.failures import verdict_on
from steer_llm_sdk.streaming.events import Event
from steer_llm_sdk.streaming.manager import EventManager
from steer_llm_sdk.tools import HttpTool, SidecarError
from steer_llm_sdk.tools.http_answer import Events
from steer_llm_sdk.tools.http_request import derived_key
from steer_policies.outcome import Failure
from tests.provider import Attempt, faults, json_answer
from tests.support.world import MESSAGES, World, world

IDS = {"request_id": "req-1", "trace_id": "trace-1"}
CHAT = {"model": "gpt-4o", "messages": MESSAGES}


def tool_of(a_world: World, path: str = "/tool", **more: Any) -> HttpTool:
    """A tool that calls the world's route."""
    key = "Bearer caller-key"
    return HttpTool(
        "relay", f"{a_world.steer.url}/route{path}", headers={"Authorization": key}, **more
    )


def headers_of(attempt: Attempt) -> Mapping[str, str]:
    """What the provider was sent, by lower-case name."""
    return {name.lower(): value for name, value in attempt.headers}


# --- There and back -------------------------------------------------------------------------------


async def test_json_goes_out_and_comes_back(tmp_path: Path) -> None:
    """The request's JSON is the body, the answer's JSON the content; the call is described."""
    async with world(tmp_path, "http") as w:
        output = await tool_of(w).execute({"ask": "grün", "n": [1, None]}, IDS)
    (attempt,) = w.primary.attempts
    assert attempt.method == "POST"
    assert attempt.json == {"ask": "grün", "n": [1, None]}
    content: Any = output.content
    assert content["provider"] == "primary"
    assert json.loads(content["body"]) == {"ask": "grün", "n": [1, None]}
    said = output.metadata["sidecar"]
    assert (said["upstream"], said["attempts"], said["request_id"]) == ("primary", 1, "req-1")
    assert "idempotency_status" not in said


async def test_a_chat_completion(tmp_path: Path) -> None:
    """`body` makes the request, `read` the content; usage is the output's."""
    async with world(tmp_path) as w:
        tool = tool_of(
            w,
            "/chat/completions",
            body=lambda request, options: {**CHAT, "temperature": options["temperature"]},
            read=lambda answer: answer["choices"][0]["message"]["content"],
        )
        output = await tool.execute("Say something plain.", {"temperature": 0.5})
        assert w.primary.attempts[0].json["temperature"] == 0.5
    assert isinstance(output.content, str)
    assert output.content
    assert output.usage["prompt_tokens"] > 0


@contextlib.contextmanager
def run_of(terms: RunTerms) -> Iterator[None]:
    """As within a run with these terms."""
    token = CURRENT.set(terms)
    try:
        yield
    finally:
        CURRENT.reset(token)


async def test_ids_and_bounds_go_along(tmp_path: Path) -> None:
    """The sidecar obeys the run's bounds; none of its own headers reaches the provider."""
    async with world(tmp_path, fallback=False) as w:
        w.primary.always(faults.silence(100.0))
        terms = RunTerms(
            budget={"tokens": 5000, "cost_usd": 0.5},
            quality_requirements={"min_confidence": 0.9, "note": "grün"},
            deadline=w.now() + 20.0,
        )
        began = w.now()
        with run_of(terms), pytest.raises(SidecarError) as caught:
            await tool_of(w, "/chat/completions").execute(CHAT, IDS)
        assert w.now() - began == pytest.approx(20.0, abs=0.1)
        sent = headers_of(w.primary.attempts[0])
    assert not [name for name in sent if name.startswith("x-steer")]
    assert sent["x-request-id"] == "req-1"
    assert (caught.value.code, caught.value.about["request_id"]) == ("steer_deadline", "req-1")


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        (RunTerms(budget={"tokens": 1}), "steer_budget_exceeded"),
        (RunTerms(quality_requirements={"min_confidence": 7}), "steer_bad_header"),
    ],
)
async def test_the_sidecar_reads_them(tmp_path: Path, terms: RunTerms, code: str) -> None:
    """What cannot be kept is refused by the sidecar, and not tried again."""
    async with world(tmp_path) as w:
        with run_of(terms), pytest.raises(SidecarError) as caught:
            await tool_of(w, "/chat/completions").execute(CHAT, IDS)
        assert not w.primary.attempts
    assert (caught.value.status_code, caught.value.code) == (400, code)
    assert verdict_on(caught.value, 0.0).failure is Failure.REJECTED


async def test_a_run_without_time_left() -> None:
    """What is sent is a time limit all the same, the shortest there is."""
    with run_of(RunTerms(deadline=0.0)):
        headers = HttpTool("relay", "http://127.0.0.1:1/x")._request_headers({}, streams=False)
    assert headers["X-Steer-Timeout"] == "0.001"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        (IDS, {"X-Request-ID": "req-1", "X-Trace-ID": "trace-1"}),
        ({"request_id": "not safe\r\nX: y", "trace_id": "ü"}, {}),
        (
            {"trace_id": f"00-{'a' * 32}-{'b' * 16}-01"},
            {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"},
        ),
        ({"idempotency_key": "k"}, {"Idempotency-Key": derived_key("relay", "k")}),
        ({"budget": {"ms": 5}}, {"X-Steer-Budget": '{"ms":5}'}),
        ({"quality_requirements": {"a": "ü"}}, {"X-Steer-Quality": '{"a":"\\u00fc"}'}),
        ({"budget": {}, "quality_requirements": None}, {}),
    ],
)
async def test_headers(options: dict[str, Any], expected: dict[str, str]) -> None:
    """Each by itself; ids that no header can hold are left to the sidecar."""
    tool = HttpTool("relay", "http://127.0.0.1:4100/v1/x", timeout=30)
    always = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "X-Steer-Timeout": "30.000",
    }
    assert tool._request_headers(options, streams=False) == {**always, **expected}


async def test_own_headers_win() -> None:
    """In whatever case they are written; a function is asked each time."""
    tokens = iter(["one", "two"])
    tool = HttpTool(
        "relay",
        "http://127.0.0.1:4100/v1/x",
        headers=lambda: {"Authorization": next(tokens), "x-steer-timeout": "5"},
    )
    for token in ("one", "two"):
        headers = tool._request_headers({}, streams=False)
        assert headers["Authorization"] == token
        assert [value for name, value in headers.items() if name.lower() == "x-steer-timeout"] == [
            "5"
        ]


async def test_what_cannot_be_sent(tmp_path: Path) -> None:
    """It is refused by the name of its place, before anything is sent, and never retried."""
    tool = HttpTool("relay", "http://127.0.0.1:1/x", max_request=100)
    with pytest.raises(InvalidValue, match=r"request: must be JSON: a\[0\] is a set") as caught:
        await tool.execute({"a": [{1}]}, {})
    assert verdict_on(caught.value, 0.0).failure is Failure.REJECTED
    with pytest.raises(InvalidValue, match="more than max_request, 100 bytes"):
        await tool.execute({"a": "x" * 100}, {})
    with pytest.raises(InvalidValue, match="budget: must be JSON"):
        await tool.execute({}, {"budget": {"ms": float("nan")}})


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": ""},
        {"url": "/v1/x"},
        {"url": "ftp://host/x"},
        {"url": 7},
        {"method": ""},
        {"timeout": 0},
        {"max_request": 0},
        {"max_response": 1.5},
        {"body": "x"},
        {"read": "x"},
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any]) -> None:
    """The error names the argument."""
    whole: dict[str, Any] = {"name": "relay", "url": "http://127.0.0.1:4100/x", **arguments}
    with pytest.raises(InvalidValue, match=next(iter(arguments))):
        HttpTool(**whole)


# --- Errors, and not retrying twice ---------------------------------------------------------------


async def test_where_the_sidecar_has_retried_the_run_does_not(tmp_path: Path) -> None:
    """Its attempts are spent: the error says so, and the policies obey."""
    async with world(tmp_path, fallback=False) as w:
        w.primary.always(faults.status(500))
        with pytest.raises(SidecarError, match="relay: HTTP 500") as caught:
            await tool_of(w, "/chat/completions").execute(CHAT, IDS)
        assert len(w.primary.attempts) == 3
    error = caught.value
    assert isinstance(error, ProviderError)
    assert (error.status_code, error.should_retry, error.provider) == (500, False, "relay")
    assert error.about["attempts"] == 3
    assert not verdict_on(error, 0.0).again


async def test_a_delay_is_passed_on(tmp_path: Path) -> None:
    """A rate limit whose delay does not fit the call is the run's to wait for."""
    async with world(tmp_path, fallback=False) as w:
        w.primary.always(faults.rate_limit(retry_after=90))
        tool = tool_of(w, "/chat/completions", timeout=10, provider="openai")
        with pytest.raises(SidecarError) as caught:
            await tool.execute(CHAT, IDS)
    assert caught.value.status_code == 429
    assert caught.value.retry_after == pytest.approx(90.0, abs=1.0)
    assert caught.value.provider == "openai"
    verdict = verdict_on(caught.value, 0.0)
    assert verdict.failure is Failure.THROTTLED
    assert verdict.hint is not None
    assert verdict.hint.seconds == caught.value.retry_after


async def test_an_error_in_the_caller_s_request(tmp_path: Path) -> None:
    """The provider's own words are in the message."""
    async with world(tmp_path) as w:
        w.primary.always(faults.error("invalid_request"))
        with pytest.raises(SidecarError, match="relay: HTTP 400 ") as caught:
            await tool_of(w, "/chat/completions").execute(CHAT, IDS)
    assert verdict_on(caught.value, 0.0).failure is Failure.REJECTED


async def test_the_advice_of_any_client_is_obeyed() -> None:
    """Errors of the provider SDKs carry the answer, and with it the sidecar's advice."""

    class Response:
        status_code = 500
        headers: Mapping[str, str]

    class StatusError(Exception):
        response = Response()

    for said, again in (("false", False), ("true", True), ("", True)):
        StatusError.response.headers = {"X-Should-Retry": said}
        assert verdict_on(StatusError(), 0.0).again is again


async def test_no_sidecar() -> None:
    """It cannot be reached: nothing was executed."""
    tool = HttpTool("relay", "http://127.0.0.1:1/v1/x")
    with pytest.raises(OSError, match="connect") as caught:
        await tool.execute({}, {})
    assert verdict_on(caught.value, 0.0).failure is Failure.CONNECT


async def test_a_sidecar_that_does_not_answer() -> None:
    """Waiting has a bound: the time limit, and a little for the sidecar to say so itself."""
    hanging = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hanging.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(TimeoutError):
            await HttpTool("relay", f"http://127.0.0.1:{port}/x", timeout=30).execute({}, {})
        assert loop.time() - began == pytest.approx(35.0, abs=0.1)
        hanging.set()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{}"],
)
async def test_a_sidecar_that_dies(sent: bytes) -> None:
    """Its connection is lost: the call may have been executed."""

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(dying, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionResetError, match="relay: the connection was lost") as caught:
            await HttpTool("relay", f"http://127.0.0.1:{port}/x").execute({}, {})
        await asyncio.sleep(0.1)
    assert verdict_on(caught.value, 0.0).failure is Failure.RESET


async def test_answers_that_are_not_json(tmp_path: Path) -> None:
    """Text is text; nothing is None; what lies about itself, or is neither, is an error."""
    async with world(tmp_path, "http") as w:
        tool = tool_of(w)
        for answer, content in (
            (_answer(b"plain", "text/plain; charset=utf-8"), "plain"),
            (_answer(b"", "application/json"), None),
            (_answer(b"[1]", "application/problem+json"), [1]),
        ):
            w.primary.always(answer)
            assert (await tool.execute({}, {})).content == content
        for answer, why in (
            (_answer(b"{", "application/json"), "says that it is JSON, and is not"),
            (_answer(b"x", "image/png"), "is image/png, not JSON"),
        ):
            w.primary.always(answer)
            with pytest.raises(SidecarError, match=why) as caught:
                await tool.execute({}, {})
            assert caught.value.should_retry is False


def _answer(body: bytes, content_type: str) -> Any:
    from tests.provider import bytes_answer

    return bytes_answer(200, body, content_type=content_type)


async def test_an_answer_that_is_too_large(tmp_path: Path) -> None:
    """It is given up, and not asked for again."""
    async with world(tmp_path, "http") as w:
        w.primary.always(json_answer(200, {"a": "x" * 5000}))
        with pytest.raises(SidecarError, match="more than max_response, 1000 bytes") as caught:
            await tool_of(w, max_response=1000).execute({}, {})
    assert not verdict_on(caught.value, 0.0).again


# --- Keys -----------------------------------------------------------------------------------------


async def test_point_2_tries_of_one_run_are_one_call(tmp_path: Path) -> None:
    """The same key of a run is the same key at the sidecar, and is joined or replayed."""
    options = {**IDS, "idempotency_key": "order 7, grün"}
    async with world(tmp_path) as w:
        w.primary.always(faults.silence(2.0))
        tool = tool_of(w, "/chat/completions")
        first, second = await asyncio.gather(
            tool.execute(CHAT, options), tool.execute(CHAT, options)
        )
        third = await tool.execute(CHAT, options)
        assert len(w.primary.attempts) == 1
    assert first.content == second.content == third.content
    statuses = [each.metadata["sidecar"]["idempotency_status"] for each in (first, second, third)]
    assert sorted(statuses[:2]) == ["joined", "new"]
    assert statuses[2] == "replayed"


async def test_a_try_that_ran_out_of_time_is_joined_by_the_next(tmp_path: Path) -> None:
    """What was begun is not begun again: the sidecar goes on with a call that has a key."""
    options = {**IDS, "idempotency_key": "k"}
    async with world(tmp_path, fallback=False) as w:
        w.primary.always(faults.silence(30.0))
        tool = tool_of(w, "/chat/completions", timeout=20)
        with pytest.raises(SidecarError) as caught:
            await tool.execute(CHAT, options)
        assert (caught.value.code, caught.value.should_retry) == ("steer_deadline", True)
        output = await tool.execute(CHAT, options)
        assert len(w.primary.attempts) == 1
    assert output.metadata["sidecar"]["idempotency_status"] in ("joined", "replayed")


def test_derived_keys() -> None:
    """The same for the same tool and key, another for another tool or key, and fit for a header."""
    made = {derived_key(tool, key) for tool in ("a", "ab") for key in ("bc", "c", "ü", "x" * 255)}
    assert len(made) == 8
    assert derived_key("a", "bc") in made
    assert all(key.isascii() and len(key) < 100 for key in made)


# --- In a run -------------------------------------------------------------------------------------


def orchestrator_of(tool: HttpTool) -> ReliableOrchestrator:
    """One that knows this tool alone."""
    registry = ToolRegistry()
    registry.register_tool(tool)
    return ReliableOrchestrator(registry=registry)


async def test_the_two_fronts_do_not_retry_twice(tmp_path: Path) -> None:
    """The sidecar makes its three attempts, and the run none besides."""
    async with world(tmp_path, fallback=False) as w:
        w.primary.always(faults.status(500))
        with pytest.raises(ToolExecutionError) as caught:
            await orchestrator_of(tool_of(w, "/chat/completions")).run(CHAT, "relay")
        assert len(w.primary.attempts) == 3
    assert caught.value.attempts == 1
    assert isinstance(caught.value.__cause__, SidecarError)


async def test_a_runs_terms_reach_the_sidecar(tmp_path: Path) -> None:
    """Ids, key, budget, quality and time limit, from the run's own options."""
    seen: list[dict[str, str]] = []

    class Watched(HttpTool):
        def _request_headers(self, options: Mapping[str, Any], *, streams: bool) -> dict[str, str]:
            seen.append(super()._request_headers(options, streams=streams))
            return seen[-1]

    terms = OrchestrationConfig(
        request_id="req-1",
        trace_id="trace-1",
        idempotency_key="order-7",
        budget={"tokens": 5000},
        quality_requirements={"min_confidence": 0.9},
        timeout_ms=30_000,
    )
    async with world(tmp_path) as w:
        url = f"{w.steer.url}/route/chat/completions"
        tool = Watched("relay", url, headers={"Authorization": "Bearer caller-key"})
        orchestrator = orchestrator_of(tool)
        first = await orchestrator.run(CHAT, "relay", options=terms)
        assert await orchestrator.run(CHAT, "relay", options=terms) == first
        assert len(w.primary.attempts) == 1
    (headers,) = seen
    assert headers["X-Request-ID"] == "req-1"
    assert headers["X-Trace-ID"] == "trace-1"
    assert headers["Idempotency-Key"] == derived_key("relay", "order-7")
    assert headers["X-Steer-Budget"] == '{"tokens":5000}'
    assert headers["X-Steer-Quality"] == '{"min_confidence":0.9}'
    assert 29.0 < float(headers["X-Steer-Timeout"]) <= 30.0
    assert first.metadata["sidecar"]["idempotency_status"] == "new"


async def test_a_runs_second_try_joins_the_first_ones_call(tmp_path: Path) -> None:
    """An attempt that ran out of its time is made again, and the provider is called once."""
    async with world(tmp_path, fallback=False) as w:
        w.primary.always(faults.silence(12.0))
        output = await orchestrator_of(tool_of(w, "/chat/completions")).run(
            CHAT,
            "relay",
            options=OrchestrationConfig(idempotency_key="k", per_agent_timeout_ms=8_000),
        )
        assert len(w.primary.attempts) == 1
    assert output.metadata["retry_attempts"] == 2
    assert output.metadata["sidecar"]["idempotency_status"] in ("joined", "replayed")


# --- Streams --------------------------------------------------------------------------------------


async def test_a_stream_is_told_as_it_comes(tmp_path: Path) -> None:
    """Each event is a delta; the content is the list of their data."""
    told: list[Event] = []

    async def on_delta(event: Event) -> None:
        told.append(event)

    manager = EventManager(on_delta=on_delta, request_id="req-1", trace_id="trace-1")
    async with world(tmp_path) as w:
        tool = tool_of(w, "/chat/completions", stream={"stream": True})
        output = await tool.execute(CHAT, IDS, manager)
        assert w.primary.attempts[0].json["stream"] is True
        plain = await tool.execute(CHAT, IDS)
        assert "stream" not in w.primary.attempts[1].json
    assert isinstance(output.content, list)
    assert output.content[-1] == "[DONE]"
    assert [event.metadata["data"] for event in told] == output.content
    assert {event.metadata["event_type"] for event in told} == {"http_event"}
    assert {(event.provider, event.request_id) for event in told} == {("primary", "req-1")}
    said = "".join(
        choice["delta"].get("content") or ""
        for data in output.content[:-1]
        if isinstance(data, dict)
        for choice in data["choices"]
    )
    content: Any = plain.content
    assert said == content["choices"][0]["message"]["content"]


async def test_a_stream_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    """The sidecar says so in the stream: what came is no result."""
    manager = EventManager(on_delta=lambda event: None)
    async with world(tmp_path, fallback=False) as w:
        w.primary.always(faults.cut_after(events=4, how="clean_end"))
        tool = tool_of(w, "/chat/completions", stream={"stream": True})
        with pytest.raises(SidecarError, match=r"the stream broke off: .*steer_") as caught:
            await tool.execute(CHAT, IDS, manager)
    assert caught.value.about["upstream"] == "primary"


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
def test_events_however_they_are_cut(step: int) -> None:
    """Names and data, comments passed over, an unfinished event left out."""
    stream = (
        b": ping\n\n"
        b'data: {"a": 1}\n\n'
        b"event: named\r\ndata: one\r\ndata: two\r\n\r\n"
        b'data: "' + b"x" * 600_000 + b'"\n\n'
        b"data: [DONE]\n\n"
        b"data: cut off"
    )
    step = step if step > 2 else step * 997
    splitter, found = Events(), []
    for start in range(0, len(stream), step):
        found += splitter.feed(stream[start : start + step])
    assert found == [
        ("", {"a": 1}),
        ("named", "one\ntwo"),
        ("", "x" * 600_000),
        ("", "[DONE]"),
    ]


# --- Connections ----------------------------------------------------------------------------------


async def test_a_session_of_the_callers_own(tmp_path: Path) -> None:
    """It is used, and left open."""
    async with world(tmp_path, "http") as w:
        tool = tool_of(w, session=w.session)
        for _ in range(2):
            await tool.execute({}, {})
        assert not w.session.closed


async def test_cancelled_in_the_middle_nothing_is_left(tmp_path: Path) -> None:
    """The connection is closed, and the sidecar ends an unkeyed call."""
    async with world(tmp_path) as w:
        w.primary.always(faults.silence(100.0))
        run = asyncio.create_task(tool_of(w, "/chat/completions").execute(CHAT, IDS))
        await asyncio.sleep(5.0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await asyncio.sleep(1.0)
        assert w.steer.sidecar.active == 0


def test_aiohttp_is_not_imported_before_it_is_used() -> None:
    """Importing the tool is cheap."""
    import subprocess
    import sys

    code = (
        "import sys, steer_llm_sdk.tools.http, steer_llm_sdk.reliability.idempotency as i\n"
        "i.IdempotencyManager()\n"
        "heavy = {'aiohttp', 'sqlalchemy', 'alembic', 'asyncpg', 'cryptography', 'typer', 'yarl'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    paths = ":".join(str(Path(__file__).parents[2] / each) for each in ("policies", "proxy", "sdk"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": paths},
    )
    assert done.stdout == "[]\n"
