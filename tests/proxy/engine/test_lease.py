"""The lease of a process: renewed in time, shared by all who need it, and told when it was lost."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import pytest

from steer_policies.idempotency import IdempotencyPolicy, State
from steer_proxy.engine.bookkeeper import RETIRE_TIME
from steer_proxy.engine.claims import Claims, Owned
from steer_proxy.engine.lease import AGAIN, LEASE, RENEW
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.values import MICROSECONDS, Claim, Lease, Record
from tests.support.books import Books, a_call, keeping


def told(lost: list[frozenset[str]]) -> Callable[[frozenset[str]], Awaitable[None]]:
    """Somebody who collects what was lost."""

    async def collect(ids: frozenset[str]) -> None:
        lost.append(ids)

    return collect


def held_by(books: Books, owner: str, name: str = "record") -> Claim:
    """A claim of somebody's."""
    now = int(books.clock.wall() * MICROSECONDS)
    return Claim(
        a_call(
            name,
            started_us=now,
            idem_scope="scope",
            idem_fp="fingerprint",
            idem_state="sent",
            idem_live=1,
            idem_epoch=1,
            owner_id=owner,
            sent_us=now,
            expires_us=now + 10**15,
        )
    )


async def test_it_is_renewed_for_ever() -> None:
    """Every five seconds; it is valid all the time, and tells its owner's name."""
    async with keeping() as books:
        for _ in range(100):
            assert books.leased()
            await asyncio.sleep(RENEW / 2)
        assert books.ledger.called["renew"] == pytest.approx(50, abs=1)
        (owner,) = books.memory._owners.items()
        assert (owner[0], owner[1].instance) == (books.keeper.owner, "here")


async def test_two_renewals_may_fail() -> None:
    """A ledger that is away for less than ten seconds does not cost the lease."""
    async with keeping() as books:
        await asyncio.sleep(RENEW - 0.1)
        books.ledger.fail("renew")
        for _ in range(90):
            await asyncio.sleep(0.1)
            assert books.leased()
        books.ledger.up()
        await asyncio.sleep(AGAIN + 0.1)
        for _ in range(20):
            assert books.leased()
            await asyncio.sleep(1.0)


async def judges(books: Books, seconds: float) -> list[bool]:
    """Whether others are judged, asked ten times a second."""
    seen = []
    for _ in range(round(seconds * 10)):
        seen.append(books.keeper.judged(LAPSED).lapsed)
        await asyncio.sleep(0.1)
    return seen


LAPSED = Record("theirs", 1, State.SENT, "print", "other", lapsed=True, expired=False, stored=False)


async def test_others_are_judged_by_who_was_in_touch_all_the_time() -> None:
    """For as long as a process that lives takes to renew: after the start and each trouble."""
    async with keeping(shared=True) as books:
        young = await judges(books, RENEW + 20.0)
        assert young.index(True) == pytest.approx(RENEW * 10, abs=1)
        assert all(young[round(RENEW * 10) + 1 :])
        books.ledger.fail("renew", times=1)
        blip = await judges(books, RENEW + AGAIN + RENEW + 10.0)
        assert blip[0]
        assert blip.count(False) == pytest.approx((AGAIN + RENEW) * 10, abs=1)
        assert blip[-1]
        books.ledger.fail("renew")
        await asyncio.sleep(RENEW)
        assert not any(await judges(books, 100.0))
        books.ledger.up()
        back = await judges(books, AGAIN + RENEW + 1.0)
        assert back.count(False) == pytest.approx((AGAIN / 2 + RENEW) * 10, abs=AGAIN * 5 + 1)
        assert back[-1]


async def test_who_was_asleep_judges_nobody_at_first() -> None:
    """Others may have been asleep with it: their machine, or all of them."""
    async with keeping(shared=True) as books:
        await asyncio.sleep(RENEW + 1.0)
        assert books.keeper.judged(LAPSED).lapsed
        books.memory._owners.clear()
        books.keeper.held = lambda: ["held"]
        await asyncio.sleep(RENEW)
        assert not books.keeper.judged(LAPSED).lapsed


@pytest.mark.parametrize("step", [20.0, 3600.0])
async def test_a_ledger_whose_clock_is_set_makes_nobody_dead(step: float) -> None:
    """Its leases are all over at once: whoever lives has renewed his before others are judged."""
    async with keeping(shared=True) as books:
        await books.memory.renew("other", "there", LEASE, ())
        await books.memory.claim(held_by(books, "other"))
        await asyncio.sleep(RENEW + 2.5)  # in the middle between two renewals
        books.memory._wall = lambda: books.clock.wall() + step
        seen = []
        for _ in range(200):
            found = await books.memory.find("scope")
            assert found is not None
            assert found.lapsed
            seen.append(books.keeper.judged(found).lapsed)
            await asyncio.sleep(0.1)
        assert seen.index(True) == pytest.approx((RENEW + 2.5 + AGAIN) * 10, abs=30)
        assert seen[0] is False
        assert all(seen[seen.index(True) :])


async def test_a_ledger_of_ones_own_is_judged_at_once() -> None:
    """Nobody else can be alive in it; and what nobody runs is not judged by a lease at all."""
    async with keeping() as books:
        assert books.keeper.judged(LAPSED).lapsed
    async with keeping(shared=True) as books:
        over = dataclasses.replace(LAPSED, state=State.UNCERTAIN)
        assert books.keeper.judged(over) is over


async def test_it_counts_from_when_it_was_asked_for() -> None:
    """A slow ledger wrote it at some time since: to be sure, the earliest counts."""
    async with keeping() as books:
        now = asyncio.get_running_loop().time
        asked = now()

        async def slowly() -> None:
            nonlocal asked
            asked = now()
            await asyncio.sleep(2.0)

        books.ledger.before("renew", slowly)
        await asyncio.sleep(RENEW + 2.1)
        books.ledger.before("renew", None)
        books.ledger.fail("renew")
        assert now() - asked > 2.0
        await asyncio.sleep(asked + LEASE - now() - 0.01)
        assert books.leased()
        await asyncio.sleep(0.02)
        assert not books.leased()


async def test_whoever_needs_it_renews_it() -> None:
    """One question for all who wait, as soon as one of them asks."""
    async with keeping() as books:
        books.ledger.fail("renew")
        await asyncio.sleep(RENEW + LEASE)
        assert not books.leased()
        books.ledger.up()
        before = books.ledger.called["renew"]
        await asyncio.gather(*(books.keeper.ensure_lease() for _ in range(50)))
        assert books.ledger.called["renew"] == before + 1
        assert books.leased()
        await books.keeper.ensure_lease()
        assert books.ledger.called["renew"] == before + 1


async def test_it_cannot_be_had() -> None:
    """All who wait are told why, by one question; nothing is left when some of them leave."""
    async with keeping() as books:
        books.ledger.fail("renew")
        await asyncio.sleep(RENEW + LEASE + AGAIN / 2)
        before = books.ledger.called["renew"]
        results = await asyncio.gather(
            *(books.keeper.ensure_lease() for _ in range(3)), return_exceptions=True
        )
        assert [str(each) for each in results] == ["the test says so"] * 3
        assert {type(each) for each in results} == {LedgerUnavailable}
        assert books.ledger.called["renew"] == before + 1


async def test_a_waiter_that_leaves() -> None:
    """Its cancellation is its own: the others get the lease."""
    async with keeping() as books:
        books.ledger.fail("renew")
        await asyncio.sleep(RENEW + LEASE + AGAIN / 2)
        books.ledger.up()
        books.ledger.hang("renew", times=1)
        one = asyncio.create_task(books.keeper.ensure_lease())
        other = asyncio.create_task(books.keeper.ensure_lease())
        await asyncio.sleep(0.1)
        one.cancel()
        await asyncio.sleep(0.1)
        books.ledger.up()
        await other
        assert one.cancelled()
        assert books.leased()


async def test_records_that_were_lost() -> None:
    """After a lapse, what others took over is told; what nobody wanted is still ours."""
    async with keeping() as books:
        lost: list[frozenset[str]] = []
        asked: list[Sequence[str]] = []
        books.keeper.held = lambda: ["kept", "taken"]
        books.keeper.on_lost = told(lost)
        kept = held_by(books, books.keeper.owner, "kept")
        taken = held_by(books, books.keeper.owner, "taken")
        kept = Claim(kept.row._replace(idem_scope="another"))
        assert await books.ledger.claim(kept) is None
        assert await books.ledger.claim(taken) is None
        await asyncio.sleep(RENEW + 1)
        assert lost == []
        books.ledger.fail("renew")
        await asyncio.sleep(LEASE + 1)
        theirs = held_by(books, "somebody else", "theirs")
        found = await books.ledger.find("scope")
        assert found is not None
        assert found.lapsed
        assert await books.memory.take_over(theirs, found) is None
        renew = books.memory.renew

        async def renewed(
            owner: str, instance: str, lease: float, held: Sequence[str], *, unsure: bool = False
        ) -> Lease:
            asked.append(held)
            return await renew(owner, instance, lease, held, unsure=unsure)

        books.memory.renew = renewed  # type: ignore[method-assign]
        books.ledger.up()
        await asyncio.sleep(AGAIN + 0.1)
        assert lost == [frozenset({"taken"})]
        assert asked == [("kept", "taken")]


async def test_a_loss_whose_reply_was_lost() -> None:
    """The ledger finds a lapse once; what was lost is asked for until it was told."""
    async with keeping() as books:
        lost: list[frozenset[str]] = []
        books.keeper.held = lambda: ["taken"]
        books.keeper.on_lost = told(lost)
        assert await books.ledger.claim(held_by(books, books.keeper.owner, "taken")) is None
        books.ledger.fail("renew")
        await asyncio.sleep(RENEW + LEASE + AGAIN)
        found = await books.ledger.find("scope")
        assert found is not None
        theirs = held_by(books, "somebody else", "theirs")
        assert await books.memory.take_over(theirs, found) is None
        books.ledger.up()
        books.ledger.lose_reply("renew", times=2)
        await asyncio.sleep(3 * AGAIN + 0.1)
        assert lost == [frozenset({"taken"})]
        await asyncio.sleep(2 * RENEW)
        assert lost == [frozenset({"taken"})]


async def test_no_lease_is_valid_before_it_is_known_who_has_what_was_lost() -> None:
    """Whoever counts on it waits; where that cannot be told now, it is lost once more."""
    async with keeping() as books:
        books.keeper.held = lambda: ["gone"]
        lost: list[frozenset[str]] = []
        valid: list[bool] = []

        async def collect(ids: frozenset[str]) -> None:
            lost.append(ids)
            valid.append(books.leased())
            if len(lost) == 1:
                raise LedgerUnavailable("the test says so")

        books.keeper.on_lost = collect
        books.memory._owners.clear()
        await asyncio.sleep(RENEW + AGAIN / 2)
        assert (len(lost), books.leased(), books.trouble()) == (1, False, "the test says so")
        await books.keeper.ensure_lease()
        assert (len(lost), valid, books.leased()) == (2, [False, False], True)


async def test_a_failed_renewal_loses_no_claim_that_is_being_written() -> None:
    """As long as the lease is valid nothing was lost: nothing is asked."""
    async with keeping() as books:
        lost: list[frozenset[str]] = []
        books.keeper.held = lambda: ["not written yet"]
        books.keeper.on_lost = told(lost)
        books.ledger.lose_reply("renew", times=1)
        await asyncio.sleep(RENEW + 2 * AGAIN)
        assert books.leased()
        assert lost == []


async def test_the_first_claim_after_an_outage() -> None:
    """The renewal it asks for does not take it for lost, although it is not written yet."""
    async with keeping() as books:
        claims = Claims(books.keeper)
        books.ledger.fail("renew")
        await asyncio.sleep(RENEW + LEASE + AGAIN / 2)
        books.ledger.up()
        lost: list[str] = []
        row = held_by(books, books.keeper.owner).row
        owned = await claims.take(row, IdempotencyPolicy(), lambda: lost.append("record"))
        assert isinstance(owned, Owned)
        assert owned.recorded
        assert lost == []


@pytest.mark.parametrize("where", ["held", "on_lost", "renew"])
async def test_a_bug_does_not_cost_the_lease(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, once a minute, and the next renewal is made."""
    async with keeping() as books:

        def bug(*_: object) -> tuple[str, ...]:
            raise ZeroDivisionError

        if where == "renew":
            books.ledger.before("renew", bug)
        elif where == "held":
            books.keeper.held = bug
        else:
            books.keeper.held = lambda: ["never written"]
            books.keeper.on_lost = bug  # type: ignore[assignment]
            books.memory._owners.clear()
        await asyncio.sleep(RENEW + 3.5)
        assert sum("ZeroDivisionError" in (each.exc_text or "") for each in caplog.records) == 1
        books.ledger.before("renew", None)
        books.keeper.held = tuple
        await asyncio.sleep(LEASE)
        assert books.leased()


async def test_a_ledger_that_became_unusable() -> None:
    """Whoever needs the lease is told as of one that is away, and where to look."""
    async with keeping() as books:

        def newer() -> None:
            raise LedgerUnusable("use the newer version")

        books.ledger.before("renew", newer)
        await asyncio.sleep(RENEW + LEASE)
        with pytest.raises(LedgerUnavailable, match="Steer's log says why"):
            await books.keeper.ensure_lease()
        books.ledger.before("renew", None)
        await books.keeper.ensure_lease()


async def test_the_end() -> None:
    """The lease ends at once: others need not wait for it to lapse."""
    async with keeping() as books:
        assert await books.ledger.claim(held_by(books, books.keeper.owner)) is None
        await books.keeper.stop()
        assert not books.leased()
        found = await books.memory.find("scope")
        assert found is not None
        assert found.lapsed


async def test_a_lease_that_cannot_be_ended(caplog: pytest.LogCaptureFixture) -> None:
    """It lapses by itself; nobody is disturbed."""
    caplog.set_level("INFO")
    async with keeping() as books:
        books.ledger.fail("retire")
    assert caplog.messages == [
        "the lease could not be ended, it lapses by itself: the test says so"
    ]


async def test_the_end_while_it_is_renewed() -> None:
    """A renewal that hangs is cut, and so is an end that hangs."""
    async with keeping() as books:
        books.ledger.hang("renew")
        books.ledger.hang("retire")
        await asyncio.sleep(RENEW + 1)
        now = asyncio.get_running_loop().time
        began = now()
        await books.keeper.stop()
        assert now() - began == pytest.approx(RETIRE_TIME, abs=0.1)


async def test_without_a_lease_there_is_nothing_to_end() -> None:
    """A ledger that was never reached is not asked for it."""
    async with keeping() as books:
        pass
    assert books.ledger.called["retire"] == 1
    silent = Books(books.keeper.terms)
    silent.ledger.fail("renew")
    async with silent.keeper:
        await asyncio.sleep(1.0)
    assert silent.ledger.called["retire"] == 0
