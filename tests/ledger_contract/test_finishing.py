from __future__ import annotations

from typing import Any

import pytest

from steer_policies.idempotency import Move, State
from steer_proxy.ledger.protocol import LedgerRefused
from steer_proxy.ledger.values import RESULT_COLUMNS, Finish, Ref
from tests.ledger_contract.make import LEASE, OTHER, alive, chunks, claim, ending, found, made, ref
from tests.ledger_contract.subject import Subjects

ENDINGS = [State.COMPLETED, State.UNCERTAIN, State.RELEASED]


async def test_claimed_becomes_sent_once(subjects: Subjects) -> None:
    """Repeating it is harmless: the reply may have been lost."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        assert await subject.ledger.mark_sent(ref(mine))
        assert await subject.ledger.mark_sent(ref(mine))
        row = await subject.row(mine.row.id)
        assert row["idem_state"] == "sent"
        assert abs(row["sent_us"] - subject.now_us()) < 60_000_000


@pytest.mark.parametrize("state", ENDINGS)
async def test_what_ended_is_not_sent_again(subjects: Subjects, state: State) -> None:
    """A record that is over does not go back."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.finish(ending(subject, mine, state))
        assert not await subject.ledger.mark_sent(ref(mine))
        assert (await subject.row(mine.row.id))["idem_state"] == state


async def test_finishing_writes_what_became_known(subjects: Subjects) -> None:
    """The result, the stored answer's columns and the expiry; nothing else of the row."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True, route="chat"))
        before = await subject.row(mine.row.id)
        finish = ending(
            subject, mine, State.COMPLETED, b"answer", retention=100, route="other", keyring_id="k"
        )
        assert await subject.ledger.finish(finish)
        row = await subject.row(mine.row.id)
        answer = ("keyring_id", "resp_headers", "resp_bytes", "resp_chunks", "resp_sha256")
        for name in (*RESULT_COLUMNS, *answer):
            assert row.pop(name) == getattr(finish.row, name), name
            del before[name]
        assert row.pop("expires_us") < before.pop("expires_us")
        assert (row.pop("idem_state"), before.pop("idem_state")) == ("completed", "sent")
        assert row == before


@pytest.mark.parametrize("state", ENDINGS)
async def test_a_finish_whose_reply_was_lost_is_repeated(subjects: Subjects, state: State) -> None:
    """It says that it worked, and changes nothing more."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        bodies = [b"one", b"two"] if state is State.COMPLETED else []
        finish = ending(subject, mine, state, *bodies)
        assert await subject.ledger.finish(finish)
        before = await subject.rows("requests"), await subject.rows("response_chunks")
        assert await subject.ledger.finish(finish)
        assert (await subject.rows("requests"), await subject.rows("response_chunks")) == before


@pytest.mark.parametrize(
    ("change", "epoch"), [({"ended_us": 7}, 1), ({"resp_sha256": "7" * 64}, 1), ({}, 2)]
)
async def test_another_ending_is_no_repeated_one(
    subjects: Subjects, change: dict[str, Any], epoch: int
) -> None:
    """Only the same ending, of the same epoch, was written before; of another one its caller learns
    that it was not."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        first = ending(subject, mine, State.COMPLETED, b"x")
        assert await subject.ledger.finish(first)
        before = await subject.rows("requests")
        row = first.row._replace(**change)
        assert not await subject.ledger.finish(Finish(Ref(row.id, epoch), first.state, row))
        assert await subject.rows("requests") == before


async def test_the_end_of_a_call_that_was_settled_by_hand_is_not_written(
    subjects: Subjects,
) -> None:
    """Without an answer either: both are completed, but it is not this end that is in the row."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.settle(mine.row.id, Move.SETTLE)
        assert not await subject.ledger.finish(ending(subject, mine, State.COMPLETED))
        assert (await subject.row(mine.row.id))["cost_nusd"] is None


async def test_a_finish_from_a_state_that_does_not_allow_it(subjects: Subjects) -> None:
    """A claimed record cannot be completed or doubted, a completed one cannot be released."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        for state in (State.COMPLETED, State.UNCERTAIN):
            assert not await subject.ledger.finish(ending(subject, mine, state))
        assert (await found(subject)).state is State.CLAIMED
        done = await made(subject, claim(subject, "scope-2", sent=True))
        assert await subject.ledger.finish(ending(subject, done, State.COMPLETED, b"x"))
        for state in (State.UNCERTAIN, State.RELEASED):
            assert not await subject.ledger.finish(ending(subject, done, state, duration_us=7))
        assert (await found(subject, "scope-2")).stored
        assert not await subject.ledger.finish(ending(subject, claim(subject, "never made")))


async def test_an_answer_that_came_after_all_completes(subjects: Subjects) -> None:
    """Declared uncertain too early; its chunks written before are still there."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        await subject.ledger.add_chunks(chunks(mine, b"one"))
        assert await subject.ledger.finish(ending(subject, mine, State.UNCERTAIN))
        assert (await found(subject)).state is State.UNCERTAIN
        assert await subject.ledger.finish(
            ending(subject, mine, State.COMPLETED, b"one", b"two", written=1)
        )
        rows = await subject.ledger.chunks(mine.row.id, -1, 10)
        assert [row.body for row in rows] == [b"one", b"two"]
        assert (await found(subject)).stored


async def test_completed_without_its_answer(subjects: Subjects) -> None:
    """The key is used, nothing is stored, and chunks written on the way are gone."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.begin_answer(ref(mine), 200, "{}")
        await subject.ledger.add_chunks(chunks(mine, b"one"))
        assert await subject.ledger.finish(ending(subject, mine, State.COMPLETED))
        record = await found(subject)
        assert (record.state, record.stored) == (State.COMPLETED, False)
        assert record.cost_nusd == 1_500
        assert await subject.ledger.answer(mine.row.id) is None
        assert await subject.rows("response_chunks") == []


async def test_an_empty_answer_is_stored(subjects: Subjects) -> None:
    """No bytes are an answer too."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.finish(ending(subject, mine, State.COMPLETED, stored=True))
        assert (await found(subject)).stored
        answer = await subject.ledger.answer(mine.row.id)
        assert answer is not None
        assert (answer.bytes, answer.chunks) == (0, 0)


async def test_released_leaves_no_chunks(subjects: Subjects) -> None:
    """The key is free, and what was written of an answer is gone."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        await subject.ledger.add_chunks(chunks(mine, b"one"))
        assert await subject.ledger.finish(ending(subject, mine, State.RELEASED, status=429))
        assert await subject.ledger.find("scope-1") is None
        assert await subject.rows("response_chunks") == []
        row = await subject.row(mine.row.id)
        assert (row["idem_state"], row["idem_live"], row["status"]) == ("released", None, 429)


async def test_a_finish_with_an_impossible_chunk_changes_nothing(subjects: Subjects) -> None:
    """The record and its chunks are written together or not at all."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        finish = ending(subject, mine, State.COMPLETED, b"one", b"two")
        broken = finish.chunks[1]._replace(byte_offset=2**70)
        with pytest.raises(LedgerRefused):
            await subject.ledger.finish(
                Finish(finish.ref, finish.state, finish.row, (finish.chunks[0], broken))
            )
        assert (await found(subject)).state is State.SENT
        assert await subject.rows("response_chunks") == []
        assert await subject.ledger.finish(finish)


# --- By hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "doubted", "move", "allowed"),
    [
        (False, False, Move.SETTLE, False),
        (False, False, Move.REOPEN, True),
        (True, False, Move.SETTLE, True),
        (True, False, Move.REOPEN, True),
        (True, True, Move.SETTLE, True),
        (True, True, Move.REOPEN, True),
    ],
)
async def test_a_lapsed_record_is_settled_by_hand(
    subjects: Subjects, sent: bool, doubted: bool, move: Move, allowed: bool
) -> None:
    """The call counts as made and its answer as lost, or the key may be used again."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=sent))
        if doubted:
            await subject.ledger.add_chunks(chunks(mine, b"part"))
            assert await subject.ledger.finish(ending(subject, mine, State.UNCERTAIN))
        assert await subject.ledger.settle(mine.row.id, move) is allowed
        record = await subject.ledger.find("scope-1")
        if not allowed:
            assert record is not None
            assert record.state is State.CLAIMED
        elif move is Move.SETTLE:
            assert record is not None
            assert (record.state, record.stored) == (State.COMPLETED, False)
        else:
            assert record is None
            assert (await subject.row(mine.row.id))["idem_state"] == "released"
        if allowed:
            assert await subject.rows("response_chunks") == []
            assert not await subject.ledger.settle(mine.row.id, move)
            assert not await subject.ledger.finish(ending(subject, mine, State.COMPLETED, b"late"))


@pytest.mark.parametrize("move", [Move.SETTLE, Move.REOPEN])
async def test_a_running_or_completed_record_is_not_settled(subjects: Subjects, move: Move) -> None:
    """Nor one that is not there."""
    async with subjects() as subject:
        await alive(subject)
        running = await made(subject, claim(subject, "running", sent=True))
        done = await made(subject, claim(subject, "done", sent=True))
        assert await subject.ledger.finish(ending(subject, done, State.COMPLETED, b"x"))
        for id_ in (running.row.id, done.row.id, claim(subject).row.id):
            assert not await subject.ledger.settle(id_, move)
        await subject.advance(LEASE + 1)
        await alive(subject, OTHER)
        assert not await subject.ledger.settle(done.row.id, move)
        assert await subject.ledger.settle(running.row.id, move)


@pytest.mark.parametrize("move", [Move.SETTLE, Move.REOPEN])
async def test_a_record_that_was_taken_over_is_not_settled(subjects: Subjects, move: Move) -> None:
    """It has not had its key for a while: nothing would come of it, and it is history."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject, sent=True))
        taker = claim(subject, owner=OTHER)
        assert await subject.ledger.take_over(taker, await found(subject)) is None
        before = await subject.rows("requests")
        assert not await subject.ledger.settle(mine.row.id, move)
        assert await subject.rows("requests") == before


async def test_an_uncertain_record_of_a_living_owner_is_settled(subjects: Subjects) -> None:
    """Its owner has said that it does not know."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject, sent=True))
        assert await subject.ledger.finish(ending(subject, mine, State.UNCERTAIN))
        assert await subject.ledger.settle(mine.row.id, Move.SETTLE)
