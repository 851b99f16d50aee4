"""Taking a key, saying that it is sent, finishing its record; and what goes wrong in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from steer_policies.idempotency import (
    IdempotencyPolicy,
    Move,
    OnLedgerDown,
    OnUncertain,
    State,
)
from steer_proxy.engine import claims
from steer_proxy.engine.claims import (
    AGAIN_EVERY,
    COMMIT_TIME,
    MOST_OWED,
    ClaimLost,
    Claims,
    Finished,
    Found,
    Owned,
)
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import CallRow, ChunkRow, Claim, Finish, Ref
from tests.support.books import Books, keeping

FAIL = IdempotencyPolicy()
OPEN = IdempotencyPolicy(on_ledger_down=OnLedgerDown.OPEN)
RERUN = IdempotencyPolicy(on_uncertain=OnUncertain.RERUN)


class Stage:
    """Claims over a ledger that fails on demand."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.ledger = books.ledger
        self.claims = Claims(books.keeper)
        self.lost: list[str] = []

    def row(self, name: str, state: State = State.CLAIMED, scope: str = "scope") -> CallRow:
        """A claim of a key."""
        return CallRow(
            id=name,
            request_id=name,
            idem_key="key",
            idem_scope=scope,
            idem_fp="print",
            idem_role="owner",
            idem_state=state.value,
            idem_live=1,
            idem_epoch=1,
            started_us=1,
        )

    async def take(
        self, name: str, policy: IdempotencyPolicy = FAIL, state: State = State.CLAIMED
    ) -> Owned | Found:
        """Take the key for a call."""
        return await self.claims.take(self.row(name, state), policy, lambda: self.lost.append(name))

    async def others(self, name: str, state: State, *, lapsed: bool) -> Claim:
        """A claim of another process."""
        await self.books.memory.renew("other", "there", 3600.0, ())
        claim = Claim(self.row(name, state)._replace(owner_id="other"))
        assert await self.books.memory.claim(claim) is None
        if lapsed:
            await self.books.memory.retire("other")
        return claim

    def state(self, name: str) -> str | None:
        """What the ledger says of a call."""
        row = self.books.memory.calls.get(name)
        return None if row is None else row.idem_state

    def end(self, ref: Ref, state: State = State.COMPLETED, **more: Any) -> Finish:
        """The end of a record."""
        return Finish(ref, state, CallRow(id=ref.id, request_id=ref.id, **more))

    def answered(self, ref: Ref, **more: Any) -> Finish:
        """The end of a record with an answer of one piece."""
        end = self.end(ref, status=200, resp_headers="{}", resp_bytes=2, resp_chunks=1, **more)
        piece = ChunkRow(ref.id, 0, 0, 1, "identity", None, 2, b"ok")
        return replace(end, chunks=(piece,))

    async def told_without_cost(self, name: str) -> None:
        """A call's row has its outcome and no cost, and its answer is there."""
        row = self.books.memory.calls[name]
        assert (row.idem_state, row.outcome, row.status) == ("completed", "ok", 200)
        assert (row.cost_nusd, row.wasted_nusd, row.cost_source) == (None, None, "unknown")
        assert row.tokens_in is None
        answer = await self.books.memory.answer(name, first=1)
        assert answer is not None
        assert [piece.body for piece in answer.first] == [b"ok"]

    @property
    def held(self) -> tuple[str, ...]:
        """What the lease's renewals speak for."""
        return tuple(self.books.keeper.held())


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A bookkeeper at work, with claims."""
    async with keeping() as books:
        made = Stage(books)
        try:
            yield made
        finally:
            await made.claims.close()


async def test_a_free_key_is_taken_and_held() -> None:
    """Until it is let go."""
    async with stage() as at:
        taken = await at.take("call-1")
        assert taken == Owned(Ref("call-1", 1))
        assert at.held == ("call-1",)
        at.claims.let_go(Ref("call-1", 1))
        assert not at.held


@pytest.mark.parametrize("state", [State.CLAIMED, State.SENT])
async def test_a_running_call_of_another_process_is_found(state: State) -> None:
    """It is theirs, and nothing of ours is held."""
    async with stage() as at:
        await at.others("theirs", state, lapsed=False)
        taken = await at.take("call-1")
        assert isinstance(taken, Found)
        assert (taken.record.id, taken.record.lapsed) == ("theirs", False)
        assert at.held == ()


@pytest.mark.parametrize(
    ("state", "policy", "rerun"),
    [
        (State.CLAIMED, FAIL, False),
        (State.CLAIMED, RERUN, False),
        (State.SENT, FAIL, None),
        (State.SENT, RERUN, True),
    ],
)
async def test_what_another_process_left(
    state: State, policy: IdempotencyPolicy, rerun: bool | None
) -> None:
    """Nothing was sent: it is taken over. Something may have been: as the route says."""
    async with stage() as at:
        await at.others("theirs", state, lapsed=True)
        taken = await at.take("call-1", policy)
        if rerun is None:
            assert isinstance(taken, Found)
            assert at.held == ()
        else:
            assert taken == Owned(Ref("call-1", 2), rerun=rerun)
            assert at.held == ("call-1",)


@pytest.mark.parametrize(
    ("state", "policy", "expected"),
    [
        (State.CLAIMED, FAIL, Owned(Ref("call-2", 1))),
        (State.SENT, RERUN, Owned(Ref("call-2", 2), rerun=True)),
        (State.SENT, FAIL, State.UNCERTAIN),
    ],
)
async def test_what_this_process_left_is_finished_first(
    state: State, policy: IdempotencyPolicy, expected: Owned | State
) -> None:
    """A call that ended without its record: its lease never lapses, as it is ours."""
    async with stage() as at:
        await at.take("call-1", state=state)
        at.claims.let_go(Ref("call-1", 1))
        taken = await at.take("call-2", policy)
        if isinstance(expected, Owned):
            assert taken == expected
        else:
            assert isinstance(taken, Found)
            assert taken.record.state is expected
            assert at.state("call-1") == expected


@pytest.mark.parametrize("end", [State.COMPLETED, State.RELEASED])
async def test_an_end_that_is_owed_is_written_for_who_asks(end: State) -> None:
    """How the call ended is known: its key is not called uncertain before that is written."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        at.claims.let_go(taken.ref)
        at.claims.owe(at.end(taken.ref, end, resp_chunks=0))
        again = await at.take("call-2")
        assert at.state("call-1") == end
        if end is State.COMPLETED:
            assert isinstance(again, Found)
            assert again.record.stored
        else:
            assert again == Owned(Ref("call-2", 1))


async def test_the_end_of_a_call_that_was_not_written_down_as_sent_is_written() -> None:
    """It was sent, whatever could be written: else its record would count as a claim alone, and
    the call be made again. Nobody has to ask for it, nor can others be too many."""
    async with stage() as at:
        ends = []
        for n in range(MOST_OWED + 2):
            taken = await at.claims.take(at.row(f"call-{n}", scope=f"key-{n}"), FAIL, at.lost.clear)
            assert isinstance(taken, Owned)
            at.claims.let_go(taken.ref)
            ends.append(at.end(taken.ref, resp_chunks=0))
        at.ledger.down()
        for end in ends:
            at.claims.owe(end)
        await asyncio.sleep(AGAIN_EVERY * 1.5)
        at.ledger.up()
        await asyncio.sleep(AGAIN_EVERY * 1.5)
        assert {at.state(end.ref.id) for end in ends} == {"completed"}
        stored = [at.books.memory.calls[end.ref.id].resp_chunks is not None for end in ends]
        assert stored == [True] * MOST_OWED + [False] * 2


@pytest.mark.parametrize("lapsed", [None, State.CLAIMED])
async def test_a_claim_that_may_stand_is_kept_for_a_call_that_is_made(lapsed: State | None) -> None:
    """Without a ledger, as the policy has it: who makes it looks for its record at its end, which
    is not freed meanwhile, and is that of the last that was asked for."""
    async with stage() as at:
        if lapsed is not None:
            await at.others("theirs", lapsed, lapsed=True)
        at.ledger.lose_reply("claim" if lapsed is None else "take_over")
        epoch = 1 if lapsed is None else 2
        assert await at.take("call-1", OPEN) == Owned(Ref("call-1", epoch), recorded=False)
        at.ledger.up()
        await asyncio.sleep(AGAIN_EVERY * 5)
        assert at.state("call-1") == "claimed"
        assert await at.books.memory.mark_sent(Ref("call-1", epoch))


async def test_what_this_process_left_expires() -> None:
    """Its end, which nobody has told, is in doubt as long as any other, and not for ever."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        at.claims.let_go(taken.ref if isinstance(taken, Owned) else Ref("", 0))
        await at.take("call-2")
        row = at.books.memory.calls["call-1"]
        assert row.idem_state == State.UNCERTAIN
        assert row.ended_us is not None
        assert row.expires_us == row.ended_us + int(FAIL.retention * 1e6)


async def test_a_call_that_runs_here_is_left_alone() -> None:
    """What is held is no remains."""
    async with stage() as at:
        await at.take("call-1", state=State.SENT)
        taken = await at.take("call-2")
        assert isinstance(taken, Found)
        assert taken.record.state is State.SENT


async def test_of_two_who_take_over_one_has_it() -> None:
    """The other one finds the new claim."""
    async with stage() as at:
        await at.others("theirs", State.CLAIMED, lapsed=True)
        first, second = await asyncio.gather(at.take("call-1"), at.take("call-2"))
        owned = [each for each in (first, second) if isinstance(each, Owned)]
        found = [each for each in (first, second) if isinstance(each, Found)]
        assert [each.record.id for each in found] == [each.ref.id for each in owned]


@pytest.mark.parametrize("method", ["renew", "claim"])
async def test_without_a_ledger_the_policy_decides(method: str) -> None:
    """Fail, or go on without a record; nothing stays held."""
    async with stage() as at:
        if method == "renew":
            at.ledger.fail("renew")
            await asyncio.sleep(16.0)
        at.ledger.fail(method)
        with pytest.raises(LedgerUnavailable):
            await at.take("call-1")
        assert await at.take("call-2", OPEN) == Owned(Ref("call-2", 1), recorded=False)
        assert at.held == ()


async def test_a_claim_that_may_stand_is_freed_again() -> None:
    """Its caller was told that nothing was sent, and nothing was."""
    async with stage() as at:
        at.ledger.lose_reply("claim", times=1)
        with pytest.raises(LedgerUnavailable):
            await at.take("call-1", state=State.SENT)
        assert at.state("call-1") == "sent"
        await asyncio.sleep(AGAIN_EVERY + 0.1)
        assert at.state("call-1") == "released"


async def test_a_claim_that_may_stand_is_not_in_the_way() -> None:
    """The next try need not wait for that."""
    async with stage() as at:
        at.ledger.lose_reply("claim", times=1)
        with pytest.raises(LedgerUnavailable):
            await at.take("call-1", state=State.SENT)
        assert await at.take("call-2") == Owned(Ref("call-2", 1))


async def test_a_cancelled_claim_is_freed_too() -> None:
    """Whoever asked is gone, and never sent anything."""
    async with stage() as at:
        at.ledger.after("claim", lambda: asyncio.sleep(60.0))
        asking = asyncio.create_task(at.take("call-1", state=State.SENT))
        await asyncio.sleep(1.0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (at.held, at.state("call-1")) == ((), "sent")
        await asyncio.sleep(AGAIN_EVERY + 0.1)
        assert at.state("call-1") == "released"


async def test_a_key_that_changes_hands_for_ever_is_given_up() -> None:
    """Every question has a bound."""
    async with stage() as at:
        turn = 0

        async def steal() -> None:
            nonlocal turn
            turn += 1
            await at.others(f"theirs-{turn}", State.CLAIMED, lapsed=True)

        async def snatch() -> None:
            record = await at.books.memory.find("scope")
            assert record is not None
            await at.books.memory.settle(record.id, Move.REOPEN)
            await steal()

        await steal()
        at.ledger.before("take_over", snatch)
        with pytest.raises(LedgerUnavailable, match="hands"):
            await at.take("call-1")


async def test_announcing() -> None:
    """True once and for all; not when the key was taken over; not in vain without a record."""
    async with stage() as at:
        taken = await at.take("call-1")
        assert isinstance(taken, Owned)
        await at.claims.announce(taken)
        await at.claims.announce(taken)
        assert at.state("call-1") == "sent"
        with pytest.raises(ClaimLost):
            await at.claims.announce(Owned(Ref("call-1", 2)))
        before = at.ledger.called["mark_sent"]
        await at.claims.announce(Owned(Ref("call-3", 1), recorded=False))
        assert at.ledger.called["mark_sent"] == before
        at.ledger.fail("mark_sent")
        with pytest.raises(LedgerUnavailable):
            await at.claims.announce(taken)


@pytest.mark.parametrize(
    ("fault", "times", "result", "seconds"),
    [
        (None, 0, Finished.DONE, 0.0),
        ("fail", 3, Finished.DONE, 0.3),
        ("lose_reply", 2, Finished.DONE, 0.2),
        ("fail", 1000, Finished.LATER, COMMIT_TIME),
        ("hang", 1, Finished.LATER, COMMIT_TIME),
    ],
)
async def test_finishing_takes_two_seconds_at_most(
    fault: str | None, times: int, result: Finished, seconds: float
) -> None:
    """It is tried again meanwhile: a database that restarts refuses at once."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        if fault is not None:
            getattr(at.ledger, fault)("finish", times=times)
        began = asyncio.get_running_loop().time()
        assert await at.claims.finish(at.end(taken.ref)) is result
        assert asyncio.get_running_loop().time() - began == pytest.approx(seconds, abs=0.05)


async def test_finishing_later() -> None:
    """As soon as the ledger is back."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        at.ledger.fail("finish")
        later = asyncio.create_task(at.claims.finish_later(at.end(taken.ref)))
        await asyncio.sleep(6.0)
        assert not later.done()
        at.ledger.up()
        assert await later is Finished.DONE
        assert at.state("call-1") == "completed"


async def test_finishing_later_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some time or other; the record says that nobody knows."""
    monkeypatch.setattr(claims, "AGAIN_FOR", 10.0)
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        at.ledger.fail("finish")
        async with asyncio.timeout(30.0):
            assert await at.claims.finish_later(at.end(taken.ref)) is Finished.LATER


async def test_what_was_taken_over_cannot_be_finished() -> None:
    """Neither now nor later."""
    async with stage() as at:
        await at.take("call-1", state=State.SENT)
        assert await at.claims.finish(at.end(Ref("call-1", 2))) is Finished.LOST
        assert await at.claims.finish_later(at.end(Ref("call-1", 2))) is Finished.LOST
        assert at.state("call-1") == "sent"


async def test_a_record_ends_without_what_the_ledger_does_not_take(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A number beyond 64 bits: the state matters more."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        finish = at.end(taken.ref, bytes_out=2**70, upstream="openai", ended_us=5)
        assert await at.claims.finish(finish) is Finished.DONE
        row = at.books.memory.calls["call-1"]
        assert (row.idem_state, row.bytes_out, row.upstream) == ("completed", None, None)
        assert row.ended_us == 5
        assert "without its details" in caplog.text


DEAR: dict[str, Any] = {
    "outcome": "ok",
    "tokens_in": 2**52,
    "cost_nusd": 2**70,
    "wasted_nusd": 0,
    "cost_source": "reported",
}


async def test_a_cost_that_the_ledger_does_not_take_leaves_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was paid for: a later duplicate gets it, whatever the provider counted."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        finish = at.answered(taken.ref, **DEAR)
        assert await at.claims.finish(finish) is Finished.DONE
        await at.told_without_cost("call-1")
        assert "without its cost" in caplog.text
        assert "without its details" not in caplog.text


async def test_what_is_owed_with_such_a_cost_keeps_its_answer() -> None:
    """The next try is without the one, not without the other."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        at.claims.owe(at.answered(taken.ref, **DEAR))
        await asyncio.sleep(3 * AGAIN_EVERY)
        await at.told_without_cost("call-1")


async def test_what_is_owed_with_nothing_that_can_be_written_ends_bare() -> None:
    """After the cost, the rest goes, too."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        at.claims.owe(at.answered(taken.ref, bytes_out=2**70, **DEAR))
        await asyncio.sleep(4 * AGAIN_EVERY)
        row = at.books.memory.calls["call-1"]
        assert (row.idem_state, row.outcome, row.resp_chunks) == ("completed", None, None)


async def test_those_are_told_whose_keys_others_took() -> None:
    """After the lease had lapsed; what is still ours goes on."""
    async with stage() as at:
        await at.take("call-1", RERUN, State.SENT)
        at.ledger.fail("renew")
        await asyncio.sleep(16.0)
        found = await at.books.memory.find("scope")
        assert found is not None
        assert found.lapsed
        theirs = Claim(at.row("theirs")._replace(owner_id="other"))
        await at.books.memory.renew("other", "there", 3600.0, ())
        assert await at.books.memory.take_over(theirs, found) is None
        at.ledger.up()
        await asyncio.sleep(6.0)
        assert at.lost == ["call-1"]


async def test_who_only_asks_for_a_key_is_told_as_before() -> None:
    """Its claim was not written when the lease was found to be lost: it asks again."""
    async with stage() as at:
        go = asyncio.Event()

        async def wait() -> None:
            await go.wait()

        at.ledger.before("claim", wait)
        asking = asyncio.create_task(at.take("call-1"))
        await asyncio.sleep(0.1)
        at.books.memory._owners.clear()
        await asyncio.sleep(6.0)
        assert at.lost == ["call-1"]
        go.set()
        await asking


@pytest.mark.parametrize("end", [State.COMPLETED, State.UNCERTAIN, State.RELEASED])
async def test_a_record_that_is_gone_is_made_anew_to_be_finished(end: State) -> None:
    """With the epoch it had; the row of a call that is over is there again."""
    async with stage() as at:
        await at.others("theirs", State.SENT, lapsed=True)
        taken = await at.take("call-1", RERUN)
        assert taken == Owned(Ref("call-1", 2), rerun=True)
        await at.claims.announce(taken)
        memory = at.books.memory
        memory.calls.clear()
        memory._live.clear()
        assert await at.claims.finish(at.end(taken.ref, end)) is Finished.DONE
        row = memory.calls["call-1"]
        assert (row.idem_state, row.idem_epoch, row.sent_us is None) == (end, 2, False)


async def test_a_record_that_is_gone_whose_key_others_have() -> None:
    """What they made of it stands."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        at.books.memory.calls.clear()
        at.books.memory._live.clear()
        await at.others("theirs", State.SENT, lapsed=False)
        assert await at.claims.finish(at.end(taken.ref)) is Finished.LOST
        assert list(at.books.memory.calls) == ["theirs"]


@pytest.mark.parametrize("how", ["discard", "rerun", "shared", "another secret"])
async def test_a_record_that_is_not_to_be_made_anew(how: str) -> None:
    """Settled by hand; gone from a database of several, or with the secret its scope is made of."""
    async with stage() as at:
        taken = await at.take("call-1", state=State.SENT)
        assert isinstance(taken, Owned)
        memory = at.books.memory
        if how in ("discard", "rerun"):
            memory._owners.clear()
            assert await memory.settle("call-1", Move.SETTLE if how == "discard" else Move.REOPEN)
        else:
            memory.calls.clear()
            memory._live.clear()
            if how == "shared":
                memory._shared = True
            else:
                memory._secret = b"another"
        before = dict(memory.calls)
        assert await at.claims.finish(at.end(taken.ref, ended_us=5)) is Finished.UNRECORDED
        assert memory.calls == before
