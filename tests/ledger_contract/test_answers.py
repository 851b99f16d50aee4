from __future__ import annotations

import asyncio
import os

from steer_policies.idempotency import Move, State
from steer_proxy.ledger.values import Following, StoredAnswer
from tests.ledger_contract.make import alive, chunks, claim, ending, found, fresh_id, made, ref
from tests.ledger_contract.subject import Subjects

KEY = "key-1"
HEAD = '{"reason": "OK", "fields": []}'


async def test_a_stored_answer_is_read_in_order_page_by_page(subjects: Subjects) -> None:
    """Every byte as it was written, whatever was written first."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        bodies = [os.urandom(size) for size in (1, 70_000, 0, 3, 65_536)]
        written = chunks(mine, *bodies)
        await subject.ledger.add_chunks([written[2], written[0]])
        await subject.ledger.add_chunks([written[1]])
        assert await subject.ledger.finish(
            ending(subject, mine, State.COMPLETED, *bodies, written=3, keyring_id=KEY)
        )
        assert await subject.ledger.answer(mine.row.id) == StoredAnswer(
            mine.row.id, 200, HEAD, sum(map(len, bodies)), 5, "5" * 64, KEY
        )
        for first in (1, 5, 6):
            answer = await subject.ledger.answer(mine.row.id, first)
            assert answer is not None
            assert answer.first == tuple(written[:first])
        page = await subject.ledger.chunks(mine.row.id, -1, 2)
        assert page == list(written[:2])
        page = await subject.ledger.chunks(mine.row.id, page[-1].seq, 2)
        assert page == list(written[2:4])
        page = await subject.ledger.chunks(mine.row.id, page[-1].seq, 2)
        assert page == [written[4]]
        assert await subject.ledger.chunks(mine.row.id, page[-1].seq, 2) == []


async def test_only_a_completed_record_has_an_answer(subjects: Subjects) -> None:
    """Not a running one whose head is known, nor an uncertain one, nor none."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.begin_answer(ref(mine), 200, HEAD)
        await subject.ledger.add_chunks(chunks(mine, b"one"))
        assert await subject.ledger.answer(mine.row.id) is None
        assert not (await found(subject)).stored
        assert await subject.ledger.finish(ending(subject, mine, State.UNCERTAIN))
        assert await subject.ledger.answer(mine.row.id) is None
        assert await subject.ledger.answer(fresh_id()) is None
        assert await subject.ledger.chunks(fresh_id(), -1, 10) == []


async def test_chunks_that_are_there_are_left_alone(subjects: Subjects) -> None:
    """A write whose reply was lost is repeated, alone or with the finish."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        first = chunks(mine, b"one", b"two")
        await subject.ledger.add_chunks(first)
        await subject.ledger.add_chunks(chunks(mine, b"ONE", b"TWO", b"three"))
        assert await subject.ledger.finish(
            ending(subject, mine, State.COMPLETED, b"one", b"two", b"three")
        )
        rows = await subject.ledger.chunks(mine.row.id, -1, 10)
        assert [row.body for row in rows] == [b"one", b"two", b"three"]
        await subject.ledger.add_chunks([])


async def test_chunks_are_written_for_running_calls_only(subjects: Subjects) -> None:
    """Not for a call that was not sent, is over, or is not there."""
    async with subjects() as subject:
        claimed = await made(subject, claim(subject, "claimed"))
        released = await made(subject, claim(subject, "released", sent=True))
        assert await subject.ledger.finish(ending(subject, released, State.RELEASED))
        done = await made(subject, claim(subject, "done", sent=True))
        assert await subject.ledger.finish(ending(subject, done, State.COMPLETED))
        for each in (claimed, released, done, claim(subject, "none")):
            await subject.ledger.add_chunks(chunks(each, b"x"))
        assert await subject.rows("response_chunks") == []


async def test_one_write_takes_chunks_of_several_calls(subjects: Subjects) -> None:
    """Each goes to its own; one that is over takes nothing from the others."""
    async with subjects() as subject:
        one = await made(subject, claim(subject, "one", sent=True))
        two = await made(subject, claim(subject, "two", sent=True))
        over = await made(subject, claim(subject, "over", sent=True))
        assert await subject.ledger.finish(ending(subject, over, State.RELEASED))
        batch = [*chunks(one, b"1"), *chunks(over, b"?"), *chunks(two, b"2", b"3")]
        await subject.ledger.add_chunks(batch)
        assert await subject.ledger.chunks(one.row.id, -1, 9) == [batch[0]]
        assert await subject.ledger.chunks(two.row.id, -1, 9) == batch[2:]


# --- Following ------------------------------------------------------------------------------------


async def test_a_running_call_is_followed(subjects: Subjects) -> None:
    """Its state, then its head, then its chunks as they come, then its end."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject))
        ledger, id_ = subject.ledger, mine.row.id
        assert await ledger.follow(id_, -1, 10) == Following(await found(subject), None, None)
        assert not await ledger.begin_answer(ref(mine), 200, HEAD)  # nothing was sent
        assert await ledger.mark_sent(ref(mine))
        assert await ledger.begin_answer(ref(mine), 200, HEAD, KEY)
        assert await ledger.begin_answer(ref(mine), 200, HEAD, KEY)
        seen = await ledger.follow(id_, -1, 10)
        assert (seen.headers, seen.status, seen.chunks) == (HEAD, 200, ())
        assert seen.keyring_id == KEY
        assert seen.record is not None
        assert (seen.record.state, seen.record.lapsed) == (State.SENT, False)

        written = chunks(mine, b"one", b"two", b"three")
        await ledger.add_chunks(written[:2])
        assert (await ledger.follow(id_, -1, 1)).chunks == written[:1]
        assert (await ledger.follow(id_, 0, 10)).chunks == written[1:2]
        assert (await ledger.follow(id_, 1, 10)).chunks == ()

        assert await ledger.finish(
            ending(subject, mine, State.COMPLETED, b"one", b"two", b"three", written=2)
        )
        seen = await ledger.follow(id_, 1, 10)
        assert seen.chunks == written[2:]
        assert seen.record is not None
        assert (seen.record.state, seen.record.stored) == (State.COMPLETED, True)


async def test_an_answer_too_large_to_keep_is_taken_back(subjects: Subjects) -> None:
    """Head and chunks are gone for those who begin to follow; only its owner can do that."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.begin_answer(ref(mine), 200, HEAD, KEY)
        await subject.ledger.add_chunks(chunks(mine, b"one"))
        await subject.ledger.drop_chunks(ref(mine, 2))
        assert (await subject.ledger.follow(mine.row.id, -1, 10)).chunks != ()
        await subject.ledger.drop_chunks(ref(mine))
        await subject.ledger.drop_chunks(ref(mine))
        seen = await subject.ledger.follow(mine.row.id, -1, 10)
        assert (seen.headers, seen.chunks, seen.keyring_id) == (None, (), None)
        assert await subject.ledger.finish(ending(subject, mine, State.COMPLETED, b"x"))
        await subject.ledger.drop_chunks(ref(mine))
        assert await subject.ledger.answer(mine.row.id) is not None
        assert len(await subject.ledger.chunks(mine.row.id, -1, 10)) == 1


async def test_an_answer_too_large_to_keep_is_passed_on(subjects: Subjects) -> None:
    """Its beginning goes while it runs; its end comes with the record's, and goes afterwards."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        ledger, id_ = subject.ledger, mine.row.id
        bodies = (b"one", b"two", b"three", b"")
        assert await ledger.begin_answer(ref(mine), 200, HEAD)
        await ledger.add_chunks(chunks(mine, *bodies)[:2])
        await ledger.trim_chunks(ref(mine, 2), 3)
        assert len(await ledger.chunks(id_, -1, 10)) == 2
        await ledger.trim_chunks(ref(mine), 3)
        seen = await ledger.follow(id_, -1, 10)
        assert (seen.headers, [chunk.seq for chunk in seen.chunks]) == (HEAD, [1])

        end = ending(subject, mine, State.COMPLETED, *bodies, stored=False, written=2)
        assert await ledger.finish(end)
        assert await ledger.finish(end)
        seen = await ledger.follow(id_, 1, 10)
        assert [chunk.seq for chunk in seen.chunks] == [2, 3]
        assert seen.record is not None
        assert (seen.record.state, seen.record.stored) == (State.COMPLETED, False)
        assert await ledger.answer(id_) is None
        await ledger.trim_chunks(ref(mine), 100)
        assert len(await ledger.chunks(id_, -1, 10)) == 3
        await ledger.drop_chunks(ref(mine, 2))
        assert len(await ledger.chunks(id_, -1, 10)) == 3
        await ledger.drop_chunks(ref(mine))
        assert await ledger.chunks(id_, -1, 10) == []
        assert (await found(subject)).state is State.COMPLETED


async def test_nobody_follows_unless_it_is_known(subjects: Subjects) -> None:
    """Whoever watches elsewhere; a file has no elsewhere."""
    async with subjects() as subject:
        assert not subject.ledger.followed(fresh_id())


async def test_who_follows_sees_a_release_and_a_take_over(subjects: Subjects) -> None:
    """A record that is no longer live still tells its state, and counts as lapsed."""
    async with subjects() as subject:
        await alive(subject)
        released = await made(subject, claim(subject, "released", sent=True))
        assert await subject.ledger.finish(ending(subject, released, State.RELEASED, status=500))
        seen = await subject.ledger.follow(released.row.id, -1, 10)
        assert seen.record is not None
        assert (seen.record.state, seen.status) == (State.RELEASED, 500)

        doubted = await made(subject, claim(subject, "taken", sent=True))
        assert await subject.ledger.finish(ending(subject, doubted, State.UNCERTAIN))
        there = await found(subject, "taken")
        assert not there.lapsed
        assert await subject.ledger.take_over(claim(subject, "taken"), there) is None
        seen = await subject.ledger.follow(doubted.row.id, -1, 10)
        assert seen.record is not None
        assert (seen.record.state, seen.record.lapsed) == (State.UNCERTAIN, True)

        assert await subject.ledger.follow(fresh_id(), -1, 10) == Following(None, None, None)


async def test_who_watches_is_told_or_sees(subjects: Subjects) -> None:
    """The event may be set; in any case asking shows the news. Leaving is always possible."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        async with (
            subject.ledger.watch(mine.row.id) as first,
            subject.ledger.watch(mine.row.id) as second,
            subject.ledger.watch(fresh_id()) as elsewhere,
        ):
            await subject.ledger.add_chunks(chunks(mine, b"one"))
            if not subject.ledger.shared:
                assert first.is_set()
                assert second.is_set()
                first.clear()
                assert await subject.ledger.settle(mine.row.id, Move.SETTLE)
                assert first.is_set()
            else:
                for event in (first, second):
                    try:
                        async with asyncio.timeout(5):
                            await event.wait()
                    except TimeoutError:
                        pass
            assert not elsewhere.is_set()
        following = await subject.ledger.follow(mine.row.id, -1, 10)
        assert following.record is not None
