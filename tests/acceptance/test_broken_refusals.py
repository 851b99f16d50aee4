"""Failing answers that break off, are large, or come late: told as the failures that they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_ledger_rows import logged
from tests.provider import faults
from tests.support.pair import key
from tests.support.world import World, world

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
CUT = [
    pytest.param(faults.cut_after(bytes=0, how="close"), id="after the head"),
    pytest.param(faults.cut_after(bytes=20, how="close"), id="in the body"),
]


async def told(parties: World) -> list[Any]:
    """Every attempt so far, as the ledger tells it: whether it was executed, and how it failed."""
    attempts = [attempt for _, rows in await logged(parties) for attempt in rows]
    return [(row.status, row.executed, row.wasted, row.outcome) for row in attempts]


# --- Cut short ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize("code", [429, 500, 503])
async def test_another_answers_in_its_place(
    tmp_path: Path, code: int, cut: Any, *, stream: bool
) -> None:
    """The head has said that the call was not executed: a key forbids nobody to try again."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(code) | cut)
        reply = await parties.ask(stream=stream, headers=key())
        assert (reply.status, reply.cut) == (200, False)
        assert reply.headers["X-Steer-Upstream"] == "fallback"
        assert {executed for _, executed, _, _ in await told(parties)} == {"no", "yes"}


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "without a key"])
@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize("code", [400, 401, 404, 429, 500, 503])
async def test_its_status_is_told(tmp_path: Path, code: int, cut: Any, *, keyed: bool) -> None:
    """In words of Steer's: half of the provider's would pretend to be all. The key is free."""
    twice = {"retry": {"max_attempts": 2}}
    again = code in {429, 500, 503}
    async with world(tmp_path, fallback=False, route=twice) as parties:
        parties.primary.always(faults.status(code, retry_after=1) | cut)
        headers = key() if keyed else {}
        counts = []
        for _ in range(2):
            reply = await parties.ask(headers=headers)
            assert (reply.status, reply.cut) == (code, False)
            assert reply.json["error"]["code"] == "steer_upstream_broken"
            assert reply.headers.get("Idempotency-Status") == ("new" if keyed else None)
            assert reply.headers.get("X-Should-Retry") == ("false" if again else None)
            assert reply.headers.get("Retry-After") == ("1" if again else None)
            counts.append(len(parties.primary.attempts))
        assert counts == ([2, 4] if again else [1, 2])
        rows = await told(parties)
        assert {row[:3] for row in rows} == {(code, "no", 0)}
        assert "ok" not in {row[3] for row in rows}


async def test_what_had_come_is_looked_at(tmp_path: Path) -> None:
    """A quota that is used up is no throttle, though the last byte is missing."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.always(
            faults.insufficient_quota() | faults.cut_after(bytes=201, how="close")
        )
        assert (await parties.ask()).status == 429
        assert len(parties.primary.attempts) == 1


async def test_a_refusal_that_broke_frees_the_key(tmp_path: Path) -> None:
    """Steer's words about it are not the answer that `final` is to keep."""
    async with world(tmp_path, route={"idempotency": {"save": "final"}}) as parties:
        parties.primary.always(faults.status(400) | faults.cut_after(bytes=20, how="close"))
        for _ in range(2):
            reply = await parties.ask(headers=key())
            assert (reply.status, reply.headers["Idempotency-Status"]) == (400, "new")
        assert len(parties.primary.attempts) == 2


@pytest.mark.parametrize("code", [408, 502, 504])
async def test_what_may_have_run_stays_uncertain(tmp_path: Path, code: int) -> None:
    """A head that does not say so is no proof."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(code) | faults.cut_after(bytes=20, how="close"))
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.json["error"]["code"]) == (504, "steer_outcome_uncertain")
        assert reply.headers["Idempotency-Status"] == "uncertain"
        assert len(parties.primary.attempts) == 1


# --- Too large to hold ----------------------------------------------------------------------------

LARGE = b"x" * 1_500_000


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "without a key"])
@pytest.mark.parametrize("code", [400, 401, 429, 503])
async def test_a_large_one_is_a_failure(tmp_path: Path, code: int, *, keyed: bool) -> None:
    """Relayed to its end, and no success for that."""
    once = {"retry": {"max_attempts": 1}}
    async with world(tmp_path, fallback=False, route=once) as parties:
        parties.primary.always(faults.status(code, LARGE))
        reply = await parties.ask(headers=key() if keyed else {})
        assert (reply.status, reply.body, reply.cut) == (code, LARGE, False)
        ((row, (attempt,)),) = await logged(parties)
        assert (attempt.executed, attempt.wasted) == ("no", 0)
        assert attempt.failure_class == row.error_class is not None
        assert attempt.outcome == row.outcome != "ok"
        assert row.ambiguous == 0


@pytest.mark.parametrize("code", [400, 429])
async def test_a_large_one_that_breaks_is_a_failure_still(tmp_path: Path, code: int) -> None:
    """How its body ends says nothing of what its head has said."""
    once = {"retry": {"max_attempts": 1}}
    async with world(tmp_path, fallback=False, route=once) as parties:
        cut = faults.cut_after(bytes=1_400_000, how="close")
        parties.primary.always(faults.status(code, LARGE) | cut)
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.cut) == (code, True)
        ((row, (attempt,)),) = await logged(parties)
        assert (attempt.executed, attempt.wasted, row.ambiguous) == ("no", 0, 0)
        assert row.outcome == attempt.outcome != "broken"
        assert row.idem_state == "released"


@pytest.mark.parametrize("code", [408, 502, 504])
async def test_a_large_one_may_have_been_executed(tmp_path: Path, code: int) -> None:
    """Its head goes out before its end is known, and says that the key is uncertain."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(code, LARGE))
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.body) == (code, LARGE)
        assert reply.headers["Idempotency-Status"] == "uncertain"
        ((row, (attempt,)),) = await logged(parties)
        assert (attempt.executed, attempt.wasted, row.ambiguous) == ("maybe", 1, 1)
        assert row.outcome == attempt.outcome != "ok"
        assert row.idem_state == "uncertain"


# --- Before its first content ---------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
async def test_an_error_is_no_execution_after_the_head_either(tmp_path: Path, dialect: str) -> None:
    """`commit: headers`: the head was given, the call was not executed; its key is free."""
    async with world(tmp_path, dialect, route={"commit": "headers"}) as parties:
        parties.primary.always(faults.in_band_error(kind="overloaded", at=0))
        for number in (1, 2):
            reply = await parties.ask(stream=True, headers=key())
            assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")
            assert b"verloaded" in reply.body
            assert len(parties.primary.attempts) == number
        rows = [row for row, _ in await logged(parties, 2)]
        assert [row.idem_state for row in rows] == ["released", "released"]


async def test_an_earlier_attempt_may_have_been_executed_all_the_same(tmp_path: Path) -> None:
    """What the last one was does not undo it."""
    route = {"commit": "headers", "retry": {"ambiguous": "retry"}}
    async with world(tmp_path, route=route) as parties:
        parties.primary.then(faults.reset_before_answer(), faults.in_band_error(kind="overloaded"))
        await parties.ask(stream=True, headers=key())
        ((row, attempts),) = await logged(parties)
        assert [each.executed for each in attempts] == ["maybe", "no"]
        assert row.idem_state == "uncertain"


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "without a key"])
async def test_a_whole_refusal_is_told_before_one_that_broke(
    tmp_path: Path, *, keyed: bool
) -> None:
    """The provider's own words came first, and the ends of its later ones never."""
    thrice = {"retry": {"max_attempts": 3}}
    cut = faults.status(500) | faults.cut_after(bytes=20, how="close")
    async with world(tmp_path, fallback=False, route=thrice) as parties:
        parties.primary.then(faults.status(500), cut, cut)
        reply = await parties.ask(headers=key() if keyed else {})
        assert len(parties.primary.attempts) == 3
        assert (reply.status, reply.cut) == (500, False)
        assert reply.json["error"].get("code") != "steer_upstream_broken"


async def test_a_fallbacks_whole_refusal_is_told_before_a_broken_one(tmp_path: Path) -> None:
    """Though the primary's would stand for all, had it come."""
    async with world(tmp_path) as parties:
        cut = faults.cut_after(bytes=20, how="close")
        parties.primary.always(faults.status(500) | cut)
        parties.fallback.always(faults.status(500))
        reply = await parties.ask()
        assert (reply.status, reply.headers["X-Steer-Upstream"]) == (500, "fallback")
        assert reply.json["error"].get("code") != "steer_upstream_broken"
