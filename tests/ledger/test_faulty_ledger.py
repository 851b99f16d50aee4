"""What other tests lean on: the ledger that fails on demand."""

from __future__ import annotations

import asyncio

import pytest

from steer_proxy.ledger.protocol import LedgerUnavailable
from tests.ledger_contract.make import claim
from tests.ledger_contract.subject import MemorySubject
from tests.support.faulty_ledger import FaultyLedger


async def test_it_is_down_and_up_again() -> None:
    """Nothing is carried out while it is down."""
    subject = MemorySubject()
    ledger = FaultyLedger(subject.ledger)
    await ledger.open()
    assert ledger.secret == subject.ledger.secret
    ledger.down()
    with pytest.raises(LedgerUnavailable):
        await ledger.claim(claim(subject))
    assert not ledger.available
    ledger.up()
    assert await ledger.find("scope-1") is None
    assert ledger.called == {"claim": 1, "find": 1}


async def test_it_loses_a_reply() -> None:
    """As often as it was told; the work is done."""
    subject = MemorySubject()
    ledger = FaultyLedger(subject.ledger)
    ledger.lose_reply("claim", times=1)
    mine = claim(subject)
    with pytest.raises(LedgerUnavailable):
        await ledger.claim(mine)
    assert mine.row.id in subject.ledger.calls
    assert await ledger.claim(mine) is None


async def test_it_hangs_until_it_is_up() -> None:
    """Or until who waits is cancelled."""
    subject = MemorySubject()
    ledger = FaultyLedger(subject.ledger)
    ledger.hang("find")
    waiting, cancelled = (asyncio.ensure_future(ledger.find("scope-1")) for _ in range(2))
    await asyncio.sleep(10)
    cancelled.cancel()
    await asyncio.sleep(10)
    assert (waiting.done(), cancelled.cancelled()) == (False, True)
    ledger.up()
    assert await waiting is None


async def test_it_calls_hooks() -> None:
    """Before and after; plain functions and coroutine functions."""
    subject = MemorySubject()
    ledger = FaultyLedger(subject.ledger)
    seen: list[object] = []

    async def later() -> None:
        seen.append(await subject.ledger.find("scope-1"))

    ledger.before("claim", lambda: seen.append("before"))
    ledger.after("claim", later)
    mine = claim(subject)
    assert await ledger.claim(mine) is None
    assert seen == ["before", await subject.ledger.find("scope-1")]
    ledger.before("claim", None)
    ledger.after("claim", None)
    assert await ledger.claim(mine) is None
    assert len(seen) == 2
