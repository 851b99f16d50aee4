"""Keyed calls that are out of the ordinary: odd answers, odd requests, callers that leave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionResetError

from steer_proxy.http import execution
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.journal import Journal
from steer_proxy.ledger.memory import MemoryLedger
from tests.provider import (
    Answer,
    Attempt,
    Close,
    Data,
    Event,
    Finish,
    Head,
    Pause,
    Repeat,
    Reset,
    Send,
    WaitUntilClosed,
    bytes_answer,
    faults,
)
from tests.provider.steps import Framing
from tests.support.attempts import every_attempt
from tests.support.faulty_ledger import FaultyLedger
from tests.support.pair import key
from tests.support.raw import Reply as RawReply
from tests.support.raw import Stage, ask, chat, dialled, post, request, stage
from tests.support.world import World, world

CUT = "steer_draining"

KEY = "Idempotency-Key: order-1"

#: The fields that say how a keyed call was served, and which request it was.
SAID = {"x-steer-request-id", "x-steer-trace-id", "idempotency-status", "idempotent-replayed"}

#: And the time of the first one.
DATED = {*SAID, "date"}


@contextlib.asynccontextmanager
async def tool(tmp_path: Path, **idempotency: Any) -> AsyncIterator[Stage]:
    """A tool behind Steer; nothing is left over when its calls are done."""
    route = {"name": "tool", "path": "/tool", "candidates": ["tool"], "idempotency": idempotency}
    async with stage(tmp_path, routes=[route]) as at:
        yield at
        await asyncio.sleep(1.0)
        nothing_left(at.steer.gateway)


def nothing_left(gateway: Any) -> None:
    """No run, no memory of a body or a recording."""
    keyed = gateway._keyed
    assert keyed._running == {}
    assert keyed._memory.used == 0
    assert gateway._budget.used == 0
    assert keyed._executions._claims._held.ids() == ()


def same(first: RawReply, again: RawReply) -> None:
    """To the byte, but for what says how it was served."""
    assert again.first_line == first.first_line
    assert [each for each in again.fields if each[0].lower() not in DATED] == [
        each for each in first.fields if each[0].lower() not in DATED
    ]
    assert again.body == first.body


# --- Odd answers ----------------------------------------------------------------------------------


def chunked(*data: bytes) -> Answer:
    """A plain answer of unknown length."""
    head = Head(200, (("Content-Type", "application/json"),), framing="chunked")
    return Answer((head, *map(Data, data), Finish()))


def until_close(*data: bytes, content_type: str = "application/json") -> Answer:
    """A plain answer that ends with its connection."""
    return Answer(
        (Head(200, (("Content-Type", content_type),), framing="close"), *map(Data, data), Finish())
    )


ANSWERS = {
    "no content": Answer((Head(204, framing="none"),)),
    "created, empty": Answer((Head(201), Finish())),
    "not modified": Answer(
        (Head(304, (("Content-Length", "1234"), ("ETag", '"x"')), framing="none"),)
    ),
    "redirect": Answer((Head(307, (("Location", "/elsewhere"),)), Finish())),
    "see other, with words": Answer(
        (Head(303, (("Location", "/x"),), length=4), Data(b"look"), Finish())
    ),
    "chunked": chunked(b'{"a":', b"1}"),
    "empty chunked": chunked(),
    "large": Answer((Head(200, length=100_000), Data(b"x" * 100_000), Finish())),
    "larger than is held": Answer((Head(200, length=1_500_000), Data(b"x" * 1_500_000), Finish())),
    "large and chunked": chunked(b"y" * 700_000, b"z" * 700_000),
    "until close": until_close(b"all", content_type="text/plain"),
    "until close, half of JSON that is said to be text": until_close(b"[", content_type="text/x"),
    "until close, JSON": until_close(b'{"a":', b'"}"}\n'),
    "until close, JSON lines": until_close(b"{}\n{}", content_type="application/x-ndjson"),
    "until close, nothing": until_close(),
    "until close, a script's guard": until_close(b")]}',\n{}"),
    "until close, half of JSON in another encoding": until_close(
        b"{\x81{", content_type="application/json; charset=Shift_JIS"
    ),
    "until close, large JSON": until_close(b'["', b"x" * 1_500_000, b'"]'),
    "trailers": Answer(
        (
            Head(200, (("Transfer-Encoding", "chunked"),), framing="none"),
            Send(b"3\r\nall\r\n0\r\nX-Trailer: one\r\n\r\n"),
        )
    ),
    "a content type that is no UTF-8": Answer(
        (
            Head(200, (("Content-Type", "text/plain; name=\u00e9"),), length=3),
            Data(b"all"),
            Finish(),
        )
    ),
    "odd reason": Answer((Head(299, (("X-Odd", "\u00e9"),), reason="Quite odd"), Finish())),
}


@pytest.mark.parametrize("reason", ["D\u00e9j\u00e0", "all\tright"])
async def test_an_answer_is_not_lost_for_its_reason_phrase(tmp_path: Path, reason: str) -> None:
    """A phrase may have such bytes, and means nothing: it is left out."""
    async with tool(tmp_path) as at:
        at.provider.always(Answer((Head(200, reason=reason, length=2), Data(b"{}"), Finish())))
        data = post(b"{}", "/tool/x", KEY, "Content-Type: application/json")
        first, again = [await ask(at.port, data, "POST") for _ in range(2)]
        assert (first.first_line, first.body) == ("HTTP/1.1 200 ", b"{}")
        same(first, again)


async def test_an_answer_is_not_lost_for_its_many_fields(tmp_path: Path) -> None:
    """An answer may have as many as a request."""
    fields = tuple((f"X-{n}", "v") for n in range(250))
    async with tool(tmp_path) as at:
        at.provider.always(Answer((Head(200, fields, length=2), Data(b"{}"), Finish())))
        data = post(b"{}", "/tool/x", KEY, "Content-Type: application/json")
        first, again = [await ask(at.port, data, "POST") for _ in range(2)]
        assert [first.value(name) for name, _ in fields] == ["v"] * 250
        same(first, again)


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_any_answer_is_replayed_to_the_byte(tmp_path: Path, name: str) -> None:
    """The first, those that joined, and the replay."""
    async with tool(tmp_path) as at:
        at.provider.always(ANSWERS[name])
        data = post(b'{"x":1}', "/tool/x", KEY, "Content-Type: application/json")
        first, joined = await asyncio.gather(ask(at.port, data, "POST"), ask(at.port, data, "POST"))
        again = await ask(at.port, data, "POST")
        same(first, joined)
        same(first, again)
        assert first.status == ANSWERS[name].head.status
        assert [each.value("Idempotency-Status") for each in (first, joined, again)] == [
            "new",
            "joined",
            "replayed",
        ]
        ids = {each.value("X-Steer-Request-ID") for each in (first, joined, again)}
        assert len(ids) == 3
        assert len(at.provider.attempts) == 1


async def test_half_of_a_large_answer_is_not_kept(tmp_path: Path) -> None:
    """JSON that is not held whole: its caller sees it break, and nobody is given it again."""
    async with tool(tmp_path) as at:
        at.provider.always(until_close(b'["', b"x" * 1_500_000))
        async with dialled(at.port) as caller:
            caller.send(post(b"{}", "/tool/x", KEY))
            with pytest.raises(ValueError, match="base 16"):  # no last chunk came
                await caller.reply()
        again = await ask(at.port, post(b"{}", "/tool/x", KEY), "POST")
        assert (again.status, again.json["error"]["code"]) == (409, "steer_key_uncertain")
        assert len(at.provider.attempts) == 1


async def test_an_answer_that_cannot_be_kept_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours after the call was sent: it may have been executed, and so it is told."""

    def broken(_head: object) -> str:
        raise TypeError("a mistake")

    async with tool(tmp_path) as at:
        with monkeypatch.context() as patched:
            patched.setattr(execution, "head_text", broken)
            first = await ask(at.port, post(b"{}", "/tool/x", KEY), "POST")
        again = await ask(at.port, post(b"{}", "/tool/x", KEY), "POST")
        assert (first.status, first.value("X-Should-Retry")) == (500, "false")
        assert (again.status, again.json["error"]["code"]) == (409, "steer_key_uncertain")
        assert [each.value("Idempotency-Status") for each in (first, again)] == ["uncertain"] * 2
        assert len(at.provider.attempts) == 1


async def test_a_cookie_is_for_who_made_the_call(tmp_path: Path) -> None:
    """Callers that share keys share answers, and not each other's sessions."""
    async with tool(tmp_path, scope="route") as at:
        fields = (
            ("Set-Cookie", "session=one"),
            ("X-Other", "kept"),
            ("Idempotency-Status", "theirs"),
        )
        at.provider.always(
            Answer((Head(200, fields, length=3), Pause(1.0), Data(b"all"), Finish()))
        )
        data = post(b"{}", "/tool/x", KEY)
        first, joined = await asyncio.gather(ask(at.port, data, "POST"), ask(at.port, data, "POST"))
        again = await ask(at.port, data, "POST")
        assert [each.value("Set-Cookie") for each in (first, joined, again)] == [
            "session=one",
            None,
            None,
        ]
        assert {each.value("X-Other") for each in (first, joined, again)} == {"kept"}
        assert [each.value("Idempotency-Status") for each in (first, joined, again)] == [
            "new",
            "joined",
            "replayed",
        ]
        without = await ask(at.port, post(b"{}", "/tool/x"), "POST")
        assert without.value("Idempotency-Status") == "theirs"  # there is none of ours


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
async def test_any_method_that_changes_something_takes_a_key(tmp_path: Path, method: str) -> None:
    """Each is a call of its own."""
    async with tool(tmp_path) as at:
        data = request(method, "/tool/x", KEY)
        first = await ask(at.port, data, method)
        again = await ask(at.port, data, method)
        same(first, again)
        assert again.value("Idempotency-Status") == "replayed"
        other = await ask(at.port, post(b"", "/tool/x", KEY), "POST")
        assert other.value("Idempotency-Status") == "new"
        assert [each[0] for each in at.forwarded] == [method, "POST"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_what_changes_nothing_needs_none(tmp_path: Path, method: str) -> None:
    """Its key is not looked at: asking again is always allowed."""
    async with tool(tmp_path) as at:
        for _ in range(2):
            reply = await ask(at.port, request(method, "/tool/x", KEY), method)
            assert reply.value("Idempotency-Status") is None
        assert len(at.provider.attempts) == 2


@pytest.mark.parametrize("save", ["success", "final", "nothing"])
@pytest.mark.parametrize("code", [200, 400, 404, 429, 500])
async def test_what_is_saved(tmp_path: Path, save: str, code: int) -> None:
    """Successes; with `final` the provider's refusals too; with `nothing` none, and none again."""
    async with tool(tmp_path, save=save) as at:
        at.provider.always(Answer((Head(code, (("Content-Type", "text/plain"),)), Finish())))
        data = post(b"x", "/tool/x", KEY)
        first = await ask(at.port, data, "POST")
        before = len(at.provider.attempts)
        again = await ask(at.port, data, "POST")
        assert first.status == code
        if code == 200 and save == "nothing":
            assert (again.status, again.code) == (409, "steer_result_not_stored")
        elif code == 200 or (save == "final" and code in {400, 404}):
            same(first, again)
            assert again.value("Idempotency-Status") == "replayed"
        else:
            assert again.status == code
            assert len(at.provider.attempts) > before
            return
        assert len(at.provider.attempts) == before == 1


async def refused_in_half(at: Stage, whole: int, part: int) -> RawReply:
    """A keyed call whose refusal breaks off: its head; its end was no proper one."""
    refusal = Head(400, (("Content-Type", "text/plain"),), length=whole)
    at.provider.always(Answer((refusal, Data(b"x" * part), Pause(1.0), Reset())))
    async with dialled(at.port) as caller:
        caller.send(post(b"x", "/tool/x", KEY))
        head = await caller.head()
        body, _ = await caller.rest()
        assert len(body) < whole
        return head


async def test_a_refusal_that_broke_is_not_saved(tmp_path: Path) -> None:
    """Half of one is nobody's answer: its replay would promise what never comes."""
    async with tool(tmp_path, save="final") as at:
        for _ in range(2):
            assert (await refused_in_half(at, 2_000_000, 1_500_000)).status == 400
        assert len(at.provider.attempts) == 2


async def test_an_answer_that_promises_more_than_is_stored_is_not_begun(tmp_path: Path) -> None:
    """Its caller would wait for the rest, and take the next answer on the connection for it."""
    async with tool(tmp_path) as at:
        at.provider.always(Answer((Head(200, length=3), Data(b"all"), Finish())))
        data = post(b"x", "/tool/x", KEY)
        assert (await ask(at.port, data, "POST")).status == 200
        ledger: Any = at.steer.sidecar.books.ledger
        (row,) = (each for each in ledger.calls.values() if each.idem_key)
        longer = row.resp_headers.replace('["Content-Length","3"]', '["Content-Length","4"]')
        assert longer != row.resp_headers
        ledger.calls[row.id] = row._replace(resp_headers=longer)
        again = await ask(at.port, data, "POST")
        assert (again.status, again.code) == (409, "steer_replay_unavailable")
        assert len(at.provider.attempts) == 1


@pytest.mark.parametrize("name", ["no content", "created, empty", "empty chunked", "chunked"])
async def test_an_answer_that_is_not_stored_says_so(tmp_path: Path, name: str) -> None:
    """Its head goes out when that is known, though there is nothing to follow it."""
    route: dict[str, Any] = {"name": "tool", "path": "/tool", "candidates": ["tool"]}
    route["idempotency"] = {"save": "nothing"}
    ledger = FaultyLedger(MemoryLedger(time.time))
    ledger.before("finish", lambda: asyncio.sleep(1.0))
    async with stage(tmp_path, ledger, routes=[route]) as at:
        at.provider.always(ANSWERS[name])
        reply = await ask(at.port, post(b"x", "/tool/x", KEY), "POST")
        assert reply.status == ANSWERS[name].head.status
        assert reply.value("Idempotency-Status") == "not-stored"
        plain = await ask(at.port, post(b"x", "/tool/x"), "POST")
        assert (plain.status, plain.body) == (reply.status, reply.body)


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "without a key"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_live_answer_that_ends_with_its_head(
    tmp_path: Path, framing: Framing, *, keyed: bool
) -> None:
    """Its caller gets the head that the ledger tells of, and no proper end."""
    async with tool(tmp_path) as at:
        live = Head(200, (("Content-Type", "text/event-stream"),), framing, 100)
        at.provider.always(Answer((live, Pause(1.0), Close())))
        async with dialled(at.port) as caller:
            caller.send(post(b"x", "/tool/x", *([KEY] if keyed else [])))
            assert (await caller.head()).status == 200
            assert (await caller.rest())[0] == b""


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_the_end_of_a_compressed_stream_waits_for_its_record(
    tmp_path: Path, coding: str
) -> None:
    """An SDK stops at its last event, not at the end of the body: it must not have that before a
    crash can take it no more. Where nobody can look into it, that is the last part."""
    ledger = FaultyLedger(MemoryLedger(time.time))
    go = asyncio.Event()
    ledger.before("finish", go.wait)
    async with stage(tmp_path, ledger) as at, dialled(at.port) as caller:
        packer = zlib.compressobj(wbits=31) if coding == "gzip" else None

        def packed(data: bytes) -> Send:
            if packer is not None:
                data = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
            return Send(b"%x\r\n%b\r\n" % (len(data), data))

        def coded(_: Attempt, healthy: Answer) -> Answer:
            first, last = healthy.events[:3], healthy.events[3:]
            head = (("Content-Type", "text/event-stream"), ("Content-Encoding", coding))
            return Answer(
                (
                    Head(200, head, "chunked"),
                    packed(b"".join(each.data for each in first)),
                    Pause(0.5),
                    packed(b"".join(each.data for each in last)),
                    Finish(),
                )
            )

        at.provider.always(coded)
        caller.send(chat(KEY, stream=True))
        assert (await caller.head()).status == 200
        assert await caller.chunk()
        assert await caller.silent(1.5)  # less than the ledger is given
        go.set()
        assert [data async for data in caller.chunks()]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_stream_is_given_as_it_is(tmp_path: Path, coding: Any) -> None:
    """Whole, it is kept; what it counts is known all the same."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.compressed(coding, unasked=True))
        first, again = [
            await parties.ask(stream=True, headers=key(), stream_options={"include_usage": True})
            for _ in range(2)
        ]
        assert first.body == again.body
        assert again.headers["Idempotency-Status"] == "replayed"
        nothing_left(parties.steer.gateway)
        await asyncio.sleep(1.0)
        ledger = parties.steer.sidecar.books.ledger
        assert isinstance(ledger, MemoryLedger)
        counts = [row.tokens_out for row in ledger.calls.values() if row.idem_role == "owner"]
        assert len(counts) == 1
        assert counts[0]


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_a_compressed_stream_of_nothing_but_an_error_was_not_run(
    tmp_path: Path, coding: str
) -> None:
    """Its error event says so, whatever it is packed in: the call is made again."""
    event = b'data: {"error":{"message":"Slow down.","code":"rate_limit_exceeded"}}\n\n'
    body = gzip.compress(event) if coding == "gzip" else event
    fields = (("Content-Encoding", coding),)
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.then(bytes_answer(200, body, fields, "text/event-stream"))
        reply = await parties.ask(stream=True, headers=key())
        assert reply.status == 200
        assert reply.text == parties.primary.text


async def test_the_model_of_a_compressed_stream_is_known(tmp_path: Path) -> None:
    """Also where it counts nothing."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.compressed("gzip", unasked=True))
        await parties.ask(stream=True)
        await asyncio.sleep(1.0)
        ledger = parties.steer.sidecar.books.ledger
        assert isinstance(ledger, MemoryLedger)
        (row,) = ledger.calls.values()
        assert row.model_answered


NAMED = ["", "none", "utf-8", "identity, Identity"]
CODED = {name: faults.with_headers(("Content-Encoding", name)) for name in NAMED}
CODED |= {name: faults.compressed(name, unasked=True) for name in ("gzip", "deflate")}


@pytest.mark.parametrize("coded", list(CODED))
@pytest.mark.parametrize("how", ["in two", "by an error"])
async def test_no_coding_hides_that_a_stream_broke(tmp_path: Path, coded: str, how: str) -> None:
    """Whatever is said of its bytes, and however its framing ends: it is not complete."""
    async with world(tmp_path, fallback=False) as parties:
        if how == "in two":
            breaks = CODED[coded] | faults.cut_after(events=3, how="clean_end")
        else:
            breaks = faults.in_band_error(at=3) | CODED[coded]
        parties.primary.always(breaks)
        first = await parties.ask(stream=True, headers=key())
        assert first.cut or first.status == 504 or b"overloaded" in first.body
        again = await parties.ask(stream=True, headers=key())
        assert (again.status, again.json["error"]["code"]) == (409, "steer_key_uncertain")
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize("coded", list(CODED))
async def test_no_coding_hides_that_an_answer_was_cut(tmp_path: Path, coded: str) -> None:
    """JSON that ends with its connection, before its own end."""
    async with world(tmp_path, fallback=False) as parties:
        cut = faults.until_close() | faults.cut_after(bytes=200, how="close")
        parties.primary.always(CODED[coded] | cut)
        first = await parties.ask(headers=key())
        assert first.status == 504
        again = await parties.ask(headers=key())
        assert (again.status, again.json["error"]["code"]) == (409, "steer_key_uncertain")


async def test_a_tools_event_stream_ends_with_its_longest_time(tmp_path: Path) -> None:
    """Without a key it may last for ever; with one it goes on without its callers."""
    async with tool(tmp_path) as at:
        head = Head(200, (("Content-Type", "text/event-stream"),), framing="chunked")
        tick = Event(b"data: tick\n\n")
        endless = Answer((head, *[step for _ in range(50) for step in (tick, Pause(100.0))]))
        at.provider.always(endless)
        async with dialled(at.port) as caller:
            caller.send(post(b"x", "/tool/x", KEY))
            await caller.head()
            assert await caller.chunk() == tick.data
        await asyncio.sleep(60.0)
        assert at.steer.sidecar.active == 1
        await asyncio.sleep(3600.0)
        assert at.steer.sidecar.active == 0
        again = await ask(at.port, post(b"x", "/tool/x", KEY), "POST")
        assert (again.status, again.code) == (409, "steer_key_uncertain")


async def test_a_tools_event_stream_comes_live(tmp_path: Path) -> None:
    """Each event when it comes, to who asked and to who joined; then it is replayed."""
    async with tool(tmp_path) as at:
        head = Head(200, (("Content-Type", "text/event-stream"),), framing="chunked")
        events = [Event(b"data: %d\n\n" % n) for n in range(3)]
        steps = [step for event in events for step in (event, Pause(10.0))]
        at.provider.always(Answer((head, *steps, Finish())))
        data = post(b"x", "/tool/x", KEY)
        now = asyncio.get_running_loop().time
        began = now()
        async with dialled(at.port) as first, dialled(at.port) as second:
            first.send(data)
            await at.provider.wait_for_attempts(1)
            second.send(data)
            for caller in (first, second):
                await caller.head()
            for n, event in enumerate(events):
                assert await first.chunk() == await second.chunk() == event.data
                assert now() - began == pytest.approx(10.0 * n, abs=0.5)
        again = await ask(at.port, data, "POST")
        assert again.body == b"".join(event.data for event in events)


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "without a key"])
async def test_an_answer_nobody_reads_waits_once(tmp_path: Path, *, keyed: bool) -> None:
    """One that is given whole is not copied into the buffer of every caller that does not read."""
    route = {"name": "llm", "path": "/v1", "candidates": ["llm"], "commit": "complete"}
    async with stage(tmp_path, routes=[route]) as at:
        piece = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 60_000)
        last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        head = Head(200, (("Content-Type", "text/event-stream"),), framing="chunked")
        ending = Data(last + b"data: [DONE]\n\n")
        at.provider.always(Answer((head, Repeat(piece, 120), ending, Finish())))
        data = chat(*([KEY] if keyed else []), stream=True)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                caller = await stack.enter_async_context(dialled(at.port, window=4096))
                caller.writer.write(data)
                await asyncio.sleep(1.0)
            running = at.steer.gateway._running.values()
            transports = [each.transport for each in running]
            waiting = [each.get_write_buffer_size() for each in transports if each is not None]
            assert len(waiting) == 3
            assert max(waiting) < 256 * 1024
            assert len(at.provider.attempts) == (1 if keyed else 3)
        await asyncio.sleep(1.0)
        nothing_left(at.steer.gateway)


# --- Odd commits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", ["headers", "first_token", "complete"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_every_commit_point_is_replayed(tmp_path: Path, commit: str, stream: bool) -> None:
    """What was given is what is kept."""
    async with world(tmp_path, route={"commit": commit}) as parties:
        first = await parties.ask(stream=stream, headers=key())
        again = await parties.ask(stream=stream, headers=key())
        assert first.status == 200
        assert first.body == again.body
        assert again.headers["Idempotency-Status"] == "replayed"
        assert len(parties.primary.attempts) == 1
        nothing_left(parties.steer.gateway)


async def test_a_keyed_stream_is_not_resumed_elsewhere(tmp_path: Path) -> None:
    """That would be a second execution: it breaks, and is uncertain."""
    async with world(tmp_path, route={"on_break": "resume"}) as parties:
        parties.primary.always(faults.cut_after(events=5))
        first = await parties.ask(stream=True, headers=key())
        assert first.cut
        assert parties.fallback.attempts == []
        again = await parties.ask(stream=True, headers=key())
        assert again.status == 409
        nothing_left(parties.steer.gateway)


# --- Odd requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 200_000, 1_500_000, 5_000_000])
async def test_a_request_of_any_size(tmp_path: Path, size: int) -> None:
    """In memory or on disk: sent whole, recognised, and let go of."""
    async with tool(tmp_path) as at:
        at.provider.always(faults.silence(1.0))
        body = b"b" * size
        data = post(body, "/tool/x", KEY)
        replies = await asyncio.gather(*(ask(at.port, data, "POST") for _ in range(3)))
        assert {reply.status for reply in replies} == {200}
        assert [attempt.body for attempt in at.provider.attempts] == [body]
        other = await ask(at.port, post(body + b"!", "/tool/x", KEY), "POST")
        assert (other.status, other.code) == (422, "steer_key_mismatch")


async def test_joiners_keep_no_body(tmp_path: Path) -> None:
    """One body is needed, however many ask."""
    async with tool(tmp_path) as at:
        at.provider.always(faults.silence(5.0))
        data = post(b"b" * 100_000, "/tool/x", KEY)
        asking = [asyncio.create_task(ask(at.port, data, "POST")) for _ in range(10)]
        await asyncio.sleep(1.0)
        assert at.steer.gateway._budget.used == 100_000
        assert {reply.status for reply in await asyncio.gather(*asking)} == {200}


async def test_no_more_than_256_wait(tmp_path: Path) -> None:
    """The others are told to come again."""
    async with tool(tmp_path) as at:
        at.provider.always(faults.silence(5.0))
        data = post(b"x", "/tool/x", KEY)
        replies = await asyncio.gather(*(ask(at.port, data, "POST") for _ in range(260)))
        assert [reply.status for reply in replies].count(200) == 256
        refused = [reply for reply in replies if reply.status != 200]
        assert {reply.code for reply in refused} == {"steer_key_in_progress"}
        assert len(at.provider.attempts) == 1


# --- Callers that leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 300_000])
@pytest.mark.parametrize("joiners", [0, 1])
async def test_a_caller_may_leave_at_any_moment(tmp_path: Path, size: int, joiners: int) -> None:
    """After each turn of the loop: one execution at most, and nothing is left behind."""
    async with tool(tmp_path) as at:
        at.provider.always(faults.silence(1.0))
        for turns in range(0, 40, 1 if size < 100 else 3):
            before = len(at.provider.attempts)
            data = post(b"b" * size, "/tool/x", f"Idempotency-Key: {size}-{turns}")
            others = [asyncio.create_task(ask(at.port, data, "POST")) for _ in range(joiners)]
            async with dialled(at.port) as caller:
                caller.send(data)
                for _ in range(turns):
                    await asyncio.sleep(0)
            await asyncio.sleep(3.0)
            nothing_left(at.steer.gateway)
            for other in others:
                assert (await other).status == 200
            again = await ask(at.port, data, "POST")
            assert again.status == 200
            assert len(at.provider.attempts) == before + 1


async def test_a_slow_reader_of_a_replay_is_cut_off(tmp_path: Path) -> None:
    """It may not hold what it does not take for ever."""
    async with tool(tmp_path, max_stored="16MiB") as at:
        at.provider.always(Answer((Head(200, length=8_000_000), Data(b"x" * 8_000_000), Finish())))
        data = post(b"x", "/tool/x", KEY)
        assert len((await ask(at.port, data, "POST")).body) == 8_000_000
        async with dialled(at.port, window=4096) as caller:
            caller.send(data)
            await asyncio.sleep(10.0)
            assert at.steer.sidecar.active == 1
            await asyncio.sleep(3700.0)
            assert at.steer.sidecar.active == 0


async def test_a_slow_reader_holds_up_nobody(tmp_path: Path) -> None:
    """One that never reads, beside one that does."""
    async with tool(tmp_path) as at:
        head = Head(200, (("Content-Type", "video/mp4"),), framing="chunked")
        at.provider.always(Answer((head, Repeat(b"x" * 65536, 512), Finish())))
        data = post(b"x", "/tool/x", KEY)
        async with dialled(at.port, window=4096) as slow:
            slow.send(data)
            await at.provider.wait_for_attempts(1)
            reply = await ask(at.port, data, "POST")
            assert len(reply.body) == 65536 * 512
            assert len(at.provider.attempts) == 1
            later = await ask(at.port, data, "POST")
            assert later.code == "steer_result_not_stored"


# --- The end of the process -----------------------------------------------------------------------


async def test_a_drain_waits_for_calls_without_callers(tmp_path: Path) -> None:
    """They are paid: their answer is stored before the process ends."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(20.0))
        leaving = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert await parties.steer.sidecar.drain(30.0)
        (row,) = states(parties)
        assert row == "completed"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_drain_that_takes_too_long_says_what_is_uncertain(
    tmp_path: Path, stream: bool
) -> None:
    """Its caller is told to try again; the record is not left as if it ran."""
    async with world(tmp_path) as parties:
        pause = faults.at_event(3, WaitUntilClosed()) if stream else faults.silence()
        parties.primary.always(pause)
        calling = asyncio.create_task(parties.ask(stream=stream, headers=key()))
        await parties.primary.wait_for_attempts(1)
        await asyncio.sleep(1.0)
        assert not await parties.steer.sidecar.drain(2.0)
        reply = await calling
        assert (reply.status, reply.cut) == ((200, True) if stream else (503, False))
        assert b"steer_draining" in reply.body
        assert b"[DONE]" not in reply.body
        await parties.steer.gateway.close()
        assert states(parties) == ["uncertain"]
        (row,) = rows(parties, "owner")
        said = (row.status, row.outcome, row.error_class)
        assert said == (200 if stream else 503, "broken" if stream else "throttled", CUT)
        ledger: Any = parties.steer.sidecar.books.ledger
        await parties.steer.sidecar.books.stop()
        (attempt,) = every_attempt(row, ledger.attempts.values())
        assert (attempt.outcome, attempt.wasted) == ("cancelled", 1)


@pytest.mark.parametrize("callers", [1, 2])
async def test_a_drain_ends_calls_in_the_queue_in_its_own_words(
    tmp_path: Path, callers: int
) -> None:
    """They were not sent, and it was not their callers who left."""
    upstream = {"concurrency": {"limit": 1, "queue": 8}}
    async with world(tmp_path, fallback=False, upstream=upstream) as parties:
        parties.primary.always(faults.silence())
        first = asyncio.create_task(parties.ask())
        await parties.primary.wait_for_attempts(1)
        queued = [asyncio.create_task(parties.ask(headers=key())) for _ in range(callers)]
        await asyncio.sleep(1.0)
        assert not await parties.steer.sidecar.drain(2.0)
        for reply in [await first, *[await each for each in queued]]:
            assert (reply.status, reply.cut) == (503, False)
            assert b"steer_draining" in reply.body
        await parties.steer.gateway.close()
        await parties.steer.sidecar.books.stop()
        assert states(parties).count("released") == 1
        for row in [*rows(parties, "owner"), *rows(parties, "joined")]:
            assert (row.status, row.outcome, row.error_class) == (503, "throttled", CUT)
        assert len(rows(parties, "joined")) == callers - 1
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_duplicate_that_a_drain_cuts_says_so(tmp_path: Path, stream: bool) -> None:
    """It was told to come again, or its stream was broken off."""
    async with world(tmp_path) as parties:
        pause = faults.at_event(3, WaitUntilClosed()) if stream else faults.silence()
        parties.primary.always(pause)
        calling = asyncio.gather(
            *(parties.ask(stream=stream, headers=key()) for _ in range(2)),
        )
        await parties.primary.wait_for_attempts(1)
        await asyncio.sleep(1.0)
        assert not await parties.steer.sidecar.drain(2.0)
        await calling
        await parties.steer.gateway.close()
        await parties.steer.sidecar.books.stop()
        (row,) = rows(parties, "joined")
        said = (row.status, row.outcome, row.error_class)
        assert said == (200 if stream else 503, "broken" if stream else "throttled", CUT)


def states(parties: World) -> list[str | None]:
    """What the ledger says of the keys."""
    ledger: Any = parties.steer.sidecar.books.ledger
    return [row.idem_state for row in ledger.calls.values() if row.idem_key]


# --- What is written down -------------------------------------------------------------------------


async def test_a_duplicate_that_leaves_is_written_down_as_such(tmp_path: Path) -> None:
    """It was not served, and avoided nothing; the call goes on."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(10.0))
        first = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        leaving = asyncio.create_task(parties.ask(headers=key()))
        await asyncio.sleep(1.0)
        leaving.cancel()
        await asyncio.wait([first, leaving])
        await asyncio.sleep(1.0)
        joined = rows(parties, "joined")
        assert [(row.outcome, row.status, row.avoided_nusd) for row in joined] == [
            ("cancelled", None, None)
        ]
        assert [row.outcome for row in rows(parties, "owner")] == ["ok"]


async def test_a_duplicate_of_a_stream_that_breaks_avoids_nothing(tmp_path: Path) -> None:
    """It was broken off like the first."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.cut_after(events=5) | faults.at_event(2, Pause(1.0)))
        first, joined = await asyncio.gather(
            parties.ask(stream=True, headers=key()), parties.ask(stream=True, headers=key())
        )
        assert first.cut
        assert joined.cut
        await asyncio.sleep(1.0)
        (row,) = rows(parties, "joined")
        assert (row.outcome, row.error_class, row.avoided_nusd) == (
            "broken",
            "joined_call_failed",
            None,
        )


async def test_duplicates_of_what_was_refused_say_why(tmp_path: Path) -> None:
    """Joined or replayed, in the word of the call that was made."""
    async with world(tmp_path, route={"idempotency": {"save": "final"}}) as parties:
        parties.primary.always(faults.status(400) | faults.silence(1.0))
        await asyncio.gather(parties.ask(headers=key()), parties.ask(headers=key()))
        assert (await parties.ask(headers=key())).headers["Idempotency-Status"] == "replayed"
        await parties.steer.sidecar.books.stop()
        (owner,) = rows(parties, "owner")
        assert (owner.status, owner.outcome) == (400, "client_4xx")
        for role in ("joined", "replayed"):
            (row,) = rows(parties, role)
            assert (row.status, row.outcome) == (400, "client_4xx")
            assert (row.error_class, row.avoided_nusd) == ("joined_call_failed", None)


async def test_a_replay_whose_caller_leaves_is_written_down_as_such(tmp_path: Path) -> None:
    """In the middle of an answer that is larger than what is sent at once."""
    async with world(tmp_path) as parties:
        parties.primary.text = "x" * 8_000_000
        await parties.ask(headers=key())
        path, body = parties.request()
        url = f"{parties.steer.url}/route{path}"
        headers = {**key(), "Authorization": "Bearer caller-key"}
        async with parties.session.post(url, json=body, headers=headers) as response:
            assert response.headers["Idempotency-Status"] == "replayed"
            await response.content.readany()
            response.close()
        await asyncio.sleep(1.0)
        await parties.steer.sidecar.books.stop()
        (row,) = rows(parties, "replayed")
        assert (row.outcome, row.avoided_nusd) == ("cancelled", None)


async def test_a_replay_into_a_connection_that_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller's leaving is noticed by a write before anybody is told of it."""
    async with world(tmp_path) as parties:
        parties.primary.text = "x" * 2_000_000
        await parties.ask(headers=key())
        write = CallerResponse.write

        async def closing(self: CallerResponse, data: bytes) -> None:
            if self.given:
                raise ClientConnectionResetError("Cannot write to closing transport")
            await write(self, data)

        monkeypatch.setattr(CallerResponse, "write", closing)
        assert (await parties.ask(headers=key())).cut
        await parties.steer.sidecar.books.stop()
        (row,) = rows(parties, "replayed")
        assert (row.outcome, row.avoided_nusd) == ("cancelled", None)


def rows(parties: World, role: str) -> list[Any]:
    """The rows of a role."""
    ledger: Any = parties.steer.sidecar.books.ledger
    return [row for row in ledger.calls.values() if row.idem_role == role]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_bug_leaves_nobody_waiting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    """All callers are told; the call was made, so its key is uncertain."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the test says so")

    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(1.0))
        monkeypatch.setattr(Journal, "closing", broken)
        replies = await asyncio.gather(
            *(parties.ask(stream=stream, headers=key()) for _ in range(3))
        )
        for reply in replies:
            assert (reply.status, reply.cut) == ((200, True) if stream else (500, False))
            assert b"steer_internal_error" in reply.body
            assert b"[DONE]" not in reply.body
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        again = await parties.ask(stream=stream, headers=key())
        assert again.json["error"]["code"] == "steer_key_uncertain"
        assert len(parties.primary.attempts) == 1
        nothing_left(parties.steer.gateway)
