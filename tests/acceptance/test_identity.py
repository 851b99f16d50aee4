"""Every call has one request id and one trace, from the caller through Steer to the provider."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.provider import faults
from tests.support.exact import Asked, Got, ask, post
from tests.support.websocket import handshake, websocket
from tests.support.world import World, world

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


async def call(parties: World, *fields: tuple[str, str]) -> Got:
    asked = post("/route/chat/completions", CHAT, *fields)
    return await ask(parties.steer.sidecar.port, asked)


@pytest.mark.parametrize("given", ["my-id-1", "a.b:c/d+e=f@g_h", "x" * 128, "0"])
async def test_a_callers_id_is_kept(tmp_path: Path, given: str) -> None:
    """The provider gets it, the answer names it, and the provider's own id stays beside it."""
    async with world(tmp_path) as parties:
        got = await call(parties, ("x-request-id", given))
        assert got.value("X-Steer-Request-ID") == given
        assert got.value("x-request-id").startswith("req_")
        (attempt,) = parties.primary.attempts
        assert attempt.header_values("x-request-id") == [given]


@pytest.mark.parametrize(
    "given", [None, "", "with space", "é", "x" * 129, 'quo"te', "a,b", "\tx\ty"]
)
async def test_an_unsafe_id_is_replaced(tmp_path: Path, given: str | None) -> None:
    """By a UUIDv7 of our own: what is logged and forwarded is never a stranger's free text."""
    async with world(tmp_path) as parties:
        got = await call(parties, *(() if given is None else (("X-Request-ID", given),)))
        made = got.value("X-Steer-Request-ID")
        assert UUID7.fullmatch(made)
        (attempt,) = parties.primary.attempts
        assert attempt.header_values("x-request-id") == [made]
        # Without any trace of the caller's, the id is the trace's too.
        assert got.value("X-Steer-Trace-ID") == made.replace("-", "")


async def test_ids_are_in_order_and_differ(tmp_path: Path) -> None:
    """Calls can be sorted by the id they were given."""
    async with world(tmp_path) as parties:
        made = [(await call(parties)).value("X-Steer-Request-ID") for _ in range(20)]
        assert len(set(made)) == 20
        assert [identifier[:13] for identifier in made] == sorted(key[:13] for key in made)


async def test_a_trace_is_joined(tmp_path: Path) -> None:
    """The same trace, a span of its own for every attempt, the caller's state untouched."""
    states = (("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"), ("TraceState", "a=b"))
    async with world(tmp_path) as parties:
        parties.primary.then(faults.status(503), faults.healthy())
        got = await call(parties, ("Traceparent", PARENT), *states)
        assert got.value("X-Steer-Trace-ID") == PARENT[3:35]
        spans = set()
        for attempt in parties.primary.attempts:
            (line,) = attempt.header_values("traceparent")
            found = TRACEPARENT.fullmatch(line)
            assert found is not None
            assert (found[1], found[3]) == (PARENT[3:35], "01")
            spans.add(found[2])
            (state,) = attempt.header_values("tracestate")
            assert state == "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7,a=b"
        assert len(spans) == 2
        assert PARENT[36:52] not in spans


INVALID = [
    "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    PARENT + "-more",
    "nonsense",
]


@pytest.mark.parametrize("given", INVALID)
async def test_an_invalid_trace_is_begun_anew(tmp_path: Path, given: str) -> None:
    """And with it its state is dropped, which says something of that trace only."""
    async with world(tmp_path) as parties:
        got = await call(parties, ("traceparent", given), ("tracestate", "a=b"))
        (attempt,) = parties.primary.attempts
        (line,) = attempt.header_values("traceparent")
        found = TRACEPARENT.fullmatch(line)
        assert found is not None
        assert found[1] == got.value("X-Steer-Trace-ID") != PARENT[3:35]
        assert attempt.header_values("tracestate") == []


async def test_a_trace_id_without_a_context(tmp_path: Path) -> None:
    """`X-Trace-ID` names the trace when there is no `traceparent`; equal ids, equal traces."""
    identifier = "0af76519-16cd-43dd-8448-eb211c80319c"
    async with world(tmp_path) as parties:
        got = await call(parties, ("X-Trace-ID", identifier))
        assert got.value("X-Steer-Trace-ID") == identifier.replace("-", "")
        free = [(await call(parties, ("X-Trace-ID", "order 7"))) for _ in range(2)]
        named = [(await call(parties, ("X-Trace-ID", "order-7"))) for _ in range(2)]
        traces = [found.value("X-Steer-Trace-ID") for found in (*free, *named)]
        assert len({len(trace) for trace in traces} | {32}) == 1
        assert traces[0] != traces[1]  # unsafe, and therefore not there
        assert traces[2] == traces[3]
        both = await call(parties, ("X-Trace-ID", "order-7"), ("traceparent", PARENT))
        assert both.value("X-Steer-Trace-ID") == PARENT[3:35]


async def test_every_kind_of_answer_says_who_it_is(tmp_path: Path) -> None:
    """Failures, pinned calls and handshakes as well."""
    own = (("X-Request-ID", "mine"), ("traceparent", PARENT))
    async with world(tmp_path) as parties:
        port = parties.steer.sidecar.port
        async with websocket(port, "/route/realtime?model=m", *own) as caller:
            found = [caller.got]
        parties.primary.always(faults.status(400))
        found.append(await call(parties, *own))
        found.append(await ask(port, Asked("GET", "/route/models", own)))
        await parties.primary.stop_listening()
        await parties.primary.drop_connections()
        found.append(await ask(port, Asked("GET", "/route/models", own)))
        found.append(await ask(port, handshake("/route/realtime?call_id=1", *own)))
        assert [got.status for got in found] == [101, 400, 400, 502, 502]
        for got in found:
            assert got.value("X-Steer-Request-ID") == "mine"
            assert got.value("X-Steer-Trace-ID") == PARENT[3:35]
            assert got.value("X-Steer-Attempts").isdecimal()
