"""One key, one paid call: what becomes of duplicates, plain and streaming, in one process."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from steer_policies.config import DialectName
from steer_policies.dialects import dialect as shape
from steer_proxy.engine.clock import Clock
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import CallRow
from tests.provider import faults
from tests.provider.steps import Pause, Signal
from tests.support.attempts import every_attempt
from tests.support.sidecar import EPOCH
from tests.support.world import Reply, World, world

DIALECTS = ["openai", "anthropic", "gemini"]
EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS)
PLAIN_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])

#: A caller leaves a stream at one byte in so many: at each of them it would take minutes.
EVERY = 29


def key(value: str = "order-1", **more: str) -> dict[str, str]:
    """The header of a keyed call."""
    return {
        "Idempotency-Key": value,
        **{name.replace("_", "-"): text for name, text in more.items()},
    }


def ledger(parties: World) -> MemoryLedger:
    """The sidecar's ledger."""
    found = parties.steer.sidecar.books.ledger
    assert isinstance(found, MemoryLedger)
    return found


def record(parties: World, role: str = "owner") -> CallRow:
    """The one row of a role."""
    (row,) = [row for row in ledger(parties).calls.values() if row.idem_role == role]
    return row


def told(reply: Reply, status: int, code: str) -> None:
    """Steer's own error, in the caller's dialect."""
    assert reply.status == status, reply.body
    assert code in reply.body.decode()


@EVERY_DIALECT
@PLAIN_AND_STREAMED
async def test_fifty_duplicates_at_once_are_one_call(
    tmp_path: Path, dialect: str, stream: bool
) -> None:
    """The provider sees one request; all callers get its bytes."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.at_event(1, Pause(0.5)) if stream else faults.silence(0.5))
        replies = await asyncio.gather(
            *(parties.ask(stream=stream, headers=key()) for _ in range(50))
        )
        assert len(parties.primary.attempts) == 1
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1
        assert not any(reply.cut for reply in replies)
        said = sorted(reply.headers["Idempotency-Status"] for reply in replies)
        assert said == ["joined"] * 49 + ["new"]


@EVERY_DIALECT
@PLAIN_AND_STREAMED
async def test_a_later_duplicate_gets_the_same_bytes(
    tmp_path: Path, dialect: str, stream: bool
) -> None:
    """Status, header and body are those of the first answer; what is left out is documented."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(
            faults.with_headers(("Set-Cookie", "a=b"), ("X-Ratelimit-Remaining-Requests", "7"))
        )
        first = await parties.ask(stream=stream, headers=key())
        again = await parties.ask(stream=stream, headers=key())
        assert len(parties.primary.attempts) == 1
        assert (again.status, again.body) == (first.status, first.body)
        left_out = re.compile("set-cookie|date|cf-ray|(x-|anthropic-)?ratelimit-.*", re.IGNORECASE)
        own = {
            "X-Steer-Request-ID",
            "X-Steer-Trace-ID",
            "Idempotency-Status",
            "Idempotent-Replayed",
        }
        kept = [pair for pair in first.headers.items() if pair[0] not in own]
        given = [pair for pair in again.headers.items() if pair[0] not in own]
        assert given == [pair for pair in kept if not left_out.fullmatch(pair[0])]
        assert first.headers["Idempotency-Status"] == "new"
        assert again.headers["Idempotency-Status"] == "replayed"
        assert again.headers["Idempotent-Replayed"] == "true"


@EVERY_DIALECT
async def test_a_caller_that_drops_a_stream_gets_all_of_it_later(
    tmp_path: Path, dialect: str
) -> None:
    """The call goes on without its caller, left at the end of any event or a byte to either side
    of it; another try has the whole stream."""
    async with world(tmp_path, dialect) as parties:
        direct = (await parties.ask(stream=True, headers=key("direct"))).body
        ends = [match.end() for match in re.finditer(rb"\r?\n\r?\n", direct)]
        assert len(ends) > 5
        cuts = {0, *(end + near for end in ends for near in (-1, 0, 1))} - {len(direct) + 1}
        parties.primary.always(faults.at_event(4, Pause(1.0)))
        for cut in sorted(cuts):
            before = len(parties.primary.attempts)
            seen = await drop(parties, cut, key(f"cut-{cut}"))
            assert seen == direct[:cut]
            reply = await parties.ask(stream=True, headers=key(f"cut-{cut}"))
            assert reply.body == direct
            assert len(parties.primary.attempts) == before + 1


async def test_a_caller_may_drop_a_stream_at_any_byte(tmp_path: Path) -> None:
    """The provider stops right there, in the middle of a chunk, and the caller hangs up; another
    try joins the call, and has the whole stream."""
    async with world(tmp_path) as parties:
        direct = (await parties.ask(stream=True, headers=key("direct"))).body
        for cut in range(0, len(direct), EVERY):
            before, there = len(parties.primary.attempts), asyncio.Event()
            parties.primary.always(faults.at_byte(cut, Signal(there), Pause(1.0)))
            _, writer = await begin(parties, key(f"byte-{cut}"))
            await there.wait()
            writer.transport.abort()
            reply = await parties.ask(stream=True, headers=key(f"byte-{cut}"))
            assert reply.headers["Idempotency-Status"] == "joined"
            assert reply.body == direct
            assert len(parties.primary.attempts) == before + 1


async def begin(
    parties: World, headers: dict[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream."""
    path, body = parties.request(stream=True)
    auth = {"openai": "Authorization", "anthropic": "x-api-key", "gemini": "x-goog-api-key"}
    value = "Bearer caller-key" if parties.dialect == "openai" else "caller-key"
    content = json.dumps(body).encode()
    lines = {
        "Host": "127.0.0.1",
        "Accept": "*/*",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        auth[parties.dialect]: value,
        **headers,
    }
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", parties.steer.sidecar.port)
    writer.write(f"POST /route{path} HTTP/1.1\r\n{head}\r\n".encode() + content)
    return reader, writer


async def drop(parties: World, size: int, headers: dict[str, str]) -> bytes:
    """Ask for a stream and hang up after so many bytes of its body, which are given back."""
    reader, writer = await begin(parties, headers)
    await parties.primary.wait_for_attempts(len(parties.primary.attempts) + 1)
    seen = b""
    if size:
        await reader.readuntil(b"\r\n\r\n")
    while len(seen) < size:
        length = int(await reader.readline(), 16)
        chunk = (await reader.readexactly(length + 2))[:-2]
        seen += chunk
    writer.transport.abort()
    return seen[:size]


@PLAIN_AND_STREAMED
async def test_another_request_with_the_key_is_refused(tmp_path: Path, stream: bool) -> None:
    """422, while the first runs and after it; nothing goes upstream."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(1.0))
        first = asyncio.create_task(parties.ask(stream=stream, headers=key()))
        await asyncio.sleep(0.1)
        told(
            await parties.ask(stream=stream, headers=key(), temperature=1),
            422,
            "steer_key_mismatch",
        )
        assert (await first).status == 200
        reply = await parties.ask(stream=stream, headers=key(), temperature=1)
        told(reply, 422, "steer_key_mismatch")
        assert reply.headers["x-should-retry"] == "false"
        assert len(parties.primary.attempts) == 1


async def test_another_credential_is_another_record(tmp_path: Path) -> None:
    """Nothing crosses principals: the same key of somebody else is a call of its own."""
    async with world(tmp_path) as parties:
        mine = await parties.ask(headers=key())
        theirs = await parties.ask(headers={**key(), "Authorization": "Bearer another"})
        assert mine.status == theirs.status == 200
        assert theirs.headers["Idempotency-Status"] == "new"
        assert len(parties.primary.attempts) == 2


@pytest.mark.parametrize("name", ["X-Token", "Token", "X-Corp-Token", "X-User-Key", "X-Corp-Id"])
async def test_a_credential_in_a_header_of_its_own_name(tmp_path: Path, name: str) -> None:
    """Two callers that differ in nothing else; `X-Corp-Id` is one because an upstream has its
    credential there. The same caller gets its own answer."""
    options = {"credential": {"env": "FALLBACK_KEY", "header": "X-Corp-Id", "prefix": ""}}
    async with world(tmp_path, upstream=options) as parties:
        for value, status in (("alice", "new"), ("bob", "new"), ("alice", "replayed")):
            reply = await parties.ask(headers={**key(), name: value})
            assert reply.headers["Idempotency-Status"] == status
        assert len(parties.primary.attempts) == 2
        for attempt in parties.primary.attempts:
            assert "alice" not in str(attempt.headers)
            assert "bob" not in str(attempt.headers)


async def test_a_key_that_goes_on_is_its_callers_own(tmp_path: Path) -> None:
    """One account at the provider, two callers with one key: two keys there, 64 digits each."""
    options = {"credential": {"env": "FALLBACK_KEY"}, "idempotency_key": "forward"}
    async with world(tmp_path, upstream=options) as parties:
        parties.primary.then(faults.status(503), faults.healthy())
        for caller in ("alice", "bob"):
            headers = {**key(), "Authorization": f"Bearer {caller}"}
            assert (await parties.ask(headers=headers)).status == 200
        attempts = [*parties.primary.attempts, *parties.fallback.attempts]
        sent = [dict(attempt.headers)["Idempotency-Key"] for attempt in attempts]
        assert len(sent) == 3
        assert len(set(sent)) == 2
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in sent)


async def test_a_key_that_goes_on_is_no_hops(tmp_path: Path) -> None:
    """A caller that lists it in `Connection` has its call repeated as any other: with its key."""
    async with world(tmp_path, fallback=False, upstream={"idempotency_key": "forward"}) as parties:
        parties.primary.then(faults.reset_before_answer(), faults.healthy())
        reply = await parties.ask(headers={**key(), "Connection": "Idempotency-Key, X-Other"})
        assert reply.status == 200
        sent = [
            dict(attempt.headers).get("Idempotency-Key") for attempt in parties.primary.attempts
        ]
        assert sent == [key()["Idempotency-Key"]] * 2


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"Idempotency-Key: a\r\nIdempotency-Key: a", "steer_bad_key"),
        (b"Idempotency-Key: a\r\nidempotency-key: b", "steer_bad_key"),
        (b"Idempotency-Key: a\tb", "steer_bad_key"),
        (b"Idempotency-Key: caf\xe9", "steer_bad_key"),
        (b"Idempotency-Key: a\x01b", "steer_bad_request"),
        (b"Idempotency-Key: a\x7fb", "steer_bad_request"),
        (b"Idempotency-Key: a\x00b", "steer_bad_request"),
    ],
    ids=["twice", "two", "tab", "latin-1", "0x01", "0x7f", "0x00"],
)
@EVERY_DIALECT
@pytest.mark.parametrize("size", [1, 65536], ids=["in bytes", "at once"])
async def test_keys_as_they_come_on_the_wire(
    tmp_path: Path, dialect: str, size: int, line: bytes, code: str
) -> None:
    """Two lines, and what no field may hold (RFC 9110, section 5.5): 400, nothing goes on.

    In the dialect's shape, also where the parser refuses the message, and however it comes.
    """
    async with world(tmp_path, dialect) as parties:
        reader, writer = await asyncio.open_connection("127.0.0.1", parties.steer.sidecar.port)
        path, body = parties.request()
        content = json.dumps(body).encode()
        data = (
            b"POST /route%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n%b\r\n\r\n%b"
            % (path.encode(), len(content), line, content)
        )
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)
        answer = await reader.read()
        writer.transport.abort()
        assert answer.startswith(b"HTTP/1.1 400 ")
        error = answer.partition(b"\r\n\r\n")[2]
        said = json.loads(error)["error"]["message"]
        assert error == shape(DialectName(dialect)).error(400, code, said).body
        assert parties.primary.attempts == []


@pytest.mark.parametrize(
    ("value", "word"),
    [("", "empty"), ("x" * 256, "255"), ('"open', "quot"), ("two words", "space")],
)
async def test_a_key_that_is_none_is_refused(tmp_path: Path, value: str, word: str) -> None:
    """400 in the dialect's shape, with the reason."""
    async with world(tmp_path) as parties:
        reply = await parties.ask(headers=key(value))
        told(reply, 400, "steer_bad_key")
        assert parties.primary.attempts == []


async def test_a_route_may_require_a_key(tmp_path: Path) -> None:
    """`require_key`: without one 400, with the route and the remedy."""
    async with world(tmp_path, route={"idempotency": {"require_key": True}}) as parties:
        refused = await parties.ask()
        told(refused, 400, "steer_key_required")
        assert b"The route 'route' takes calls with an Idempotency-Key only" in refused.body
        assert (await parties.ask(headers=key())).status == 200


@pytest.mark.parametrize(
    "fault",
    [
        faults.reset_before_answer(),
        faults.close_before_answer(),
        faults.status(504),
        faults.status(408),
        faults.garbage(),
    ],
    ids=["reset", "close", "504", "408", "garbage"],
)
async def test_what_may_have_been_executed_is_not_run_again(tmp_path: Path, fault: Any) -> None:
    """The first caller is told so, and the next one, until somebody settles it."""
    async with world(tmp_path) as parties:
        parties.primary.always(fault)
        first = await parties.ask(headers=key())
        assert first.status >= 408
        assert first.headers["Idempotency-Status"] == "uncertain"
        assert record(parties).idem_state == "uncertain"
        parties.primary.always(faults.healthy())
        again = await parties.ask(headers=key())
        told(again, 409, "steer_key_uncertain")
        settling = f"steer ledger resolve {record(parties).id} --discard"
        assert settling in again.json["error"]["message"]
        assert again.headers["x-should-retry"] == "false"
        assert again.headers["Idempotency-Status"] == "uncertain"
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "http"])
@pytest.mark.parametrize("size", [1, 40], ids=["after a byte", "in the body"])
async def test_half_an_answer_is_not_kept(tmp_path: Path, dialect: str, size: int) -> None:
    """One that ends with its connection is whole only if it is whole JSON."""
    async with world(tmp_path, dialect, fallback=False) as parties:
        half = faults.until_close() | faults.cut_after(bytes=size, how="close")
        parties.primary.then(half)
        first = await parties.ask(headers=key())
        told(first, 504, "steer_outcome_uncertain")
        assert first.headers["Idempotency-Status"] == "uncertain"
        row = record(parties)
        assert row.idem_state == "uncertain"
        told(await parties.ask(headers=key()), 409, "steer_key_uncertain")
        parties.primary.always(faults.until_close())
        whole = await parties.ask(headers=key("order-2"))
        assert (whole.status, whole.headers["Idempotency-Status"]) == (200, "new")
        assert (await parties.ask(headers=key("order-2"))).body == whole.body
        assert len(parties.primary.attempts) == 2
        await parties.steer.sidecar.books.stop()
        (attempt,) = every_attempt(row, ledger(parties).attempts.values())
        assert (attempt.failure_class, attempt.executed) == ("truncated", "maybe")


async def test_a_first_byte_time_out_is_uncertain(tmp_path: Path) -> None:
    """Silence after the request was sent: 504, and the key is uncertain."""
    upstream = {"timeouts": {"answer": 5}}
    async with world(tmp_path, upstream=upstream) as parties:
        parties.primary.always(faults.silence())
        told(await parties.ask(headers=key()), 504, "steer_outcome_uncertain")
        told(await parties.ask(headers=key()), 409, "steer_key_uncertain")
        assert len(parties.primary.attempts) == 1


async def test_on_uncertain_rerun_runs_it_again_and_says_so(tmp_path: Path) -> None:
    """The route's word: the second run is declared."""
    route = {"idempotency": {"on_uncertain": "rerun"}}
    async with world(tmp_path, route=route) as parties:
        parties.primary.then(faults.reset_before_answer())
        assert (await parties.ask(headers=key())).status == 504
        reply = await parties.ask(headers=key())
        assert reply.status == 200
        assert reply.headers["Idempotency-Status"] == "rerun"
        assert [row.idem_epoch for row in ledger(parties).calls.values()] == [1, 2]


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_a_failure_releases_the_key(tmp_path: Path, code: int) -> None:
    """Provably not executed: the same key may be used again."""
    route = {"retry": {"max_attempts": 1}}
    async with world(tmp_path, route=route, fallback=False) as parties:
        parties.primary.then(faults.status(code))
        assert (await parties.ask(headers=key())).status == code
        assert record(parties).idem_state == "released"
        reply = await parties.ask(headers=key())
        assert (reply.status, reply.headers["Idempotency-Status"]) == (200, "new")


async def test_failures_that_were_not_executed_are_retried(tmp_path: Path) -> None:
    """A key does not stop what is safe: 429 here, the next attempt there."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(503))
        reply = await parties.ask(headers=key())
        assert reply.status == 200
        assert len(parties.fallback.attempts) == 1
        assert record(parties).attempts == len(parties.primary.attempts) + 1


@EVERY_DIALECT
async def test_a_stream_that_breaks_is_uncertain(tmp_path: Path, dialect: str) -> None:
    """Its callers see that it broke; it was paid, so it is not run again."""
    async with world(tmp_path, dialect) as parties:
        parties.primary.always(faults.cut_after(events=5))
        first = await parties.ask(stream=True, headers=key())
        assert first.cut
        assert "steer_stream_broken" in first.body.decode()
        told(await parties.ask(stream=True, headers=key()), 409, "steer_key_uncertain")
        assert len(parties.primary.attempts) == 1


async def test_the_callers_deadline_leaves_the_call_running(tmp_path: Path) -> None:
    """504 that asks for another try; that one joins, and gets the answer."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(5.0))
        first = await parties.ask(headers=key(X_Steer_Timeout="2"))
        told(first, 504, "steer_deadline")
        assert first.headers["x-should-retry"] == "true"
        again = await parties.ask(headers=key())
        assert again.status == 200
        assert again.headers["Idempotency-Status"] == "joined"
        assert len(parties.primary.attempts) == 1


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
async def test_a_clock_that_is_set_in_the_middle_of_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """It ends after it has begun, and its key is kept for its time from then."""
    wall = [EPOCH]
    monkeypatch.setattr("steer_proxy.app.Clock", lambda: Clock(wall=lambda: wall[0]))
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(5.0))
        first = asyncio.create_task(parties.ask(headers=key()))
        await asyncio.sleep(1.0)
        wall[0] += step
        assert (await first).status == 200
        row = record(parties)
        took, kept = (row.ended_us or 0) - row.started_us, (row.expires_us or 0)
        assert took >= (row.duration_us or 0) > 0
        assert kept - (row.ended_us or 0) == pytest.approx(86_400_000_000, abs=10_000_000)
        again = await parties.ask(headers=key())
        assert again.headers["Idempotency-Status"] == "replayed"


async def test_a_joiner_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    """`join_timeout` ends its waiting with 409 and a time to come again."""
    async with world(tmp_path, route={"idempotency": {"join_timeout": 1}}) as parties:
        parties.primary.always(faults.silence(5.0))
        first = asyncio.create_task(parties.ask(headers=key()))
        await asyncio.sleep(0.1)
        reply = await parties.ask(headers=key())
        told(reply, 409, "steer_key_in_progress")
        assert 0 < int(reply.headers["Retry-After"]) <= 8
        assert 1.0 <= reply.seconds < 1.5
        assert (await first).status == 200


async def test_joiners_of_a_failing_call_get_its_failure(tmp_path: Path) -> None:
    """They never claim the key again."""
    route = {"retry": {"max_attempts": 1}}
    async with world(tmp_path, route=route, fallback=False) as parties:
        parties.primary.always(faults.status(500) | faults.silence(0.5))
        replies = await asyncio.gather(*(parties.ask(headers=key()) for _ in range(5)))
        assert {reply.status for reply in replies} == {500}
        assert len({reply.body for reply in replies}) == 1
        assert len(parties.primary.attempts) == 1


@PLAIN_AND_STREAMED
async def test_an_answer_too_large_to_keep_is_not_made_again(tmp_path: Path, stream: bool) -> None:
    """Its caller and those who joined get it; who comes later is told."""
    async with world(tmp_path, route={"idempotency": {"max_stored": 64}}) as parties:
        parties.primary.always(faults.silence(0.5))
        first, joined = await asyncio.gather(
            parties.ask(stream=stream, headers=key()), parties.ask(stream=stream, headers=key())
        )
        assert first.status == joined.status == 200
        assert first.body == joined.body
        later = await parties.ask(stream=stream, headers=key())
        told(later, 409, "steer_result_not_stored")
        assert later.headers["Idempotency-Status"] == "not-stored"
        assert later.headers["x-should-retry"] == "false"
        assert len(parties.primary.attempts) == 1


async def test_a_websocket_takes_no_key(tmp_path: Path) -> None:
    """A conversation cannot be replayed: 400."""
    async with world(tmp_path) as parties:
        headers = {
            **key(),
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        reply = await parties.send("GET", "/realtime", headers=headers)
        assert reply.status == 400


async def test_a_row_says_what_the_duplicates_avoided(tmp_path: Path) -> None:
    """Owner, joined and replayed: three rows, one of them paid."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(0.5))
        await asyncio.gather(parties.ask(headers=key()), parties.ask(headers=key()))
        await parties.ask(headers=key())
        await parties.steer.sidecar.books.stop()
        owner, joined, replayed = (
            record(parties, role) for role in ("owner", "joined", "replayed")
        )
        assert owner.idem_state == "completed"
        assert joined.served_from == replayed.served_from == owner.id
        assert owner.tokens_in is not None
        assert joined.tokens_in is None
        assert joined.outcome == replayed.outcome == "ok"
        for row in (joined, replayed):
            assert (row.model_answered, row.upstream) == (owner.model_answered, owner.upstream)
        assert owner.model_answered is not None
        rows = ledger(parties)
        made = [len(every_attempt(row, rows.attempts.values())) for row in rows.calls.values()]
        assert made == [1, 0, 0]


@EVERY_DIALECT
@pytest.mark.parametrize("commit", ["first_token", "headers"])
async def test_when_each_had_the_first_token(tmp_path: Path, dialect: str, commit: str) -> None:
    """By its own beginning: the owner after 3 s, who came 1 s later after 2, a replay at once."""
    async with world(tmp_path, dialect, route={"commit": commit}) as parties:
        slow = faults.slow_first_token(3.0) | faults.stall_after(events=5, seconds=4.0)
        parties.primary.always(slow)
        first = asyncio.create_task(parties.ask(stream=True, headers=key()))
        await asyncio.sleep(1.0)
        await parties.ask(stream=True, headers=key())
        assert (await first).seconds == pytest.approx(7.0, abs=0.1)
        await parties.ask(stream=True, headers=key())
        await parties.steer.sidecar.books.stop()
        for role, seconds in (("owner", 3.0), ("joined", 2.0), ("replayed", 0.0)):
            first_token_us = record(parties, role).first_token_us
            assert first_token_us is not None, role
            assert first_token_us / 1e6 == pytest.approx(seconds, abs=0.1), role


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "failing stream"])
async def test_what_has_no_first_token(tmp_path: Path, stream: bool) -> None:
    """A plain answer, and a problem in a stream's place."""
    async with world(tmp_path, fallback=False) as parties:
        parties.primary.always(faults.silence(0.5) | faults.status(400 if stream else 200))
        await asyncio.gather(*(parties.ask(stream=stream, headers=key()) for _ in range(2)))
        await parties.ask(stream=stream, headers=key())
        await parties.steer.sidecar.books.stop()
        assert [row.first_token_us for row in ledger(parties).calls.values()] == [None] * 3


async def test_a_broken_stream_is_not_resumed_elsewhere_under_a_key(tmp_path: Path) -> None:
    """Another candidate's answer would be another execution."""
    async with world(tmp_path, route={"on_break": "resume"}) as parties:
        parties.primary.always(faults.cut_after(events=5))
        reply = await parties.ask(stream=True, headers=key())
        assert reply.cut
        assert parties.fallback.attempts == []


async def test_a_kept_answer_is_not_compressed(tmp_path: Path) -> None:
    """Who asks for it again may not take the coding that the first one took."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.compressed("gzip"))
        first = await parties.ask(headers=key(Accept_Encoding="gzip"))
        again = await parties.ask(headers=key(Accept_Encoding="identity"))
        assert "Content-Encoding" not in first.headers
        assert again.body == first.body


@pytest.mark.parametrize(
    ("fallback", "state"), [(True, "uncertain"), (False, "released")], ids=["others", "alone"]
)
async def test_a_forwarded_key_frees_only_where_no_try_goes_elsewhere(
    tmp_path: Path, fallback: bool, state: str
) -> None:
    """The provider makes no call twice, but another provider knows nothing of it."""
    upstream = {"idempotency_key": "forward"}
    route = {"retry": {"max_attempts": 1}}
    async with world(tmp_path, fallback=fallback, route=route, upstream=upstream) as parties:
        parties.primary.always(faults.reset_before_answer())
        reply = await parties.ask(headers=key())
        assert reply.status in (502, 504)
        assert record(parties).idem_state == state
        assert parties.fallback.attempts == []


async def test_a_call_in_the_queue_is_for_who_waits(tmp_path: Path) -> None:
    """When all have hung up before its turn it is not made: the next caller's turn comes sooner."""
    upstream = {"concurrency": {"limit": 1, "queue": 8}}
    async with world(tmp_path, fallback=False, upstream=upstream) as parties:
        parties.primary.always(faults.silence(5.0))
        first = asyncio.create_task(parties.ask(headers=key()))
        await asyncio.sleep(1.0)
        gone = [asyncio.create_task(parties.ask(headers=key("gone"))) for _ in range(2)]
        stays = [asyncio.create_task(parties.ask(headers=key("stays"))) for _ in range(2)]
        await asyncio.sleep(1.0)
        for each in (*gone, stays[0]):
            each.cancel()
        await asyncio.sleep(0.5)
        keyed = parties.steer.gateway._keyed
        assert keyed is not None
        assert keyed.detached == 0
        parties.primary.always(faults.healthy())
        again = asyncio.create_task(parties.ask(headers=key("gone")))
        assert {(await each).status for each in (first, stays[1], again)} == {200}
        assert (await again).headers["Idempotency-Status"] == "new"
        assert len(parties.primary.attempts) == 3
        await parties.steer.sidecar.books.stop()
        rows = [row for row in ledger(parties).calls.values() if row.idem_key == "gone"]
        owner = [row for row in rows if row.idem_role == "owner" and row.status is None]
        assert [(row.outcome, row.idem_state) for row in owner] == [("cancelled", "released")]


async def test_every_row_tells_the_size_of_its_request(tmp_path: Path) -> None:
    """Of a replay, too, and of a refused duplicate, whose body nobody needs any more."""
    async with world(tmp_path) as parties:
        await parties.ask(headers=key())
        await parties.ask(headers=key())
        await parties.ask(headers=key(), temperature=1)
        await parties.steer.sidecar.books.stop()
        rows = sorted(ledger(parties).calls.values(), key=lambda row: row.started_us)
        assert [row.status for row in rows] == [200, 200, 422]
        assert all(row.bytes_in for row in rows)
        assert len({row.idem_scope for row in rows}) == 1
        assert [row.idem_fp == rows[0].idem_fp for row in rows] == [True, True, False]
        assert rows[2].idem_fp is not None


async def test_a_record_names_its_upstream_from_the_start(tmp_path: Path) -> None:
    """If this process dies, that is what is known of the call."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence(1))
        asking = asyncio.create_task(parties.ask(headers=key()))
        await parties.primary.wait_for_attempts(1)
        assert record(parties).upstream == "primary"
        assert record(parties).idem_state == "sent"
        await asking


async def test_a_caller_cannot_fill_steer_with_calls_it_hangs_up_on(tmp_path: Path) -> None:
    """A quarter of all runs may be one caller's that nobody waits for; others are still served."""
    async with world(tmp_path, limits={"max_connections": 8}) as parties:
        parties.primary.always(faults.silence(5.0))
        for number in range(2):
            await drop(parties, 0, key(f"left-{number}"))
        await asyncio.sleep(0.1)
        told(await parties.ask(headers=key("one-more")), 503, "steer_overloaded")
        theirs = await parties.ask(headers={**key(), "Authorization": "Bearer another"})
        assert theirs.status == 200
