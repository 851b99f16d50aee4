"""Two sidecars that share one ledger: one key is one paid call, whichever of them is asked."""

from __future__ import annotations

import asyncio
import hashlib
import json
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from steer_proxy.http import keyed as keyed_calls
from steer_proxy.http import live as live_streams
from steer_proxy.http.live import EVERY, LINGER
from steer_proxy.http.replay import AT_ONCE, PAGE
from steer_proxy.ledger import migrate
from steer_proxy.ledger.sealing import Sealer
from tests.provider import Answer, Await, Data, Finish, Head, Pause, Signal, faults
from tests.support.pair import Pair, Replica, key, pair
from tests.support.world import Reply

PLAIN_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
EVERY_DIALECT = pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])

#: Longer than a lease, in seconds.
LAPSE = 16.0

PRICE = {"input_usd_per_mtok": 2.0, "output_usd_per_mtok": 8.0}
PRICED = {"models": {"*": PRICE}}
COUNTING: tuple[dict[str, Any], ...] = ({}, {"stream_options": {"include_usage": True}})

RERUN = {"idempotency": {"on_uncertain": "rerun"}}


def told(reply: Reply, status: int, code: str, *, again: bool | None = None) -> None:
    """Steer's own error, and what it says about trying again."""
    assert reply.status == status, reply.body
    assert reply.json["error"]["code"] == code
    if again is not None:
        assert reply.headers["X-Should-Retry"] == str(again).lower()


async def asked(replica: Replica, *, attempts: int = 1, **more: Any) -> asyncio.Task[Reply]:
    """A call under way: its request has come to the provider."""
    task = asyncio.create_task(replica.ask(**more))
    await replica.primary.wait_for_attempts(attempts)
    return task


# --- Joining --------------------------------------------------------------------------------------


@EVERY_DIALECT
@PLAIN_AND_STREAMED
async def test_fifty_duplicates_over_both_are_one_call(
    tmp_path: Path, dialect: str, stream: bool
) -> None:
    """The provider sees one request; all callers get its bytes, wherever they asked."""
    async with pair(tmp_path, dialect) as both:
        await fifty(both, stream=stream)


async def fifty(both: Pair, *, stream: bool) -> None:
    fault = faults.at_event(1, Pause(0.5)) if stream else faults.silence(0.5)
    both.provider.always(fault)
    replies = await asyncio.gather(
        *(
            (both.there if turn % 2 else both.here).ask(stream=stream, headers=key())
            for turn in range(50)
        )
    )
    assert len(both.provider.attempts) == 1
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1
    assert not any(reply.cut for reply in replies)
    said = sorted(reply.headers["Idempotency-Status"] for reply in replies)
    assert said == ["joined"] * 49 + ["new"]


async def test_a_stream_is_followed_live(tmp_path: Path) -> None:
    """Who joins at the other sidecar has the first token before the stream goes on."""
    async with pair(tmp_path) as both:
        await live(both)


async def live(both: Pair) -> None:
    go = asyncio.Event()
    both.provider.always(faults.at_event(3, Await(go)))
    first = await asked(both.here, stream=True, headers=key())
    path, body = both.there.request(stream=True)
    headers = {**key(), "Authorization": "Bearer caller-key"}
    url = f"{both.there.steer.url}/route{path}"
    async with both.there.session.post(url, json=body, headers=headers) as response:
        seen = b""
        while b'"content":"' not in seen:
            async with asyncio.timeout(5):
                seen += await response.content.readany()
        assert response.headers["Idempotency-Status"] == "joined"
        assert not first.done()
        go.set()
        seen += await response.content.read()
    assert seen == (await first).body
    assert seen.endswith(b"data: [DONE]\n\n")
    assert len(both.provider.attempts) == 1


@PLAIN_AND_STREAMED
async def test_when_the_others_had_the_first_token(tmp_path: Path, stream: bool) -> None:
    """Who joins elsewhere after 1 s of 3, and who gets the stored answer; never of a plain one."""
    async with pair(tmp_path) as both:
        slow = faults.slow_first_token(3.0) if stream else faults.silence(3.0)
        both.provider.always(slow)
        first = await asked(both.here, stream=stream, headers=key())
        await asyncio.sleep(1.0)
        await both.there.ask(stream=stream, headers=key())
        await first
        await both.there.ask(stream=stream, headers=key())
        await both.there.steer.sidecar.books.stop()
        found = {row.idem_role: row.first_token_us for row in both.rows.values()}
        assert set(found) == {"owner", "joined", "replayed"}
        if not stream:
            assert set(found.values()) == {None}
            return
        for role, seconds in (("owner", 3.0), ("joined", 2.0), ("replayed", 0.0)):
            assert (found[role] or 0) / 1e6 == pytest.approx(seconds, abs=0.5), role


@EVERY_DIALECT
@PLAIN_AND_STREAMED
async def test_the_other_one_replays(tmp_path: Path, dialect: str, stream: bool) -> None:
    """Status, fields and body are those of the first answer."""
    async with pair(tmp_path, dialect) as both:
        await replayed(both, stream=stream)


async def replayed(both: Pair, *, stream: bool) -> None:
    first = await both.here.ask(stream=stream, headers=key())
    again = await both.there.ask(stream=stream, headers=key())
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert again.headers["X-Steer-Upstream"] == first.headers["X-Steer-Upstream"]
    assert again.headers["Idempotency-Status"] == "replayed"
    assert again.headers["X-Steer-Request-ID"] != first.headers["X-Steer-Request-ID"]
    assert len(both.provider.attempts) == 1


@PLAIN_AND_STREAMED
async def test_who_joins_a_call_that_fails_elsewhere_may_try_again(
    tmp_path: Path, stream: bool
) -> None:
    """It does not claim the key itself; its SDK's next try does."""
    async with pair(tmp_path, route={"retry": {"max_attempts": 1}}) as both:
        both.provider.then(faults.status(500) | faults.silence(1.0))
        first = await asked(both.here, stream=stream, headers=key())
        joined = await both.there.ask(stream=stream, headers=key())
        assert (await first).status == 500
        told(joined, 502, "steer_joined_call_failed", again=True)
        assert len(both.provider.attempts) == 1
        again = await both.there.ask(stream=stream, headers=key())
        assert (again.status, again.headers["Idempotency-Status"]) == (200, "new")


@EVERY_DIALECT
async def test_a_stream_that_was_written_in_many_small_parts(tmp_path: Path, dialect: str) -> None:
    """More than are read at once, and all of them together no larger than one write."""
    async with pair(tmp_path, dialect) as both:
        both.provider.text = " ".join(f"word-{number}" for number in range(3 * PAGE))
        slowly = [faults.at_event(number, Pause(2 * EVERY)) for number in range(1, 3 * PAGE)]
        both.provider.always(reduce(or_, slowly))
        first = await both.here.ask(stream=True, headers=key())
        (row,) = both.records()
        assert (row.resp_chunks or 0) > PAGE
        assert len(first.body) < AT_ONCE
        for replica in (both.here, both.there):
            again = await replica.ask(stream=True, headers=key())
            assert again.headers["Idempotency-Status"] == "replayed"
            assert (again.body, again.cut) == (first.body, False)


async def test_who_joins_a_stream_that_breaks_elsewhere_sees_it_break(tmp_path: Path) -> None:
    """What came is given, then the stream is broken off; nobody makes the call again."""
    async with pair(tmp_path) as both:
        both.provider.then(faults.cut_after(events=4) | faults.at_event(2, Pause(1.0)))
        first = await asked(both.here, stream=True, headers=key())
        joined = await both.there.ask(stream=True, headers=key())
        assert (await first).cut
        assert joined.cut
        assert b"[DONE]" not in joined.body
        again = await both.there.ask(stream=True, headers=key())
        told(again, 409, "steer_key_uncertain", again=False)
        assert len(both.provider.attempts) == 1


@PLAIN_AND_STREAMED
async def test_another_request_with_the_key_is_refused_elsewhere_too(
    tmp_path: Path, stream: bool
) -> None:
    """422 while the first runs, and after it; nothing goes upstream."""
    async with pair(tmp_path) as both:
        both.provider.always(faults.silence(2.0))
        first = await asked(both.here, stream=stream, headers=key())
        reply = await both.there.ask(stream=stream, headers=key(), temperature=1)
        told(reply, 422, "steer_key_mismatch", again=False)
        assert (await first).status == 200
        reply = await both.there.ask(stream=stream, headers=key(), temperature=1)
        told(reply, 422, "steer_key_mismatch", again=False)
        assert len(both.provider.attempts) == 1


async def test_who_is_refused_leaves_nothing_running(tmp_path: Path) -> None:
    """Following a call elsewhere ends with the last who wants it: a drain waits for nobody."""
    async with pair(tmp_path) as both:
        both.provider.always(faults.silence(60.0))
        first = await asked(both.here, headers=key())
        await both.there.ask(headers=key(), temperature=1)
        leaving = asyncio.create_task(both.there.ask(headers=key()))
        await asyncio.sleep(1.0)
        assert both.there.steer.sidecar.active == 1
        leaving.cancel()
        await asyncio.wait([leaving])
        await asyncio.sleep(1.0)
        assert both.there.steer.sidecar.active == 0
        again = await both.there.ask(headers=key())
        assert again.body == (await first).body


@PLAIN_AND_STREAMED
async def test_who_hangs_up_after_the_last_byte_was_served(tmp_path: Path, stream: bool) -> None:
    """Whatever the ledger still has to be asked about the call it has joined."""
    async with pair(tmp_path, upstream=PRICED) as both:
        both.there.ledger.after("answer", partial(asyncio.sleep, 1.0))
        both.provider.always(faults.at_event(1, Pause(0.5)) if stream else faults.silence(0.5))
        first = await asked(both.here, stream=stream, headers=key(), **COUNTING[stream])
        path, body = both.there.request(stream=stream, **COUNTING[stream])
        url = f"{both.there.steer.url}/route{path}"
        headers = {**key(), "Authorization": "Bearer caller-key"}
        async with both.there.session.post(url, json=body, headers=headers) as response:
            seen = b""
            while not (seen.endswith(b"[DONE]\n\n") if stream else len(seen) > 1):
                seen += await response.content.readany()
            response.close()
        assert seen == (await first).body
        await both.there.steer.sidecar.books.stop()
        (owner,), (joined,) = both.records(), both.records("joined")
        assert (joined.status, joined.outcome, joined.error_class) == (200, "ok", None)
        assert joined.avoided_nusd == owner.cost_nusd
        assert joined.avoided_nusd
        assert (joined.model_answered, joined.upstream) == (owner.model_answered, "primary")


async def test_who_joins_what_fails_elsewhere_is_written_down_as_failed(tmp_path: Path) -> None:
    """In the word that fits what it was told."""
    async with pair(tmp_path, route={"retry": {"max_attempts": 1}}) as both:
        both.provider.then(faults.status(500) | faults.silence(1.0))
        first = await asked(both.here, headers=key())
        assert (await both.there.ask(headers=key())).status == 502
        await first
        await both.there.steer.sidecar.books.stop()
        (joined,) = both.records("joined")
        assert (joined.status, joined.outcome) == (502, "broken")
        assert joined.error_class == "joined_call_failed"


LARGE = {"idempotency": {"max_stored": 4096}}


async def large(both: Pair) -> tuple[Reply, Reply]:
    """A stream that grows too large while the other one follows it: what both get."""
    both.provider.text = "word " * 400
    both.provider.always(faults.at_event(3, Pause(2.0)) | faults.at_event(100, Pause(2.0)))
    first = await asked(both.here, stream=True, headers=key())
    joined = await both.there.ask(stream=True, headers=key())
    return await first, joined


async def test_an_answer_that_grows_too_large_is_whole_for_who_follows_it(tmp_path: Path) -> None:
    """Live, to its last byte; later ones are told that it is not stored, and nothing is left."""
    async with pair(tmp_path, route=LARGE) as both:
        whole, joined = await large(both)
        assert whole.body.endswith(b"data: [DONE]\n\n")
        assert (joined.status, joined.body, joined.cut) == (200, whole.body, False)
        for replica in (both.here, both.there):
            later = await replica.ask(stream=True, headers=key())
            told(later, 409, "steer_result_not_stored", again=False)
        assert len(both.provider.attempts) == 1
        assert both.memory is not None
        await asyncio.sleep(LINGER + 1.0)
        (row,) = both.records()
        assert await both.memory.chunks(row.id, -1, 1) == []
        assert (row.resp_headers, row.resp_chunks) == (None, None)


async def test_who_comes_late_to_where_less_is_kept_follows_anew(tmp_path: Path) -> None:
    """What one replica does not keep for all of its callers, the other one stores all the same."""
    small = {"idempotency": {"max_stored": 64}}
    async with pair(tmp_path, routes=({}, small)) as both:
        both.provider.text = "word " * 400
        go = asyncio.Event()
        both.provider.always(faults.at_event(100, Pause(2.0)) | faults.at_event(300, Await(go)))
        first = await asked(both.here, stream=True, headers=key())
        joined = await asked(both.there, stream=True, headers=key())
        late = []
        for _ in range(2):
            await asyncio.sleep(4.0)
            late.append(asyncio.create_task(both.there.ask(stream=True, headers=key())))
        await asyncio.sleep(1.0)
        assert both.there.steer.sidecar.active == 3
        go.set()
        whole = await first
        assert whole.body.endswith(b"data: [DONE]\n\n")
        for reply in await asyncio.gather(joined, *late):
            assert (reply.status, reply.body, reply.cut) == (200, whole.body, False)
            assert reply.headers["Idempotency-Status"] == "joined"
        again = await both.there.ask(stream=True, headers=key())
        assert (again.body, again.headers["Idempotency-Status"]) == (whole.body, "replayed")
        assert len(both.provider.attempts) == 1
        assert both.there.steer.sidecar.active == 0


async def test_who_comes_late_without_a_ledger_makes_no_call(tmp_path: Path) -> None:
    """Not even where the route would make one unprotected: the call is known to be running."""
    small = {"idempotency": {"max_stored": 64, "on_ledger_down": "open"}}
    async with pair(tmp_path, routes=({}, small)) as both:
        both.provider.text = "word " * 400
        go = asyncio.Event()
        both.provider.always(faults.at_event(100, Pause(2.0)) | faults.at_event(300, Await(go)))
        first = await asked(both.here, stream=True, headers=key())
        joined = await asked(both.there, stream=True, headers=key())
        await asyncio.sleep(4.0)
        both.there.ledger.down()
        await asyncio.sleep(1.0)
        late = await both.there.ask(stream=True, headers=key())
        told(late, 409, "steer_key_in_progress", again=True)
        both.there.ledger.up()
        go.set()
        assert (await joined).body == (await first).body
        assert len(both.provider.attempts) == 1


async def test_who_comes_too_late_for_a_large_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning is gone, here and there, while others still get the rest."""
    monkeypatch.setattr(live_streams, "WINDOW", 32 * 1024)
    monkeypatch.setattr(live_streams, "SLACK", 0)
    async with pair(tmp_path, route=LARGE) as both:
        both.provider.text = "word " * 400
        go = asyncio.Event()
        slowly = [faults.at_event(number, Pause(1.0)) for number in (3, 100, 200)]
        both.provider.always(reduce(or_, slowly) | faults.at_event(300, Await(go)))
        first = await asked(both.here, stream=True, headers=key())
        joined = await asked(both.there, stream=True, headers=key())
        await asyncio.sleep(4.0)
        for replica in (both.here, both.there):
            late = await replica.ask(stream=True, headers=key())
            told(late, 409, "steer_result_not_stored", again=False)
        go.set()
        assert (await joined).body == (await first).body
        assert len(both.provider.attempts) == 1


async def test_a_large_answer_that_breaks_is_broken_for_who_follows_it(tmp_path: Path) -> None:
    """What came of it is given, and does not stay in the ledger."""
    async with pair(tmp_path, route=LARGE) as both:
        both.provider.text = "word " * 400
        both.provider.then(faults.cut_after(events=300) | faults.at_event(100, Pause(2.0)))
        first = await asked(both.here, stream=True, headers=key())
        joined = await both.there.ask(stream=True, headers=key())
        assert (await first).cut
        assert joined.cut
        told(await both.there.ask(stream=True, headers=key()), 409, "steer_key_uncertain")
        assert both.memory is not None
        await asyncio.sleep(LINGER + 1.0)
        assert await both.memory.chunks(both.records()[0].id, -1, 1) == []


async def test_an_answer_that_grows_too_large_is_broken_off_for_who_is_unknown(
    tmp_path: Path,
) -> None:
    """Nobody is known to follow (behind a pooler): who follows all the same is told."""
    async with pair(tmp_path, route=LARGE) as both:
        both.provider.text = "word " * 400
        both.provider.always(faults.at_event(3, Pause(2.0)) | faults.at_event(100, Pause(4.0)))
        first = await asked(both.here, stream=True, headers=key())
        joining = asyncio.create_task(both.there.ask(stream=True, headers=key()))
        await asyncio.sleep(1.0)
        both.here.ledger.inner.followed = lambda _: False  # type: ignore[method-assign, assignment]
        joined = await joining
        assert joined.cut
        assert b"steer_result_not_stored" in joined.body
        assert b"[DONE]" not in joined.body
        assert (await first).body.endswith(b"data: [DONE]\n\n")
        assert len(both.provider.attempts) == 1


@pytest.mark.parametrize("why", ["too large", "never kept", "no memory left"])
async def test_a_small_answer_that_is_not_stored_is_whole_for_who_follows_it(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes all at once: who waits elsewhere gets it with its end, later ones are told."""
    most = {"too large": 1024, "never kept": 0, "no memory left": "8MiB"}[why]
    if why == "no memory left":
        monkeypatch.setattr(keyed_calls, "MEMORY", 0)
    async with pair(tmp_path, route={"idempotency": {"max_stored": most}}) as both:
        both.provider.text = "word " * 4_000
        both.provider.always(faults.silence(2.0))
        first = await asked(both.here, headers=key())
        joined = await both.there.ask(headers=key())
        assert ((await first).status, (await first).cut) == (200, False)
        assert (await first).headers["Idempotency-Status"] == "not-stored"
        assert (joined.status, joined.body, joined.cut) == (200, (await first).body, False)
        for replica in (both.here, both.there):
            later = await replica.ask(headers=key())
            told(later, 409, "steer_result_not_stored", again=False)
        assert len(both.provider.attempts) == 1
        assert both.memory is not None
        await asyncio.sleep(LINGER + 1.0)
        (row,) = both.records()
        assert await both.memory.chunks(row.id, -1, 1) == []
        assert (row.resp_headers, row.resp_chunks) == (None, None)


async def test_a_small_answer_that_nobody_follows_is_never_written(tmp_path: Path) -> None:
    """It is not stored, and nobody waits for it."""
    async with pair(tmp_path, route={"idempotency": {"max_stored": 0}}) as both:
        assert (await both.here.ask(headers=key())).status == 200
        assert both.memory is not None
        (row,) = both.records()
        assert await both.memory.chunks(row.id, -1, 1) == []
        assert (row.resp_headers, row.resp_chunks) == (None, None)


@PLAIN_AND_STREAMED
async def test_what_is_not_to_be_saved_is_never_written(tmp_path: Path, stream: bool) -> None:
    """`save: nothing`: not even while the call runs."""
    async with pair(tmp_path, route={"idempotency": {"save": "nothing"}}) as both:
        both.provider.always(faults.at_event(3, Pause(2.0)) if stream else faults.silence(2.0))
        first = await asked(both.here, stream=stream, headers=key())
        joined = await both.there.ask(stream=stream, headers=key())
        told(joined, 409, "steer_result_not_stored", again=False)
        assert (await first).status == 200
        assert both.here.ledger.called["add_chunks"] == 0
        assert len(both.provider.attempts) == 1


# --- One of them ends -----------------------------------------------------------------------------


async def claimed(both: Pair) -> asyncio.Task[Reply]:
    """A call that has its key but waits, as its upstream asked for: nothing was sent."""
    both.provider.then(faults.rate_limit(retry_after=40))
    assert (await both.here.ask()).status == 429
    waiting = asyncio.create_task(both.here.ask(headers=key()))
    await asyncio.sleep(0.5)
    assert both.records()[0].idem_state == "claimed"
    return waiting


async def forgotten(task: asyncio.Task[Reply]) -> None:
    """Hang up."""
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("end", ["drained", "killed"])
async def test_what_was_not_sent_is_taken_over(tmp_path: Path, end: str) -> None:
    """A call that only had its key is made by the other one, once."""
    async with pair(tmp_path, route={"retry": {"max_attempts": 1}}) as both:
        waiting = await claimed(both)
        if end == "drained":
            await both.here.stop()
            told(await waiting, 503, "steer_draining", again=True)
        else:
            both.here.ledger.down()
            await asyncio.sleep(LAPSE)
        reply = await both.there.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")
        if end == "killed":
            both.here.ledger.up()
            taken_over(await waiting, stream=False)
        assert len(both.provider.attempts) == 2  # the 429 is the other


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("end", ["drained", "killed"])
async def test_what_was_sent_is_uncertain(tmp_path: Path, end: str, stream: bool) -> None:
    """It may have been executed: the other one does not make it again."""
    async with pair(tmp_path) as both:
        both.provider.then(faults.silence(300.0))
        first = await asked(both.here, stream=stream, headers=key())
        if end == "drained":
            await both.here.stop()
            told(await first, 503, "steer_draining", again=True)
        else:
            both.here.ledger.down()
            await asyncio.sleep(LAPSE)
        reply = await both.there.ask(stream=stream, headers=key())
        told(reply, 409, "steer_key_uncertain", again=False)
        assert len(both.provider.attempts) == 1
        await forgotten(first)


async def test_who_follows_a_call_learns_that_its_sidecar_is_gone(tmp_path: Path) -> None:
    """Not before the lease is over, and soon after."""
    async with pair(tmp_path) as both:
        both.provider.then(faults.silence(300.0))
        first = await asked(both.here, headers=key())
        joined = asyncio.create_task(both.there.ask(headers=key()))
        await asyncio.sleep(1.0)
        both.here.ledger.down()
        reply = await joined
        told(reply, 409, "steer_key_uncertain", again=False)
        assert reply.headers["Idempotency-Status"] == "uncertain"
        assert 10.0 < reply.seconds < LAPSE + 1.0
        await forgotten(first)


async def test_its_answer_counts_after_all_when_nobody_made_the_call_again(tmp_path: Path) -> None:
    """A sidecar that was only away for a while completes what it began."""
    async with pair(tmp_path) as both:
        both.provider.then(faults.silence(30.0))
        first = await asked(both.here, headers=key())
        both.here.ledger.down()
        await asyncio.sleep(LAPSE)
        told(await both.there.ask(headers=key()), 409, "steer_key_uncertain")
        both.here.ledger.up()
        assert (await first).status == 200
        again = await both.there.ask(headers=key())
        assert (again.body, again.headers["Idempotency-Status"]) == (
            first.result().body,
            "replayed",
        )
        assert len(both.provider.attempts) == 1


@pytest.mark.parametrize("on_uncertain", ["fail", "rerun"])
async def test_what_is_left_of_a_call_that_broke_is_no_answer(
    tmp_path: Path, on_uncertain: str
) -> None:
    """A part that was written after its record's end, which took the head: the end counts."""
    async with pair(tmp_path, route={"idempotency": {"on_uncertain": on_uncertain}}) as both:
        both.provider.then(faults.silence(60.0))
        first = await asked(both.here, stream=True, headers=key())
        joining = asyncio.create_task(both.there.ask(stream=True, headers=key()))
        await asyncio.sleep(1.0)
        assert both.memory is not None
        (row,) = both.records()
        both.memory._chunks[row.id] = {0: Sealer().seal(row.id, 0, 0, 0, b"data: ")}
        both.rows[row.id] = row._replace(idem_state="uncertain")
        joined = await joining
        if on_uncertain == "fail":
            told(joined, 409, "steer_key_uncertain", again=False)
        else:
            told(joined, 502, "steer_joined_call_failed", again=True)
        await forgotten(first)


@PLAIN_AND_STREAMED
async def test_two_who_may_run_it_again_run_it_once(tmp_path: Path, stream: bool) -> None:
    """One takes the key over, the other one joins."""
    async with pair(tmp_path, route=RERUN) as both:
        both.provider.then(faults.reset_before_answer())
        assert (await both.here.ask(stream=stream, headers=key())).status == 504
        both.provider.always(faults.silence(0.5))
        replies = await asyncio.gather(
            both.here.ask(stream=stream, headers=key()),
            both.there.ask(stream=stream, headers=key()),
        )
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1
        said = sorted(reply.headers["Idempotency-Status"] for reply in replies)
        assert said == ["joined", "rerun"]
        assert len(both.provider.attempts) == 2


# --- The database goes away for all of them -------------------------------------------------------


def away(both: Pair, *, is_away: bool) -> None:
    """The database goes, or comes back, for both of them."""
    for replica in (both.here, both.there):
        if is_away:
            replica.ledger.down()
        else:
            replica.ledger.up()


@pytest.mark.parametrize("route", [{}, RERUN], ids=["fail", "rerun"])
@pytest.mark.parametrize("away_for", [10.5, LAPSE, 60.0])
async def test_an_outage_makes_nobody_dead(
    tmp_path: Path, route: dict[str, Any], away_for: float
) -> None:
    """Whoever is back first does not judge the other, who has lapsed as well: the call goes on."""
    async with pair(tmp_path, route=route) as both:
        await asyncio.sleep(14.9)  # a renewal is due
        both.provider.then(faults.silence(away_for + 20.0))
        first = await asked(both.here, headers=key())
        followed = asyncio.create_task(both.there.ask(headers=key()))
        await asyncio.sleep(0.05)
        away(both, is_away=True)
        await asyncio.sleep(away_for)
        both.there.ledger.up()
        await asyncio.sleep(1.0)
        await forgotten(followed)
        await asyncio.sleep(1.0)
        later = asyncio.create_task(both.there.ask(headers=key()))
        await asyncio.sleep(1.0)
        both.here.ledger.up()
        assert (await first).status == 200
        assert (await later).body == first.result().body
        assert later.result().headers["Idempotency-Status"] == "joined"
        assert len(both.provider.attempts) == 1


async def test_who_waits_through_an_outage_waits_on(tmp_path: Path) -> None:
    """Its own sidecar is back some moments before that of the call."""
    async with pair(tmp_path) as both:
        both.provider.then(faults.silence(40.0))
        first = await asked(both.here, headers=key())
        followed = asyncio.create_task(both.there.ask(headers=key()))
        await asyncio.sleep(0.5)
        away(both, is_away=True)
        await asyncio.sleep(LAPSE)
        both.there.ledger.up()
        await asyncio.sleep(4.0)
        both.here.ledger.up()
        assert (await followed).body == (await first).body
        assert len(both.provider.attempts) == 1


async def test_who_died_in_an_outage_is_dead_soon_after(tmp_path: Path) -> None:
    """As soon as it would have come back."""
    async with pair(tmp_path) as both:
        both.provider.then(faults.silence(300.0))
        first = await asked(both.here, headers=key())
        away(both, is_away=True)
        await asyncio.sleep(LAPSE)
        both.there.ledger.up()
        reply = await both.there.ask(headers=key())
        told(reply, 409, "steer_key_uncertain", again=False)
        assert 4.0 < reply.seconds < 7.0
        assert (await both.there.ask(headers=key())).seconds == 0.0
        await forgotten(first)


# --- Zombies --------------------------------------------------------------------------------------


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("how", ["fail", "hang", "lose_reply"])
async def test_a_zombie_is_told_as_soon_as_it_can_be(
    tmp_path: Path, how: str, stream: bool
) -> None:
    """Its lease lapsed, the call was made again: its caller gets no answer of its own."""
    async with pair(tmp_path, route=RERUN) as both:
        both.provider.distinct = True
        pause = faults.at_event(3, Pause(60.0)) if stream else faults.silence(60.0)
        both.provider.then(pause)
        first = await asked(both.here, stream=stream, headers=key())
        await asyncio.sleep(1.0)
        if how == "lose_reply":
            # It is never told, and so does not count on its lease; until the ledger is asleep.
            both.here.ledger.lose_reply("renew", times=1)
            await asyncio.sleep(6.0)
        getattr(both.here.ledger, "hang" if how == "hang" else "fail")("*")
        await asyncio.sleep(LAPSE)
        again = await both.there.ask(stream=stream, headers=key())
        assert (again.status, again.headers["Idempotency-Status"]) == (200, "rerun")
        both.here.ledger.up()
        zombie = await first
        assert zombie.seconds < 40.0
        taken_over(zombie, stream=stream)
        await unchanged(both, again, stream=stream)


@PLAIN_AND_STREAMED
async def test_a_zombie_that_was_not_told_cannot_finish(tmp_path: Path, stream: bool) -> None:
    """Its answer comes before its lease is renewed: the record is not its own any more."""
    async with pair(tmp_path, route=RERUN) as both:
        both.provider.distinct = True
        pause = faults.at_event(3, Pause(60.0)) if stream else faults.silence(60.0)
        both.provider.then(pause)
        first = await asked(both.here, stream=stream, headers=key())
        both.here.ledger.fail("renew")
        await asyncio.sleep(LAPSE)
        again = await both.there.ask(stream=stream, headers=key())
        zombie = await first
        assert zombie.seconds >= 60.0
        taken_over(zombie, stream=stream)
        both.here.ledger.up()
        await asyncio.sleep(2.0)
        await unchanged(both, again, stream=stream)


def nearly_whole() -> tuple[bytes, Answer]:
    """A plain answer too large to be held, whose last bytes are long in coming; the others."""
    body = b'{"text": "%b"}' % (b"x" * 1_200_000)
    head = Head(200, (("Content-Type", "application/json"),), "length", len(body))
    seen, missing = body[:-20], body[-20:]
    return seen, Answer((head, Data(seen), Pause(60.0), Data(missing), Finish()))


@pytest.mark.parametrize("keyed", [False, True], ids=["without a key", "with one"])
async def test_a_drain_fills_up_no_plain_answer(tmp_path: Path, *, keyed: bool) -> None:
    """Little is missing of what it cuts: nothing takes the place of that, here or elsewhere."""
    async with pair(tmp_path, "gemini") as both:
        seen, answer = nearly_whole()
        both.provider.then(answer)
        asking = [await asked(both.here, headers=key() if keyed else {})]
        if keyed:
            asking.append(asyncio.create_task(both.there.ask(headers=key())))
        await asyncio.sleep(2.0)
        await both.here.stop()
        for reply in await asyncio.gather(*asking):
            assert (reply.status, reply.cut) == (200, True)
            assert seen.startswith(reply.body)


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
async def test_a_zombies_large_answer_is_never_taken_for_whole(
    tmp_path: Path, dialect: str
) -> None:
    """Its length was promised and little of it is missing: nothing takes the place of that."""
    async with pair(tmp_path, dialect, route=RERUN) as both:
        seen, answer = nearly_whole()
        both.provider.then(answer)
        first = await asked(both.here, headers=key())
        await asyncio.sleep(1.0)
        both.here.ledger.fail("*")
        await asyncio.sleep(LAPSE)
        assert (await both.there.ask(headers=key())).headers["Idempotency-Status"] == "rerun"
        both.here.ledger.up()
        zombie = await first
        assert (zombie.status, zombie.cut) == (200, True)
        assert seen.startswith(zombie.body)


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("wait", [0.0, 10.0], ids=["found at the end", "found by the lease"])
async def test_an_answer_whose_record_is_gone(tmp_path: Path, wait: float, stream: bool) -> None:
    """The database was made anew, and nobody has the key: the answer is given, and told of."""
    async with pair(tmp_path) as both:
        go = asyncio.Event()
        pause = faults.at_event(3, Await(go)) if stream else faults.steps_first(Await(go))
        both.provider.then(pause)
        first = await asked(both.here, stream=stream, headers=key())
        await asyncio.sleep(1.0)
        assert both.memory is not None
        both.memory.calls.clear()
        both.memory._live.clear()
        both.memory._owners.clear()
        await asyncio.sleep(wait)
        go.set()
        reply = await first
        assert (reply.status, reply.cut) == (200, False)
        assert reply.headers["Idempotency-Status"] == ("new" if stream else "not-stored")
        await asyncio.sleep(1.0)
        (row,) = both.rows.values()
        assert (row.idem_key, row.idem_live, row.status) == ("order-1", None, 200)
        assert row.tokens_out is not None or stream


def taken_over(reply: Reply, *, stream: bool) -> None:
    """The caller of a zombie is told, and never takes what it has for an answer."""
    if not stream:
        told(reply, 409, "steer_key_taken_over", again=True)
        assert "Idempotency-Status" not in reply.headers  # it is no answer of the call's
        assert not reply.cut
        return
    assert reply.status == 200
    assert reply.cut
    assert b"steer_key_taken_over" in reply.body
    assert b"[DONE]" not in reply.body


async def unchanged(both: Pair, answer: Reply, *, stream: bool) -> None:
    """What the second run brought is what the key stands for."""
    for replica in (both.here, both.there):
        reply = await replica.ask(stream=stream, headers=key())
        assert (reply.body, reply.headers["Idempotency-Status"]) == (answer.body, "replayed")
    assert [row.idem_epoch for row in both.records()] == [1, 2]
    assert len(both.provider.attempts) == 2


# --- Encryption -----------------------------------------------------------------------------------


def ring(*names: str, **more: str) -> dict[str, Any]:
    """Settings of a database with these keys."""
    keys = [{"id": name, "secret": {"env": f"KEY_{name.upper()}"}} for name in names]
    return {"encryption": {"keys": keys, **more}} if keys else {}


KEYS = {"KEY_OLD": "11" * 32, "KEY_NEW": "22" * 32}


@PLAIN_AND_STREAMED
async def test_replicas_with_the_same_keys_read_each_other(tmp_path: Path, stream: bool) -> None:
    """Live and stored, and in the middle of a change of keys."""
    rings = (ring("old"), ring("new", "old"))
    async with pair(tmp_path, database=rings, env=KEYS) as both:
        await fifty(both, stream=stream)
        reply = await both.there.ask(stream=stream, headers=key())
        assert reply.headers["Idempotency-Status"] == "replayed"
        assert both.memory is not None
        (row,) = both.records()
        stored = await both.memory.chunks(row.id, -1, 100)
        assert {each.key_id for each in stored} == {"old"}
        assert not any(b"chatcmpl" in each.body for each in stored)


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("keys", [(), ("new",)], ids=["none", "another"])
async def test_a_replica_without_the_key_never_runs_the_call(
    tmp_path: Path, keys: tuple[str, ...], stream: bool
) -> None:
    """It cannot read the answer, live or stored; it does not make the call again."""
    async with pair(tmp_path, database=(ring("old"), ring(*keys)), env=KEYS) as both:
        both.provider.always(faults.at_event(3, Pause(1.0)) if stream else faults.silence(1.0))
        first = await asked(both.here, stream=stream, headers=key())
        joined = await both.there.ask(stream=stream, headers=key())
        told(joined, 409, "steer_replay_unavailable", again=False)
        assert (await first).status == 200
        later = await both.there.ask(stream=stream, headers=key())
        told(later, 409, "steer_replay_unavailable", again=False)
        assert len(both.provider.attempts) == 1


def in_the_clear(both: Pair, **more: Any) -> None:
    """What somebody who may write the database, and has no key, puts in an answer's place."""
    assert both.memory is not None
    (row,) = both.records()
    head = {"reason": "OK", "fields": [], "own": [], "content_type": "text/plain"}
    both.rows[row.id] = row._replace(resp_headers=json.dumps(head), **more)
    forged = Sealer().seal(row.id, 0, 0, 0, FORGED)
    both.memory._chunks[row.id] = {0: forged}


FORGED = b"transfer it all to me"


@PLAIN_AND_STREAMED
async def test_what_was_encrypted_is_not_read_in_the_clear(tmp_path: Path, stream: bool) -> None:
    """The record names a key; who may write the database cannot put an answer there instead."""
    async with pair(tmp_path, database=(ring("old"), ring("old")), env=KEYS) as both:
        assert (await both.here.ask(stream=stream, headers=key())).status == 200
        digest = hashlib.sha256(FORGED).hexdigest()
        in_the_clear(both, resp_chunks=1, resp_bytes=len(FORGED), resp_sha256=digest)
        for replica in (both.here, both.there):
            reply = await replica.ask(stream=stream, headers=key())
            told(reply, 409, "steer_replay_unavailable", again=False)
        assert len(both.provider.attempts) == 1


async def test_what_follows_in_the_clear_is_not_read_either(tmp_path: Path) -> None:
    """Who follows a call has its head and its beginning, as they were encrypted: the same goes for
    the rest."""
    async with pair(tmp_path, database=(ring("old"), ring("old")), env=KEYS) as both:
        go = asyncio.Event()
        both.provider.always(faults.at_event(3, Await(go)))
        first = await asked(both.here, stream=True, headers=key())
        joining = asyncio.create_task(both.there.ask(stream=True, headers=key()))
        await asyncio.sleep(1.0)
        assert both.memory is not None
        (row,) = both.records()
        there = both.memory._chunks[row.id]
        size = sum(chunk.raw_bytes for chunk in there.values())
        there[len(there)] = Sealer().seal(row.id, len(there), size, 0, FORGED)
        joined = await joining
        assert FORGED not in joined.body
        assert joined.cut
        go.set()
        assert (await first).status == 200


@pytest.mark.parametrize("forged", ["head", "body"])
async def test_no_part_of_what_was_encrypted_is_read_in_the_clear(
    tmp_path: Path, forged: str
) -> None:
    """Head and body are each held to the key that the record names."""
    async with pair(tmp_path, database=(ring("old"), ring("old")), env=KEYS) as both:
        assert (await both.here.ask(headers=key())).status == 200
        (row,) = both.records()
        assert both.memory is not None
        body = dict(both.memory._chunks[row.id])
        digest = hashlib.sha256(FORGED).hexdigest()
        in_the_clear(both, resp_chunks=1, resp_bytes=len(FORGED), resp_sha256=digest)
        if forged == "head":
            both.rows[row.id] = row._replace(resp_headers=both.rows[row.id].resp_headers)
            both.memory._chunks[row.id] = body
        else:
            both.rows[row.id] = both.rows[row.id]._replace(resp_headers=row.resp_headers)
        reply = await both.there.ask(headers=key())
        told(reply, 409, "steer_replay_unavailable", again=False)
        assert len(both.provider.attempts) == 1


async def test_a_running_call_is_not_followed_in_the_clear(tmp_path: Path) -> None:
    """Its record names the key as soon as it has a head."""
    async with pair(tmp_path, database=(ring("old"), ring("old")), env=KEYS) as both:
        go = asyncio.Event()
        both.provider.always(faults.at_event(3, Await(go)))
        first = await asked(both.here, stream=True, headers=key())
        await asyncio.sleep(1.0)
        in_the_clear(both)
        joined = await both.there.ask(stream=True, headers=key())
        told(joined, 409, "steer_replay_unavailable", again=False)
        go.set()
        assert (await first).status == 200


@pytest.mark.parametrize("plaintext", ["read", "refuse"])
async def test_an_answer_older_than_the_keys(tmp_path: Path, plaintext: str) -> None:
    """Its record names none: it is read, unless the configuration says that there are none."""
    keys = ring("new", plaintext=plaintext)
    async with pair(tmp_path, database=({}, keys), env=KEYS) as both:
        first = await both.here.ask(headers=key())
        again = await both.there.ask(headers=key())
        if plaintext == "read":
            assert (again.status, again.body) == (200, first.body)
        else:
            told(again, 409, "steer_replay_unavailable", again=False)
        assert len(both.provider.attempts) == 1


# --- The same on a real database ------------------------------------------------------------------


@pytest.mark.real_time
@PLAIN_AND_STREAMED
async def test_duplicates_on_postgresql(tmp_path: Path, postgres_url: str, stream: bool) -> None:
    """Fifty at once are one call."""
    async with pair(tmp_path, url=postgres_url) as both:
        await fifty(both, stream=stream)


@pytest.mark.real_time
async def test_following_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """The first token comes to the other sidecar before the stream has ended."""
    async with pair(tmp_path, url=postgres_url) as both:
        await live(both)


@pytest.mark.real_time
@PLAIN_AND_STREAMED
async def test_replaying_on_postgresql(tmp_path: Path, postgres_url: str, stream: bool) -> None:
    """The other sidecar gives what is stored."""
    async with pair(tmp_path, url=postgres_url) as both:
        await replayed(both, stream=stream)


@pytest.mark.real_time
async def test_a_database_made_anew_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """Nobody has the key there: the answer is given, and the call's row is there at last."""
    async with pair(tmp_path, url=postgres_url) as both:
        go = asyncio.Event()
        both.provider.then(faults.steps_first(Await(go)))
        first = await asked(both.here, headers=key())
        await anew(postgres_url)
        go.set()
        reply = await first
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "not-stored")
        async with asyncio.timeout(10.0):
            while (rows := await named(postgres_url, "order-1")) == []:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert [(row["status"], row["idem_live"]) for row in rows] == [(200, None)]


async def anew(url: str) -> None:
    """Drop everything and make the schema once more, with another secret."""
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    await asyncio.to_thread(migrate.upgrade, url)


async def named(url: str, text: str) -> list[Any]:
    """The rows of a key."""
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch("SELECT * FROM requests WHERE idem_key = $1", text))
    finally:
        await connection.close()


@pytest.mark.real_time
async def test_the_end_of_one_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """Drained while its call was under way: uncertain for the other, which does not run it."""
    async with pair(tmp_path, url=postgres_url) as both:
        sent = asyncio.Event()
        both.provider.then(faults.steps_first(Signal(sent), Pause(60.0)))
        first = asyncio.create_task(both.here.ask(headers=key()))
        await sent.wait()
        await both.here.stop()
        told(await first, 503, "steer_draining", again=True)
        told(await both.there.ask(headers=key()), 409, "steer_key_uncertain", again=False)
        assert len(both.provider.attempts) == 1


@pytest.mark.real_time
async def test_a_large_answer_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """Who has said that it follows gets all of it."""
    async with pair(tmp_path, url=postgres_url, route=LARGE) as both:
        whole, joined = await large(both)
        assert whole.body.endswith(b"data: [DONE]\n\n")
        assert (joined.status, joined.body, joined.cut) == (200, whole.body, False)
        later = await both.there.ask(stream=True, headers=key())
        told(later, 409, "steer_result_not_stored", again=False)


@PLAIN_AND_STREAMED
@pytest.mark.parametrize(
    "change",
    [
        {"idem_scope": "another's"},
        {"status": 201},
        {"resp_chunks": 0, "resp_bytes": 0, "resp_sha256": None},
    ],
    ids=["whose", "status", "cut short"],
)
async def test_who_has_no_key_cannot_change_a_record(
    tmp_path: Path, change: dict[str, Any], stream: bool
) -> None:
    """Whoever writes the database gives nobody the answer to another key, nor a part of one."""
    async with pair(tmp_path, database=(ring("old"), ring("old")), env=KEYS) as both:
        for name in ("mine", "theirs"):
            asking = both.here.ask(stream=stream, headers={"Idempotency-Key": name})
            assert (await asking).status == 200
        assert both.memory is not None
        mine, theirs = both.records()
        if "idem_scope" in change:
            change = {"idem_scope": mine.idem_scope}
            both.memory._live[mine.idem_scope or ""] = theirs.id
        both.memory.calls[theirs.id] = theirs._replace(**change)
        name = "mine" if "idem_scope" in change else "theirs"
        reply = await both.there.ask(stream=stream, headers={"Idempotency-Key": name})
        told(reply, 409, "steer_replay_unavailable", again=False)
        assert len(both.provider.attempts) == 2
