"""Calls whose SDK gave up waiting: its own next try takes the running attempt over."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from steer_proxy.http import orphans
from steer_proxy.http.call import Call
from steer_proxy.http.identity import request_print
from steer_proxy.ledger.memory import MemoryLedger
from tests.provider import faults
from tests.support.attempts import every_attempt
from tests.support.world import MESSAGES as WORDS
from tests.support.world import World, world

MESSAGES: Any = WORDS

PLAIN_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def sdk(retry: int | None, timeout: str = "10.0") -> dict[str, str]:
    """What an official SDK says of its patience and of which try this is."""
    headers = {"x-stainless-read-timeout": timeout}
    return headers if retry is None else {**headers, "x-stainless-retry-count": str(retry)}


async def hang_up(parties: World, after: float, headers: dict[str, str], **members: Any) -> None:
    """Ask, and hang up after so many seconds without an answer."""
    path, body = parties.request(**members)
    content = json.dumps(body).encode()
    lines = {
        "Host": "127.0.0.1",
        "Accept": "*/*",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Authorization": "Bearer caller-key",
        **headers,
    }
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    _, writer = await asyncio.open_connection("127.0.0.1", parties.steer.sidecar.port)
    writer.write(f"POST /route{path} HTTP/1.1\r\n{head}\r\n".encode() + content)
    await asyncio.sleep(after)
    writer.transport.abort()
    await asyncio.sleep(0)


@PLAIN_AND_STREAMED
async def test_openais_own_retry_adopts_the_call(tmp_path: Path, stream: bool) -> None:
    """An answer that takes longer than the SDK waits: no key, one execution, and the answer."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(15))
        client = openai.AsyncOpenAI(
            base_url=f"{parties.steer.url}/route", api_key="caller-key", timeout=10.0
        )
        async with client:
            answer: Any = await client.chat.completions.create(
                model="gpt-4o", messages=MESSAGES, stream=stream
            )
            if stream:
                text = "".join(
                    [c.choices[0].delta.content or "" async for c in answer if c.choices]
                )
            else:
                text = answer.choices[0].message.content
        assert text == parties.primary.text
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


async def test_anthropics_own_retry_adopts_the_call(tmp_path: Path) -> None:
    """The same by the other family of SDKs."""
    async with world(tmp_path, "anthropic") as parties:
        parties.primary.always(faults.silence(25))
        client = anthropic.AsyncAnthropic(
            base_url=f"{parties.steer.url}/route", api_key="caller-key", timeout=10.0
        )
        async with client:
            answer: Any = await client.messages.create(
                model="claude-sonnet-5-5", max_tokens=64, messages=MESSAGES
            )
        assert answer.content[0].text == parties.primary.text
        assert len(parties.primary.attempts) == 1


async def test_a_caller_that_hung_up_after_its_time_out_is_waited_for(tmp_path: Path) -> None:
    """It waited as long as its SDK does: the attempt goes on, and its next try takes it over."""
    # With a time-out this short, Steer's own word (5 % before it) would come too late.
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(1.2))
        await hang_up(parties, 0.852, sdk(0, "0.9"))
        reply = await parties.ask(headers=sdk(1))
        assert reply.status == 200
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize(
    ("headers", "members"),
    [
        (sdk(0), {}),
        (sdk(2), {}),
        (sdk(None), {}),
        (sdk(1), {"temperature": 1}),
        ({**sdk(1), "Authorization": "Bearer another"}, {}),
        ({**sdk(1), "X-Token": "another"}, {}),
        ({**sdk(1), "X-Steer-Metadata": '{"team": "b"}'}, {}),
        ({**sdk(1), "X-Steer-Budget": '{"cost_usd": 1}'}, {}),
    ],
    ids=[
        "same count",
        "two higher",
        "no count",
        "another request",
        "another caller",
        "another token",
        "other metadata",
        "a budget",
    ],
)
async def test_only_the_very_next_try_adopts(
    tmp_path: Path, headers: dict[str, str], members: dict[str, Any]
) -> None:
    """Same principal, same request, counted exactly one higher: anything else is its own call."""
    async with world(tmp_path) as parties:
        parties.primary.then(faults.silence(15))
        assert (await parties.ask(headers=sdk(0))).status == 504
        assert (await parties.ask(headers=headers, **members)).status == 200
        assert len(parties.primary.attempts) == 2


@pytest.mark.parametrize(("tenant", "attempts"), [("a", 1), ("b", 2)])
async def test_the_routes_scope_is_looked_at_too(
    tmp_path: Path, tenant: str, attempts: int
) -> None:
    """Two tenants behind one credential are two, where the route says so."""
    async with world(tmp_path, route={"idempotency": {"scope": "header:X-Tenant"}}) as parties:
        parties.primary.then(faults.silence(15))
        await parties.ask(headers={**sdk(0), "X-Tenant": "a"})
        reply = await parties.ask(headers={**sdk(1), "X-Tenant": tenant})
        assert reply.status == 200
        assert len(parties.primary.attempts) == attempts


async def test_every_request_is_digested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tries are compared with it."""
    digested: list[str] = []

    async def counted(call: Call, secret: bytes) -> str:
        digested.append(call.request_id)
        return await request_print(call, secret)

    monkeypatch.setattr(orphans, "request_print", counted)
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(15))
        first = (parties.ask(headers=sdk(0), user=name) for name in "abcd")
        assert {reply.status for reply in await asyncio.gather(*first)} == {504}
        others = (parties.ask(headers=sdk(1), user=name) for name in "wxyz")
        assert {reply.status for reply in await asyncio.gather(*others)} == {504}
    assert len(digested) == 8
    assert len(set(digested)) == 8


async def test_it_is_adopted_once_the_oldest_first(tmp_path: Path) -> None:
    """Two equal orphans, three next tries: two adopt, the third is a call of its own."""
    async with world(tmp_path) as parties:
        parties.primary.then(faults.silence(15), faults.silence(17))
        first, second = await asyncio.gather(
            parties.ask(headers=sdk(0)), parties.ask(headers=sdk(0))
        )
        assert first.status == second.status == 504
        replies = await asyncio.gather(*(parties.ask(headers=sdk(1)) for _ in range(3)))
        assert [reply.status for reply in replies] == [200] * 3
        assert len(parties.primary.attempts) == 3


async def test_nobody_comes_and_the_attempt_is_ended(tmp_path: Path) -> None:
    """After `adopt_grace` the upstream connection is closed."""
    async with world(tmp_path, route={"idempotency": {"adopt_grace": 3}}) as parties:
        parties.primary.always(faults.silence())
        assert (await parties.ask(headers=sdk(0))).status == 504
        began = parties.now()
        await parties.primary.attempts[0].finished.wait()
        assert parties.now() - began == pytest.approx(3, abs=0.1)


PRICED: Any = {"models": {"*": {"input_usd_per_mtok": 2.0, "output_usd_per_mtok": 8.0}}}


@PLAIN_AND_STREAMED
@pytest.mark.parametrize("hangs_up", [False, True], ids=["told", "hangs up"])
async def test_an_answer_that_nobody_comes_for_is_wasted(
    tmp_path: Path, stream: bool, hangs_up: bool
) -> None:
    """It may have been billed: what it counted is told, and is no cost of an answer."""
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.always(faults.silence(1.2 if hangs_up else 15))
        if hangs_up:
            await hang_up(parties, 0.852, sdk(0, "0.9"), stream=stream)
        else:
            assert (await parties.ask(headers=sdk(0), stream=stream)).status == 504
        await asyncio.sleep(20.0)
        books = parties.steer.sidecar.books
        await books.stop()
        assert isinstance(books.ledger, MemoryLedger)
        (row,) = books.ledger.calls.values()
        (attempt,) = every_attempt(row, books.ledger.attempts.values())
        assert (attempt.executed, attempt.wasted) == ("yes", 1)
        told = (None, "cancelled") if hangs_up else (504, "timeout")
        assert (row.status, row.outcome) == told
        assert (row.cost_nusd, row.wasted_nusd) == (0, attempt.cost_nusd)
        assert row.wasted_nusd
        if not stream:
            assert attempt.outcome == "ok"
            counted = (attempt.tokens_in or 0) * 2_000 + (attempt.tokens_out or 0) * 8_000
            assert attempt.cost_nusd == counted


async def test_a_caller_that_leaves_early_is_not_waited_for(tmp_path: Path) -> None:
    """It did not time out, it left: nothing goes on."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence())
        began = parties.now()
        await hang_up(parties, 2.0, sdk(0))
        await parties.primary.attempts[0].finished.wait()
        assert parties.now() - began == pytest.approx(2, abs=0.1)


async def test_a_route_may_refuse_adoption(tmp_path: Path) -> None:
    """`adopt: false`: what a caller does not wait for is ended."""
    async with world(tmp_path, route={"idempotency": {"adopt": False}}) as parties:
        parties.primary.always(faults.silence(15))
        reply = await parties.ask(headers=sdk(0))
        assert reply.status == 504
        assert reply.headers["x-should-retry"] == "false"
        await parties.primary.attempts[0].finished.wait()


async def test_the_rows_of_an_adopted_call(tmp_path: Path) -> None:
    """The first try was told 504 and has no attempt; the second one has it, and says whose."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(15))
        await parties.ask(headers=sdk(0))
        await parties.ask(headers=sdk(1))
        books = parties.steer.sidecar.books
        await books.stop()
        assert isinstance(books.ledger, MemoryLedger)
        first, second = books.ledger.calls.values()
        assert (first.status, first.attempts, first.sdk_retry) == (504, 0, 0)
        assert (second.status, second.idem_role, second.served_from) == (200, "adopted", first.id)
        assert second.sdk_retry == 1
        rows = books.ledger.attempts.values()
        assert [len(every_attempt(call, rows)) for call in (first, second)] == [0, 1]
