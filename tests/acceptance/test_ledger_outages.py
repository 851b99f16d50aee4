"""A ledger that is away: calls without a key do not notice, keyed ones follow `on_ledger_down`."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from steer_policies.idempotency import Move, OnUncertain, Uncertain, decide
from steer_proxy.engine.claims import AGAIN_FOR, standing
from steer_proxy.http.journal import Journal
from steer_proxy.http.replay import PAGES_AT_ONCE
from steer_proxy.ledger import migrate, sqlite_file
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.sealing import Sealer
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.values import ChunkRow
from tests.provider import Answer, Await, Pause, Reset, faults
from tests.support.faulty_ledger import FaultyLedger
from tests.support.pair import key
from tests.support.sidecar import EPOCH
from tests.support.world import Reply, World, world

PLAIN_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
OPEN = {"idempotency": {"on_ledger_down": "open"}}
ONE_TRY = {"retry": {"max_attempts": 1}}


@contextlib.asynccontextmanager
async def faulty(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[World, FaultyLedger]]:
    """A sidecar and its ledger, which fails on demand."""
    now = asyncio.get_running_loop().time
    ledger = FaultyLedger(MemoryLedger(lambda: EPOCH + now()))
    async with world(tmp_path, ledger=ledger, **more) as parties:
        yield parties, ledger


def memory(ledger: FaultyLedger) -> MemoryLedger:
    """What it is wrapped around."""
    assert isinstance(ledger.inner, MemoryLedger)
    return ledger.inner


def states(ledger: FaultyLedger) -> list[str]:
    """The states of the owners' records, in order."""
    return [row.idem_state or "" for row in memory(ledger).calls.values() if row.idem_key]


def unavailable(reply: Reply) -> None:
    """A keyed call that was not made, and may be asked for again."""
    assert reply.status == 503, reply.body
    assert reply.json["error"]["code"] == "steer_ledger_unavailable"
    assert reply.headers["X-Should-Retry"] == "true"
    assert 0 < int(reply.headers["Retry-After"]) <= 8


async def unaffected(parties: World) -> None:
    """Calls without a key, and readiness."""
    for stream in (False, True):
        reply = await parties.ask(stream=stream)
        assert reply.status == 200
        assert not reply.cut
        assert reply.seconds < 1.0
    async with parties.session.get(f"{parties.steer.admin_url}/readyz") as response:
        assert response.status == 200


async def recovered(parties: World) -> None:
    """Keyed calls are protected again."""
    first = await parties.ask(headers=key("recovered"))
    again = await parties.ask(headers=key("recovered"))
    assert first.headers["Idempotency-Status"] == "new"
    assert again.headers["Idempotency-Status"] == "replayed"
    assert again.body == first.body


# --- Away before a call ---------------------------------------------------------------------------


@pytest.mark.parametrize("at_start", [True, False], ids=["at start", "later"])
@pytest.mark.parametrize("how", ["fail", "lose_reply"])
async def test_a_ledger_that_is_down_fails_keyed_calls_alone(
    tmp_path: Path, how: str, at_start: bool
) -> None:
    """503 without a byte upstream; all else goes on; no restart is needed when it is back."""
    now = asyncio.get_running_loop().time
    ledger = FaultyLedger(MemoryLedger(lambda: EPOCH + now()))
    if at_start:
        ledger.fail("open")
        getattr(ledger, how)("*")
    async with world(tmp_path, ledger=ledger) as parties:
        if not at_start:
            await recovered(parties)
            getattr(ledger, how)("*")
        before = len(parties.primary.attempts)
        for _ in range(3):
            unavailable(await parties.ask(headers=key()))
        assert len(parties.primary.attempts) == before
        await unaffected(parties)
        rows = len(memory(ledger).calls)
        ledger.up()
        await asyncio.sleep(40.0)
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")
        if not at_start:
            assert len(memory(ledger).calls) > rows
        unkeyed = [row for row in memory(ledger).calls.values() if row.idem_key is None]
        assert len(unkeyed) == 2


@pytest.mark.parametrize("at_start", [True, False], ids=["at start", "later"])
@PLAIN_AND_STREAMED
async def test_open_makes_the_call_unprotected(
    tmp_path: Path, stream: bool, at_start: bool
) -> None:
    """It says so; duplicates at the same time still join, in this process."""
    now = asyncio.get_running_loop().time
    ledger = FaultyLedger(MemoryLedger(lambda: EPOCH + now()))
    if at_start:
        ledger.fail("open")
        ledger.down()
    async with world(tmp_path, ledger=ledger, route=OPEN) as parties:
        ledger.down()
        parties.primary.always(faults.silence(0.5))
        replies = await asyncio.gather(
            *(parties.ask(stream=stream, headers=key()) for _ in range(5))
        )
        assert len(parties.primary.attempts) == 1
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1
        assert {reply.headers["Idempotency-Status"] for reply in replies} == {"not-stored"}
        await unaffected(parties)
        ledger.up()
        await asyncio.sleep(2.0)
        again = await parties.ask(stream=stream, headers=key())
        assert (again.status, again.headers["Idempotency-Status"]) == (200, "new")
        await asyncio.sleep(2.0)
        without, owner = (
            row
            for row in memory(ledger).calls.values()
            if row.idem_key == "order-1" and row.served_from is None
        )
        assert (without.idem_role, without.idem_scope, without.attempts) == (None, None, 1)
        assert owner.idem_role == "owner"


async def test_a_ledger_that_comes_meanwhile_parts_no_duplicates(tmp_path: Path) -> None:
    """A call that began before the ledger was there for the first time is joined all the same."""
    now = asyncio.get_running_loop().time
    ledger = FaultyLedger(MemoryLedger(lambda: EPOCH + now()))
    ledger.fail("open")
    ledger.down()
    async with world(tmp_path, ledger=ledger, route=OPEN) as parties:
        go = asyncio.Event()
        parties.primary.always(faults.at_event(2, Await(go)))
        first = asyncio.create_task(parties.ask(stream=True, headers=key()))
        await parties.primary.wait_for_attempts(1)
        ledger.up()
        await memory(ledger).open()
        assert ledger.secret is not None
        other = await parties.ask(stream=True, headers=key(), temperature=1)
        assert (other.status, len(parties.primary.attempts)) == (422, 1)
        joining = asyncio.create_task(parties.ask(stream=True, headers=key()))
        await asyncio.sleep(1.0)
        go.set()
        assert (await joining).body == (await first).body
        assert len(parties.primary.attempts) == 1
        again = await parties.ask(stream=True, headers=key())
        assert (again.status, again.headers["Idempotency-Status"]) == (200, "new")


@pytest.mark.parametrize("method", ["renew", "claim", "write", "*"])
async def test_a_ledger_that_hangs_holds_up_no_other_call(tmp_path: Path, method: str) -> None:
    """What has no key never waits for it; what has one goes on when it answers."""
    async with faulty(tmp_path) as (parties, ledger):
        await recovered(parties)
        ledger.hang(method)
        await asyncio.sleep(20.0)
        keyed = asyncio.create_task(parties.ask(headers=key()))
        await unaffected(parties)
        ledger.up()
        assert (await keyed).status == 200


# --- Away in the middle of a call -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["fail", "lose_reply"])
@pytest.mark.parametrize("wait", [0.0, 10.0])
async def test_a_claim_that_fails_leaves_the_key_free(
    tmp_path: Path, how: str, wait: float
) -> None:
    """Whether it was carried out or not: nothing was sent, so the next try makes the call."""
    async with faulty(tmp_path) as (parties, ledger):
        getattr(ledger, how)("claim", times=1)
        unavailable(await parties.ask(headers=key()))
        assert parties.primary.attempts == []
        await asyncio.sleep(wait)
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")
        assert len(parties.primary.attempts) == 1


async def about_to_be_sent(parties: World, ledger: FaultyLedger) -> asyncio.Task[Reply]:
    """A call that has its key, and waits as its upstream asked for."""
    parties.primary.then(faults.rate_limit(retry_after=5))
    assert (await parties.ask()).status == 429
    waiting = asyncio.create_task(parties.ask(headers=key()))
    await asyncio.sleep(0.5)
    assert states(ledger) == ["claimed"]
    return waiting


@pytest.mark.parametrize("how", ["fail", "lose_reply"])
async def test_a_call_is_not_sent_before_that_is_written(tmp_path: Path, how: str) -> None:
    """503, nothing upstream, and the key is free again."""
    async with faulty(tmp_path, fallback=False, route=ONE_TRY) as (parties, ledger):
        waiting = await about_to_be_sent(parties, ledger)
        getattr(ledger, how)("mark_sent", times=1)
        unavailable(await waiting)
        assert len(parties.primary.attempts) == 1
        assert states(ledger) == ["released"]
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")


@pytest.mark.parametrize("how", ["fail", "lose_reply"])
async def test_open_sends_a_call_whose_sending_cannot_be_written(tmp_path: Path, how: str) -> None:
    """The ledger went away between the claim and the first byte."""
    async with faulty(tmp_path, fallback=False, route={**OPEN, **ONE_TRY}) as (parties, ledger):
        waiting = await about_to_be_sent(parties, ledger)
        getattr(ledger, how)("mark_sent", times=1)
        reply = await waiting
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "not-stored")
        assert len(parties.primary.attempts) == 2


@pytest.mark.parametrize("end", ["back", "away", "shut down"])
async def test_a_ledger_that_hangs_takes_no_slot_from_others(tmp_path: Path, end: str) -> None:
    """Who waits until its sending is written gives its slot back; none is lost."""
    narrow = {"concurrency": {"limit": 1}}
    async with faulty(tmp_path, fallback=False, upstream=narrow) as (parties, ledger):
        go = asyncio.Event()
        parties.primary.then(faults.at_event(1, Await(go)))
        first = asyncio.create_task(parties.ask(stream=True))
        await parties.primary.wait_for_attempts(1)
        keyed = asyncio.create_task(parties.ask(headers=key()))
        await asyncio.sleep(0.5)
        assert states(ledger) == ["claimed"]
        over = asyncio.Event()

        async def hang() -> None:
            await over.wait()
            if end == "away":
                raise LedgerUnavailable("the statement took too long")

        ledger.before("mark_sent", hang)
        behind = [asyncio.create_task(parties.ask()) for _ in range(3)]
        await asyncio.sleep(0.5)
        began = asyncio.get_running_loop().time()
        go.set()
        assert [(await each).status for each in (first, *behind)] == [200] * 4
        assert asyncio.get_running_loop().time() - began < 1.0
        assert (keyed.done(), len(parties.primary.attempts)) == (False, 4)
        sidecar = parties.steer.sidecar
        closing = asyncio.create_task(sidecar.gateway.close()) if end == "shut down" else None
        await asyncio.sleep(0.5)
        over.set()
        if end == "back":
            assert (await keyed).status == 200
        elif end == "away":
            unavailable(await keyed)
        else:
            assert (await keyed).status == 503
        if closing is not None:
            await closing
        assert len(parties.primary.attempts) == (5 if end == "back" else 4)
        policies = [upstream.policy for upstream in sidecar.config.upstreams.values()]
        slots = sidecar.gateway.registry.bind(policies)["primary"].slots
        assert (slots.busy, slots.waiting) == (0, 0)


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("how", ["fail", "hang"])
async def test_an_answer_is_given_although_it_cannot_be_stored_yet(
    tmp_path: Path, how: str, stream: bool
) -> None:
    """After two seconds; a duplicate meanwhile has the same answer; the record follows later."""
    async with faulty(tmp_path) as (parties, ledger):
        getattr(ledger, how)("finish")
        first = await parties.ask(stream=stream, headers=key())
        assert first.status == 200
        assert not first.cut
        assert 1.9 < first.seconds < 2.5
        assert first.headers["Idempotency-Status"] == ("new" if stream else "not-stored")
        await asyncio.sleep(10.0)
        assert states(ledger) == ["sent"]
        during = await parties.ask(stream=stream, headers=key())
        assert (during.status, during.body) == (200, first.body)
        ledger.up()
        await asyncio.sleep(5.0)
        assert states(ledger)[0] == "completed"
        later = await parties.ask(stream=stream, headers=key())
        assert (later.body, later.headers["Idempotency-Status"]) == (first.body, "replayed")
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize("end", ["back in time", "back late", "restart"])
async def test_a_large_answer_that_cannot_be_stored_yet(tmp_path: Path, end: str) -> None:
    """Its head is out before that is known, so it says `new`; it is made once all the same."""
    async with faulty(tmp_path) as (parties, ledger):
        parties.primary.text = "x" * 1_500_000
        ledger.fail("finish")
        first = await parties.ask(headers=key())
        assert (first.status, first.cut) == (200, False)
        assert first.headers["Idempotency-Status"] == "new"
        during = await parties.ask(headers=key())
        assert (during.headers["Idempotency-Status"], during.body) == ("not-stored", first.body)
        if end == "back late":
            await asyncio.sleep(AGAIN_FOR * 3)
            unavailable(await parties.ask(headers=key()))
        elif end == "restart":
            await parties.steer.sidecar.drain(0.0)
            await parties.steer.sidecar.gateway.close()
            (row,) = (row for row in memory(ledger).calls.values() if row.idem_live)
            await memory(ledger).retire(row.owner_id or "")
            record = await memory(ledger).find(row.idem_scope or "")
            assert record is not None
            decision = decide(standing(record), record.fingerprint, OnUncertain.FAIL)
            assert decision == Uncertain()
            return
        ledger.up()
        await asyncio.sleep(5.0)
        later = await parties.ask(headers=key())
        assert (later.body, later.headers["Idempotency-Status"]) == (first.body, "replayed")
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize(
    ("how", "why"), [("fail", "the test says so"), ("hang", "it did not answer within 2 s")]
)
async def test_records_that_wait_are_told_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, why: str
) -> None:
    """Not each of them, each time that it is tried; how many they are, and why."""
    async with faulty(tmp_path) as (parties, ledger):
        getattr(ledger, how)("finish")
        asked = (parties.ask(headers=key(f"order-{index}")) for index in range(5))
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
        await asyncio.sleep(100.0)
        ledger.up()
        await asyncio.sleep(5.0)
        told = [text for text in caplog.messages if "cannot be finished" in text]
        assert len(told) == 2, told
        assert all(text.partition(" now: ")[2].startswith(why) for text in told), told
        assert told[1].endswith("(5 since this was told last)")
        assert states(ledger) == ["completed"] * 5


@PLAIN_AND_STREAMED
async def test_a_finish_whose_reply_is_lost_is_none_the_worse(tmp_path: Path, stream: bool) -> None:
    """It is asked again, and was done."""
    async with faulty(tmp_path) as (parties, ledger):
        ledger.lose_reply("finish", times=2)
        first = await parties.ask(stream=stream, headers=key())
        assert first.headers["Idempotency-Status"] == "new"
        assert first.seconds < 1.0
        again = await parties.ask(stream=stream, headers=key())
        assert (again.body, again.headers["Idempotency-Status"]) == (first.body, "replayed")


async def test_a_replay_waits_for_the_ledger_to_be_back(tmp_path: Path) -> None:
    """What is stored and cannot be read now is no reason to make the call again."""
    async with faulty(tmp_path, route=OPEN) as (parties, ledger):
        assert (await parties.ask(headers=key())).status == 200
        ledger.fail("answer", times=1)
        unavailable(await parties.ask(headers=key()))
        assert (await parties.ask(headers=key())).headers["Idempotency-Status"] == "replayed"
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_answers_that_cannot_be_read_are_told_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, large: bool
) -> None:
    """However many ask for them; how many did is told with the next."""
    async with faulty(tmp_path) as (parties, ledger):
        if large:
            parties.primary.text = "x" * 1_500_000
        assert (await parties.ask(headers=key())).status == 200
        (chunks,) = memory(ledger)._chunks.values()
        chunks[max(chunks)] = chunks[max(chunks)]._replace(body=b"damaged")
        for _ in range(20):
            reply = await parties.ask(headers=key())
            assert (reply.status == 409) is not large
            assert (reply.error is not None) is large
        await asyncio.sleep(60.0)
        await parties.ask(headers=key())
        told = [text for text in caplog.messages if "the stored answer" in text]
        assert len(told) == 2, told
        assert told[1].endswith("(20 since this was told last)")


@pytest.mark.parametrize("harm", ["other bytes", "more of it", "no first", "no last", "none"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_an_answer_that_is_not_what_was_stored_is_never_given_as_whole(
    tmp_path: Path, large: bool, harm: str
) -> None:
    """Readable as it is, each of its chunks: it is refused, or broken off, and not paid again."""
    async with faulty(tmp_path) as (parties, ledger):
        parties.primary.text = "x" * (3_500_000 if large else 200_000)
        first = await parties.ask(headers=key())
        assert (first.status, first.error) == (200, None)
        (chunks,) = memory(ledger)._chunks.values()
        seal, last = Sealer().seal, chunks[max(chunks)]
        raw = Sealer().open(last)
        if harm == "none":
            chunks.clear()
        elif harm in ("no first", "no last"):
            del chunks[0 if harm == "no first" else last.seq]
        else:
            raw = raw[:-1] + b" " if harm == "other bytes" else raw + b" "
            chunks[last.seq] = seal(last.request, last.seq, last.byte_offset, last.at_us, raw)
        async with asyncio.timeout(60.0):
            reply = await parties.ask(headers=key())
        if reply.status == 409:
            assert reply.json["error"]["code"] == "steer_replay_unavailable"
        else:
            assert reply.error is not None
            assert first.body.startswith(reply.body)
        assert len(parties.primary.attempts) == 1


async def test_a_replay_that_the_ledger_leaves_in_the_middle(tmp_path: Path) -> None:
    """It breaks off, since it cannot be taken back, and is there again with the ledger."""
    async with faulty(tmp_path, route=OPEN) as (parties, ledger):
        parties.primary.text = "x" * 1_500_000
        first = await parties.ask(headers=key())
        assert (first.status, first.error) == (200, None)
        ledger.after("chunks", lambda: ledger.fail("chunks", times=1))
        broken = await parties.ask(headers=key())
        ledger.after("chunks", None)
        ledger.up()
        assert broken.error is not None
        assert 0 < len(broken.body) < len(first.body)
        again = await parties.ask(headers=key())
        assert again.headers["Idempotency-Status"] == "replayed"
        assert (again.body, again.error) == (first.body, None)
        assert len(parties.primary.attempts) == 1


async def test_replays_of_a_large_answer_take_turns(tmp_path: Path) -> None:
    """A few pages are read and opened at a time, in threads: the loop has other callers."""
    async with faulty(tmp_path) as (parties, ledger):
        parties.primary.text = "x" * 2_500_000
        first = await parties.ask(headers=key())
        reading = most = 0
        sealer = parties.steer.sidecar.books.sealer
        threads: set[str] = set()
        inner = sealer.open

        def begin() -> None:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)

        async def end() -> None:
            nonlocal reading
            await asyncio.sleep(0.1)
            reading -= 1

        def opening(row: ChunkRow, keyring_id: str | None = None) -> bytes:
            threads.add(threading.current_thread().name)
            return inner(row, keyring_id)

        ledger.before("chunks", begin)
        ledger.after("chunks", end)
        sealer.open = opening  # type: ignore[method-assign]
        replies = await asyncio.gather(*(parties.ask(headers=key()) for _ in range(20)))
        assert {reply.body for reply in replies} == {first.body}
        assert {reply.error for reply in replies} == {None}
        assert (reading, most) == (0, PAGES_AT_ONCE)
        assert threading.main_thread().name not in threads


async def test_a_call_under_way_outlives_an_outage(tmp_path: Path) -> None:
    """Longer than the lease: nobody else has this ledger's keys."""
    async with faulty(tmp_path) as (parties, ledger):
        parties.primary.always(faults.silence(40.0))
        first = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        ledger.down()
        await asyncio.sleep(30.0)
        ledger.up()
        reply = await first
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")
        assert states(ledger) == ["completed"]


async def test_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    """A drain waits for the record of an answer that was given already."""
    async with faulty(tmp_path) as (parties, ledger):
        ledger.fail("finish")
        first = await parties.ask(headers=key())
        assert first.status == 200
        asyncio.get_running_loop().call_later(3.0, ledger.up)
        assert await parties.steer.sidecar.drain(30.0)
        assert states(ledger) == ["completed"]


async def test_a_ledger_that_is_away_holds_no_drain(tmp_path: Path) -> None:
    """Whoever asked has its answer: what waits for the ledger alone is given a few seconds."""
    now = asyncio.get_running_loop().time
    async with faulty(tmp_path) as (parties, ledger):
        ledger.fail("finish")
        assert (await parties.ask(headers=key())).status == 200
        began = now()
        assert await parties.steer.sidecar.drain(20.0)
        assert now() - began <= 5.2
        ledger.up()
        await parties.steer.gateway.close()
        assert states(ledger) == ["completed"]


@pytest.mark.parametrize("how", ["fail", "hang"])
async def test_the_end_of_a_process_without_its_ledger(tmp_path: Path, how: str) -> None:
    """Within Kubernetes' 30 s, whatever it is that waits: a call that does not come to its end, one
    that is answered and unwritten, and rows of the log."""
    now = asyncio.get_running_loop().time
    async with faulty(tmp_path, route=ONE_TRY, fallback=False) as (parties, ledger):
        go = asyncio.Event()
        parties.primary.then(faults.steps_first(Await(go)))
        asking = asyncio.create_task(parties.ask(headers=key("unfinished")))
        await parties.primary.wait_for_attempts(1)
        getattr(ledger, how)("finish")
        assert (await parties.ask(headers=key("unwritten"))).status == 200
        for method in ("write", "mark_sent", "renew", "retire"):
            getattr(ledger, how)(method)
        assert (await parties.ask()).status == 200
        began = now()
        sidecar = parties.steer.sidecar
        assert not await sidecar.drain(sidecar.config.drain_timeout)
        await sidecar.__aexit__()
        assert now() - began < 29.0
        assert b"steer_draining" in (await asking).body
        ledger.up()


# --- A record that is gone, or settled by hand, in the middle of a call ---------------------------


async def at_the_provider(parties: World, go: asyncio.Event, stream: bool) -> asyncio.Task[Reply]:
    """A keyed call under way, which is answered when the test says so."""
    parties.primary.always(
        faults.at_event(3, Await(go)) if stream else faults.steps_first(Await(go))
    )
    asking = asyncio.create_task(parties.ask(stream=stream, headers=key()))
    await parties.primary.wait_for_attempts(1)
    return asking


def forget(ledger: FaultyLedger) -> None:
    """All the ledger has but its secret, as a file that was removed."""
    inner = memory(ledger)
    inner.calls.clear()
    inner._live.clear()
    inner._owners.clear()


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("wait", [0.0, 30.0], ids=["found at the end", "found by the lease"])
async def test_a_record_that_vanishes_is_written_anew(
    tmp_path: Path, stream: bool, wait: float
) -> None:
    """Nobody has taken the key: the answer is given, kept, and not paid again."""
    async with faulty(tmp_path) as (parties, ledger):
        go = asyncio.Event()
        asking = await at_the_provider(parties, go, stream)
        forget(ledger)
        await asyncio.sleep(wait)
        joining = asyncio.create_task(parties.ask(stream=stream, headers=key()))
        await asyncio.sleep(0.1)
        go.set()
        first = await asking
        assert (first.status, first.cut) == (200, False)
        assert first.headers["Idempotency-Status"] == "new"
        assert (await joining).body == first.body
        again = await parties.ask(stream=stream, headers=key())
        assert (again.body, again.headers["Idempotency-Status"]) == (first.body, "replayed")
        assert len(parties.primary.attempts) == 1
        assert states(ledger)[0] == "completed"


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("told", ["by the lease", "at the end"])
@pytest.mark.parametrize("move", [Move.SETTLE, Move.REOPEN], ids=["discard", "rerun"])
async def test_an_answer_that_comes_after_its_key_was_settled_by_hand(
    tmp_path: Path, move: Move, told: str, stream: bool
) -> None:
    """It was paid and is given, and does not change what somebody has decided."""
    async with faulty(tmp_path) as (parties, ledger):
        go = asyncio.Event()
        asking = await at_the_provider(parties, go, stream)
        ledger.down()
        await asyncio.sleep(20.0)
        (row,) = memory(ledger).calls.values()
        assert await memory(ledger).settle(row.id, move)
        ledger.up()
        if told == "at the end":
            ledger.fail("renew")
        await asyncio.sleep(6.0)
        go.set()
        first = await asking
        assert (first.status, first.cut) == (200, False)
        assert first.headers["Idempotency-Status"] == ("new" if stream else "not-stored")
        ledger.up()
        await asyncio.sleep(2.0)
        assert [each.executed for each in memory(ledger).attempts.values()] == ["yes"]
        again = await parties.ask(stream=stream, headers=key())
        if move is Move.SETTLE:
            assert again.json["error"]["code"] == "steer_result_not_stored"
        else:
            assert again.headers["Idempotency-Status"] == "new"
        assert len(parties.primary.attempts) == (1 if move is Move.SETTLE else 2)


async def test_no_attempt_is_begun_for_a_key_that_was_freed_by_hand(tmp_path: Path) -> None:
    """Who frees it lets the next call be made, wherever that is: this one waits for its retry."""
    async with faulty(tmp_path, fallback=False) as (parties, ledger):
        parties.primary.then(faults.status(503, retry_after=25))
        asking = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        ledger.down()
        await asyncio.sleep(18.0)
        (row,) = memory(ledger).calls.values()
        assert await memory(ledger).settle(row.id, Move.REOPEN)
        ledger.up()
        reply = await asking
        assert (reply.status, reply.headers["X-Should-Retry"]) == (409, "true")
        assert reply.json["error"]["code"] == "steer_key_taken_over"
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize("how", ["fail", "hang"], ids=["not renewed", "renewed just then"])
async def test_no_attempt_is_begun_without_a_lease(tmp_path: Path, how: str) -> None:
    """That the call is sent is on disk, and its retry is due: but the lease has lapsed meanwhile,
    and whoever frees the key lets the next call be made. So the lease is had first, and what that
    tells is heeded."""
    async with faulty(tmp_path, fallback=False) as (parties, ledger):
        parties.primary.then(faults.status(503, retry_after=25))
        asking = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        getattr(ledger, how)("renew")
        await asyncio.sleep(18.0)
        (row,) = memory(ledger).calls.values()
        assert await memory(ledger).settle(row.id, Move.REOPEN)
        if how == "hang":
            await asyncio.sleep(15.0)  # it waits for its lease by now
            assert not asking.done()
            ledger.up()
        reply = await asking
        code = "steer_ledger_unavailable" if how == "fail" else "steer_key_taken_over"
        assert reply.json["error"]["code"] == code
        assert reply.headers["X-Should-Retry"] == "true"
        assert len(parties.primary.attempts) == 1


async def test_a_call_that_may_have_run_is_in_doubt_without_a_lease(tmp_path: Path) -> None:
    """Its first attempt broke, and the next one may not be begun: the key is not free for that."""
    again = {"retry": {"ambiguous": "retry"}}
    async with faulty(tmp_path, fallback=False, route=again) as (parties, ledger):
        parties.primary.then(Answer((Pause(18.0), Reset())))
        asking = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        ledger.fail("renew")
        assert (await asking).json["error"]["code"] == "steer_ledger_unavailable"
        ledger.up()
        await asyncio.sleep(6.0)
        assert states(ledger) == ["uncertain"]
        reply = await parties.ask(headers=key())
        assert reply.json["error"]["code"] == "steer_key_uncertain"
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize("end", ["answer", "bug", "drain"])
async def test_a_call_that_was_sent_without_a_ledger_is_owned_up_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """`open`: that it is sent could not be written, nor its end: its record is not that of a claim
    for which nothing was sent, whose key would be free, once it can be written."""
    async with faulty(tmp_path, fallback=False, route={**OPEN, **ONE_TRY}) as (parties, ledger):
        waiting = await about_to_be_sent(parties, ledger)
        go = asyncio.Event()
        parties.primary.then(faults.steps_first(Await(go)))
        ledger.down()
        await parties.primary.wait_for_attempts(2)
        if end == "bug":
            monkeypatch.setattr(Journal, "closing", None)
        if end == "drain":
            keyed = parties.steer.gateway._keyed
            assert keyed is not None
            (run,) = keyed._runs
            assert run.task is not None
            run.task.cancel()
        go.set()
        assert (await waiting).status == (200 if end == "answer" else 500 if end == "bug" else 503)
        assert states(ledger) == ["claimed"]
        ledger.up()
        await asyncio.sleep(4.0)
        assert states(ledger) == ["completed" if end == "answer" else "uncertain"]
        again = await parties.ask(headers=key())
        code = "steer_result_not_stored" if end == "answer" else "steer_key_uncertain"
        assert again.json["error"]["code"] == code
        assert len(parties.primary.attempts) == 2


# --- SQLite itself --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def on_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> AsyncIterator[tuple[World, Path]]:
    """A sidecar whose ledger is a file, at which it looks each time."""
    monkeypatch.setattr(sqlite_file, "LOOK_EVERY", 0.0)
    path = tmp_path / "steer.db"
    async with world(tmp_path, database={"url": f"sqlite:///{path}"}, **more) as parties:
        yield parties, path


def connection_of(parties: World) -> sqlite3.Connection:
    """The connection the sidecar writes with."""
    ledger = parties.steer.sidecar.books.ledger
    assert isinstance(ledger, SqliteLedger)
    connection = ledger._file._connection
    assert connection is not None
    return connection


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens outside of the loop; five seconds at most."""
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.01)


@pytest.mark.real_time
async def test_a_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program holds it: keyed calls fail after a moment, the rest goes on."""
    async with on_a_file(tmp_path, monkeypatch) as (parties, path):
        await recovered(parties)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            keyed = asyncio.create_task(parties.ask(headers=key()))
            await unaffected(parties)
            unavailable(await keyed)
            assert keyed.result().seconds < 5.0
            other.execute("ROLLBACK")
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")
        await until(lambda: parties.steer.sidecar.books.queued == 0)
        with contextlib.closing(sqlite3.connect(path)) as reader:
            (unkeyed,) = reader.execute(
                "SELECT count(*) FROM requests WHERE idem_key IS NULL"
            ).fetchone()
        assert unkeyed == 2


@pytest.mark.real_time
@pytest.mark.parametrize("on_ledger_down", ["fail", "open"])
async def test_a_full_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_ledger_down: str
) -> None:
    """No room for another row; with room again all is as before."""
    route = {"idempotency": {"on_ledger_down": on_ledger_down}}
    async with on_a_file(tmp_path, monkeypatch, route=route) as (parties, _):
        await recovered(parties)
        writer = connection_of(parties)
        pages = await asyncio.to_thread(_limit, writer, 0)
        await asyncio.to_thread(_limit, writer, pages)
        parties.primary.text = "x" * 40_000
        said = set()
        for turn in range(8):
            reply = await parties.ask(headers=key(f"large-{turn}"))
            said.add((reply.status, reply.headers.get("Idempotency-Status")))
            if said & {(503, None), (200, "not-stored")}:
                break
        expected = {(503, None), (200, "not-stored")}
        assert said & expected, said
        parties.primary.text = "small"
        await unaffected(parties)
        await asyncio.to_thread(_limit, writer, 1_000_000)
        reply = await parties.ask(headers=key("after"))
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")


def _limit(connection: sqlite3.Connection, pages: int) -> int:
    if pages == 0:
        (count,) = connection.execute("PRAGMA page_count").fetchone()
        return int(count)
    (limit,) = connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    return int(limit)


@pytest.mark.real_time
async def test_a_file_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one is made; its keys are gone with it, and nothing else."""
    async with on_a_file(tmp_path, monkeypatch) as (parties, path):
        await recovered(parties)
        for name in ("steer.db", "steer.db-wal", "steer.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        await unaffected(parties)
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")
        assert path.exists()
        again = await parties.ask(headers=key())
        assert again.headers["Idempotency-Status"] == "replayed"


@pytest.mark.real_time
@PLAIN_AND_STREAMED
@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_file_that_vanishes_under_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, stream: bool
) -> None:
    """Its caller gets the answer; in a file of our own making it is kept as well."""
    async with on_a_file(tmp_path, monkeypatch) as (parties, path):
        go = asyncio.Event()
        asking = await at_the_provider(parties, go, stream)
        for name in ("steer.db", "steer.db-wal", "steer.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        if how == "replaced":
            migrate.upgrade(f"sqlite:///{path}")  # with a secret of its own
        go.set()
        first = await asking
        assert (first.status, first.cut) == (200, False)
        kept = how == "removed"
        expected = "new" if kept or stream else "not-stored"
        assert first.headers["Idempotency-Status"] == expected
        again = await parties.ask(stream=stream, headers=key())
        assert again.headers["Idempotency-Status"] == ("replayed" if kept else "new")
        await until(lambda: parties.steer.sidecar.books.queued == 0)
        with contextlib.closing(sqlite3.connect(path)) as reader:
            rows = reader.execute(
                "SELECT status FROM requests WHERE idem_key = 'order-1' ORDER BY id"
            ).fetchall()
        assert rows == [(200,), (200,)]


@pytest.mark.real_time
async def test_a_directory_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere to write: keyed calls fail until it is back."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(sqlite_file, "LOOK_EVERY", 0.0)
    async with world(tmp_path, database={"url": f"sqlite:///{folder}/steer.db"}) as parties:
        await recovered(parties)
        hidden = folder.rename(tmp_path / "hidden")
        unavailable(await parties.ask(headers=key()))
        await unaffected(parties)
        hidden.rename(folder)
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")


# --- What could not be finished -------------------------------------------------------------------


async def test_what_could_not_be_finished_is_finished_later(tmp_path: Path) -> None:
    """The ledger goes away between claim and sending: its record is freed once it is back."""
    async with faulty(tmp_path, route=ONE_TRY) as (parties, ledger):
        parties.primary.then(faults.rate_limit(retry_after="3"))
        await parties.ask()  # its gate is shut: the next call has to wait, and so only claims
        asking = asyncio.create_task(parties.ask(headers=key()))
        await asyncio.sleep(1.0)
        assert states(ledger) == ["claimed"]
        ledger.fail("mark_sent")
        ledger.fail("finish")
        unavailable(await asking)
        assert states(ledger) == ["claimed"]
        ledger.up()
        await asyncio.sleep(5.0)
        assert states(ledger) == ["released"]


async def test_a_key_that_was_first_used_without_a_ledger_outlives_the_process(
    tmp_path: Path,
) -> None:
    """`open`: such a key goes by a makeshift scope only as long as that call runs. Those that come
    later are kept by the ledger's own, for whichever process is asked next."""
    now = asyncio.get_running_loop().time
    ledger = FaultyLedger(MemoryLedger(lambda: EPOCH + now()))
    ledger.fail("open")
    ledger.down()
    async with world(tmp_path, ledger=ledger, route=OPEN) as parties:
        assert (await parties.ask(headers=key())).headers["Idempotency-Status"] == "not-stored"
        ledger.up()
        await ledger.open()
        await asyncio.sleep(40.0)
        first = await parties.ask(headers=key())
        assert first.headers["Idempotency-Status"] == "new"
    async with world(tmp_path, ledger=ledger, route=OPEN) as parties:
        again = await parties.ask(headers=key())
        assert (again.body, again.headers["Idempotency-Status"]) == (first.body, "replayed")
        assert parties.primary.attempts == []


async def test_a_call_made_without_its_claim_is_owned_up_to(tmp_path: Path) -> None:
    """`open`: the claim's reply is lost and the call is made; its record says so at the end."""
    async with faulty(tmp_path, route=OPEN) as (parties, ledger):
        await recovered(parties)
        ledger.lose_reply("claim")
        parties.primary.always(faults.silence(1.0))
        asking = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(2)
        ledger.up()
        assert (await asking).status == 200
        row = next(row for row in memory(ledger).calls.values() if row.idem_key == "order-1")
        assert row.idem_state == "completed"
        assert (await parties.ask(headers=key())).headers["Idempotency-Status"] == "replayed"
