"""`usage: ask`: the provider counts, and a caller who did not ask for that sees nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.provider import Provider, faults
from tests.support.world import Reply, World, world

ASK = {"usage": "ask"}
COUNTED = {"stream_options": {"include_usage": True}}
CHAT = "/chat/completions"
PROMPT = {"model": "gpt-3.5-turbo-instruct", "prompt": "Say something plain.", "stream": True}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]


def chat(parties: World, **members: Any) -> dict[str, Any]:
    """The body of a streamed chat completion."""
    return parties.request(stream=True)[1] | members


def written(body: Any) -> bytes:
    """A body as a caller of these tests writes it."""
    return json.dumps(body).encode()


async def through_steer(parties: World, body: Any, path: str = CHAT) -> Reply:
    headers = {"Content-Type": "application/json"}
    return await parties.send("POST", path, data=written(body), headers=headers)


async def directly(
    parties: World, body: Any, path: str = CHAT, provider: Provider | None = None
) -> bytes:
    """The stream of a caller that knows nothing of Steer."""
    asked = parties.primary if provider is None else provider
    base = asked.base_url + ("/v1" if parties.dialect == "openai" else "")
    async with parties.session.post(base + path, json=body) as response:
        return bytes(await response.read())


def uncounted(reply: Reply) -> bool:
    """Neither a count, nor what a provider that counts puts into the other chunks."""
    return b"usage" not in reply.body and all(
        event["choices"] for event in reply.events if "error" not in event
    )


@pytest.mark.parametrize(
    ("path", "members"),
    [
        pytest.param(CHAT, {}, id="chat"),
        pytest.param(CHAT, {"n": 2}, id="choices"),
        pytest.param(CHAT, {"tools": TOOLS}, id="tools"),
        pytest.param(CHAT, {"stream_options": None}, id="null"),
        pytest.param(CHAT, {"stream_options": {"include_usage": False}}, id="declined"),
        pytest.param(CHAT, {"stream_options": {"include_obfuscation": False}}, id="another"),
        pytest.param("/completions", PROMPT, id="completions"),
    ],
)
@pytest.mark.parametrize("one_byte", [False, True], ids=["as sent", "byte by byte"])
async def test_the_caller_gets_the_bytes_of_a_call_without_it(
    tmp_path: Path, path: str, members: dict[str, Any], one_byte: bool
) -> None:
    """The provider was asked to count, and nothing else was changed on the way there or back."""
    async with world(tmp_path, route=ASK) as parties:
        body = members if path != CHAT else chat(parties, **members)
        direct = await directly(parties, body, path)
        assert b"usage" not in direct
        if one_byte:
            parties.primary.always(faults.one_byte_writes())
        reply = await through_steer(parties, body, path)
        assert not reply.cut
        assert reply.body == direct
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        assert parties.primary.attempts[-1].json == {**body, "stream_options": options}


async def test_the_caller_who_asked_gets_the_count(tmp_path: Path) -> None:
    """Original bytes there, original bytes back."""
    async with world(tmp_path, route=ASK) as parties:
        body = chat(parties, **COUNTED)
        direct = await directly(parties, body)
        reply = await through_steer(parties, body)
        assert reply.body == direct
        assert reply.events[-1]["usage"]["completion_tokens"] > 0
        assert parties.primary.attempts[-1].body == written(body)


@pytest.mark.parametrize(
    ("route", "stream"),
    [
        pytest.param(ASK, False, id="a plain answer"),
        pytest.param({"usage": "as_is"}, True, id="as is"),
        pytest.param({}, True, id="by default"),
    ],
)
async def test_nothing_is_asked_without_need(
    tmp_path: Path, route: dict[str, Any], stream: bool
) -> None:
    """Plain answers count anyway, and `as_is` is as it is."""
    async with world(tmp_path, route=route) as parties:
        body = chat(parties, stream=stream)
        direct = await directly(parties, body)
        reply = await through_steer(parties, body)
        assert reply.body == direct
        assert parties.primary.attempts[-1].body == written(body)


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
async def test_other_dialects_are_left_alone(tmp_path: Path, dialect: str) -> None:
    """Their streams count by themselves."""
    async with world(tmp_path, dialect, route=ASK) as parties:
        path, body = parties.request(stream=True)
        direct = await directly(parties, body, path)
        reply = await through_steer(parties, body, path)
        assert reply.body == direct
        assert b"usage" in reply.body
        assert parties.primary.attempts[-1].body == written(body)


async def test_a_retry_asks_again(tmp_path: Path) -> None:
    """Each attempt carries the same request."""
    async with world(tmp_path, fallback=False, route=ASK) as parties:
        body = chat(parties)
        direct = await directly(parties, body)
        parties.primary.then(faults.status(503), faults.healthy())
        reply = await through_steer(parties, body)
        assert reply.body == direct
        _, first, second = parties.primary.attempts
        assert first.json == second.json == {**body, **COUNTED}


async def test_a_fallback_is_asked_as_well(tmp_path: Path) -> None:
    """After its own options, whatever they say of counting."""
    options = {"model": "gpt-4o-mini", "seed": 7, "stream_options": {"include_usage": False}}
    async with world(tmp_path, route=ASK, fallback_options=options) as parties:
        body = chat(parties)
        other = {**body, "model": "gpt-4o-mini", "seed": 7}
        direct = await directly(parties, other, provider=parties.fallback)
        parties.primary.always(faults.reset_before_answer())
        reply = await through_steer(parties, body)
        assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert reply.body == direct
        assert parties.primary.attempts[0].json == {**body, **COUNTED}
        assert parties.fallback.attempts[-1].json == {**other, **COUNTED}


@pytest.mark.parametrize("how", ["reset", "close", "clean_end"])
@pytest.mark.parametrize("events", [3, 8, 12])
async def test_a_broken_stream_is_resumed(tmp_path: Path, events: int, how: Any) -> None:
    """The second stream's count is taken out as the first one's is, and the text is whole."""
    async with world(tmp_path, route={**ASK, "on_break": "resume"}) as parties:
        parties.primary.always(faults.cut_after(events=events, how=how))
        body = chat(parties)
        reply = await through_steer(parties, body)
        assert not reply.cut
        assert reply.text == parties.primary.text
        assert uncounted(reply)
        assert [attempt.json for attempt in parties.fallback.attempts] == [{**body, **COUNTED}]


async def test_a_stream_that_lacks_its_count_alone_is_whole(tmp_path: Path) -> None:
    """Cut after the finish reason, it has said everything its caller waits for."""
    async with world(tmp_path, route={**ASK, "on_break": "resume"}) as parties:
        events = len(parties.primary.text.split()) + 2
        parties.primary.always(faults.cut_after(events=events))
        reply = await through_steer(parties, chat(parties))
        assert not reply.cut
        assert reply.text == parties.primary.text
        assert reply.events[-1]["choices"][0]["finish_reason"] == "stop"
        assert uncounted(reply)
        assert parties.fallback.attempts == []


async def test_a_stream_that_breaks_says_so(tmp_path: Path) -> None:
    """No false end where the count would have stood."""
    async with world(tmp_path, route=ASK) as parties:
        parties.primary.always(faults.cut_after(events=6))
        reply = await through_steer(parties, chat(parties))
        assert reply.cut
        assert reply.events[-1]["error"]["code"] == "steer_stream_broken"
        assert uncounted(reply)


async def test_a_providers_own_error_reaches_the_caller(tmp_path: Path) -> None:
    """Its event follows what is left of the chunks before it."""
    async with world(tmp_path, route=ASK) as parties:
        parties.primary.always(faults.in_band_error(at=5))
        reply = await through_steer(parties, chat(parties))
        assert reply.status == 200
        assert "error" in reply.events[-1]
        assert uncounted(reply)
        assert b"steer_" not in reply.body


async def test_commit_complete_holds_what_is_left(tmp_path: Path) -> None:
    """A stream is held whole, hidden when it breaks, and has no count in the end."""
    async with world(tmp_path, route={**ASK, "commit": "complete"}) as parties:
        body = chat(parties)
        direct = await directly(parties, body, provider=parties.fallback)
        parties.primary.always(faults.cut_after(events=8))
        reply = await through_steer(parties, body)
        assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert reply.body == direct


@pytest.mark.parametrize("how", ["clean_end", "close", "open"])
async def test_a_stream_without_its_marker_ends_promptly(tmp_path: Path, how: Any) -> None:
    """The last event is then the one that is taken out."""
    async with world(tmp_path, route=ASK) as parties:
        body = chat(parties)
        direct = await directly(parties, body)
        parties.primary.always(faults.without_terminal_marker(how))
        reply = await through_steer(parties, body)
        assert not reply.cut
        assert reply.body == direct.removesuffix(b"data: [DONE]\n\n")
        assert reply.seconds < 11


async def test_a_wrong_request_stays_wrong(tmp_path: Path) -> None:
    """What is no such option is the provider's to refuse."""
    async with world(tmp_path, route=ASK) as parties:
        parties.primary.always(faults.status(400))
        body = chat(parties, stream_options={"include_usage": "please"})
        assert (await through_steer(parties, body)).status == 400
        assert parties.primary.attempts[-1].body == written(body)


async def test_a_server_without_the_option_refuses(tmp_path: Path) -> None:
    """Its answer is the caller's: nothing is tried behind anybody's back."""
    refusal = {"error": {"message": "Unknown parameter: 'stream_options'.", "code": None}}
    async with world(tmp_path, route=ASK) as parties:
        parties.primary.always(faults.status(400, refusal))
        reply = await through_steer(parties, chat(parties))
        assert (reply.status, reply.json) == (400, refusal)
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []
