"""The official Python SDKs with a key of the caller's: whatever they do, it is one paid call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import types

from steer_proxy.ledger.memory import MemoryLedger
from tests.provider import faults
from tests.support.faulty_ledger import FaultyLedger
from tests.support.pair import key
from tests.support.sidecar import EPOCH
from tests.support.world import MESSAGES, World, world

# google-genai subclasses aiohttp's session, which aiohttp discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")

SOUND = ("hello.mp3", b"\xff\xfb\x90\x64" + bytes(range(256)) * 20)
GEMINI = "gemini-2.5-flash"


@dataclass(frozen=True)
class Sdk:
    """An SDK's client for Steer, and its plainest call with further headers."""

    client: Callable[[World, float], Any]
    ask: Callable[[Any, dict[str, str], bool], Awaitable[str]]
    errors: Any


def _openai(parties: World, timeout: float) -> Any:
    url = f"{parties.steer.url}/route"
    return openai.AsyncOpenAI(base_url=url, api_key="caller-key", timeout=timeout)


async def _ask_openai(client: Any, headers: dict[str, str], stream: bool) -> str:
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=MESSAGES, stream=stream, extra_headers=headers
    )
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join([each.choices[0].delta.content or "" async for each in answer if each.choices])


def _anthropic(parties: World, timeout: float) -> Any:
    url = f"{parties.steer.url}/route"
    return anthropic.AsyncAnthropic(base_url=url, api_key="caller-key", timeout=timeout)


async def _ask_anthropic(client: Any, headers: dict[str, str], stream: bool) -> str:
    asked: Any = {"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": MESSAGES}
    if not stream:
        message = await client.messages.create(**asked, extra_headers=headers)
        return str(message.content[0].text)
    async with client.messages.stream(**asked, extra_headers=headers) as events:
        return str(await events.get_final_text())


SDKS = {
    "openai": Sdk(_openai, _ask_openai, openai),
    "anthropic": Sdk(_anthropic, _ask_anthropic, anthropic),
}
EACH = pytest.mark.parametrize("name", list(SDKS))
PLAIN_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])

#: Every attempt that fails is passed on: the SDK's own retries are in question.
ONE_TRY = {"retry": {"max_attempts": 1}}


@EACH
@PLAIN_AND_STREAMED
@pytest.mark.parametrize("code", [429, 500, 503])
async def test_another_try_after_a_failure_is_a_new_call(
    tmp_path: Path, name: str, code: int, stream: bool
) -> None:
    """Steer has spent its attempts, and the SDK is told not to add its own; the program's next try
    finds the key free."""
    sdk = SDKS[name]
    async with world(tmp_path, name, fallback=False, route=ONE_TRY) as parties:
        parties.primary.then(faults.status(code))
        async with sdk.client(parties, 60.0) as client:
            with pytest.raises(sdk.errors.APIStatusError) as raised:
                await sdk.ask(client, key(), stream)
            assert raised.value.status_code == code
            first = await sdk.ask(client, key(), stream)
            again = await sdk.ask(client, key(), stream)
        assert first == again == parties.primary.text
        assert [attempt.status for attempt in parties.primary.attempts] == [code, 200]


@EACH
@PLAIN_AND_STREAMED
async def test_the_sdk_waits_for_the_ledger(tmp_path: Path, name: str, stream: bool) -> None:
    """A moment without a ledger is bridged by the SDK's own retry, with the same key."""
    sdk = SDKS[name]
    now = asyncio.get_running_loop().time
    ledger = FaultyLedger(MemoryLedger(lambda: EPOCH + now()))
    async with world(tmp_path, name, ledger=ledger) as parties:
        ledger.lose_reply("claim", times=1)
        async with sdk.client(parties, 60.0) as client:
            assert await sdk.ask(client, key(), stream) == parties.primary.text
        assert len(parties.primary.attempts) == 1
        assert ledger.called["claim"] >= 2


@EACH
@PLAIN_AND_STREAMED
async def test_a_retry_after_the_read_time_out_joins(
    tmp_path: Path, name: str, stream: bool
) -> None:
    """The SDK hangs up and comes again with its key, twice; the answer it gets is that of one
    execution."""
    sdk = SDKS[name]
    async with world(tmp_path, name) as parties:
        parties.primary.always(faults.silence(25.0))
        async with sdk.client(parties, 10.0) as client:
            assert await sdk.ask(client, key(), stream) == parties.primary.text
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


@EACH
async def test_when_all_retries_time_out_the_next_call_has_the_answer(
    tmp_path: Path, name: str
) -> None:
    """The program gives up and asks again much later: it is stored."""
    sdk = SDKS[name]
    async with world(tmp_path, name) as parties:
        parties.primary.always(faults.silence(60.0))
        async with sdk.client(parties, 10.0) as client:
            with pytest.raises((sdk.errors.ConflictError, sdk.errors.APITimeoutError)):
                await sdk.ask(client, key(), False)
            await asyncio.sleep(60.0)
            assert await sdk.ask(client, key(), False) == parties.primary.text
        assert len(parties.primary.attempts) == 1


@EACH
async def test_a_refused_duplicate_is_an_error_the_sdk_does_not_retry(
    tmp_path: Path, name: str
) -> None:
    """Each has the SDK's own class, and Steer's words in it."""
    sdk = SDKS[name]
    asked = 0

    async def count(_: object) -> None:
        nonlocal asked
        asked += 1

    async with world(tmp_path, name, fallback=False) as parties:
        async with sdk.client(parties, 60.0) as client:
            client._client.event_hooks["request"].append(count)
            await sdk.ask(client, key(), False)
            table: list[tuple[str, dict[str, str], bool, type[Exception], str]] = [
                ("mismatch", key(), True, sdk.errors.UnprocessableEntityError, "another request"),
                ("syntax", key('"open'), False, sdk.errors.BadRequestError, "quot"),
                ("length", key("x" * 256), False, sdk.errors.BadRequestError, "255"),
            ]
            for what, headers, stream, kind, words in table:
                asked = 0
                with pytest.raises(kind) as raised:
                    await sdk.ask(client, headers, stream)
                assert words in str(raised.value), what
                assert asked == 1, what
            parties.primary.then(faults.reset_before_answer())
            for kind in (sdk.errors.InternalServerError, sdk.errors.ConflictError):
                asked = 0
                with pytest.raises(kind) as raised:
                    await sdk.ask(client, key("order-2"), False)
                assert "may have been executed" in str(raised.value)
                assert asked == 1
        assert len(parties.primary.attempts) == 2


@pytest.mark.real_time
async def test_a_synchronous_client_is_no_different(tmp_path: Path) -> None:
    """Three at once, each in a thread of its own."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(0.3))

        def ask() -> str:
            url = f"{parties.steer.url}/route"
            messages: Any = MESSAGES
            with openai.OpenAI(base_url=url, api_key="caller-key") as client:
                answer = client.chat.completions.create(
                    model="gpt-4o", messages=messages, extra_headers=key()
                )
                return str(answer.choices[0].message.content)

        answers = await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(3)))
        assert set(answers) == {parties.primary.text}
        assert len(parties.primary.attempts) == 1


async def test_an_upload_is_recognised_under_another_boundary(tmp_path: Path) -> None:
    """The SDK makes a new boundary for each try: the key stands for the parts."""
    async with world(tmp_path, fallback=False, route=ONE_TRY) as parties:
        parties.primary.always(faults.silence(25.0))
        async with _openai(parties, 10.0) as client:
            ask = client.audio.transcriptions.create
            first = await ask(model="whisper-1", file=SOUND, extra_headers=key())
            again = await ask(model="whisper-1", file=SOUND, extra_headers=key())
            assert first.text == again.text
            with pytest.raises(openai.UnprocessableEntityError):
                await ask(model="whisper-2", file=SOUND, extra_headers=key())
            with pytest.raises(openai.UnprocessableEntityError):
                await ask(model="whisper-1", file=(SOUND[0], SOUND[1] + b"!"), extra_headers=key())
        assert len(parties.primary.attempts) == 1


async def test_the_order_of_members_and_white_space_do_not_matter(tmp_path: Path) -> None:
    """Whatever serialises the request: the key stands for its meaning."""
    async with world(tmp_path) as parties:
        async with _openai(parties, 60.0) as client:
            first = await client.chat.completions.with_raw_response.create(
                model="gpt-4o", messages=MESSAGES, temperature=0.5, extra_headers=key()
            )
        backwards = {
            "temperature": 5e-1,
            "messages": [dict(reversed(list(each.items()))) for each in MESSAGES],
            "model": "gpt-4o",
        }
        headers = {**key(), "Content-Type": "application/json", "Accept": "application/json"}
        again = await parties.send(
            "POST", "/chat/completions", data=json.dumps(backwards, indent=4), headers=headers
        )
        assert again.headers["Idempotency-Status"] == "replayed"
        assert again.body == first.content
        assert len(parties.primary.attempts) == 1


@PLAIN_AND_STREAMED
async def test_geminis_sdk_sends_a_key_too(tmp_path: Path, stream: bool) -> None:
    """Its header goes with the request's options."""
    async with world(tmp_path, "gemini") as parties:
        options = types.HttpOptions(base_url=f"{parties.steer.url}/route")
        client = genai.Client(api_key="caller-key", http_options=options)
        config = types.GenerateContentConfig(http_options=types.HttpOptions(headers=key()))

        async def ask() -> str:
            if not stream:
                answer = await client.aio.models.generate_content(
                    model=GEMINI, contents="Say something plain.", config=config
                )
                return str(answer.text)
            chunks = await client.aio.models.generate_content_stream(
                model=GEMINI, contents="Say something plain.", config=config
            )
            return "".join([chunk.text or "" async for chunk in chunks])

        try:
            assert await ask() == await ask() == parties.primary.text
        finally:
            await client.aio.aclose()
        assert len(parties.primary.attempts) == 1
