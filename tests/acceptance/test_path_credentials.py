"""A credential in a path goes where it is meant for, and is neither written down nor told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import CallRow
from tests.provider import Fault, faults
from tests.support.raw import Stage, ask, post, stage

SECRET = "AAF-9dPq_xT3nKz81LmQw5vYbEcRs7uJh0k"
BOT = f"/tool/bot123456789:{SECRET}/sendMessage"
SHOWN = "/tool/.../sendMessage"
KEY = "Idempotency-Key: order-1"


async def rows(one: Stage) -> list[CallRow]:
    """What is in the ledger when Steer has ended."""
    books = one.steer.sidecar.books
    await books.stop()
    assert isinstance(books.ledger, MemoryLedger)
    return list(books.ledger.calls.values())


@pytest.mark.parametrize("fields", [(), (KEY,)], ids=["unkeyed", "keyed"])
@pytest.mark.parametrize("fault", [faults.status(500), faults.close_before_answer()])
async def test_a_call_that_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fields: tuple[str, ...], fault: Fault
) -> None:
    """Not in the log, not in the answer, not in a row; the provider got it."""
    caplog.set_level(logging.DEBUG, "steer")
    async with stage(tmp_path) as one:
        one.provider.always(fault)
        reply = await ask(one.port, post(b"{}", BOT, *fields), "POST")
        assert reply.status >= 500
        written = await rows(one)
        assert [row.path for row in written] == [SHOWN]
        assert SECRET not in str(written)
        assert SECRET not in str(reply)
        assert SHOWN in caplog.text
        assert SECRET not in caplog.text
        assert {attempt.target for attempt in one.provider.attempts} == {BOT.removeprefix("/tool")}


async def test_a_call_that_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before there is a call, and where no route owns the path."""
    caplog.set_level(logging.DEBUG, "steer")
    async with stage(tmp_path) as one:
        bad = await ask(one.port, post(b"{}", BOT, "X-Steer-Budget: nonsense"), "POST")
        lost = await ask(one.port, post(b"{}", BOT.replace("/tool", "/to")), "POST")
        assert (bad.status, lost.status) == (400, 404)
        assert "/to/.../sendMessage" in lost.message
        written = await rows(one)
        assert [row.path for row in written] == [SHOWN]
        assert SECRET not in f"{written} {bad} {lost} {caplog.text}"


async def test_whose_key_it_is(tmp_path: Path) -> None:
    """What cannot be seen tells keys apart all the same."""
    async with stage(tmp_path) as one:
        for path, status in ((BOT, "new"), (BOT, "replayed"), (BOT.replace("k/", "K/"), "new")):
            reply = await ask(one.port, post(b"{}", path, KEY), "POST")
            assert reply.value("Idempotency-Status") == status
        assert len(one.provider.attempts) == 2
        written = await rows(one)
        assert {row.path for row in written} == {SHOWN}
        assert len({row.idem_scope for row in written}) == 2
