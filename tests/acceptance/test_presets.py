"""The ready-made policies do to a call what they say."""

from __future__ import annotations

from pathlib import Path

from tests.provider import faults
from tests.support.world import world


async def test_resilient_hides_what_can_be_hidden(tmp_path: Path) -> None:
    """Attempts, then the fallback, then a stream resumed in the middle."""
    async with world(tmp_path, route={"preset": "resilient"}) as parties:
        parties.primary.always(faults.status(503))
        reply = await parties.ask()
        assert (reply.status, reply.headers["X-Steer-Upstream"]) == (200, "fallback")
        assert len(parties.primary.attempts) > 1
    async with world(tmp_path, route={"preset": "resilient"}) as parties:
        parties.primary.always(faults.cut_after(events=5))
        reply = await parties.ask(stream=True)
        assert not reply.cut
        assert reply.text == parties.primary.text


async def test_pass_through_sends_a_call_once(tmp_path: Path) -> None:
    """No retry and no fallback: the provider's own words."""
    async with world(tmp_path, route={"preset": "pass-through"}) as parties:
        parties.primary.always(faults.status(503))
        reply = await parties.ask()
        assert reply.status == 503
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


async def test_cheap_first_asks_the_cheaper_one(tmp_path: Path) -> None:
    """By declared prices; the dearer one answers when it fails."""
    models = {
        "dear": {"input_usd_per_mtok": 100, "output_usd_per_mtok": 100},
        "cheap": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
    }
    options = {"upstream": {"models": models}, "fallback_options": {"model": "cheap"}}
    async with world(tmp_path, route={"preset": "cheap-first"}, **options) as parties:  # type: ignore[arg-type]
        reply = await parties.ask(model="dear")
        assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert reply.headers["X-Steer-Model"] == "cheap"
        parties.fallback.always(faults.status(503))
        assert (await parties.ask(model="dear")).headers["X-Steer-Upstream"] == "primary"


async def test_strict_budget_refuses_what_may_cost_too_much(tmp_path: Path) -> None:
    """Before anything is sent, and also where no price is known."""
    models = {"dear": {"input_usd_per_mtok": 1e6, "output_usd_per_mtok": 1e6}}
    async with world(
        tmp_path, route={"preset": "strict-budget"}, upstream={"models": models}
    ) as parties:
        for model in ("dear", "nobody-knows"):
            headers = {"X-Steer-Budget": '{"cost_usd": 0.01}'}
            reply = await parties.ask(model=model, headers=headers)
            assert reply.status == 400
            assert reply.json["error"]["code"] == "steer_budget_exceeded"
        assert parties.primary.attempts == []


async def test_every_key_of_a_preset_may_be_overridden(tmp_path: Path) -> None:
    """The route's own word goes over the preset's."""
    route = {"preset": "pass-through", "retry": {"max_attempts": 2, "max_total_attempts": 2}}
    async with world(tmp_path, route=route) as parties:
        parties.primary.then(faults.status(503), faults.healthy())
        assert (await parties.ask()).status == 200
        assert len(parties.primary.attempts) == 2
