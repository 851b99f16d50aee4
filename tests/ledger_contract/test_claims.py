from __future__ import annotations

import asyncio

import pytest

from steer_policies.idempotency import State
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import Record, Ref
from tests.ledger_contract.make import DAY, LEASE, ME, OTHER, alive, claim, ending, found, made, ref
from tests.ledger_contract.subject import Subjects


async def test_a_free_key_is_claimed_and_found(subjects: Subjects) -> None:
    """A claim makes the live record that `find` then gives."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject))
        assert await subject.ledger.find("scope-1") == Record(
            id=mine.row.id,
            epoch=1,
            state=State.CLAIMED,
            fingerprint="fingerprint-1",
            owner_id=ME,
            lapsed=False,
            expired=False,
            stored=False,
        )
        assert await subject.ledger.find("scope-2") is None


async def test_a_claim_can_begin_as_sent(subjects: Subjects) -> None:
    """One statement is enough when nothing must be waited for."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert (await found(subject)).state is State.SENT
        sent_us = (await subject.row(mine.row.id))["sent_us"]
        assert abs(sent_us - subject.now_us()) < 60_000_000


async def test_the_row_says_what_the_claim_said(subjects: Subjects) -> None:
    """Every column of the call's row is written where it belongs."""
    async with subjects() as subject:
        mine = claim(subject, route="chat", model_requested="gpt-4o", bytes_in=17, stream=1)
        await made(subject, mine)
        row = await subject.row(mine.row.id)
        for name, value in mine.row._asdict().items():
            if name not in ("sent_us", "expires_us"):
                assert row[name] == value, name
        assert row["expires_us"] - row["started_us"] == pytest.approx(DAY * 1e6, rel=1e-3)


async def test_of_fifty_claims_at_once_one_is_made(subjects: Subjects) -> None:
    """The others are told whose record is there."""
    async with subjects() as subject:
        await alive(subject)
        claims = [claim(subject) for _ in range(50)]
        results = await asyncio.gather(*map(subject.ledger.claim, claims))
        winners = [each for each, result in zip(claims, results, strict=True) if result is None]
        assert len(winners) == 1
        assert {result.id for result in results if result} == {winners[0].row.id}
        assert len(await subject.rows("requests")) == 1


async def test_claims_of_different_keys_do_not_meet(subjects: Subjects) -> None:
    """Each of many concurrent claims gets its own record."""
    async with subjects() as subject:
        claims = [claim(subject, f"scope-{n}") for n in range(30)]
        assert await asyncio.gather(*map(subject.ledger.claim, claims)) == [None] * 30


async def test_a_claim_whose_reply_was_lost_is_repeated(subjects: Subjects) -> None:
    """Its own row is not in its way; another's claim still is."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        assert await subject.ledger.claim(mine) is None
        assert await subject.ledger.claim(claim(subject)) == await found(subject)
        assert len(await subject.rows("requests")) == 1


async def test_a_record_of_another_owner_is_never_ones_own(subjects: Subjects) -> None:
    """Not even where the ids are one: nobody takes another's claim for theirs."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject))
        theirs = claim(subject, owner=OTHER, id=mine.row.id)
        assert await subject.ledger.claim(theirs) == await found(subject)
        assert await subject.ledger.take_over(theirs, await found(subject)) == await found(subject)


async def test_a_repeated_claim_finds_who_took_over(subjects: Subjects) -> None:
    """A row that lost its key meanwhile is not mistaken for a made claim."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        theirs = claim(subject, owner=OTHER)
        assert await subject.ledger.take_over(theirs, await found(subject)) is None
        there = await subject.ledger.claim(mine)
        assert there is not None
        assert (there.id, there.epoch) == (theirs.row.id, 2)


async def test_a_repeated_claim_that_was_ended_is_unavailable(subjects: Subjects) -> None:
    """Its row cannot live twice, and nobody else's is there to be told."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        assert await subject.ledger.finish(ending(subject, mine, State.RELEASED))
        with pytest.raises(LedgerUnavailable, match="ended"):
            await subject.ledger.claim(mine)


async def test_a_released_key_is_claimed_anew(subjects: Subjects) -> None:
    """By a new row; the old one stays for the history."""
    async with subjects() as subject:
        first = await made(subject, claim(subject))
        assert await subject.ledger.finish(ending(subject, first, State.RELEASED))
        assert await subject.ledger.find("scope-1") is None
        second = await made(subject, claim(subject))
        assert (await found(subject)).id == second.row.id
        assert (await subject.row(first.row.id))["idem_state"] == "released"
        assert len(await subject.rows("requests")) == 2


# --- Take-over ------------------------------------------------------------------------------------


async def test_of_twelve_takers_one_wins(subjects: Subjects) -> None:
    """The key has one live record with the next epoch; the losers are told of it."""
    async with subjects() as subject:
        await alive(subject)
        old = await made(subject, claim(subject))
        await subject.advance(LEASE + 1)
        await alive(subject, OTHER)
        there = await found(subject)
        assert there.lapsed
        takers = [claim(subject, owner=OTHER) for _ in range(12)]
        results = await asyncio.gather(*(subject.ledger.take_over(t, there) for t in takers))
        winners = [each for each, result in zip(takers, results, strict=True) if result is None]
        assert len(winners) == 1
        assert {(each.id, each.epoch) for each in results if each} == {(winners[0].row.id, 2)}
        now = await found(subject)
        assert (now.id, now.epoch, now.owner_id) == (winners[0].row.id, 2, OTHER)
        before = await subject.row(old.row.id)
        assert (before["idem_state"], before["idem_live"]) == ("released", None)


async def test_a_taken_over_record_that_was_sent_keeps_its_state(subjects: Subjects) -> None:
    """The history shows that the first call may have been executed."""
    async with subjects() as subject:
        old = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.take_over(claim(subject), await found(subject)) is None
        assert (await subject.row(old.row.id))["idem_state"] == "sent"


async def test_a_zombie_changes_nothing(subjects: Subjects) -> None:
    """Who was taken over cannot send, answer, write or end anything, and is told so."""
    async with subjects() as subject:
        await alive(subject)
        zombie = await made(subject, claim(subject))
        await subject.advance(LEASE + 1)
        await alive(subject, OTHER)
        taker = claim(subject, owner=OTHER)
        assert await subject.ledger.take_over(taker, await found(subject)) is None
        before = await subject.rows("requests")

        ledger = subject.ledger
        assert not await ledger.mark_sent(ref(zombie))
        assert not await ledger.begin_answer(ref(zombie), 200, "{}")
        for state in (State.COMPLETED, State.UNCERTAIN, State.RELEASED):
            assert not await ledger.finish(ending(subject, zombie, state, b"late"))
        await ledger.add_chunks(ending(subject, zombie, State.COMPLETED, b"late").chunks)
        await ledger.drop_chunks(ref(zombie))

        assert await subject.rows("requests") == before
        assert await subject.rows("response_chunks") == []


async def test_a_zombie_that_had_sent_its_call_writes_nothing(subjects: Subjects) -> None:
    """Its row keeps its state when the call is made again: that it is not live is what stops it."""
    async with subjects() as subject:
        zombie = await made(subject, claim(subject, sent=True))
        taker = claim(subject, owner=OTHER)
        assert await subject.ledger.take_over(taker, await found(subject)) is None
        before = await subject.rows("requests")
        late = ending(subject, zombie, State.COMPLETED, b"late")

        ledger = subject.ledger
        assert not await ledger.mark_sent(ref(zombie))
        assert not await ledger.begin_answer(ref(zombie), 200, "{}")
        await ledger.add_chunks(late.chunks)
        assert not await ledger.finish(late)
        for state in (State.UNCERTAIN, State.RELEASED):
            assert not await ledger.finish(ending(subject, zombie, state))

        assert await subject.rows("requests") == before
        assert await subject.rows("response_chunks") == []
        lease = await ledger.renew(ME, "pod-1", LEASE, [zombie.row.id], unsure=True)
        assert lease.lost == {zombie.row.id}


async def test_a_write_with_another_epoch_changes_nothing(subjects: Subjects) -> None:
    """The epoch fences as the row does."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        for epoch in (0, 2):
            assert not await subject.ledger.mark_sent(Ref(mine.row.id, epoch))
            assert not await subject.ledger.finish(
                ending(subject, mine, State.RELEASED, epoch=epoch)
            )
        assert (await found(subject)).state is State.CLAIMED


async def test_the_new_owner_writes_with_the_next_epoch(subjects: Subjects) -> None:
    """After a take-over its own writes work, and give the answer."""
    async with subjects() as subject:
        await made(subject, claim(subject))
        taker = claim(subject)
        assert await subject.ledger.take_over(taker, await found(subject)) is None
        assert not await subject.ledger.mark_sent(ref(taker, 1))
        assert await subject.ledger.mark_sent(ref(taker, 2))
        assert await subject.ledger.finish(
            ending(subject, taker, State.COMPLETED, b"answer", epoch=2)
        )
        assert (await found(subject)).stored


async def test_a_take_over_whose_reply_was_lost_is_repeated(subjects: Subjects) -> None:
    """It does not take over itself."""
    async with subjects() as subject:
        await made(subject, claim(subject))
        there, taker = await found(subject), claim(subject)
        assert await subject.ledger.take_over(taker, there) is None
        assert await subject.ledger.take_over(taker, there) is None
        assert (await found(subject)).epoch == 2
        assert len(await subject.rows("requests")) == 2


async def test_a_claim_does_not_take_its_own_place(subjects: Subjects) -> None:
    """Who finds the record its lost reply had made, lapsed or not, leaves it there."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        there = await found(subject)
        assert there.lapsed
        assert await subject.ledger.take_over(mine, there) is None
        assert (await found(subject)) == there


async def test_a_living_owner_is_not_taken_over(subjects: Subjects) -> None:
    """Whether it has sent or not: the taker is told that the record is there."""
    async with subjects() as subject:
        await alive(subject)
        for scope, sent in (("scope-1", False), ("scope-2", True)):
            mine = await made(subject, claim(subject, scope, sent=sent))
            there = await subject.ledger.take_over(
                claim(subject, scope, owner=OTHER), await found(subject, scope)
            )
            assert there is not None
            assert (there.id, there.lapsed) == (mine.row.id, False)


async def test_an_owner_that_came_back_is_not_taken_over(subjects: Subjects) -> None:
    """What the taker saw as lapsed is looked at once more, in the same step."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject))
        await subject.advance(LEASE + 1)
        seen = await found(subject)
        assert seen.lapsed
        await alive(subject)
        there = await subject.ledger.take_over(claim(subject, owner=OTHER), seen)
        assert there is not None
        assert (there.id, there.lapsed) == (mine.row.id, False)


async def test_a_record_that_has_moved_on_is_not_taken_over(subjects: Subjects) -> None:
    """What the taker decided by is looked at once more: it saw a call that was not sent, and its
    owner, back from a lapse, has sent it since. To take it over now would make the call twice."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        seen = await found(subject)
        assert (seen.state, seen.lapsed) == (State.CLAIMED, True)
        assert await subject.ledger.mark_sent(ref(mine))
        there = await subject.ledger.take_over(claim(subject, owner=OTHER), seen)
        assert there is not None
        assert (there.id, there.epoch, there.state) == (mine.row.id, 1, State.SENT)
        assert await subject.ledger.finish(ending(subject, mine, State.COMPLETED, b"answer"))


async def test_a_completed_record_is_not_taken_over_before_it_expires(subjects: Subjects) -> None:
    """However long its owner has been gone."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.finish(ending(subject, mine, State.COMPLETED, b"x"))
        there = await subject.ledger.take_over(claim(subject), await found(subject))
        assert there is not None
        assert there.state is State.COMPLETED
        assert len(await subject.ledger.chunks(mine.row.id, -1, 10)) == 1


async def test_an_expired_completed_record_is_taken_over(subjects: Subjects) -> None:
    """With the next epoch; its answer is gone, its row stays."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.finish(
            ending(subject, mine, State.COMPLETED, b"x", retention=10)
        )
        await subject.advance(11)
        there = await found(subject)
        assert (there.expired, there.lapsed) == (True, False)
        taker = claim(subject)
        assert await subject.ledger.take_over(taker, there) is None
        assert (await found(subject)).epoch == 2
        assert await subject.ledger.answer(mine.row.id) is None
        assert await subject.ledger.chunks(mine.row.id, -1, 10) == []
        assert (await subject.row(mine.row.id))["idem_state"] == "completed"


async def test_an_expired_running_record_of_a_living_owner_is_not_taken_over(
    subjects: Subjects,
) -> None:
    """A call that runs longer than its key is kept is still one call."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True, retention=1))
        await subject.advance(2)
        await alive(subject)
        seen = await found(subject)
        assert (seen.expired, seen.lapsed) == (True, False)
        there = await subject.ledger.take_over(claim(subject), seen)
        assert there is not None
        assert there.id == mine.row.id


async def test_an_uncertain_record_is_taken_over_for_a_rerun(subjects: Subjects) -> None:
    """Its owner may be alive: it has declared that it does not know."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.finish(ending(subject, mine, State.UNCERTAIN))
        assert await subject.ledger.take_over(claim(subject), await found(subject)) is None
        assert not await subject.ledger.finish(ending(subject, mine, State.COMPLETED, b"late"))


async def test_a_key_that_became_free_is_taken_with_the_next_epoch(subjects: Subjects) -> None:
    """Released between the look and the take-over: the claim is made all the same."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        seen = await found(subject)
        assert await subject.ledger.finish(ending(subject, mine, State.RELEASED))
        assert await subject.ledger.take_over(claim(subject), seen) is None
        assert (await found(subject)).epoch == 2
