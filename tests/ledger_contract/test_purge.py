from __future__ import annotations

import pytest

from steer_policies.idempotency import Move, State
from steer_proxy.ledger.values import Batch, Purge, Purged
from tests.ledger_contract.make import (
    DAY,
    LEASE,
    OTHER,
    alive,
    attempt,
    call,
    chunks,
    claim,
    ending,
    event,
    found,
    made,
)
from tests.ledger_contract.subject import Subject, Subjects


async def purge(
    subject: Subject, before_us: int = 0, max_bytes: int | None = None, limit: int = 500
) -> Purged:
    """Slices until there is no more: what they removed together."""
    total = Purged()
    for _ in range(100):
        slice_ = await subject.ledger.purge(Purge(before_us, max_bytes, limit))
        total = Purged(
            total.requests + slice_.requests,
            total.attempts + slice_.attempts,
            total.chunks + slice_.chunks,
            total.events + slice_.events,
            total.keys + slice_.keys,
            total.stored_bytes + slice_.stored_bytes,
        )
        if not slice_.more:
            return total
    raise AssertionError("there is always more")


async def ids(subject: Subject) -> set[str]:
    return {row["id"] for row in await subject.rows("requests")}


async def test_old_rows_go_with_what_belongs_to_them(subjects: Subjects) -> None:
    """Calls, attempts and events before the time; later ones stay."""
    async with subjects() as subject:
        now = subject.now_us()
        old = [call(subject, started_us=now - 100 - n, ended_us=now - 50) for n in range(7)]
        young = [call(subject, started_us=now + n) for n in range(3)]
        rows = [*old, *young]
        await subject.ledger.write(
            Batch(
                rows,
                [attempt(row, n) for row in rows for n in (1, 2)],
                [event(subject, at_us=now - 1), event(subject, at_us=now + 1)],
            )
        )
        assert await purge(subject, before_us=now, limit=3) == Purged(7, 14, 0, 1)
        assert await ids(subject) == {row.id for row in young}
        assert {row["request"] for row in await subject.rows("attempts")} == await ids(subject)
        assert [row["at_us"] for row in await subject.rows("breaker_events")] == [now + 1]
        assert await purge(subject, before_us=now) == Purged()


async def test_a_slice_is_no_larger_than_asked_for(subjects: Subjects) -> None:
    """And says that there is more."""
    async with subjects() as subject:
        rows = [call(subject, started_us=n) for n in range(60)]
        await subject.ledger.write(Batch(rows, []))
        slice_ = await subject.ledger.purge(Purge(before_us=1_000, limit=10))
        assert 0 < slice_.requests <= 25
        assert slice_.more


async def test_a_call_that_ended_later_stays(subjects: Subjects) -> None:
    """It is a call's end that counts."""
    async with subjects() as subject:
        now = subject.now_us()
        row = call(subject, started_us=now - 100, ended_us=now + 100)
        await subject.ledger.write(Batch([row]))
        assert await purge(subject, before_us=now) == Purged()
        assert await purge(subject, before_us=now + 101) == Purged(requests=1)


async def test_attempts_without_their_call_go_too(subjects: Subjects) -> None:
    """A call's row may have been dropped under load; its attempts do not stay for ever."""
    async with subjects() as subject:
        gone = call(subject, started_us=10)
        here = call(subject)
        early = attempt(here, started_us=10)
        await subject.ledger.write(Batch([here], [attempt(gone), early]))
        assert await purge(subject, before_us=20) == Purged(attempts=1)
        assert [row["request"] for row in await subject.rows("attempts")] == [here.id]


@pytest.mark.parametrize("sent", [False, True])
async def test_a_running_record_is_never_removed(subjects: Subjects, sent: bool) -> None:
    """However old it is and whatever else is asked, as long as its owner lives."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=sent, retention=1))
        if sent:
            await subject.ledger.add_chunks(chunks(mine, b"one"))
        await subject.advance(100)
        await alive(subject)
        before = subject.now_us() + 10**12
        assert await purge(subject, before_us=before, max_bytes=0) == Purged()
        assert (await found(subject)).id == mine.row.id
        assert len(await subject.rows("response_chunks")) == int(sent)


@pytest.mark.parametrize("state", [State.COMPLETED, State.UNCERTAIN])
async def test_an_unexpired_record_is_never_removed(subjects: Subjects, state: State) -> None:
    """Its key answers until its retention is over, though its rows' retention is shorter."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        bodies = [b"x"] if state is State.COMPLETED else []
        assert await subject.ledger.finish(ending(subject, mine, state, *bodies))
        await subject.advance(DAY / 2)
        assert await purge(subject, before_us=subject.now_us() + 10**12) == Purged()
        assert (await found(subject)).stored is (state is State.COMPLETED)


async def test_an_unexpired_record_of_a_dead_owner_stays(subjects: Subjects) -> None:
    """It has to answer that the call may have been executed."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        await subject.advance(LEASE + 1)
        assert await purge(subject, before_us=subject.now_us() + 10**12) == Purged()
        assert (await found(subject)).id == mine.row.id


@pytest.mark.parametrize("state", [State.COMPLETED, State.UNCERTAIN, State.SENT, State.CLAIMED])
async def test_an_expired_key_is_freed_and_its_row_kept(subjects: Subjects, state: State) -> None:
    """Its answer goes; the row stays for the history until its own time is over."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=state is not State.CLAIMED, retention=60))
        if state is State.COMPLETED:
            assert await subject.ledger.finish(
                ending(subject, mine, state, b"one", b"two", retention=60)
            )
        elif state is State.UNCERTAIN:
            await subject.ledger.add_chunks(chunks(mine, b"one", b"two"))
            assert await subject.ledger.finish(ending(subject, mine, state, retention=60))
        await subject.advance(70)
        removed = await purge(subject)
        stored = state in (State.COMPLETED, State.UNCERTAIN)
        assert removed == Purged(keys=1, chunks=2 * stored, stored_bytes=6 * stored)
        assert await subject.rows("response_chunks") == []
        assert await subject.ledger.find("scope-1") is None
        assert await subject.ledger.answer(mine.row.id) is None
        row = await subject.row(mine.row.id)
        kept = State.RELEASED if state is State.CLAIMED else state
        assert (row["idem_state"], row["idem_live"]) == (kept, None)
        assert (row["resp_chunks"], row["resp_headers"]) == (None, None)
        await made(subject, claim(subject))
        assert (await purge(subject, before_us=subject.now_us() + 10**12)).requests == 1


async def test_an_answer_in_many_chunks_goes_wholly(subjects: Subjects) -> None:
    """In as many slices as it takes."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True, retention=60))
        bodies = [bytes([n]) * 1_000 for n in range(100)]
        assert await subject.ledger.finish(
            ending(subject, mine, State.COMPLETED, *bodies, retention=60)
        )
        await subject.advance(70)
        assert await purge(subject, limit=30) == Purged(keys=1, chunks=100, stored_bytes=100_000)
        assert await subject.rows("response_chunks") == []


async def test_the_oldest_answers_make_room(subjects: Subjects) -> None:
    """Until the rest fits; their keys stay used, and running calls keep their chunks."""
    async with subjects() as subject:
        await alive(subject)
        running = await made(subject, claim(subject, "running", sent=True))
        await subject.ledger.add_chunks(chunks(running, bytes(1_000)))
        done = [await made(subject, claim(subject, f"scope-{n}", sent=True)) for n in range(5)]
        for each in done:
            assert await subject.ledger.finish(
                ending(subject, each, State.COMPLETED, bytes(600), bytes(400))
            )
        assert await purge(subject, max_bytes=10**9) == Purged()
        assert (await purge(subject, max_bytes=3_500)).chunks == 6
        records = [await found(subject, f"scope-{n}") for n in range(5)]
        assert [record.stored for record in records] == [False, False, False, True, True]
        assert {record.state for record in records} == {State.COMPLETED}
        assert await subject.ledger.answer(done[0].row.id) is None
        assert len(await subject.ledger.chunks(running.row.id, -1, 10)) == 1
        assert await purge(subject, max_bytes=3_500) == Purged()


async def test_parts_of_answers_go_first(subjects: Subjects) -> None:
    """What is there of an uncertain call's answer is never replayed; its key stays uncertain."""
    async with subjects() as subject:
        await alive(subject)
        whole = await made(subject, claim(subject, "whole", sent=True))
        end = ending(subject, whole, State.COMPLETED, bytes(1_000))
        assert await subject.ledger.finish(end)
        for name in ("part", "another"):
            part = await made(subject, claim(subject, name, sent=True))
            await subject.ledger.add_chunks(chunks(part, bytes(1_000)))
            assert await subject.ledger.finish(ending(subject, part, State.UNCERTAIN))
        assert (await purge(subject, max_bytes=1_500)).chunks == 2
        assert (await found(subject, "whole")).stored
        assert (await found(subject, "part")).state is State.UNCERTAIN
        assert [row["request"] for row in await subject.rows("response_chunks")] == [whole.row.id]


async def test_owners_that_ended_long_ago_are_forgotten(subjects: Subjects) -> None:
    """Living ones, and those that ended lately, are not."""
    async with subjects() as subject:
        await alive(subject, OTHER)
        await subject.advance(1_000)
        await alive(subject)
        await made(subject, claim(subject))
        await purge(subject, before_us=subject.now_us() - 500_000_000)
        await purge(subject, before_us=subject.now_us() + 10**12)
        assert not (await found(subject)).lapsed
        lease = await subject.ledger.renew(OTHER, "pod-2", LEASE, ["an id"])
        assert lease.lost == {"an id"}


async def test_what_was_settled_by_hand_is_purged_in_time(subjects: Subjects) -> None:
    """A reopened record's row is history like any other."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.settle(mine.row.id, Move.REOPEN)
        assert (await purge(subject, before_us=subject.now_us() + 10**9)).requests == 1
        assert await ids(subject) == set()
