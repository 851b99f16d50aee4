"""Circuits open, are probed and close again; callers hardly notice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.provider import Fault, faults
from tests.support.world import world


async def test_a_flapping_primary_is_left_and_returned_to(tmp_path: Path) -> None:
    """Down for 60 s, one call each 4 s: all answered, few probes, back within one open duration."""
    breaker = {"failure_threshold": 3, "open_duration": 30}
    async with world(tmp_path, upstream={"breaker": breaker}) as parties:
        began = parties.now()
        parties.primary.down_between(began, began + 60, faults.status(503))
        answered: list[tuple[float, str]] = []
        for _ in range(40):
            at = parties.now() - began
            reply = await parties.ask()
            assert reply.status == 200
            answered.append((at, reply.headers["X-Steer-Upstream"]))
            await asyncio.sleep(4)
        while_down = [a for a in parties.primary.attempts if a.at - began < 60]
        # Two calls trip it (three attempts each at most), then at most two probes fit.
        assert len(while_down) <= 8
        back = [at for at, upstream in answered if upstream == "primary"]
        assert back
        # Open durations double and are spread: 30 s +20 %, then 60 s +20 % from about second 36.
        assert back[0] <= 60 + 72
        assert all(upstream == "primary" for at, upstream in answered if at > back[0])


async def test_one_recovery_is_seen_within_one_open_duration(tmp_path: Path) -> None:
    """A primary that recovers while its circuit is open for the first time is back by its end."""
    breaker = {"failure_threshold": 3, "open_duration": 30}
    async with world(tmp_path, upstream={"breaker": breaker}) as parties:
        began = parties.now()
        parties.primary.down_between(began, began + 10, faults.status(503))
        for _ in range(12):
            assert (await parties.ask()).status == 200
            await asyncio.sleep(4)
        reply = await parties.ask()
        assert reply.headers["X-Steer-Upstream"] == "primary"
        assert len(parties.primary.attempts) <= 3 + 13


async def test_all_open_is_a_503_with_the_time_to_the_next_probe(tmp_path: Path) -> None:
    """Nobody to ask: nothing is sent, and the caller learns when it makes sense again."""
    breaker = {"failure_threshold": 3, "open_duration": 30}
    async with world(tmp_path, fallback=False, upstream={"breaker": breaker}) as parties:
        parties.primary.always(faults.status(503))
        await parties.ask()
        reply = await parties.ask()
        assert reply.status == 503
        assert reply.json["error"]["code"] == "steer_unavailable"
        assert 20 <= int(reply.headers["Retry-After"]) <= 36
        assert len(parties.primary.attempts) == 3


async def test_when_all_open_try_asks_all_the_same(tmp_path: Path) -> None:
    """`when_all_open: try` prefers a try to a refusal."""
    breaker = {"failure_threshold": 3, "open_duration": 30, "when_all_open": "try"}
    async with world(tmp_path, fallback=False, upstream={"breaker": breaker}) as parties:
        parties.primary.always(faults.status(503))
        await parties.ask()
        parties.primary.healthy()
        assert (await parties.ask()).status == 200


async def test_one_model_in_trouble_leaves_the_others_alone(tmp_path: Path) -> None:
    """A model that fails opens its own circuit, not its upstream's."""
    async with world(tmp_path, upstream={"breaker": {"failure_threshold": 3}}) as parties:
        parties.primary.when(lambda attempt: attempt.json["model"] == "bad", faults.status(500))
        for _ in range(3):
            await parties.ask(model="bad")
        before = len(parties.primary.attempts)
        reply = await parties.ask(model="bad")
        assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert len(parties.primary.attempts) == before
        assert (await parties.ask()).headers["X-Steer-Upstream"] == "primary"


async def test_a_dead_upstream_is_dead_for_all_its_models(tmp_path: Path) -> None:
    """Connect errors open the upstream's circuit: no other model tries again."""
    async with world(tmp_path, upstream={"breaker": {"failure_threshold": 3}}) as parties:
        await parties.primary.stop_listening()
        await parties.ask(model="one")
        reply = await parties.ask(model="two")
        assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert reply.headers["X-Steer-Attempts"] == "1"


@pytest.mark.parametrize("fault", [faults.status(400), faults.rate_limit(), faults.status(401)])
async def test_what_is_no_failure_opens_nothing(tmp_path: Path, fault: Fault) -> None:
    """Callers' mistakes, throttling and bad keys prove the upstream alive."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.always(fault)
        for _ in range(10):
            await parties.ask()
        parties.primary.healthy()
        await asyncio.sleep(120)
        before = parties.now()
        assert (await parties.ask()).status == 200
        assert parties.now() - before < 0.1


async def test_streams_cut_in_the_middle_open_the_circuit(tmp_path: Path) -> None:
    """An upstream that breaks every stream after its first token is broken."""
    async with world(tmp_path, upstream={"breaker": {"failure_threshold": 3}}) as parties:
        parties.primary.always(faults.cut_after(events=5))
        for _ in range(3):
            assert (await parties.ask(stream=True)).cut
        reply = await parties.ask(stream=True)
        assert not reply.cut
        assert reply.headers["X-Steer-Upstream"] == "fallback"


async def test_cancelled_probes_give_their_permit_back(tmp_path: Path) -> None:
    """A caller that hangs up during a probe leaves the next caller a probe of its own."""
    breaker = {"failure_threshold": 3, "open_duration": 30}
    async with world(tmp_path, fallback=False, upstream={"breaker": breaker}) as parties:
        parties.primary.always(faults.status(503))
        await parties.ask()
        await asyncio.sleep(40)
        parties.primary.always(faults.silence())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await parties.ask()
        parties.primary.healthy()
        assert (await parties.ask()).status == 200


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    """Beyond slots and queue a call is refused at once, or goes elsewhere."""
    limits = {"concurrency": {"limit": 2, "queue": 1}}
    async with world(tmp_path, fallback=False, upstream=limits) as parties:
        parties.primary.always(faults.silence(10) | faults.healthy())
        replies = await asyncio.gather(*(parties.ask() for _ in range(5)))
        by_status = sorted(reply.status for reply in replies)
        assert by_status == [200, 200, 200, 503, 503]
        refused = [reply for reply in replies if reply.status == 503]
        assert all(reply.seconds < 0.1 for reply in refused)
        assert all("queue is full" in reply.json["error"]["message"] for reply in refused)
        assert parties.primary.total_connections <= 2


async def test_a_retry_storm_is_not_amplified(tmp_path: Path) -> None:
    """The retry budget bounds how much an outage is multiplied."""
    route = {"retry": {"budget_floor": 1, "budget_ratio": 0.2, "max_attempts": 5}}
    breaker = {"failure_threshold": 10_000, "min_calls": 10_000}
    upstream = {"breaker": breaker}
    async with world(tmp_path, fallback=False, route=route, upstream=upstream) as parties:
        parties.primary.always(faults.status(503))
        await asyncio.gather(*(parties.ask() for _ in range(100)))
        assert len(parties.primary.attempts) <= 100 + 20 + 10
