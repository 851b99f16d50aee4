"""Failures before the commit point are hidden from the caller, or told honestly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.provider import faults
from tests.support.world import World, world

DIALECTS = ["openai", "anthropic", "gemini"]
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS)


def answered_by(parties: World, reply: Any, name: str) -> None:
    """The caller got the whole answer of that provider."""
    assert reply.status == 200, reply.body
    assert not reply.cut
    assert reply.headers["X-Steer-Upstream"] == name
    assert reply.text == parties.primary.text


HIDDEN = [
    pytest.param(faults.reset_before_answer(), id="reset before the answer"),
    pytest.param(faults.close_before_answer(), id="closed before the answer"),
    pytest.param(faults.reset_before_reading_body(), id="reset before reading"),
    pytest.param(faults.garbage(), id="not HTTP"),
    pytest.param(faults.status(500), id="500"),
    pytest.param(faults.status(502), id="502"),
    pytest.param(faults.status(503), id="503"),
    pytest.param(faults.status(504), id="504"),
    pytest.param(faults.status(529), id="529"),
    pytest.param(faults.status(408), id="408"),
    pytest.param(faults.status(409), id="409"),
    pytest.param(faults.status(425), id="425"),
    pytest.param(faults.rate_limit(), id="429 without a hint"),
    pytest.param(faults.cut_after(bytes=40), id="cut in the body"),
    pytest.param(faults.cut_after(bytes=40, how="close"), id="closed in the body"),
    pytest.param(
        faults.until_close() | faults.cut_after(bytes=40, how="close"),
        id="closed in a body until close",
    ),
    pytest.param(
        faults.until_close() | faults.cut_after(bytes=0, how="close"),
        id="closed before a body until close",
    ),
]


@EVERY_DIALECT
@BOTH
@pytest.mark.parametrize("fault", HIDDEN)
async def test_one_failure_is_hidden_by_a_retry(
    tmp_path: Path, dialect: str, stream: bool, fault: Any
) -> None:
    """Whatever goes wrong once before the commit point, the caller sees only the good answer."""
    async with world(tmp_path, dialect, fallback=False) as parties:
        parties.primary.then(fault, faults.healthy())
        answered_by(parties, await parties.ask(stream=stream), "primary")
        assert len(parties.primary.attempts) == 2
        assert parties.primary.attempts[0].body == parties.primary.attempts[1].body


@EVERY_DIALECT
@pytest.mark.parametrize("kind", ["overloaded", "rate_limit", "server_error"])
async def test_an_in_band_error_first_is_hidden_by_a_retry(
    tmp_path: Path, dialect: str, kind: Any
) -> None:
    """An error as first event of a 200 stream is a failure like any other."""
    async with world(tmp_path, dialect, fallback=False) as parties:
        parties.primary.then(faults.in_band_error(kind=kind), faults.healthy())
        answered_by(parties, await parties.ask(stream=True), "primary")


@EVERY_DIALECT
async def test_an_in_band_error_after_the_prelude_is_hidden(tmp_path: Path, dialect: str) -> None:
    """A role prelude or `message_start` commits nothing."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.in_band_error(at=0 if dialect == "gemini" else 1))
        answered_by(parties, await parties.ask(stream=True), "fallback")


@pytest.mark.parametrize("code", [429, 500, 503])
@BOTH
async def test_a_persistent_failure_goes_to_the_fallback(
    tmp_path: Path, code: int, stream: bool
) -> None:
    """Bounded attempts at the primary, then the fallback answers."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(code))
        answered_by(parties, await parties.ask(stream=stream), "fallback")
        assert len(parties.primary.attempts) == 3
        assert len(parties.fallback.attempts) == 1


@pytest.mark.parametrize(
    ("budget", "fault", "made"),
    [
        ('{"tokens": 1500}', faults.cut_after(bytes=40), 1),
        ('{"tokens": 1500}', faults.status(503), 2),
        ('{"tokens": 5000}', faults.cut_after(bytes=40), 2),
        ('{"cost_usd": 1.5}', faults.cut_after(bytes=40), 1),
        ('{"cost_usd": 5}', faults.cut_after(bytes=40), 2),
    ],
)
async def test_what_may_have_been_billed_is_taken_from_the_budget(
    tmp_path: Path, budget: str, fault: Any, made: int
) -> None:
    """Of tokens as of dollars: an attempt takes a thousand of the first, and one of the others."""
    models = {"*": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1e6 / 1024}}
    upstream = {"models": models}
    async with world(tmp_path, fallback=False, upstream=upstream) as parties:
        parties.primary.then(fault, faults.healthy())
        reply = await parties.ask(headers={"X-Steer-Budget": budget})
        assert len(parties.primary.attempts) == made
        assert (reply.status == 200) == (made == 2)


@pytest.mark.parametrize("code", [429, 503, 529])
async def test_without_a_fallback_the_provider_speaks_for_itself(tmp_path: Path, code: int) -> None:
    """The provider's own answer, with advice that keeps the SDK from multiplying the attempts."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.always(faults.status(code, retry_after=1))
        reply = await parties.ask()
        assert reply.status == code
        assert reply.json["error"]["message"]
        assert reply.headers["X-Should-Retry"] == "false"
        assert reply.headers["Retry-After"] == "1"
        assert len(parties.primary.attempts) == 3


async def test_attempts_are_jittered(tmp_path: Path) -> None:
    """Calls that fail together do not come back together."""
    gaps = set()
    async with world(tmp_path, fallback=False) as parties:
        for _ in range(5):
            parties.primary.then(faults.status(503), faults.healthy())
            await parties.ask()
            first, second = parties.primary.attempts[-2:]
            gaps.add(round(second.at - first.at, 4))
    assert len(gaps) == 5
    assert max(gaps) <= 0.5


@BOTH
async def test_a_silent_upstream_is_left_for_the_fallback(tmp_path: Path, stream: bool) -> None:
    """The first-byte limit fires, the fallback answers, the silent one is not asked twice."""
    async with world(tmp_path, upstream={"timeouts": {"first_byte": 7, "answer": 7}}) as parties:
        parties.primary.always(faults.silence())
        reply = await parties.ask(stream=stream)
        answered_by(parties, reply, "fallback")
        assert 7.0 <= reply.seconds < 7.5
        assert len(parties.primary.attempts) == 1


async def test_silence_after_the_head_counts_too(tmp_path: Path) -> None:
    """A head without a first token is no answer."""
    async with world(tmp_path, upstream={"timeouts": {"first_token": 9}}) as parties:
        parties.primary.always(faults.headers_then_silence())
        reply = await parties.ask(stream=True)
        answered_by(parties, reply, "fallback")
        assert 9.0 <= reply.seconds < 9.5


@EVERY_DIALECT
async def test_a_slow_first_token_fails_over(tmp_path: Path, dialect: str) -> None:
    """Nothing was sent yet, so the caller never learns of the slow one."""
    async with world(tmp_path, dialect, upstream={"timeouts": {"first_token": 5}}) as parties:
        parties.primary.always(faults.slow_first_token(60))
        reply = await parties.ask(stream=True)
        answered_by(parties, reply, "fallback")
        assert 5.0 <= reply.seconds < 5.5
        assert len(parties.primary.attempts) == 1


async def test_pings_do_not_pass_for_a_first_token(tmp_path: Path) -> None:
    """An upstream that is alive but says nothing is given up all the same."""
    async with world(tmp_path, upstream={"timeouts": {"first_token": 5}}) as parties:
        parties.primary.always(faults.pings_before_first_token(100, 1.0))
        answered_by(parties, await parties.ask(stream=True), "fallback")


@BOTH
async def test_a_dead_primary_is_passed_over(tmp_path: Path, stream: bool) -> None:
    """Connections refused: nothing was sent, the fallback answers within the backoff."""
    async with world(tmp_path) as parties:
        await parties.primary.stop_listening()
        await parties.primary.drop_connections()
        answered_by(parties, await parties.ask(stream=stream), "fallback")


async def test_nobody_to_reach_is_a_502(tmp_path: Path) -> None:
    """Steer's own error names the attempts, in the dialect's shape, and calls the SDK off."""
    async with world(tmp_path, fallback=False) as parties:
        await parties.primary.stop_listening()
        reply = await parties.ask()
        assert reply.status == 502
        assert reply.json["error"]["code"] == "steer_upstream_unreachable"
        assert "attempt 3 at primary: connect" in reply.json["error"]["message"]
        assert reply.headers["X-Should-Retry"] == "false"


async def test_silence_without_a_fallback_is_a_504(tmp_path: Path) -> None:
    """The deadline spans all attempts: three silent ones do not take three deadlines."""
    route = {"timeouts": {"total": 10}}
    async with world(
        tmp_path, fallback=False, route=route, upstream={"timeouts": {"answer": 4}}
    ) as parties:
        parties.primary.always(faults.silence())
        reply = await parties.ask()
        assert reply.status == 504
        assert reply.json["error"]["code"] in {"steer_deadline", "steer_upstream_timeout"}
        assert reply.seconds <= 10.1


@BOTH
async def test_context_overflow_goes_to_a_larger_model_only(tmp_path: Path, stream: bool) -> None:
    """One attempt, then the candidate whose declared context is larger."""
    models = {"gpt-4o": {"context_tokens": 8000}, "gpt-4.1": {"context_tokens": 1_000_000}}
    async with world(
        tmp_path, upstream={"models": models}, fallback_options={"model": "gpt-4.1"}
    ) as parties:
        parties.primary.always(faults.context_length_exceeded())
        reply = await parties.ask(stream=stream)
        answered_by(parties, reply, "fallback")
        assert reply.headers["X-Steer-Model"] == "gpt-4.1"
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts[0].json["model"] == "gpt-4.1"


async def test_context_overflow_without_a_larger_model_is_the_answer(tmp_path: Path) -> None:
    """No candidate is known to be larger: the provider's own 400, after one attempt."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.context_length_exceeded())
        reply = await parties.ask()
        assert reply.status == 400
        assert reply.json["error"]["code"] == "context_length_exceeded"
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_refusal_is_the_answer(tmp_path: Path, dialect: str) -> None:
    """Content policy: one attempt, the provider's reason, no fallback by default."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.content_policy())
        reply = await parties.ask()
        assert reply.status == 400
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


async def test_a_refusal_falls_back_where_the_route_asks(tmp_path: Path) -> None:
    """`on_refusal: fallback` is the user's word."""
    async with world(tmp_path, route={"on_refusal": "fallback"}) as parties:
        parties.primary.always(faults.content_policy())
        answered_by(parties, await parties.ask(), "fallback")


@pytest.mark.parametrize("code", [400, 404, 422])
async def test_the_callers_own_mistakes_are_not_repeated(tmp_path: Path, code: int) -> None:
    """A 4xx about the request: one attempt, no fallback, the answer untouched."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(code))
        reply = await parties.ask()
        assert reply.status == code
        assert "X-Should-Retry" not in reply.headers
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


async def test_used_up_credit_is_not_waited_for(tmp_path: Path) -> None:
    """`insufficient_quota` is a 429 that no waiting mends: the fallback answers at once."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.insufficient_quota())
        reply = await parties.ask()
        answered_by(parties, reply, "fallback")
        assert len(parties.primary.attempts) == 1
        assert reply.seconds < 0.2


async def test_the_fallbacks_own_401_never_reaches_the_caller(tmp_path: Path) -> None:
    """A credential the caller does not know is not the caller's problem."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(503))
        parties.fallback.always(faults.authentication_failed())
        reply = await parties.ask()
        assert reply.status == 503
        # And the refused credential is not tried again for a while.
        asked = len(parties.fallback.attempts)
        await parties.ask()
        assert len(parties.fallback.attempts) == asked


@pytest.mark.parametrize("code", [401, 403])
async def test_a_refused_key_of_the_callers_is_the_callers_to_mend(
    tmp_path: Path, code: int
) -> None:
    """A wrong key is not served at the operator's cost: no fallback spends its own on it."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(code))
        reply = await parties.ask()
        assert reply.status == code
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


async def test_the_reported_model_is_that_of_whoever_answered(tmp_path: Path) -> None:
    """Body, usage and headers all come from the fallback."""
    async with world(tmp_path, fallback_options={"model": "gpt-4.1-mini"}) as parties:
        parties.primary.always(faults.status(503))
        reply = await parties.ask()
        assert reply.json["model"] == "gpt-4.1-mini"
        assert reply.headers["X-Steer-Model"] == "gpt-4.1-mini"
        assert reply.headers["X-Steer-Upstream"] == "fallback"


async def test_all_attempts_of_a_call_are_bounded(tmp_path: Path) -> None:
    """`max_total_attempts` holds over all candidates together."""
    async with world(tmp_path, route={"retry": {"max_total_attempts": 4}}) as parties:
        parties.primary.always(faults.status(503))
        parties.fallback.always(faults.status(503))
        reply = await parties.ask()
        assert reply.status == 503
        assert len(parties.primary.attempts) + len(parties.fallback.attempts) == 4


@pytest.mark.parametrize(
    ("budget", "asked"),
    [({"tokens": 1500}, 1), ({"tokens": 3000}, 2), ({"cost_usd": 0.0015}, 1), ({"ms": 60000}, 2)],
    ids=str,
)
async def test_what_may_have_been_billed_is_charged_to_the_budget(
    tmp_path: Path, budget: dict[str, Any], asked: int
) -> None:
    """In tokens as in dollars: no attempt begins that could exceed it, and the failure is told."""
    price = {"models": {"*": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}}}
    async with world(tmp_path, upstream=price, fallback=False) as parties:
        parties.primary.then(faults.reset_before_answer())
        path, body = parties.request(max_tokens=1000)
        headers = {"X-Steer-Budget": json.dumps(budget)}
        reply = await parties.send("POST", path, json=body, headers=headers)
        assert len(parties.primary.attempts) == asked
        assert (reply.status == 200) == (asked == 2)
