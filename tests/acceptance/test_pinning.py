"""What a provider keeps stays with it: stored objects go home, and nothing is made twice."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.provider import Behaviour, faults
from tests.support.world import Reply, World, world

# A rule that would send everything elsewhere, with another model, if pinned calls were planned.
EVERYTHING_ELSEWHERE = {
    "rules": [
        {
            "name": "elsewhere",
            "use": {"upstream": "fallback", "options": {"model": "other"}},
            "fallbacks": ["primary"],
        }
    ]
}
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
CONTENT = b'{"a": 1}\n' * 10


def upload() -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", CONTENT, filename="in.jsonl")
    return form


# POSTs that leave something behind, or refer to it: dialect, path, body (None is an upload).
STORED: dict[str, tuple[str, str, Any]] = {
    "file": ("openai", "/files", None),
    "batch": ("openai", "/batches", BATCH),
    "batch cancelled": ("openai", "/batches/batch_1/cancel", {}),
    "upload": ("openai", "/uploads", {"filename": "x", "bytes": 1}),
    "fine-tuning": ("openai", "/fine_tuning/jobs", {"model": "gpt-4o", "training_file": "file-1"}),
    "vector store": ("openai", "/vector_stores", {"name": "x"}),
    "background": ("openai", "/responses", {"model": "m", "input": "Hi", "background": True}),
    "follow-up": (
        "openai",
        "/responses",
        {"model": "m", "input": "Hi", "previous_response_id": "resp_1"},
    ),
    "conversation": ("openai", "/responses", {"model": "m", "input": "Hi", "conversation": "c_1"}),
    "streamed follow-up": (
        "openai",
        "/responses",
        {"model": "m", "input": "Hi", "previous_response_id": "resp_1", "stream": True},
    ),
    "message batch": ("anthropic", "/v1/messages/batches", {"requests": []}),
    "Anthropic's file": ("anthropic", "/v1/files", None),
    "Gemini's cache": ("gemini", "/v1beta/cachedContents", {"model": "models/x"}),
    "Gemini's cached call": (
        "gemini",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        {"contents": [], "cachedContent": "cachedContents/1"},
    ),
    "Gemini's tuning": ("gemini", "/v1beta/tunedModels", {"displayName": "x"}),
}
EVERY_POST = pytest.mark.parametrize("name", STORED)


async def send(parties: World, name: str, **more: Any) -> Reply:
    _, path, body = STORED[name]
    options = {"data": upload()} if body is None else {"json": body}
    return await parties.send("POST", path, **options, **more)


@EVERY_POST
async def test_stored_things_go_home(tmp_path: Path, name: str) -> None:
    """No rule, option or fallback touches them: the home upstream gets the caller's own bytes."""
    dialect, path, body = STORED[name]
    async with world(tmp_path, dialect, route=EVERYTHING_ELSEWHERE) as parties:
        assert (await parties.ask()).headers["X-Steer-Rule"] == "elsewhere"
        reply = await send(parties, name)
        assert reply.headers["X-Steer-Upstream"] == "primary"
        assert "X-Steer-Rule" not in reply.headers
        assert "X-Steer-Model" not in reply.headers
        (attempt,) = parties.primary.attempts
        assert attempt.target.endswith(path)
        if body is not None:
            assert attempt.json == body
        assert len(parties.fallback.attempts) == 1


# What may have been executed, and must not be done again.
SENT: dict[str, Behaviour] = {
    "reset after the body": faults.reset_before_answer(),
    "closed after the body": faults.close_before_answer(),
    "reset within the body": faults.reset_before_reading_body(),
    "silence": faults.silence(),
    "a head, then silence": faults.headers_then_silence(),
    "cut in the answer": faults.cut_after(bytes=20),
    "not HTTP": faults.garbage(),
    "429": faults.status(429, retry_after=1),
    "500": faults.status(500),
    "503": faults.status(503),
    "408": faults.status(408),
    "504": faults.status(504),
}


@pytest.mark.parametrize("fault", SENT)
@pytest.mark.parametrize("name", ["file", "batch", "background", "message batch"])
async def test_nothing_is_made_twice(tmp_path: Path, name: str, fault: str) -> None:
    """Once bytes were written there is one attempt, and the SDK is told not to make another."""
    limits = {"timeouts": {"first_byte": 5, "answer": 5, "idle": 5}}
    async with world(tmp_path, STORED[name][0], upstream=limits) as parties:
        parties.primary.when(lambda _: True, SENT[fault])
        reply = await send(parties, name)
        if fault.isdigit():
            assert reply.status == int(fault)
        else:
            assert reply.status in (502, 504)
            assert reply.headers["X-Steer-Attempts"] == "1"
        assert reply.headers["X-Should-Retry"] == "false"
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_the_sdk_does_not_make_it_twice_either(tmp_path: Path, status: int) -> None:
    """The official client, which would retry by itself, gives up at once."""
    async with world(tmp_path) as parties:
        parties.primary.when(lambda _: True, faults.status(status))
        url = f"{parties.steer.url}/route"
        async with openai.AsyncOpenAI(base_url=url, api_key="caller-key") as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
        assert caught.value.status_code == status
        assert len(parties.primary.attempts) == 1


@EVERY_POST
async def test_what_was_never_sent_is_sent_again(tmp_path: Path, name: str) -> None:
    """A refused connection proves that nothing happened: the attempts go on, at home."""
    dialect = STORED[name][0]
    about_a_second = {"retry": {"initial_delay": 1, "jitter_factor": 0.1}}
    async with world(tmp_path, dialect, route=about_a_second) as parties:

        async def come_back() -> None:
            await asyncio.sleep(0.5)
            await parties.primary.start_listening()

        await parties.primary.stop_listening()
        back = asyncio.create_task(come_back())
        reply = await send(parties, name)
        await back
        assert reply.headers["X-Steer-Upstream"] == "primary"
        assert reply.headers["X-Steer-Attempts"] == "2"
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


async def test_home_out_of_reach_is_not_replaced(tmp_path: Path) -> None:
    """Nobody else has the object: after the attempts the caller is told."""
    async with world(tmp_path) as parties:
        await parties.primary.stop_listening()
        for method, path in (("POST", "/batches"), ("GET", "/files/file-1")):
            body = BATCH if method == "POST" else None
            reply = await parties.send(method, path, json=body)
            assert reply.status == 502
            assert reply.json["error"]["code"] == "steer_upstream_unreachable"
        assert (await parties.ask()).headers["X-Steer-Upstream"] == "fallback"
        assert len(parties.fallback.attempts) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "OPTIONS"])
async def test_what_is_idempotent_is_retried_at_home(tmp_path: Path, method: str) -> None:
    """Reading and deleting twice does no harm: failures are hidden, or told after the attempts."""
    async with world(tmp_path) as parties:
        parties.primary.then(
            faults.reset_before_answer(), faults.status(503), faults.healthy(), to=lambda _: True
        )
        reply = await parties.send(method, "/models")
        assert reply.headers["X-Steer-Attempts"] == "3"
        assert [attempt.method for attempt in parties.primary.attempts] == [method] * 3
        parties.primary.when(lambda _: True, faults.status(503))
        reply = await parties.send(method, "/models")
        assert (reply.status, reply.headers["X-Steer-Attempts"]) == (503, "3")
        assert parties.fallback.attempts == []


async def test_a_file_is_found_again_while_home_fails_over(tmp_path: Path) -> None:
    """Generation goes to the fallback, its circuit opens; files and batches are where they were."""
    breaker = {"failure_threshold": 2}
    async with world(tmp_path, upstream={"breaker": breaker}) as parties:
        parties.primary.when(
            lambda attempt: attempt.path.endswith("/chat/completions"), faults.status(503)
        )
        url = f"{parties.steer.url}/route"
        async with openai.AsyncOpenAI(base_url=url, api_key="caller-key") as client:

            async def chat() -> str:
                message: Any = [{"role": "user", "content": "Hi"}]
                raw = await client.chat.completions.with_raw_response.create(
                    model="gpt-4o", messages=message
                )
                return raw.headers["x-steer-upstream"]

            assert await chat() == "fallback"
            file = await client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
            assert await chat() == "fallback"
            assert (await client.files.retrieve(file.id)).bytes == len(CONTENT)
            assert (await client.files.content(file.id)).content == CONTENT
            batch = await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            assert await chat() == "fallback"
            assert (await client.batches.retrieve(batch.id)).status == "completed"
            assert [found.id async for found in client.files.list()] == [file.id]
            assert (await client.files.delete(file.id)).deleted
            response = await client.responses.create(model="m", input="Hi", background=True)
            assert (await client.responses.retrieve(response.id)).id == response.id
        assert {attempt.path for attempt in parties.fallback.attempts} == {"/v1/chat/completions"}


async def test_a_large_file_that_is_cut_off_is_sent_once(tmp_path: Path) -> None:
    """Spooled bodies are no exception: the provider hangs up in the middle, and that is it."""
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", io.BytesIO(b"x" * 5_000_000), filename="in.jsonl")
    async with world(tmp_path) as parties:
        parties.primary.when(lambda _: True, faults.reset_before_reading_body())
        reply = await parties.send("POST", "/files", data=form)
        assert reply.status in (502, 504)
        assert reply.headers["X-Should-Retry"] == "false"
        assert len(parties.primary.attempts) == 1
