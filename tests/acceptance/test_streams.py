"""Streams after their commit point: exact while they last, and never a false end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.provider import Answer, Event, Pause, faults
from tests.provider.faults.rewriting import rewrite
from tests.support.world import world

DIALECTS = ["openai", "anthropic", "gemini"]
EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS)
ENDS = pytest.mark.parametrize("how", ["reset", "close", "clean_end"])


def broken(reply: Any, code: str = "steer_stream_broken") -> None:
    """The caller was told, and no HTTP client can take the answer for complete."""
    assert reply.status == 200
    assert reply.cut
    assert code in reply.body.decode()


@EVERY_DIALECT
@ENDS
async def test_a_cut_stream_is_an_error(tmp_path: Path, dialect: str, how: Any) -> None:
    """Whatever its framing says: without its end a stream is not complete."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.cut_after(events=5, how=how))
        reply = await parties.ask(stream=True)
        broken(reply)
        assert parties.primary.text.startswith(reply.text)
        assert parties.fallback.attempts == []


@EVERY_DIALECT
async def test_a_stalled_stream_is_an_error(tmp_path: Path, dialect: str) -> None:
    """Silence in the middle ends with the idle limit, and the upstream connection with it."""
    async with world(tmp_path, dialect, upstream={"timeouts": {"idle": 11}}) as parties:
        parties.primary.always(faults.stall_after(events=5))
        reply = await parties.ask(stream=True)
        broken(reply)
        assert 11.0 <= reply.seconds < 11.5
        await parties.primary.attempts[0].finished.wait()


@EVERY_DIALECT
async def test_an_event_cut_in_the_middle_is_not_relayed(tmp_path: Path, dialect: str) -> None:
    """Only whole events reach the caller, so that the error event can be read."""
    async with world(tmp_path, dialect) as parties:
        direct = await _direct(parties)
        cut = len(direct) - 30
        parties.primary.always(faults.cut_after(bytes=cut - 100))
        reply = await parties.ask(stream=True)
        broken(reply)
        assert all(isinstance(event, dict) for event in reply.events)
        assert reply.events[-1].get("error") or reply.events[-1].get("type") == "error"


async def _direct(parties: Any) -> bytes:
    path, body = parties.request(stream=True)
    base = parties.primary.base_url + ("/v1" if parties.dialect == "openai" else "")
    async with parties.session.post(base + path, json=body) as response:
        return bytes(await response.read())


@EVERY_DIALECT
@pytest.mark.parametrize("one_byte", [False, True], ids=["as sent", "byte by byte"])
async def test_bytes_pass_exactly(tmp_path: Path, dialect: str, one_byte: bool) -> None:
    """However the provider cuts its writes, the caller gets the provider's bytes."""
    async with world(tmp_path, dialect) as parties:
        direct = await _direct(parties)
        if one_byte:
            parties.primary.always(faults.one_byte_writes())
        reply = await parties.ask(stream=True)
        assert reply.body == direct
        assert not reply.cut


@EVERY_DIALECT
async def test_a_malformed_event_passes_through(tmp_path: Path, dialect: str) -> None:
    """One event that is not JSON harms neither the stream nor its end."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.malformed_event(at=4))
        reply = await parties.ask(stream=True)
        assert reply.status == 200
        assert not reply.cut
        assert b'{"broken": ' in reply.body
        assert b"steer_" not in reply.body


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("how", ["clean_end", "close", "open"])
async def test_a_complete_stream_without_its_marker_ends_promptly(
    tmp_path: Path, dialect: str, how: Any
) -> None:
    """All was said: no error, and no waiting for the idle limit."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.without_terminal_marker(how))
        reply = await parties.ask(stream=True)
        assert reply.status == 200
        assert not reply.cut
        assert reply.text == parties.primary.text
        assert reply.seconds < 11


@EVERY_DIALECT
@pytest.mark.parametrize(
    ("pause", "idle", "whole"), [(9, 30, True), (9, 5, False), (15, 30, False)]
)
async def test_what_follows_the_finish_reason_has_its_time(
    tmp_path: Path, dialect: str, pause: float, idle: float, whole: bool
) -> None:
    """Usage and terminal marker are part of a good answer, but not to be awaited for ever."""
    sent: list[Event] = []
    count = 2 if dialect == "openai" else 1  # the usage and [DONE], or message_stop

    def late(answer: Answer) -> Answer:
        *steps, finish = answer.steps
        if dialect == "gemini":
            steps.append(Event(b'data: {"usageMetadata": {"promptTokenCount": 3}}\r\n\r\n'))
        sent[:] = [step for step in steps if isinstance(step, Event)]
        return Answer((*steps[:-count], Pause(pause), *steps[-count:], finish))

    async with world(tmp_path, dialect, upstream={"timeouts": {"idle": idle}}) as parties:
        parties.primary.always(rewrite("late", late))
        more: dict[str, Any] = {"stream_options": {"include_usage": True}}
        if dialect != "openai":
            more = {}
        reply = await parties.ask(stream=True, **more)
        assert not reply.cut
        relayed = sent if whole else sent[:-count]
        assert reply.body == b"".join(event.data for event in relayed)
        assert reply.seconds == pytest.approx(min(pause, idle, 10), abs=0.5)


@EVERY_DIALECT
async def test_a_later_in_band_error_is_the_callers_to_see(tmp_path: Path, dialect: str) -> None:
    """After commit the provider's own error event is relayed as it came."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.in_band_error(at=5))
        reply = await parties.ask(stream=True)
        assert reply.status == 200
        assert reply.events[-1].get("error") or reply.events[-1].get("type") == "error"
        assert b"steer_" not in reply.body


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("events", [3, 5, 8])
@ENDS
async def test_resume_gives_the_one_complete_answer(
    tmp_path: Path, dialect: str, events: int, how: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A fallback that says the same goes on where the first stream broke, word for word. The log
    has one line of it, and nothing that is wrong with the answer."""
    caplog.set_level(logging.INFO, "steer")
    async with world(tmp_path, dialect, route={"on_break": "resume"}) as parties:
        parties.primary.always(faults.cut_after(events=events, how=how))
        reply = await parties.ask(stream=True)
        assert reply.status == 200
        assert not reply.cut
        assert reply.text == parties.primary.text
        assert b"steer_" not in reply.body
        assert _one_envelope(reply.events)
    told = [each for each in caplog.records if " in " in each.message and "[" in each.message]
    assert [each.levelname for each in told] == ["INFO"]
    assert "answered" in told[0].message


def _one_envelope(events: list[Any]) -> bool:
    """One message, one id, one end: as a single provider would have sent it."""
    ids = {event["id"] for event in events if "choices" in event}
    starts = [event for event in events if event.get("type") == "message_start"]
    ends = [event for event in events if event.get("type") == "message_stop"]
    return len(ids) == 1 or (len(starts) == 1 and len(ends) == 1)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_resume_after_a_stall(tmp_path: Path, dialect: str) -> None:
    """A stall is a break like any other."""
    async with world(
        tmp_path, dialect, route={"on_break": "resume"}, upstream={"timeouts": {"idle": 10}}
    ) as parties:
        parties.primary.always(faults.stall_after(events=5))
        reply = await parties.ask(stream=True)
        assert not reply.cut
        assert reply.text == parties.primary.text


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_resume_after_a_later_in_band_error(tmp_path: Path, dialect: str) -> None:
    """An error event after commit is hidden too when another candidate says the same."""
    async with world(tmp_path, dialect, route={"on_break": "resume"}) as parties:
        parties.primary.always(faults.in_band_error(at=6))
        reply = await parties.ask(stream=True)
        assert not reply.cut
        assert reply.text == parties.primary.text
        assert b"overloaded" not in reply.body


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_resume_refuses_another_text(tmp_path: Path, dialect: str) -> None:
    """Two different answers are never spliced: the caller gets the error."""
    async with world(tmp_path, dialect, route={"on_break": "resume"}) as parties:
        parties.primary.always(faults.cut_after(events=6))
        parties.fallback.text = "Something else altogether, from the first word on."
        reply = await parties.ask(stream=True)
        broken(reply)
        assert "Something else" not in reply.text


async def test_resume_that_breaks_as_well_is_an_error(tmp_path: Path) -> None:
    """One rescue is tried; when it breaks too, the caller is told."""
    async with world(tmp_path, route={"on_break": "resume"}) as parties:
        parties.primary.always(faults.cut_after(events=4))
        parties.fallback.always(faults.cut_after(events=7))
        reply = await parties.ask(stream=True)
        broken(reply)
        assert parties.primary.text.startswith(reply.text)


async def test_resume_leaves_tool_calls_alone(tmp_path: Path) -> None:
    """Only text can be joined: with tools a broken stream is an error."""
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    async with world(tmp_path, route={"on_break": "resume"}) as parties:
        parties.primary.always(faults.cut_after(events=3))
        broken(await parties.ask(stream=True, tools=tools))


@EVERY_DIALECT
@pytest.mark.parametrize("events", [1, 4, 8])
async def test_commit_complete_hides_any_break(tmp_path: Path, dialect: str, events: int) -> None:
    """With `commit: complete` the caller gets one whole answer, whatever the fallback says."""
    async with world(tmp_path, dialect, route={"commit": "complete"}) as parties:
        parties.primary.always(faults.cut_after(events=events))
        parties.fallback.text = "Quite another answer."
        reply = await parties.ask(stream=True)
        assert reply.status == 200
        assert not reply.cut
        assert reply.text == "Quite another answer."
        assert reply.headers["X-Steer-Upstream"] == "fallback"


@EVERY_DIALECT
async def test_commit_complete_hides_a_later_error(tmp_path: Path, dialect: str) -> None:
    """An in-band error in the middle is hidden as well."""
    async with world(tmp_path, dialect, route={"commit": "complete"}) as parties:
        parties.primary.always(faults.in_band_error(at=5))
        reply = await parties.ask(stream=True)
        assert not reply.cut
        assert reply.text == parties.primary.text


@EVERY_DIALECT
async def test_commit_complete_waits_for_a_long_stream(tmp_path: Path, dialect: str) -> None:
    """The limit of the first token has no say once there is one, whenever the caller gets it."""
    timeouts = {"timeouts": {"first_token": 5, "idle": 4}}
    async with world(tmp_path, dialect, route={"commit": "complete"}, upstream=timeouts) as parties:
        parties.primary.pace = 2.0
        reply = await parties.ask(stream=True)
        assert reply.status == 200
        assert reply.text == parties.primary.text
        assert reply.headers["X-Steer-Upstream"] == "primary"
        assert reply.seconds > 10


async def test_commit_complete_waits_no_longer_than_the_deadline(tmp_path: Path) -> None:
    """What has begun to speak must have ended by then."""
    route = {"commit": "complete", "timeouts": {"total": 8}}
    async with world(tmp_path, route=route, fallback=False) as parties:
        parties.primary.pace = 2.0
        reply = await parties.ask(stream=True)
        assert reply.status == 504
        assert reply.json["error"]["code"] == "steer_deadline"
        assert 7.5 <= reply.seconds <= 8.1


async def test_commit_headers_does_not_hold_back(tmp_path: Path) -> None:
    """With `commit: headers` the caller sees the head before the first token."""
    async with world(tmp_path, route={"commit": "headers"}) as parties:
        parties.primary.always(faults.slow_first_token(30))
        path, body = parties.request(stream=True)
        began = parties.now()
        async with parties.session.post(f"{parties.steer.url}/route{path}", json=body) as response:
            assert parties.now() - began < 0.1
            await response.read()
        assert parties.now() - began >= 30


@pytest.mark.parametrize(("max_stream", "whole"), [(60, True), (12, False)])
async def test_a_stream_outlives_the_total_limit(
    tmp_path: Path, max_stream: int, whole: bool
) -> None:
    """`total` bounds the time to commit, not a stream's life; `max_stream` bounds that."""
    route = {"timeouts": {"total": 5, "max_stream": max_stream}}
    async with world(tmp_path, route=route) as parties:
        parties.primary.pace = 2.0
        reply = await parties.ask(stream=True)
        assert reply.cut is not whole
        assert reply.seconds > 10
        assert reply.seconds < max_stream + 5


@pytest.mark.parametrize("delta", [-20, 20])
@pytest.mark.parametrize("size", [200, 3_000_000], ids=["held", "relayed"])
async def test_a_wrong_length_is_never_a_clean_answer(
    tmp_path: Path, delta: int, size: int
) -> None:
    """A plain answer shorter than promised is retried while held, and cut when it was relayed."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.text = "word " * (size // 5)
        parties.primary.always(faults.wrong_length(delta))
        reply = await parties.ask()
        if delta > 0:
            assert reply.cut or reply.status == 502
        else:
            # What exceeds the promised length is no part of the answer (RFC 9112 section 6.3).
            assert reply.status in {200, 502}


async def test_a_caller_that_never_reads_is_dropped(tmp_path: Path) -> None:
    """A stream's life is bounded also where nobody takes what it brings."""
    route = {"timeouts": {"max_stream": 60}}
    async with world(tmp_path, route=route) as parties:
        parties.primary.always(faults.huge_answer(20 * 1024 * 1024))
        reader, writer = await asyncio.open_connection("127.0.0.1", parties.steer.sidecar.port)
        path, body = parties.request(stream=True)
        raw = json.dumps(body).encode()
        head = (
            f"POST /route{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        writer.write(head.encode() + raw)
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(100)
        assert parties.steer.gateway.active == 0
        assert parties.primary.open_connections == 0
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
