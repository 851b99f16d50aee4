"""From a call and its attempts to the rows of the log, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from steer_policies.config import Ambiguous, CommitPoint
from steer_policies.dialects.base import Usage
from steer_policies.facts import CallFacts, Calm
from steer_policies.outcome import SUCCESS, Verdict
from steer_policies.plan import Plan
from steer_policies.planner import plan
from steer_proxy.engine.attempt import Problem, Terms
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.engine.config import Config
from steer_proxy.engine.costing import Costing
from steer_proxy.engine.exchange import Exchange
from steer_proxy.engine.registry import Registry
from steer_proxy.engine.tariff import Sale
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.answer import HELD_PLAIN, HttpAnswer
from steer_proxy.http.attempt import HttpSender
from steer_proxy.http.bookkeeping import CallLog
from steer_proxy.http.call import Call
from steer_proxy.http.counting import MAX_ENCODED, PARSED_WHOLE, ends_of, unpack
from steer_proxy.http.intake import credential_number
from steer_proxy.http.journal import LIGHT, Journal
from steer_proxy.http.outbound import Outbound
from steer_proxy.http.relay import Broken, relay_plain, relay_stream
from steer_proxy.http.texts import MAX_LABELS
from steer_proxy.http.wire import Wire
from steer_proxy.ledger.values import AttemptRow, Batch, CallRow
from tests.provider import Provider, faults
from tests.provider.answers import bytes_answer, json_answer
from tests.provider.steps import Pause
from tests.support.attempts import every_attempt
from tests.support.books import keeping
from tests.support.calls import TRACE, make_call
from tests.support.sidecar import EPOCH, configure

SECRET = b"s" * 32
KEYS = {
    "openai": ("Authorization", "Bearer sk-caller"),
    "anthropic": ("x-api-key", "caller-key"),
    "gemini": ("x-goog-api-key", "caller-key"),
}
BASE = {"openai": "/v1", "anthropic": "", "gemini": ""}
MESSAGES = [{"role": "user", "content": "Say something plain."}]
CHAT = {"model": "gpt-4o", "messages": MESSAGES}


class Sink:
    """A caller that takes everything, as fast as it comes; `gone_after` so many bytes it leaves."""

    def __init__(self, gone_after: float = float("inf")) -> None:
        self.body = b""
        self._gone_after = gone_after

    async def write(self, data: bytes) -> None:
        self.body += data
        if len(self.body) >= self._gone_after:
            raise asyncio.CancelledError


class Bench:
    """Two upstreams, and what a gateway does with a call, without the gateway."""

    def __init__(self, config: Config, wire: Wire, primary: Provider, fallback: Provider) -> None:
        now = asyncio.get_running_loop().time
        self.clock = Clock(now=now, wall=lambda: EPOCH + now(), jitter=lambda: 0.5)
        self.config = config
        self.primary = primary
        self.fallback = fallback
        self.log = CallLog("here", self.clock, lambda: SECRET)
        self._wire = wire
        self._states = Registry(self.clock).bind(
            upstream.policy for upstream in config.upstreams.values()
        )

    def call(
        self, path: str, body: Any, *, fields: tuple[tuple[str, str], ...] = (), **more: Any
    ) -> Call:
        """A call as it was admitted just now."""
        dialect = self.config.routes[0].policy.dialect
        key = KEYS[dialect]
        whole = (key, *fields)
        raw = [(name.encode(), value.encode()) for name, value in whole]
        return make_call(
            self.config,
            "route",
            path,
            fields=whole,
            body=json.dumps(body).encode(),
            accepted_at=self.clock.now(),
            states=self._states,
            credentials={"primary": credential_number(raw, "")},
            **more,
        )

    async def settle(self, call: Call, spent: Spent, **changes: Any) -> tuple[Plan, Settled[Any]]:
        """The call's attempts, up to the commit."""
        facts = CallFacts(request=call.facts, headers=call.headers, body=call.json)
        planned = plan(call.route.policy, facts, Calm())
        assert isinstance(planned, Plan)
        made = replace(planned, **changes)
        outbound = Outbound(call, Addresses(self.config, self._wire))
        sender = HttpSender(call, made, outbound, self._wire, self.clock)
        exchange = Exchange(
            made,
            Terms(self.clock.now() + 600.0, Ambiguous.RETRY),
            call.route.policy.retry,
            states=call.states,
            credentials=call.credentials,
            clock=self.clock,
            sender=sender,
            spent=spent,
        )
        return made, await exchange.run()

    async def rows(
        self, call: Call, sink: Sink | None = None, **changes: Any
    ) -> tuple[CallRow, Sequence[AttemptRow]]:
        """The row of a call that is made and delivered to its end, and all its attempts."""
        call_row, attempts = await self.written(call, sink, **changes)
        return call_row, every_attempt(call_row, attempts)

    async def written(
        self, call: Call, sink: Sink | None = None, **changes: Any
    ) -> tuple[CallRow, Sequence[AttemptRow]]:
        """The rows of a call that is made and delivered to its end."""
        sink = sink or Sink()
        spent = Spent()
        try:
            made, settled = await self.settle(call, spent, **changes)
        except asyncio.CancelledError:
            return self.log.rows(call, status=None, bytes_out=0, spent=spent)
        verdict: Verdict | None = None
        with contextlib.suppress(asyncio.CancelledError):
            verdict = await _delivered(call, settled, sink)
        if settled.hold is not None:
            settled.hold.release()
        status = settled.problem.status if settled.problem else None
        if settled.answer is not None:
            await settled.answer.discard()
            status = settled.answer.status
        return self.log.rows(
            call,
            made=made,
            settled=settled,
            verdict=verdict,
            status=status,
            bytes_out=len(sink.body),
        )


async def _delivered(call: Call, settled: Settled[HttpAnswer], sink: Sink) -> Verdict | None:
    answer = settled.answer
    if answer is None:
        return None
    if answer.whole and (answer.reader is None or answer.finished or not answer.verdict.ok):
        sink.body += answer.held
        await unpack(call, answer)
        return answer.verdict
    caller = cast("Any", sink)
    try:
        if answer.reader is None:
            return await relay_plain(caller, answer, ends=ends_of(call, answer))
        return await relay_stream(caller, answer, answer.reader, None)
    except Broken as broken:
        return broken.verdict


@contextlib.asynccontextmanager
async def bench(
    tmp_path: Path, dialect: str = "openai", *, route: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Provider(name="primary"))
        second = await stack.enter_async_context(Provider(name="fallback"))
        base = {"dialect": dialect}
        settings = {
            "upstreams": {
                "primary": {**base, "base_url": first.base_url + BASE[dialect]},
                "fallback": {
                    **base,
                    "base_url": second.base_url + BASE[dialect],
                    "credential": {"env": "KEY"},
                },
            },
            "routes": [
                {
                    "name": "route",
                    "path": "/route",
                    "candidates": ["primary", "fallback"],
                    **(route or {}),
                }
            ],
            **more,
        }
        config = configure(settings, tmp_path, {"KEY": "own-secret"})
        wire = Wire()
        stack.push_async_callback(wire.close)
        yield Bench(config, wire, first, second)


def _chat(**more: Any) -> tuple[str, str, dict[str, Any]]:
    return "openai", "/chat/completions", {**CHAT, **more}


def _messages(**more: Any) -> tuple[str, str, dict[str, Any]]:
    asked = {"model": "claude-sonnet-4-5", "max_tokens": 64, "messages": MESSAGES}
    return "anthropic", "/v1/messages", {**asked, **more}


def _gemini(verb: str) -> tuple[str, str, dict[str, Any]]:
    contents = [{"role": "user", "parts": [{"text": "Say something plain."}]}]
    return "gemini", f"/v1beta/models/gemini-2.5-flash:{verb}", {"contents": contents}


def _responses(**more: Any) -> tuple[str, str, dict[str, Any]]:
    return "openai", "/responses", {"model": "gpt-4o", "input": "Say something.", **more}


COUNTING = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        pytest.param(_chat(), "", id="chat"),
        pytest.param(_chat(**COUNTING), "", id="chat stream"),
        pytest.param(_responses(), "", id="responses"),
        pytest.param(_responses(stream=True), "", id="responses stream"),
        pytest.param(_messages(), "", id="messages"),
        pytest.param(_messages(stream=True), "", id="messages stream"),
        pytest.param(_gemini("generateContent"), "", id="gemini"),
        pytest.param(_gemini("streamGenerateContent"), "alt=sse", id="gemini stream"),
        pytest.param(_gemini("streamGenerateContent"), "", id="gemini array"),
    ],
)
async def test_what_a_provider_counts(
    tmp_path: Path, asked: tuple[str, str, dict[str, Any]], query: str
) -> None:
    """Tokens and model of every dialect, of plain answers and of streams, in both rows."""
    dialect, path, body = asked
    async with bench(tmp_path, dialect) as parties:
        row, attempts = await parties.rows(parties.call(path, body, query=query))
        assert (row.status, row.outcome, row.error_class) == (200, "ok", None)
        (attempt,) = attempts
        for found in (row, attempt):
            assert found.tokens_in
            assert found.tokens_out
        assert row.model_answered
        assert row.model_answered.startswith(row.model_requested or "-")
        streaming = body.get("stream", "stream" in path)
        assert row.stream == int(streaming)
        assert (row.first_token_us is not None) == (attempt.first_token_us is not None) == streaming


async def test_embeddings_have_no_completion(tmp_path: Path) -> None:
    """What is not counted is not known, never zero."""
    async with bench(tmp_path) as parties:
        body = {"model": "text-embedding-3-small", "input": "one two three"}
        row, _ = await parties.rows(parties.call("/embeddings", body))
        assert row.tokens_in
        assert row.tokens_out is row.tokens_cached is row.tokens_reasoning is None


async def test_a_stream_that_was_not_asked_to_count(tmp_path: Path) -> None:
    """Its usage is not known."""
    async with bench(tmp_path) as parties:
        row, (attempt,) = await parties.rows(
            parties.call("/chat/completions", {**CHAT, "stream": True})
        )
        assert row.tokens_in is row.tokens_out is attempt.tokens_in is None
        assert row.model_answered


LARGE = [0.123456789] * (2 * PARSED_WHOLE // 11)
DOCUMENT = {
    "object": "list",
    "data": LARGE,
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}


def _gzipped(value: Any, cut: int = 0) -> Any:
    body = gzip.compress(json.dumps(value).encode(), 1)
    body = body[: len(body) - cut]
    return bytes_answer(200, body, (("Content-Encoding", "gzip"),), "application/json")


def _noise(size: int) -> list[float]:
    """Numbers that hardly compress."""
    return [(index * 2654435761 % 2**32) / 2**32 for index in range(size // 20)]


#: More than is held, also when it is compressed.
NOISE = _noise(4 * HELD_PLAIN)
GARBLED: Any = (
    b"\x1f\x8b" + b"\xff" * 2 * MAX_ENCODED,
    (("Content-Encoding", "gzip"),),
    "application/json",
)


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        pytest.param(json_answer(200, DOCUMENT), True, id="large"),
        pytest.param(json_answer(200, {**DOCUMENT, "data": LARGE * 20}), True, id="not held"),
        pytest.param(_gzipped({**DOCUMENT, "data": []}), True, id="compressed"),
        pytest.param(_gzipped(DOCUMENT), True, id="large and compressed"),
        pytest.param(_gzipped({**DOCUMENT, "data": _noise(4 * MAX_ENCODED)}), True, id="packed"),
        pytest.param(_gzipped({**DOCUMENT, "data": NOISE}), True, id="packed, not held"),
        pytest.param(_gzipped({**DOCUMENT, "data": NOISE}, cut=9), False, id="packed, not whole"),
        pytest.param(bytes_answer(200, *GARBLED), False, id="packed, but garbled"),
        pytest.param(bytes_answer(200, b"\x1f\x8bnonsense", ()), False, id="not what it says"),
        pytest.param(bytes_answer(200, b"\x00\x01", ()), False, id="anything"),
        pytest.param(bytes_answer(200, b"", ()), False, id="nothing"),
    ],
)
async def test_large_and_compressed_answers(tmp_path: Path, answer: Any, known: bool) -> None:
    """Their usage is found without reading all of them; where it is not, it is unknown."""
    async with bench(tmp_path) as parties:
        parties.primary.then(answer)
        fields = (("Accept-Encoding", "gzip"),)
        body = {"model": "text-embedding-3-small", "input": "x"}
        row, (attempt,) = await parties.rows(parties.call("/embeddings", body, fields=fields))
        assert (row.tokens_in, row.model_answered) == (
            (8, "text-embedding-3-small") if known else (None, None)
        )
        assert attempt.bytes_received == row.bytes_out


async def test_a_whole_row(tmp_path: Path) -> None:
    """Who asked for what, where it went, and how long each part of it took."""
    ledger = {"labels": ["team", "absent", "list"]}
    async with bench(tmp_path, ledger=ledger) as parties:
        parties.primary.then(faults.steps_first(Pause(0.25)))
        fields = (
            ("x-stainless-retry-count", "2"),
            ("X-Steer-Metadata", '{"team": "é", "secret": 1, "list": [1]}'),
        )
        call = parties.call("/chat/completions", CHAT, fields=fields, query="key=1")
        opening = parties.log.opening(call)
        row, rows = await parties.written(call)
        assert not rows
        (attempt,) = every_attempt(row, rows)
        sent = parties.primary.attempts[-1]
        started_us = int((EPOCH + call.accepted_at) * 1e6)
        assert row.caller is not None
        assert len(row.caller) == 32
        assert row._replace(id="", model_answered=None) == CallRow(
            id="",
            caller=row.caller,
            request_id="request-1",
            trace_id=TRACE.trace_id,
            parent_id=TRACE.parent_id,
            instance="here",
            config_rev=parties.config.revision,
            labels='{"team": "\\u00e9"}',
            route="route",
            dialect="openai",
            operation="chat.completions",
            method="POST",
            path="/route/chat/completions",
            stream=0,
            model_requested="gpt-4o",
            upstream="primary",
            started_us=started_us,
            ended_us=started_us + 250_000,
            duration_us=250_000,
            wait_us=0,
            status=200,
            outcome="ok",
            attempts=1,
            ambiguous=0,
            sdk_retry=2,
            bytes_in=call.body.size,
            bytes_out=attempt.bytes_received,
            tokens_in=attempt.tokens_in,
            tokens_cached=attempt.tokens_cached,
            tokens_out=attempt.tokens_out,
            tokens_reasoning=attempt.tokens_reasoning,
            attempt_model="gpt-4o",
            attempt_credential=row.caller,
            attempt_upstream_request_id=attempt.upstream_request_id,
            attempt_started_us=started_us,
            attempt_duration_us=250_000,
            attempt_connect_us=0,
            attempt_headers_us=250_000,
            attempt_wait_source="none",
            attempt_reused_conn=0,
            attempt_bytes_sent=attempt.bytes_sent,
            attempt_bytes_received=attempt.bytes_received,
        )
        assert opening._replace(id="") == CallRow("", *row[1:17])._replace(
            model_answered=None,
            upstream=None,
            started_us=started_us,
            sdk_retry=2,
            bytes_in=call.body.size,
        )
        assert attempt[:2] == (row.id, 1)
        assert attempt.credential == row.caller
        assert attempt.started_us == row.started_us
        assert attempt.headers_us == attempt.duration_us == 250_000
        assert attempt.connect_us == 0
        assert (attempt.reused_conn, attempt.wasted) == (0, 0)
        assert (attempt.outcome, attempt.executed) == ("ok", "yes")
        assert (attempt.wait_us, attempt.wait_source) == (0, "none")
        assert attempt.bytes_sent
        assert attempt.bytes_sent > len(sent.body) > 0
        assert attempt.first_token_us is None


async def test_a_connection_that_is_used_again(tmp_path: Path) -> None:
    """The second attempt on it has not connected."""
    async with bench(tmp_path) as parties:
        await parties.rows(parties.call("/chat/completions", CHAT))
        _, (attempt,) = await parties.rows(parties.call("/chat/completions", CHAT))
        assert (attempt.reused_conn, attempt.connect_us) == (1, None)
        assert attempt.headers_us is not None


@pytest.mark.parametrize(
    ("commit", "first_token_us"),
    [(CommitPoint.FIRST_TOKEN, 2), (CommitPoint.HEADERS, 2), (CommitPoint.COMPLETE, 5)],
)
async def test_the_first_token(tmp_path: Path, commit: CommitPoint, first_token_us: int) -> None:
    """When the caller could have it: of a stream that is held whole, at its end."""
    async with bench(tmp_path) as parties:
        parties.primary.then(faults.slow_first_token(2) | faults.at_event(5, Pause(3)))
        call = parties.call("/chat/completions", {**CHAT, **COUNTING})
        row, (attempt,) = await parties.rows(call, commit=commit)
        assert row.first_token_us == first_token_us * 1_000_000
        assert attempt.first_token_us == 2_000_000
        assert row.duration_us == attempt.duration_us == 5_000_000
        assert attempt.headers_us == 0


async def test_attempts_that_failed(tmp_path: Path) -> None:
    """Each has its row, and what was waited for between them is told once."""
    async with bench(tmp_path) as parties:
        asked = faults.rate_limit(retry_after=2)
        parties.primary.then(asked, faults.reset_before_answer())
        parties.primary.always(faults.silence(1))
        row, attempts = await parties.rows(parties.call("/chat/completions", CHAT))
        told = [(each.n, each.upstream, each.failure_class, each.executed) for each in attempts]
        assert told[:2] == [
            (1, "primary", "throttled", "no"),
            (2, "primary", "reset", "maybe"),
        ]
        assert attempts[-1].outcome == "ok"
        assert [each.wasted for each in attempts[:2]] == [0, 1]
        assert (attempts[0].status, attempts[1].status) == (429, None)
        assert attempts[1].wait_source == "retry_after"
        assert 2_000_000 <= (attempts[1].wait_us or 0) < 2_500_000
        assert row.wait_us == sum(each.wait_us or 0 for each in attempts)
        assert (row.outcome, row.ambiguous, row.attempts) == ("ok", 1, len(attempts))
        assert attempts[0].bytes_received
        assert attempts[1].headers_us is None
        assert attempts[1].bytes_received is None


@pytest.mark.parametrize(
    ("told", "waited", "apart"), [(200, 0.0, False), (200, 1.0, True), (206, 0.0, True)]
)
async def test_one_row_tells_of_both_only_where_they_agree(
    tmp_path: Path, told: int, waited: float, apart: bool
) -> None:
    """Else the attempt has a row: the call waited elsewhere, or its caller was told otherwise."""
    async with bench(tmp_path) as parties:
        call, spent = parties.call("/chat/completions", CHAT), Spent()
        made, settled = await parties.settle(call, spent)
        verdict = await _delivered(call, settled, Sink())
        spent.waited += waited
        row, attempts = parties.log.rows(
            call, made=made, settled=settled, verdict=verdict, status=told, bytes_out=1
        )
        assert (row.attempt_started_us is None) == apart
        (attempt,) = every_attempt(row, attempts)
        assert (attempt.status, attempt.wait_us, attempt.outcome) == (200, 0, "ok")
        assert (row.status, row.wait_us) == (told, int(waited * 1e6))


async def test_a_row_made_later_tells_of_the_moment_of_its_end(tmp_path: Path) -> None:
    """Not of when it was made: what a call took is what its caller waited for."""
    async with bench(tmp_path) as parties:
        parties.primary.then(faults.slow_first_token(2))
        call, spent = parties.call("/chat/completions", {**CHAT, "stream": True}), Spent()
        made, settled = await parties.settle(call, spent)
        verdict = await _delivered(call, settled, Sink())
        at = parties.log.moment()
        known: dict[str, Any] = {
            "made": made,
            "settled": settled,
            "verdict": verdict,
            "status": 200,
            "bytes_out": 1,
        }
        await asyncio.sleep(7.0)
        row, attempts = parties.log.rows(call, **known, at=at)
        (attempt,) = every_attempt(row, attempts)
        assert row.duration_us == attempt.duration_us == 2_000_000
        assert row.ended_us == row.started_us + 2_000_000 == int(at[1] * 1e6)


@pytest.mark.parametrize(
    ("size", "coding", "queued"),
    [(LIGHT // 2, "", 1), (LIGHT + 1, "", 3), (LIGHT // 2, "gzip", 3)],
)
async def test_a_heavy_call_is_not_kept_for_its_rows(
    tmp_path: Path, size: int, coding: Literal["", "gzip"], queued: int
) -> None:
    """A call and two attempts are made rows of when it ends; others with those of their kind."""
    async with bench(tmp_path) as parties, keeping() as books:
        parties.primary.then(faults.server_error())
        if coding:
            parties.primary.always(faults.compressed(coding))
        fields = (("Accept-Encoding", "gzip"),)
        call, spent = parties.call("/chat/completions", CHAT, fields=fields), Spent()
        made, settled = await parties.settle(call, spent)
        verdict = await _delivered(call, settled, Sink())
        assert settled.hold is not None
        settled.hold.release()
        call.size = size
        journal = Journal(books.keeper, Costing(parties.config), parties.clock)
        journal.answered(call, made, settled, verdict, None)
        assert books.keeper.queued == queued
        await asyncio.sleep(1.0)
        assert (len(books.calls), len(books.memory.attempts)) == (1, 2)


async def test_another_credential_has_another_mark(tmp_path: Path) -> None:
    """The fallback is called in Steer's own name, and neither credential is in any row."""
    async with bench(tmp_path) as parties:
        parties.primary.always(faults.server_error())
        row, attempts = await parties.rows(parties.call("/chat/completions", CHAT))
        marks = {each.upstream: each.credential for each in attempts}
        assert marks["primary"] == row.caller
        assert marks["fallback"] not in (None, row.caller)
        assert not any(secret in repr((row, attempts)) for secret in ("sk-caller", "own-secret"))
        again, _ = await parties.rows(parties.call("/chat/completions", CHAT))
        other = parties.call("/chat/completions", CHAT)
        other.fields = [(b"authorization", b"Bearer sk-other")]
        other.credentials = {"primary": 1}
        stranger, _ = await parties.rows(other)
        assert again.caller == row.caller != stranger.caller


async def test_without_the_ledgers_secret_there_are_no_marks(tmp_path: Path) -> None:
    """It is not known until the ledger was reached; then there are."""
    async with bench(tmp_path) as parties:
        secret: list[bytes | None] = [None]
        parties.log = CallLog("here", parties.clock, lambda: secret[0])
        row, (attempt,) = await parties.rows(parties.call("/chat/completions", CHAT))
        assert row.caller is attempt.credential is None
        secret[0] = SECRET
        row, _ = await parties.rows(parties.call("/chat/completions", CHAT))
        assert row.caller


async def test_nobody_has_no_mark(tmp_path: Path) -> None:
    """A caller that presents nothing is nobody in particular."""
    async with bench(tmp_path) as parties:
        call = parties.call("/chat/completions", CHAT)
        call.fields, call.credentials = [], {}
        row, _ = await parties.rows(call)
        assert row.caller is None


async def test_a_stream_that_breaks(tmp_path: Path) -> None:
    """It was committed, and it is told as the failure it became."""
    async with bench(tmp_path, "anthropic") as parties:
        parties.primary.then(faults.cut_after(events=5))
        _, path, body = _messages(stream=True)
        row, (attempt,) = await parties.rows(parties.call(path, body))
        assert (row.status, row.outcome, row.error_class) == (200, "broken", "truncated")
        assert (attempt.outcome, attempt.failure_class) == ("broken", "truncated")
        assert (attempt.executed, attempt.wasted, row.ambiguous) == ("maybe", 1, 1)
        assert attempt.tokens_in
        assert row.first_token_us is not None


@pytest.mark.parametrize(
    ("special", "retried", "cost"),
    [
        pytest.param({"cache_creation_input_tokens": 1000}, False, 8_250_000, id="flat"),
        pytest.param({"server_tool_use": {"web_search_requests": 3}}, False, None, id="only"),
        pytest.param({"server_tool_use": {"web_search_requests": 3}}, True, None, id="of several"),
    ],
)
async def test_only_what_is_quick_is_priced_at_once(
    tmp_path: Path, special: dict[str, Any], cost: int | None, *, retried: bool
) -> None:
    """The rest on its way to the ledger, by all that was counted."""
    async with bench(tmp_path, "anthropic") as parties:
        home = parties.config.upstreams["primary"]
        listed = replace(home, base_url="https://api.anthropic.com")
        config = replace(parties.config, upstreams={"primary": listed})
        costing = Costing(config)
        parties.log = CallLog("here", parties.clock, lambda: SECRET, costing)
        sale = Sale(None, None, 1, None)
        costing.tariff(None).quote(sale, "primary", "claude-sonnet-4-5", Usage(1))
        usage = {"input_tokens": 1000, "output_tokens": 100, **special}
        answer = json_answer(200, {"model": "claude-sonnet-4-5", "usage": usage})
        first = [faults.status(503)] if retried else []
        parties.primary.then(*first, answer)
        _, path, body = _messages()
        row, attempts = await parties.written(parties.call(path, body))
        assert (row.cost_nusd, row.wasted_nusd) == (cost, None if cost is None else 0)
        priced = costing.priced(Batch([row], list(attempts))).calls[0]
        assert (priced.cost_nusd, priced.cost_source) == (cost or 34_500_000, "reported")


async def test_a_caller_that_leaves_in_the_middle(tmp_path: Path) -> None:
    """What it had is told; the attempt was cut with it."""
    async with bench(tmp_path) as parties:
        call = parties.call("/chat/completions", {**CHAT, **COUNTING})
        row, (attempt,) = await parties.rows(call, Sink(gone_after=1))
        assert (row.outcome, row.error_class) == ("cancelled", "cancelled")
        assert (attempt.outcome, attempt.executed, attempt.wasted) == ("cancelled", "yes", 1)


async def test_a_caller_that_leaves_before_there_is_an_answer(tmp_path: Path) -> None:
    """The attempt that was under way has its row: it may have been executed."""
    async with bench(tmp_path) as parties:
        parties.primary.always(faults.silence())
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(parties.rows(parties.call("/chat/completions", CHAT)))
        loop.call_later(3, task.cancel)
        row, (attempt,) = await task
        assert (row.status, row.outcome, row.duration_us) == (None, "cancelled", 3_000_000)
        assert (attempt.outcome, attempt.executed, attempt.wasted) == ("cancelled", "maybe", 1)
        assert attempt.duration_us == 3_000_000
        assert (row.ambiguous, row.upstream) == (1, "primary")


async def test_a_call_that_fails(tmp_path: Path) -> None:
    """The best failing answer is the caller's; the call has its failure."""
    async with bench(tmp_path) as parties:
        for provider in (parties.primary, parties.fallback):
            provider.always(faults.server_error())
        row, attempts = await parties.rows(parties.call("/chat/completions", CHAT))
        assert (row.status, row.outcome, row.error_class) == (500, "upstream_5xx", "server_error")
        assert all(each.wasted == 0 for each in attempts)
        first = attempts[0].duration_us or 0
        assert first < (row.duration_us or 0)
        assert row.tokens_in is None


async def test_a_call_that_nothing_answered(tmp_path: Path) -> None:
    """Steer's own word is the error class, the last attempt's the outcome."""
    async with bench(tmp_path) as parties:
        for provider in (parties.primary, parties.fallback):
            provider.always(faults.reset_before_answer())
        row, attempts = await parties.rows(parties.call("/chat/completions", CHAT))
        assert (row.status, row.error_class) == (502, "steer_upstream_broken")
        assert row.outcome == attempts[-1].outcome == "network"
        assert row.upstream == attempts[-1].upstream


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, "client_4xx"),
        (404, "client_4xx"),
        (408, "timeout"),
        (429, "throttled"),
        (500, "broken"),
        (503, "throttled"),
        (504, "timeout"),
    ],
)
async def test_refusals(tmp_path: Path, status: int, outcome: str) -> None:
    """A row for each, whether it came to a call or not."""
    async with bench(tmp_path) as parties:
        problem = Problem(status, "steer_something", "No.")
        call = parties.call("/chat/completions", CHAT)
        row, attempts = parties.log.rows(call, status=status, bytes_out=7, problem=problem)
        assert (row.status, row.outcome, row.error_class) == (status, outcome, "steer_something")
        assert (row.attempts, attempts, row.upstream, row.tokens_in) == (0, [], None, None)
        early = parties.log.refusal(
            problem, method="POST", path="/a\udc80b\0?q=1", began=parties.clock.now(), bytes_out=7
        )
        assert (early.status, early.outcome, early.error_class) == (
            status,
            outcome,
            "steer_something",
        )
        assert early.path is not None
        assert "?" not in early.path
        early.path.encode()
        assert "\0" not in early.path


def _labelled(metadata: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return (("X-Steer-Metadata", json.dumps(metadata)),)


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({}, None),
        ({"b": 1}, None),
        ({"a": None}, None),
        ({"a": True, "c": 1.5, "b": "x"}, {"a": True, "c": 1.5}),
        ({"a": {"x": 1}, "c": [1]}, None),
        ({"a": "x\0y", "c": "\\u0000"}, None),
        ({"a": "x" * MAX_LABELS, "c": 1}, {"c": 1}),
        ({"a": 1e21, "c": 1e-7}, {"a": "1e+21", "c": "1e-7"}),
        ({"a": 2**63, "c": 2**63 - 1}, {"a": "9223372036854775808", "c": 2**63 - 1}),
        ({"a": 0.1 + 0.2, "c": -0.25}, {"a": "0.30000000000000004", "c": -0.25}),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_labels(
    tmp_path: Path, metadata: dict[str, Any], labels: dict[str, Any] | None
) -> None:
    """Plain values by the allow-list, bounded, and nothing a database refuses."""
    async with bench(tmp_path, ledger={"labels": ["a", "c"]}) as parties:
        call = parties.call("/chat/completions", CHAT, fields=_labelled(metadata))
        found = parties.log.opening(call).labels
        assert (None if found is None else json.loads(found)) == labels


async def test_an_answer_that_another_one_finished(tmp_path: Path) -> None:
    """The call is well; the attempt that broke is told with its failure."""
    async with bench(tmp_path, "anthropic") as parties:
        parties.primary.then(faults.cut_after(events=5))
        _, path, body = _messages(stream=True)
        call = parties.call(path, body)
        spent, sink = Spent(), Sink()
        made, settled = await parties.settle(call, spent)
        verdict = await _delivered(call, settled, sink)
        _, again = await parties.settle(call, spent)
        assert settled.answer is not None
        assert again.answer is not None
        await settled.answer.discard()
        assert await _delivered(call, again, sink) == SUCCESS
        await again.answer.discard()
        again.answer.end(SUCCESS, parties.clock.now())
        for each in (settled, again):
            assert each.hold is not None
            each.hold.release()
        row, attempts = parties.log.rows(
            call, made=made, settled=settled, verdict=verdict, status=200, bytes_out=1
        )
        assert [each.outcome for each in attempts] == ["broken", "ok"]
        assert [each.wasted for each in attempts] == [1, 0]
        assert (row.outcome, row.error_class) == ("ok", None)
        assert row.tokens_out == attempts[1].tokens_out


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ((("x-request-id", "req_1"),), "req_1"),
        ((("Request-Id", "req_2"),), "req_2"),
        ((("x-goog-request-id", "g:3"),), "g:3"),
        ((("x-request-id", "two words"),), None),
        ((("x-request-id", "x" * 129),), None),
    ],
)
async def test_the_providers_own_request_id(
    tmp_path: Path, headers: tuple[tuple[str, str], ...], found: str | None
) -> None:
    """As far as it is a name, and short."""
    async with bench(tmp_path) as parties:
        parties.primary.then(json_answer(200, {"usage": {"prompt_tokens": 1}}, headers))
        row, (attempt,) = await parties.rows(parties.call("/chat/completions", CHAT))
        assert attempt.upstream_request_id == found
        assert (row.tokens_in, row.tokens_out) == (1, None)


def test_a_trace_lets_go_of_what_it_counted() -> None:
    """Counts stay as they were when the answer ended."""
    answer = HttpAnswer(SUCCESS, reader=cast("Any", _Reader()))
    answer.trace.reader = answer.reader
    answer.trace.settle()
    answer.trace.settle()
    assert (answer.trace.model, answer.trace.usage, answer.trace.reader) == ("m", Usage(1), None)


class _Reader:
    model = "m"
    usage = Usage(1)
