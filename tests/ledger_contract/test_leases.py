from __future__ import annotations

import pytest

from steer_policies.idempotency import Move, State
from steer_proxy.ledger.values import Claim, Lease
from tests.ledger_contract.make import (
    LEASE,
    ME,
    OTHER,
    alive,
    claim,
    ending,
    found,
    fresh_id,
    made,
    ref,
)
from tests.ledger_contract.subject import Subjects


async def test_a_first_renewal_registers(subjects: Subjects) -> None:
    """An owner without a row is lapsed; with one it is not."""
    async with subjects() as subject:
        await made(subject, claim(subject))
        assert (await found(subject)).lapsed
        assert await subject.ledger.renew(ME, "pod-1", LEASE, []) == Lease(lapsed=False)
        assert not (await found(subject)).lapsed


async def test_a_lease_lasts_as_long_as_it_says(subjects: Subjects) -> None:
    """Renewed in time it never lapses; not renewed it does."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject))
        for _ in range(4):
            await subject.advance(LEASE / 2)
            assert not (await found(subject)).lapsed
            assert await subject.ledger.renew(ME, "pod-1", LEASE, [mine.row.id]) == Lease(False)
        await subject.advance(LEASE + 1)
        assert (await found(subject)).lapsed


async def test_a_late_renewal_says_what_was_lost(subjects: Subjects) -> None:
    """Records taken over, ended by hand, or never there: only those still held are not named."""
    async with subjects() as subject:
        await alive(subject)
        kept = await made(subject, claim(subject, "kept"))
        taken = await made(subject, claim(subject, "taken"))
        reopened = await made(subject, claim(subject, "reopened", sent=True))
        await subject.advance(LEASE + 1)
        await alive(subject, OTHER)
        assert (
            await subject.ledger.take_over(
                claim(subject, "taken", owner=OTHER), await found(subject, "taken")
            )
            is None
        )
        assert await subject.ledger.settle(reopened.row.id, Move.REOPEN)
        unknown = fresh_id()
        held = [kept.row.id, taken.row.id, reopened.row.id, unknown]
        lease = await subject.ledger.renew(ME, "pod-1", LEASE, held)
        assert lease == Lease(True, frozenset({taken.row.id, reopened.row.id, unknown}))
        assert not (await found(subject, "kept")).lapsed


async def test_who_is_unsure_is_told_again(subjects: Subjects) -> None:
    """What was lost in a lapse that an earlier renewal has ended."""
    async with subjects() as subject:
        await alive(subject)
        kept = await made(subject, claim(subject, "kept"))
        taken = await made(subject, claim(subject, "taken"))
        await subject.advance(LEASE + 1)
        theirs = claim(subject, "taken", owner=OTHER)
        assert await subject.ledger.take_over(theirs, await found(subject, "taken")) is None
        held = [kept.row.id, taken.row.id]
        told = frozenset({taken.row.id})
        assert await subject.ledger.renew(ME, "pod-1", LEASE, held) == Lease(True, told)
        assert await subject.ledger.renew(ME, "pod-1", LEASE, held) == Lease(lapsed=False)
        assert await subject.ledger.renew(ME, "pod-1", LEASE, held, unsure=True) == Lease(
            False, told
        )
        assert await subject.ledger.renew(ME, "pod-1", LEASE, [], unsure=True) == Lease(
            lapsed=False
        )


async def test_a_lapsed_owner_may_still_go_on(subjects: Subjects) -> None:
    """As long as nobody has taken its place: a lapse is how others see it, no state."""
    async with subjects() as subject:
        await alive(subject)
        mine = await made(subject, claim(subject))
        await subject.advance(LEASE + 1)
        assert await subject.ledger.mark_sent(ref(mine))
        assert (await found(subject)).state is State.SENT
        assert await subject.ledger.finish(ending(subject, mine, State.COMPLETED, b"x"))
        assert (await found(subject)).stored


async def test_a_retired_owner_has_no_lease(subjects: Subjects) -> None:
    """What it still has, lapses at once; others keep theirs. Repeating it is harmless."""
    async with subjects() as subject:
        await alive(subject)
        await alive(subject, OTHER)
        await made(subject, claim(subject, "mine"))
        await made(subject, claim(subject, "theirs", owner=OTHER))
        await subject.ledger.retire(ME)
        await subject.ledger.retire(ME)
        await subject.ledger.retire("nobody")
        assert (await found(subject, "mine")).lapsed
        assert not (await found(subject, "theirs")).lapsed


async def test_an_owner_that_was_forgotten_has_lapsed(subjects: Subjects) -> None:
    """A process that slept until its row was purged is told what it lost."""
    async with subjects() as subject:
        gone = fresh_id()
        assert await subject.ledger.renew(ME, "pod-1", LEASE, [gone]) == Lease(
            True, frozenset({gone})
        )


async def test_a_record_without_expiry_does_not_expire(subjects: Subjects) -> None:
    """Columns that are not known stay so, and expire nothing."""
    async with subjects() as subject:
        mine = await made(subject, Claim(claim(subject).row._replace(expires_us=None)))
        await subject.advance(1e9)
        assert not (await found(subject)).expired
        row = await subject.row(mine.row.id)
        for name in ("ended_us", "duration_us", "sent_us", "expires_us", "cost_nusd", "tokens_in"):
            assert row[name] is None, name


@pytest.mark.parametrize("sent", [False, True])
async def test_what_was_committed_is_there_after_reopening(subjects: Subjects, sent: bool) -> None:
    """Claims, answers and the secret outlive the connection."""
    async with subjects() as subject:
        secret = subject.ledger.secret
        assert secret is not None
        assert len(secret) == 32
        mine = await made(subject, claim(subject, sent=sent))
        other = await made(subject, claim(subject, "scope-2", sent=True))
        assert await subject.ledger.finish(ending(subject, other, State.COMPLETED, b"abc"))
        await subject.reopen()
        assert subject.ledger.secret == secret
        assert subject.ledger.available
        assert (await found(subject)).id == mine.row.id
        (chunk,) = await subject.ledger.chunks(other.row.id, -1, 10)
        assert chunk.body == b"abc"
