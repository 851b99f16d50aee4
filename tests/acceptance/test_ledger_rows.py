"""Every call leaves its rows in the ledger: what it took, what it cost, and how it ended."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import AttemptRow, CallRow
from tests.provider import faults
from tests.provider.answers import bytes_answer
from tests.support.attempts import every_attempt
from tests.support.world import World, world

PRICE = {"input_usd_per_mtok": 2.0, "output_usd_per_mtok": 8.0}
MODELS = ("gpt-4o", "text-embedding-3-small", "claude-sonnet-4-5", "gemini-2.5-flash")
PRICED = {"models": dict.fromkeys(MODELS, PRICE)}


async def logged(parties: World, count: int = 1) -> list[tuple[CallRow, list[AttemptRow]]]:
    """The rows of the calls so far, the oldest first, when so many of them are written."""
    ledger = parties.steer.sidecar.books.ledger
    assert isinstance(ledger, MemoryLedger)
    for _ in range(100):
        if len(ledger.calls) >= count and not parties.steer.sidecar.books.queued:
            break
        await asyncio.sleep(0.1)
    attempts = list(ledger.attempts.values())
    return [(call, every_attempt(call, attempts)) for call in ledger.calls.values()]


async def one(parties: World) -> tuple[CallRow, list[AttemptRow]]:
    """The rows of the only call."""
    (found,) = await logged(parties)
    return found


def dollars(row: CallRow | AttemptRow) -> int:
    """What the counted tokens cost, in nano-dollars."""
    return (row.tokens_in or 0) * 2_000 + (row.tokens_out or 0) * 8_000


COUNTING: dict[str, Any] = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
async def test_what_a_call_cost(tmp_path: Path, dialect: str, stream: bool) -> None:
    """Counted by its provider, priced by the operator's prices."""
    async with world(tmp_path, dialect, upstream=PRICED) as parties:
        members: dict[str, Any] = COUNTING if stream and dialect == "openai" else {}
        reply = await parties.ask(stream=stream, **members)
        assert reply.status == 200
        row, (attempt,) = await one(parties)
        assert row.tokens_in
        assert row.tokens_out
        assert row.cost_nusd == attempt.cost_nusd == dollars(row) == dollars(attempt)
        assert (row.cost_source, row.wasted_nusd) == ("reported", 0)
        assert (row.outcome, row.status, row.stream) == ("ok", 200, int(stream))
        assert row.bytes_out == attempt.bytes_received == len(reply.body)
        assert (row.first_token_us is not None) == stream


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"model": "gpt-4o", "input": "Say something."}),
        ("/responses", {"model": "gpt-4o", "input": "Say something.", "stream": True}),
        ("/responses", {"model": "gpt-4o", "input": "x", "previous_response_id": "resp_1"}),
        ("/embeddings", {"model": "text-embedding-3-small", "input": ["one", "two"]}),
    ],
    ids=["responses", "responses stream", "pinned", "embeddings"],
)
async def test_other_endpoints(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """They count and cost, too."""
    async with world(tmp_path, upstream=PRICED) as parties:
        await parties.send("POST", path, json=body)
        row, _ = await one(parties)
        assert row.tokens_in
        assert (row.cost_nusd, row.cost_source) == (dollars(row), "reported")


@pytest.mark.parametrize("size", [2_000, 60_000], ids=["held", "not held"])
@pytest.mark.parametrize("commit", ["first_token", "headers"])
async def test_large_compressed_answers(tmp_path: Path, size: int, commit: str) -> None:
    """Embeddings and images, which SDKs ask for with gzip, are counted like any other answer."""
    numbers = [(index * 2654435761 % 2**32) / 2**32 for index in range(10 * size)]
    usage = {"prompt_tokens": 8000, "total_tokens": 8000}
    document = {"data": numbers, "model": "text-embedding-3-small", "usage": usage}
    packed = gzip.compress(json.dumps(document).encode(), 1)
    fields = (("Content-Encoding", "gzip"),)
    async with world(tmp_path, upstream=PRICED, route={"commit": commit}) as parties:
        parties.primary.then(bytes_answer(200, packed, fields, "application/json"))
        body = {"model": "text-embedding-3-small", "input": "x"}
        accepted = {"Accept-Encoding": "gzip, deflate"}
        reply = await parties.send("POST", "/embeddings", json=body, headers=accepted)
        assert reply.status == 200
        row, _ = await one(parties)
        assert (row.outcome, row.tokens_in, row.cost_source) == ("ok", 8000, "reported")
        assert row.bytes_out == len(packed)


async def test_a_price_that_nobody_knows(tmp_path: Path) -> None:
    """The tokens are told, and the cost is unknown, not zero."""
    async with world(tmp_path) as parties:
        await parties.ask()
        row, _ = await one(parties)
        assert row.tokens_in
        assert (row.cost_nusd, row.cost_source) == (None, "unknown")


async def test_what_was_wasted(tmp_path: Path) -> None:
    """An attempt that was lost after it was sent may have been billed; one that was refused not."""
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.then(faults.rate_limit(retry_after=1), faults.reset_before_answer())
        assert (await parties.ask()).status == 200
        row, attempts = await one(parties)
        assert [each.wasted for each in attempts] == [0, 1, 0]
        assert [each.cost_source for each in attempts] == [None, "estimated", "reported"]
        assert attempts[0].cost_nusd == 0
        assert row.wasted_nusd == attempts[1].cost_nusd
        assert row.wasted_nusd
        assert (row.cost_nusd, row.ambiguous) == (attempts[2].cost_nusd, 1)
        assert row.wait_us
        assert row.wait_us >= 1_000_000


async def test_a_refused_call(tmp_path: Path) -> None:
    """Steer's own word is its class; it has no attempts."""
    async with world(tmp_path) as parties:
        headers = {"X-Steer-Budget": "nonsense"}
        assert (await parties.ask(headers=headers)).status == 400
        assert (await parties.ask(headers={"X-Steer-Upstream": "nobody"})).status == 400
        (early, none), (late, nothing) = await logged(parties, 2)
        assert none == nothing == []
        for row in (early, late):
            assert (row.status, row.outcome, row.attempts) == (400, "client_4xx", 0)
            assert row.error_class is not None
            assert row.error_class.startswith("steer_")
            assert row.path == "/route/chat/completions"


async def test_a_stream_that_broke(tmp_path: Path) -> None:
    """It was committed with 200, and it is not told as one that went well."""
    async with world(tmp_path, "anthropic", upstream=PRICED) as parties:
        parties.primary.then(faults.cut_after(events=5))
        reply = await parties.ask(stream=True)
        assert reply.cut
        row, (attempt,) = await one(parties)
        assert (row.status, row.outcome, row.error_class) == (200, "broken", "truncated")
        assert (row.cost_nusd, row.wasted_nusd) == (0, attempt.cost_nusd)
        assert attempt.cost_source == "estimated"


async def test_a_stream_that_another_candidate_finished(tmp_path: Path) -> None:
    """The caller got its answer, and the ledger says what it took."""
    route = {"on_break": "resume"}
    async with world(tmp_path, route=route, upstream=PRICED) as parties:
        parties.primary.then(faults.cut_after(events=5))
        reply = await parties.ask(stream=True, **COUNTING)
        assert not reply.cut
        row, attempts = await one(parties)
        assert [each.outcome for each in attempts] == ["broken", "ok"]
        assert (row.outcome, row.error_class) == ("ok", None)
        assert row.cost_nusd == attempts[1].cost_nusd == dollars(attempts[1])
        assert row.wasted_nusd == attempts[0].cost_nusd


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_a_caller_that_leaves(tmp_path: Path, committed: bool) -> None:
    """Before the answer or in the middle of it: the attempt was under way, and is told."""
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.always(faults.stall_after(events=4) if committed else faults.silence())
        path, body = parties.request(stream=True)
        url = f"{parties.steer.url}/route{path}"

        async def ask() -> None:
            async with asyncio.timeout(3), parties.session.post(url, json=body) as response:
                await response.read()

        with pytest.raises(TimeoutError):
            await ask()
        row, (attempt,) = await one(parties)
        assert (row.outcome, attempt.outcome) == ("cancelled", "cancelled")
        assert row.status == (200 if committed else None)
        assert attempt.executed == ("yes" if committed else "maybe")
        assert attempt.wasted == 1
        assert row.wasted_nusd


@pytest.mark.parametrize("patient", [False, True], ids=["alone", "may be adopted"])
@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_a_call_that_a_drain_cuts(tmp_path: Path, committed: bool, patient: bool) -> None:
    """It was told 503, or its stream was broken off: what was sent may have been billed."""
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.always(faults.stall_after(events=4) if committed else faults.silence())
        headers = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "600"}
        asking = parties.ask(stream=True, headers=headers if patient else {})
        calling = asyncio.create_task(asking)
        await parties.primary.wait_for_attempts(1)
        await asyncio.sleep(1.0)
        assert not await parties.steer.sidecar.drain(2.0)
        reply = await calling
        row, (attempt,) = await one(parties)
        assert (row.status, row.error_class) == (reply.status, "steer_draining")
        assert (reply.status, row.outcome) == ((200, "broken") if committed else (503, "throttled"))
        assert committed or row.bytes_out == len(reply.body)
        assert (attempt.outcome, attempt.wasted) == ("cancelled", 1)
        assert row.wasted_nusd


async def test_a_gate_that_is_shut(tmp_path: Path) -> None:
    """By the time a provider names, and once more by its next refusal, which names none."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.then(faults.rate_limit(retry_after=2), faults.status(429))
        assert (await parties.ask()).status == 200
        await parties.steer.sidecar.books.stop()
        ledger = parties.steer.sidecar.books.ledger
        assert isinstance(ledger, MemoryLedger)
        first, second = (event for event in ledger.events.values() if event.kind == "gate")
        for event in (first, second):
            assert (event.upstream, event.model) == ("primary", "gpt-4o")
            assert (event.from_state, event.to_state) == ("open", "shut")
            assert event.until_us is not None
            assert event.until_us > event.at_us
        assert second.reason == "the provider goes on throttling"


async def test_a_websocket(tmp_path: Path) -> None:
    """A conversation is one call; nobody counts its tokens here."""
    async with world(tmp_path) as parties:
        url = f"{parties.steer.url}/route/realtime?model=gpt-4o-realtime-preview"
        async with parties.session.ws_connect(url) as socket:
            await socket.receive()
            await asyncio.sleep(2)
        row, (attempt,) = await one(parties)
        assert (row.status, row.operation, row.tokens_in) == (101, "realtime", None)
        assert (row.duration_us or 0) >= 2_000_000
        assert attempt.bytes_received is None
        assert (row.cost_nusd, row.cost_source) == (None, "unknown")


async def test_a_keyed_call(tmp_path: Path) -> None:
    """Its record is its row: with the cost, when it is completed."""
    async with world(tmp_path, upstream=PRICED) as parties:
        for _ in range(2):
            assert (await parties.ask(headers={"Idempotency-Key": "k"})).status == 200
        (owner, (attempt,)), (second, none) = await logged(parties, 2)
        assert (owner.idem_state, owner.idem_role) == ("completed", "owner")
        assert owner.cost_nusd == attempt.cost_nusd == dollars(attempt)
        assert owner.cost_nusd
        assert (second.idem_role, second.served_from, none) == ("replayed", owner.id, [])
        assert second.avoided_nusd == owner.cost_nusd
        assert second.cost_nusd == second.wasted_nusd == 0


async def test_no_credential_is_written(tmp_path: Path) -> None:
    """Neither the caller's nor Steer's own; both have marks, and a caller always has the same."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.server_error())
        await parties.ask()
        await parties.ask()
        rows = await logged(parties, 2)
        text = repr(rows)
        assert "caller-key" not in text
        assert "fallback-key" not in text
        (first, attempts), (second, _) = rows
        assert first.caller == second.caller == attempts[0].credential
        assert first.caller
        assert attempts[-1].credential not in (None, first.caller)


async def test_what_a_caller_says_is_no_danger(tmp_path: Path) -> None:
    """Labels by the allow-list only, and a path without what was asked in its query."""
    async with world(tmp_path) as parties:
        said = {"team": "a\u0000b", "secret": "s"}
        headers = {"X-Steer-Metadata": json.dumps(said)}
        await parties.send("GET", "/models?api_key=abc", headers=headers)
        row, (attempt,) = await one(parties)
        assert (row.labels, row.path, row.method) == (None, "/route/models", "GET")
        assert (row.cost_nusd, row.cost_source) == (None, None)
        assert attempt.model is None


async def test_a_stream_that_no_other_candidate_finished(tmp_path: Path) -> None:
    """The second answer broke as the first did: neither is told as one that went well."""
    async with world(tmp_path, route={"on_break": "resume"}, upstream=PRICED) as parties:
        for provider in (parties.primary, parties.fallback):
            provider.always(faults.cut_after(events=5))
        reply = await parties.ask(stream=True, **COUNTING)
        assert reply.cut
        row, attempts = await one(parties)
        assert [each.outcome for each in attempts] == ["broken", "broken"]
        assert [each.wasted for each in attempts] == [1, 1]
        assert (row.outcome, row.error_class) == ("broken", "truncated")


@pytest.mark.parametrize(
    "headers", [{"X-Steer-Budget": "nonsense"}, {"Idempotency-Key": "a,b"}], ids=["header", "key"]
)
async def test_a_call_that_was_refused_early(tmp_path: Path, headers: dict[str, str]) -> None:
    """Its caller finds it by the id it gave it, and its SDK's count is told."""
    said = {"X-Request-ID": "mine-1", "x-stainless-retry-count": "2", **headers}
    async with world(tmp_path) as parties:
        assert (await parties.ask(headers=said)).status == 400
        row, _ = await one(parties)
        assert (row.request_id, row.sdk_retry) == ("mine-1", 2)


async def test_a_keyed_call_without_a_candidate(tmp_path: Path) -> None:
    """It was refused like any other, and its key is told."""
    headers = {"Idempotency-Key": "k", "X-Steer-Budget": '{"cost_usd": 0.000000001}'}
    async with world(tmp_path, upstream=PRICED) as parties:
        reply = await parties.ask(headers=headers)
        assert (reply.status, reply.json["error"]["code"]) == (400, "steer_budget_exceeded")
        row, _ = await one(parties)
        assert (row.status, row.bytes_out) == (400, len(reply.body))
        assert (row.idem_key, row.idem_role, row.idem_state) == ("k", None, None)
        assert row.idem_scope
        assert row.idem_fp


async def test_a_keyed_call_that_a_drain_cuts(tmp_path: Path) -> None:
    """What it came to is what its caller was told."""
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.always(faults.silence())
        calling = asyncio.create_task(parties.ask(headers={"Idempotency-Key": "k"}))
        await parties.primary.wait_for_attempts(1)
        await parties.steer.gateway.close()
        reply = await calling
        row, _ = await one(parties)
        assert (row.idem_state, row.error_class) == ("uncertain", "steer_draining")
        assert (row.status, row.bytes_out) == (reply.status, len(reply.body))


async def test_a_try_that_was_told_to_come_again(tmp_path: Path) -> None:
    """Steer answered by itself: in the words that fit its status, and all bytes of it."""
    headers = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "10"}
    async with world(tmp_path, upstream=PRICED) as parties:
        parties.primary.always(faults.silence())
        reply = await parties.ask(headers=headers)
        await asyncio.sleep(20.0)
        row, (attempt,) = await one(parties)
        assert (row.status, row.outcome, row.error_class) == (504, "timeout", "steer_deadline")
        assert row.bytes_out == len(reply.body)
        assert (attempt.outcome, attempt.wasted) == ("cancelled", 1)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_attempt_whose_answer_broke_before_anybody_saw_it(
    tmp_path: Path, stream: bool
) -> None:
    """Its head came, and says what its status was."""
    async with world(tmp_path, upstream=PRICED) as parties:
        fault = faults.headers_then_silence() if stream else faults.wrong_length(50)
        parties.primary.then(fault)
        assert (await parties.ask(stream=stream)).status == 200
        _, (broken, _) = await one(parties)
        assert broken.outcome in ("broken", "timeout")
        assert broken.headers_us is not None
        assert broken.status == 200
