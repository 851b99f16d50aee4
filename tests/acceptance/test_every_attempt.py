"""Every attempt of a keyed call is told once, whatever becomes of its record: `v_attempts`."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.engine import claims
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import AttemptRow
from tests.acceptance.test_ledger_outages import ONE_TRY, OPEN, faulty, memory
from tests.acceptance.test_shared_ledger import LAPSE, RERUN, asked
from tests.provider import Pause, faults
from tests.support.attempts import every_attempt
from tests.support.pair import key, pair

PRICED = {"models": {"gpt-4o": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}}}
COUNTED = {"stream_options": {"include_usage": True}}
PLAIN_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def told(ledger: MemoryLedger) -> list[AttemptRow]:
    """The attempts of all keyed calls that were made."""
    owners = [row for row in ledger.calls.values() if row.idem_role == "owner"]
    return [each for row in owners for each in every_attempt(row, ledger.attempts.values())]


@PLAIN_AND_STREAMED
async def test_a_zombies_attempt_is_told(tmp_path: Path, stream: bool) -> None:
    """Its answer came, and is nobody's: it has cost what it cost."""
    async with pair(tmp_path, route=RERUN, upstream=PRICED) as both:
        more: dict[str, Any] = COUNTED if stream else {}
        pause = faults.at_event(3, Pause(60.0)) if stream else faults.silence(60.0)
        both.provider.then(pause)
        first = await asked(both.here, stream=stream, headers=key(), **more)
        both.here.ledger.fail("renew")
        await asyncio.sleep(LAPSE)
        await both.there.ask(stream=stream, headers=key(), **more)
        await first
        both.here.ledger.up()
        await asyncio.sleep(2.0)
        assert both.memory is not None
        assert len(both.provider.attempts) == 2
        zombie, second = told(both.memory)
        assert (zombie.outcome, zombie.wasted, second.wasted) == ("ok", 1, 0)
        assert zombie.cost_nusd
        old, new = both.records()
        assert (zombie.request, second.request) == (old.id, new.id)


async def test_a_call_cut_while_its_record_ends_is_told_once(tmp_path: Path) -> None:
    """The drain's time is up while the ledger does not take the end of an answered call."""
    async with faulty(tmp_path, fallback=False) as (parties, ledger):
        assert (await parties.ask(headers=key("warm"))).status == 200
        ledger.hang("finish")
        asking = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(2)
        await asyncio.sleep(0.5)
        parties.steer.gateway.cut()
        closing = asyncio.create_task(parties.steer.gateway.close())
        await asyncio.sleep(0.5)
        ledger.up()
        await closing
        await asking
        await asyncio.sleep(2.0)
        (record, *_) = [row for row in memory(ledger).calls.values() if row.idem_key == "order-1"]
        assert record.idem_state == "completed"
        assert Counter(each.request for each in told(memory(ledger)))[record.id] == 1


@PLAIN_AND_STREAMED
async def test_a_call_that_could_not_be_announced_is_told(tmp_path: Path, stream: bool) -> None:
    """`open`: claimed, sent unprotected, and the ledger stays away until after its end."""
    more: dict[str, Any] = COUNTED if stream else {}
    route = {**OPEN, **ONE_TRY}
    steer = faulty(tmp_path, fallback=False, route=route, upstream=PRICED)
    async with steer as (parties, ledger):
        parties.primary.then(faults.rate_limit(retry_after="3"))
        await parties.ask()  # its gate is shut: the next call has to wait, and so only claims
        asking = asyncio.create_task(parties.ask(stream=stream, headers=key(), **more))
        await asyncio.sleep(1.0)
        for method in ("mark_sent", "finish"):
            ledger.fail(method)
        assert (await asking).status == 200
        ledger.up()
        await asyncio.sleep(5.0)
        (row,) = [row for row in memory(ledger).calls.values() if row.idem_key]
        (only,) = told(memory(ledger))
        assert (row.idem_state, row.resp_chunks) == ("completed", None)
        assert (row.status, row.outcome, row.attempts) == (200, "ok", 1)
        assert only.cost_nusd == row.cost_nusd
        assert row.cost_nusd


async def test_a_call_cut_without_its_ledger_is_told(tmp_path: Path) -> None:
    """`open`: made while the ledger is away, and ended by a drain: it has a row like any other."""
    route = {**OPEN, **ONE_TRY}
    async with faulty(tmp_path, fallback=False, route=route, upstream=PRICED) as (parties, ledger):
        ledger.down()
        parties.primary.always(faults.silence())
        asking = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        await asyncio.sleep(1.0)
        parties.steer.gateway.cut()
        await parties.steer.gateway.close()
        await asking
        ledger.up()
        await asyncio.sleep(6.0)
        (row,) = memory(ledger).calls.values()
        (attempt,) = every_attempt(row, memory(ledger).attempts.values())
        assert (row.attempts, row.error_class) == (1, "steer_draining")
        assert (attempt.wasted, attempt.cost_source) == (1, "estimated")
        assert row.wasted_nusd == attempt.cost_nusd


async def test_what_is_owed_for_long_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond so many ends that wait for the ledger their answers are let go, and nothing else."""
    monkeypatch.setattr(claims, "MOST_OWED", 0)
    monkeypatch.setattr(claims, "AGAIN_FOR", claims.AGAIN_EVERY)
    async with faulty(tmp_path, fallback=False, upstream=PRICED) as (parties, ledger):
        ledger.fail("finish")
        assert (await parties.ask(headers=key())).status == 200
        await asyncio.sleep(10.0)
        ledger.up()
        await asyncio.sleep(5.0)
        (row,) = memory(ledger).calls.values()
        (attempt,) = told(memory(ledger))
        assert (row.idem_state, row.resp_chunks) == ("completed", None)
        assert row.cost_nusd == attempt.cost_nusd
        assert row.cost_nusd
