"""Every call that was admitted leaves one row, at whatever moment it ends, and the row is true."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.http import gateway, orphans
from steer_proxy.http.call import Call
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import AttemptRow, CallRow
from tests.acceptance.test_adoption import hang_up, sdk
from tests.acceptance.test_ledger_outages import OPEN, faulty, memory
from tests.acceptance.test_ledger_rows import PRICED
from tests.provider import faults
from tests.support.attempts import every_attempt
from tests.support.pair import key
from tests.support.world import World, world


async def written(parties: World) -> list[tuple[CallRow, list[AttemptRow]]]:
    """All rows, once nothing waits to be written any more."""
    await asyncio.sleep(2.0)
    ledger = parties.steer.sidecar.books.ledger
    assert isinstance(ledger, MemoryLedger)
    attempts = list(ledger.attempts.values())
    return [(call, every_attempt(call, attempts)) for call in ledger.calls.values()]


class Loading:
    """Prices that take their time: `wanted` calls wait for them, until `done`."""

    def __init__(self) -> None:
        self.wanted = asyncio.Semaphore(0)
        self.done = asyncio.Event()

    async def warm(self, _: Call) -> None:
        """In the place of loading them."""
        self.wanted.release()
        await self.done.wait()


@contextlib.asynccontextmanager
async def unplanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[World, Loading]]:
    """A Steer whose calls wait for prices before they can be planned."""
    loading = Loading()
    monkeypatch.setattr(gateway, "warm_prices", loading.warm)
    async with world(tmp_path, upstream=PRICED) as parties:
        yield parties, loading


KINDS = pytest.mark.parametrize(
    "headers", [{}, sdk(0, "600"), key()], ids=["plain", "patient", "keyed"]
)


async def test_an_orphan_that_finds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended, and its caller told so: what was sent may have been billed."""
    monkeypatch.setattr(orphans, "MOST_KEPT", 0)
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.always(faults.silence(60))
        reply = await parties.ask(headers=sdk(0))
        assert (reply.status, reply.headers["x-should-retry"]) == (504, "false")
        ((row, (attempt,)),) = await written(parties)
        assert (row.status, row.outcome, row.error_class) == (504, "timeout", "steer_deadline")
        assert (row.upstream, row.attempts, row.ambiguous) == ("primary", 1, 1)
        assert (attempt.outcome, attempt.executed, attempt.wasted) == ("cancelled", "maybe", 1)
        assert row.wasted_nusd == attempt.cost_nusd
        assert row.wasted_nusd
        assert row.bytes_out == len(reply.body)


async def test_an_orphan_that_hung_up_and_finds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller is gone, and so is its attempt."""
    monkeypatch.setattr(orphans, "MOST_KEPT", 0)
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.always(faults.silence(60))
        await hang_up(parties, 0.852, sdk(0, "0.9"))
        ((row, (attempt,)),) = await written(parties)
        assert (row.status, row.outcome, row.attempts) == (None, "cancelled", 1)
        assert (attempt.outcome, attempt.wasted) == ("cancelled", 1)
        assert row.wasted_nusd


@KINDS
async def test_a_caller_that_leaves_before_there_is_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """Nothing was made for it; but a call with a key goes on."""
    async with unplanned(tmp_path, monkeypatch) as (parties, loading):
        await hang_up(parties, 1.0, headers)
        await asyncio.sleep(1.0)
        loading.done.set()
        ((row, attempts),) = await written(parties)
        if "Idempotency-Key" in headers:
            assert (row.idem_role, row.idem_state, row.outcome) == ("owner", "completed", "ok")
            assert (row.status, len(attempts)) == (200, 1)
            return
        assert (row.status, row.outcome, row.error_class) == (None, "cancelled", "cancelled")
        assert (row.attempts, attempts, row.upstream) == (0, [], None)
        assert (row.cost_nusd, row.wasted_nusd, row.duration_us) == (0, 0, 1_000_000)


@KINDS
async def test_a_drain_before_there_is_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """The caller is told 503, and so is the ledger."""
    async with unplanned(tmp_path, monkeypatch) as (parties, loading):
        asking = asyncio.create_task(parties.ask(headers=headers))
        await loading.wanted.acquire()
        assert not await parties.steer.sidecar.drain(2.0)
        await parties.steer.gateway.close()
        reply = await asking
        assert reply.status == 503
        ((row, attempts),) = await written(parties)
        assert (row.status, row.outcome, row.error_class) == (503, "throttled", "steer_draining")
        assert (row.attempts, attempts, row.bytes_out) == (0, [], len(reply.body))
        assert row.idem_key == headers.get("Idempotency-Key")
        assert (row.idem_scope is None) == (row.idem_key is None)
        assert (row.idem_role, row.idem_state) == (None, None)


@pytest.mark.parametrize("drained", [False, True], ids=["left", "drained"])
async def test_a_duplicate_that_ends_before_anybody_has_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drained: bool
) -> None:
    """It was one more call of somebody, and it was served by none."""
    async with unplanned(tmp_path, monkeypatch) as (parties, loading):
        first = asyncio.create_task(parties.ask(headers=key()))
        await loading.wanted.acquire()
        if drained:
            second = asyncio.create_task(parties.ask(headers=key()))
            await asyncio.sleep(1.0)
            assert not await parties.steer.sidecar.drain(2.0)
            await parties.steer.gateway.close()
            assert (await first).status == (await second).status == 503
        else:
            await hang_up(parties, 1.0, key())
            loading.done.set()
            assert (await first).status == 200
        rows = await written(parties)
        assert len(rows) == 2
        outcomes = sorted((str(row.idem_role), row.outcome, row.status) for row, _ in rows)
        if drained:
            assert outcomes == [("None", "throttled", 503)] * 2
        else:
            assert outcomes == [("None", "cancelled", None), ("owner", "ok", 200)]
        assert all(row.idem_key == "order-1" and row.idem_scope for row, _ in rows)


@pytest.mark.parametrize("made_elsewhere", [False, True])
async def test_a_keyed_call_whose_time_is_up_before_its_key_is_known(
    tmp_path: Path, made_elsewhere: bool
) -> None:
    """Nobody can say that it runs; caller and row are told the same, and once."""
    async with faulty(tmp_path, fallback=False, upstream=PRICED) as (parties, ledger):
        if made_elsewhere:
            assert (await parties.ask(headers=key())).status == 200
        ledger.hang("claim")
        reply = await parties.ask(headers={**key(), "X-Steer-Timeout": "0.5"})
        assert (reply.status, reply.json["error"]["code"]) == (504, "steer_deadline")
        assert reply.headers["x-should-retry"] == "true"
        assert "running" not in reply.json["error"]["message"]
        ledger.up()
        await asyncio.sleep(6.0)
        *before, row = memory(ledger).calls.values()
        assert len(before) == made_elsewhere
        assert (row.status, row.outcome, row.error_class) == (504, "timeout", "steer_deadline")
        assert row.attempts == 0
        assert len(parties.primary.attempts) == made_elsewhere
        again = await parties.ask(headers=key())
        assert again.headers["Idempotency-Status"] == ("replayed" if made_elsewhere else "new")


async def test_a_keyed_call_whose_caller_was_told_to_come_again_while_the_ledger_was_away(
    tmp_path: Path,
) -> None:
    """The row tells of the call, not of what its caller was told meanwhile."""
    async with faulty(tmp_path, fallback=False, route=OPEN, upstream=PRICED) as (parties, ledger):
        ledger.down()
        parties.primary.always(faults.silence(20))
        reply = await parties.ask(headers={**key(), "X-Steer-Timeout": "5"})
        assert (reply.status, reply.json["error"]["code"]) == (504, "steer_deadline")
        await asyncio.sleep(20.0)
        ledger.up()
        await asyncio.sleep(6.0)
        (row,) = memory(ledger).calls.values()
        assert (row.status, row.outcome, row.attempts) == (200, "ok", 1)


@KINDS
async def test_a_bug_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """500, which is what the row says."""

    async def broken(_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gateway, "warm_prices", broken)
    async with world(tmp_path, upstream=PRICED) as parties:
        reply = await parties.ask(headers=headers)
        ((row, attempts),) = await written(parties)
        assert (row.status, row.attempts, attempts) == (reply.status, 0, [])
        assert (reply.status, row.outcome) in ((500, "broken"), (503, "throttled"))


async def test_a_claim_that_stood_after_all(tmp_path: Path) -> None:
    """Its caller was told that the ledger is away: the record says so when it is freed."""
    async with faulty(tmp_path, fallback=False, upstream=PRICED) as (parties, ledger):
        ledger.lose_reply("claim", times=1)
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.json["error"]["code"]) == (503, "steer_ledger_unavailable")
        await asyncio.sleep(10.0)
        (row,) = memory(ledger).calls.values()
        assert (row.status, row.outcome) == (503, "throttled")
        assert (row.error_class, row.idem_state) == ("steer_ledger_unavailable", "released")
        assert (row.attempts, row.cost_nusd, row.wasted_nusd) == (0, 0, 0)
        assert row.ended_us == row.started_us + (row.duration_us or 0)
