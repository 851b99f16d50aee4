"""Encryption keys are compared with those that the ledger's answers were sealed with."""

from __future__ import annotations

import asyncio

import pytest

from steer_proxy.engine.config import LedgerTerms
from steer_proxy.engine.key_check import wrong_key
from steer_proxy.engine.lease import AGAIN
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sealing import Sealer
from tests.support.books import Books, keeping

RIGHT = Sealer([("new", b"1" * 32), ("old", b"2" * 32)])
WRONG = Sealer([("new", b"1" * 32), ("old", b"3" * 32)])
PLACES = {"new": "environment variable NEW", "old": "file /run/secrets/old"}
SAID = (
    "encryption key 'old' (file /run/secrets/old) is not the key of that name that this ledger's "
    "answers were encrypted with: give it another name, or the right secret"
)


@pytest.mark.parametrize(
    ("known", "wrong"),
    [
        ({}, False),
        ({"other": "x"}, False),
        (RIGHT.checks(), False),
        ({"old": RIGHT.checks()["old"]}, False),
        ({"old": WRONG.checks()["old"]}, True),
        ({"old": ""}, True),
    ],
)
def test_another_secret_under_a_known_name(known: dict[str, str], wrong: bool) -> None:
    """Is wrong, and told with its reference; an unknown name is not."""
    assert wrong_key(RIGHT.checks(), known, PLACES) == (SAID if wrong else None)


async def test_it_is_refused_at_the_start() -> None:
    """And the ledger is let go of."""
    books = Books(LedgerTerms(), sealer=WRONG, references=PLACES)
    await books.memory.check_keys(RIGHT.checks())
    with pytest.raises(LedgerUnusable) as refused:
        await books.keeper.start()
    assert str(refused.value) == SAID
    assert await books.memory.check_keys({}) == RIGHT.checks()


async def test_new_keys_are_remembered() -> None:
    """Each under its name, once: later renewals do not ask again."""
    async with keeping(sealer=RIGHT) as books:
        await asyncio.sleep(60)
        assert await books.memory.check_keys({}) == RIGHT.checks()
        assert books.ledger.called["check_keys"] == 1


async def test_a_key_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """Is told, once, and no more than that."""
    books = Books(LedgerTerms(), sealer=Sealer([("new", b"1" * 32)]))
    await books.memory.check_keys(RIGHT.checks())
    async with books.keeper:
        await asyncio.sleep(60)
        assert books.leased()
    told = [record for record in caplog.records if "'old'" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"]


async def test_a_ledger_that_comes_back_later(caplog: pytest.LogCaptureFixture) -> None:
    """There is no lease, hence no keyed call, for as long as the key is another one."""
    books = Books(LedgerTerms(), sealer=WRONG, references=PLACES)
    await books.memory.check_keys(RIGHT.checks())
    books.ledger.fail("open", times=1)
    books.ledger.fail("renew", times=3)
    async with books.keeper:
        await asyncio.sleep(10 * AGAIN)
        assert books.ledger.called["check_keys"] > 1
        assert not books.leased()
        with pytest.raises(LedgerUnavailable, match=r"^it cannot be used as it is; Steer's log"):
            await books.keeper.ensure_lease()
        assert books.trouble() == SAID
        told = [record for record in caplog.records if SAID in record.getMessage()]
        assert [record.levelname for record in told] == ["ERROR"]
        # Somebody restores the database that belongs to the keys.
        books.memory._keys = WRONG.checks()
        await asyncio.sleep(2 * AGAIN)
        assert books.leased()
        assert books.trouble() is None


async def test_a_ledger_that_goes_between_opening_and_asking() -> None:
    """It is asked with the next renewal."""
    books = Books(LedgerTerms(), sealer=RIGHT)
    books.ledger.fail("check_keys", times=2)
    async with books.keeper:
        await asyncio.sleep(AGAIN / 2)
        assert not books.leased()
        await asyncio.sleep(AGAIN)
        assert books.leased()
        assert await books.memory.check_keys({}) == RIGHT.checks()
