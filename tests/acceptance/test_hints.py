"""A provider's "not now" is obeyed in every form, and never a moment too early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.provider import faults
from tests.support.world import world

HINTS = [
    pytest.param("openai", {"retry_after": 2}, 2.0, id="retry-after seconds"),
    pytest.param("openai", {"retry_after": "2.5"}, 2.5, id="retry-after fraction"),
    pytest.param("openai", {"retry_after_date": 3}, 3.0, id="retry-after date"),
    pytest.param("openai", {"retry_after_ms": 1500}, 1.5, id="retry-after-ms"),
    pytest.param("openai", {"retry_after_ms": 1500, "retry_after": 9}, 1.5, id="ms wins"),
    pytest.param("openai", {"x_ms_retry_after_ms": 700}, 0.7, id="azure milliseconds"),
    pytest.param("openai", {"reset_requests": "1m1s"}, 61.0, id="openai reset minutes"),
    pytest.param("openai", {"reset_tokens": "4s"}, 4.0, id="openai reset tokens"),
    pytest.param("anthropic", {"anthropic_reset": 4}, 4.0, id="anthropic reset"),
    pytest.param("anthropic", {"anthropic_tokens_reset": 6}, 6.0, id="anthropic tokens reset"),
    pytest.param("anthropic", {"retry_after": 3}, 3.0, id="anthropic retry-after"),
    pytest.param("gemini", {"retry_info": "7s"}, 7.0, id="gemini RetryInfo"),
    pytest.param("http", {"retry_after": 2}, 2.0, id="http retry-after"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("dialect", "hints", "least"), HINTS)
async def test_the_second_attempt_waits_as_asked(
    tmp_path: Path, dialect: str, hints: dict[str, Any], least: float, stream: bool
) -> None:
    """One 429 with a hint: the call is answered, and the second attempt is not early."""
    route = {"retry": {"max_total_delay": "2m"}, "timeouts": {"total": "5m"}}
    async with world(tmp_path, dialect, fallback=False, route=route) as parties:
        provider = parties.primary.then(faults.rate_limit(**hints), faults.healthy(), to=_any)
        reply = await parties.ask(stream=stream)
        assert reply.status == 200, reply.body
        assert reply.headers["X-Steer-Attempts"] == "2"
        first, second = provider.attempts
        waited = second.at - first.at
        assert least <= waited <= least * 1.1 + 1.1


def _any(_: object) -> bool:
    return True


async def test_a_reset_with_something_left_is_no_hint(tmp_path: Path) -> None:
    """A reset header counts only while nothing remains; otherwise our own backoff decides."""
    async with world(tmp_path, fallback=False) as parties:
        provider = parties.primary.then(
            faults.rate_limit(reset_requests="50s", remaining=3), faults.healthy()
        )
        reply = await parties.ask()
        assert reply.status == 200
        assert provider.attempts[1].at - provider.attempts[0].at < 5


@pytest.mark.parametrize("value", ["-1", "soon", "nan", ""])
async def test_nonsense_is_treated_as_absent(tmp_path: Path, value: str) -> None:
    """A hint that cannot be read neither delays nor breaks the call."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.then(faults.status(503, retry_after=value), faults.healthy())
        reply = await parties.ask()
        assert reply.status == 200
        assert reply.seconds < 5


async def test_a_long_delay_hops_at_once(tmp_path: Path) -> None:
    """A delay above `hop_after` is not waited for while another candidate can answer."""
    async with world(tmp_path) as parties:
        parties.primary.then(faults.rate_limit(retry_after=30))
        reply = await parties.ask()
        assert reply.status == 200
        assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert reply.seconds < 0.5


async def test_the_gate_holds_later_calls_back(tmp_path: Path) -> None:
    """After a 429 no other call reaches that provider before the asked time: it hops instead."""
    async with world(tmp_path) as parties:
        parties.primary.then(faults.rate_limit(retry_after=30))
        for _ in range(5):
            reply = await parties.ask()
            assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert len(parties.primary.attempts) == 1


async def test_when_all_others_failed_the_patient_one_is_asked_again(tmp_path: Path) -> None:
    """A primary that only asked for patience is returned to when the fallback is of no use."""
    async with world(tmp_path) as parties:
        parties.primary.then(faults.rate_limit(retry_after=10), faults.healthy())
        parties.fallback.always(faults.status(503))
        reply = await parties.ask()
        assert reply.status == 200
        assert reply.headers["X-Steer-Upstream"] == "primary"
        assert parties.primary.attempts[1].at - parties.primary.attempts[0].at >= 10


async def test_a_delay_that_does_not_fit_is_passed_on_at_once(tmp_path: Path) -> None:
    """No time to wait and nobody else to ask: the provider's own answer, with the honest time."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.always(faults.rate_limit(retry_after=3000))
        reply = await parties.ask()
        assert reply.status == 429
        assert reply.seconds < 0.5
        assert reply.headers["Retry-After"] == "3000"
        assert 2_999_000 <= int(reply.headers["Retry-After-Ms"]) <= 3_000_000
        assert reply.headers["X-Should-Retry"] == "false"
        assert reply.json["error"]["code"] == "rate_limit_exceeded"
        assert len(parties.primary.attempts) == 1
