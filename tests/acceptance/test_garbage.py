"""What a call held is free when it is over: nothing waits for Python's collector of cycles. And
what it needs no more is free as soon as that.

Else bodies and answers would stay for thousands of calls, and the collector would stop the process
to find them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from steer_proxy.http.call import Call
from steer_proxy.ledger.memory import MemoryLedger
from tests.acceptance.test_adoption import hang_up, sdk
from tests.acceptance.test_keyed import begin, drop, key
from tests.provider import faults
from tests.provider.steps import Pause
from tests.support.faulty_ledger import FaultyLedger
from tests.support.sidecar import EPOCH
from tests.support.world import World, world

Act = Callable[[World], Awaitable[object]]

#: How often each act is played: none of them may leave anything.
TIMES = 3

#: What a spooled body is larger than, and what a connection takes in before anybody reads.
LARGE = 12 * 1024 * 1024

BREAKER = {"failure_threshold": 1000}


@contextlib.contextmanager
def collected() -> Iterator[Counter[str]]:
    """What only the collector could free, known at the end: our objects, aiohttp's server's, and
    frames of either, or of connecting. What else aiohttp's client leaves behind may be the test's.
    """
    found: Counter[str] = Counter()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
    finally:
        gc.set_debug(0)
        found.update(filter(None, map(_name, gc.garbage)))
        gc.garbage.clear()


_FILES = ("/steer_proxy/", "/aiohttp/web_", "/aiohttp/connector", "/aiohappyeyeballs/")


def _name(thing: object) -> str:
    """What it is, if it is one of those."""
    if isinstance(thing, FrameType):
        code = thing.f_code
        ours = any(part in code.co_filename for part in _FILES)
        return f"frame {code.co_qualname}" if ours else ""
    module = type(thing).__module__
    return type(thing).__qualname__ if module.startswith(("steer_", "aiohttp.web")) else ""


def number(parties: World) -> int:
    """One that is new after each call."""
    return len(parties.primary.attempts)


# --- Calls


async def plain(parties: World) -> None:
    """A call and a stream without a key."""
    assert (await parties.ask()).status == 200
    assert (await parties.ask(stream=True)).status == 200


async def keyed(parties: World) -> None:
    """A call and a stream with keys, and their replays."""
    name = f"k-{number(parties)}"
    for stream in (False, True):
        for said in ("new", "replayed"):
            reply = await parties.ask(stream=stream, headers=key(f"{name}-{stream}"))
            assert reply.headers["Idempotency-Status"] == said


async def joined(parties: World) -> None:
    """Duplicates of a running call, one with another body."""
    parties.primary.then(faults.silence(1.0))
    headers = key(f"j-{number(parties)}")
    replies = await asyncio.gather(
        parties.ask(headers=headers),
        parties.ask(headers=headers),
        parties.ask(headers=headers, temperature=1),
    )
    assert sorted(reply.status for reply in replies) == [200, 200, 422]


async def adopted(parties: World) -> None:
    """A call that its SDK gave up, and one whose SDK hung up, each taken over by the retry."""
    parties.primary.then(faults.silence(15))
    assert (await parties.ask(headers=sdk(0))).status == 504
    assert (await parties.ask(headers=sdk(1))).status == 200
    parties.primary.then(faults.silence(1.2))
    await hang_up(parties, 0.852, sdk(0, "0.9"))
    assert (await parties.ask(headers=sdk(1))).status == 200


# --- What providers do


async def failing(parties: World) -> None:
    """A call that is tried again, and one that cannot be, each with a key and without."""
    last = number(parties)
    for again, refused in (({}, {}), (key(f"again-{last}"), key(f"refused-{last}"))):
        parties.primary.then(faults.overloaded())
        assert (await parties.ask(headers=again)).status == 200
        parties.primary.then(faults.context_length_exceeded())
        assert (await parties.ask(headers=refused)).status == 400


async def uncertain(parties: World) -> None:
    """A call with a key that breaks off in the middle, and another try."""
    headers = key(f"u-{number(parties)}")
    parties.primary.then(faults.cut_after(bytes=20))
    assert (await parties.ask(headers=headers)).status == 504
    assert (await parties.ask(headers=headers)).status == 409


async def hanging_up(parties: World) -> None:
    """Providers that hang up before an answer, or in the middle of a stream."""
    parties.primary.then(faults.reset_before_answer())
    assert (await parties.ask()).status == 200
    parties.primary.then(faults.cut_after(events=4))
    assert (await parties.ask(stream=True)).cut


async def babbling(parties: World) -> None:
    """Providers whose HTTP is none."""
    for fault in (faults.garbage(), faults.bad_chunk_size(1), faults.bad_chunk_size(4)):
        parties.primary.then(fault)
        await parties.ask(stream=True)
    parties.primary.then(faults.in_band_error(at=5))
    await parties.ask(stream=True)


async def stalling(parties: World) -> None:
    """Providers that fall silent: before an answer, before a token, in a stream, in a body."""
    patience = {"X-Steer-Timeout": "40"}
    for headers in ({}, key(f"s-{number(parties)}")):
        parties.primary.then(faults.stall_after(events=4))
        assert (await parties.ask(stream=True, headers=headers)).status == 200
    for fault in (
        faults.silence(),
        faults.slow_first_token(400),
        faults.stall_after(bytes=20),
        faults.status(500) | faults.stall_after(bytes=5),
    ):
        parties.primary.then(fault)
        await parties.ask(stream="token" in fault.name, headers=patience)


async def impatient(parties: World) -> None:
    """Providers that answer before they have read a large request, or read none of it."""
    for fault in (
        faults.early_answer_then_close(),
        faults.early_answer_then_close(polite=False),
        faults.reset_before_reading_body(),
    ):
        parties.primary.then(fault)
        _, body = parties.request(user="x" * LARGE)
        await spoken(parties, json.dumps(body).encode())


# --- What callers do


async def spoken(
    parties: World, body: bytes, length: int | None = None, *, leave: bool = False
) -> None:
    """Send a request over a connection of its own; read to its end, or hang up."""
    lines = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(len(body) if length is None else length),
        "Authorization": "Bearer caller-key",
        "Connection": "close",
    }
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", parties.steer.sidecar.port)
    path, _ = parties.request()
    writer.write(f"POST /route{path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        if not leave:
            await reader.read()
    if leave:
        await asyncio.sleep(1)
    writer.transport.abort()
    await asyncio.sleep(1)


async def left(parties: World) -> None:
    """Streams whose callers hang up, with a key and without."""
    parties.primary.then(faults.at_event(2, Pause(1.0)))
    headers = key(f"l-{number(parties)}")
    await drop(parties, 1, headers)
    assert (await parties.ask(stream=True, headers=headers)).status == 200
    for size in (0, 1):
        parties.primary.then(faults.at_event(2, Pause(5.0)))
        await drop(parties, size, {})
        await asyncio.sleep(10)


async def breaking_off(parties: World) -> None:
    """Requests whose callers hang up, or fall silent, in the middle of the body."""
    for size in (1000, 3_000_000):
        await spoken(parties, b"x" * size, 2 * size, leave=True)
    await spoken(parties, b"x" * 100, 5000)


async def malformed(parties: World) -> None:
    """Requests that are none."""
    for text in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nBad Name: y\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", parties.steer.sidecar.port)
        writer.write(text)
        await reader.readuntil(b"\r\n")
        writer.close()
        await asyncio.sleep(20)
    assert (await parties.ask(headers={"X-Steer-Timeout": "soon"})).status == 400


ACTS: list[Act] = [
    plain,
    keyed,
    joined,
    adopted,
    failing,
    uncertain,
    hanging_up,
    babbling,
    stalling,
    impatient,
    left,
    breaking_off,
    malformed,
]


async def nothing_left(parties: World, act: Act) -> None:
    """Play an act some times."""
    await act(parties)  # what is made once
    with collected() as found:
        for _ in range(TIMES):
            await act(parties)
        await asyncio.sleep(1)  # what goes on beside it ends, too
    assert found == {}


@pytest.mark.parametrize("act", ACTS)
async def test_nothing_waits_for_the_collector(tmp_path: Path, act: Act) -> None:
    """However a call ends."""
    upstream = {"breaker": BREAKER, "timeouts": {"idle": 10}}
    async with world(tmp_path, upstream=upstream) as parties:
        await nothing_left(parties, act)


async def test_nobody_listens(tmp_path: Path) -> None:
    """Refused connections leave nothing either."""

    async def refused(parties: World) -> None:
        assert (await parties.ask()).status == 200
        assert (await parties.ask(headers=key(f"r-{parties.now()}"))).status == 200

    async with world(tmp_path, upstream={"breaker": BREAKER}) as parties:
        await parties.primary.stop_listening()
        await nothing_left(parties, refused)


async def test_a_stream_that_is_resumed(tmp_path: Path) -> None:
    """Nor do the answers that it was made of, nor its caller's leaving."""

    async def resumed(parties: World) -> None:
        for fault in (faults.cut_after(events=5), faults.stall_after(events=5)):
            parties.primary.then(fault)
            assert not (await parties.ask(stream=True)).cut
        parties.primary.then(faults.cut_after(events=4))
        parties.fallback.then(faults.at_event(7, Pause(5.0)))
        reader, writer = await begin(parties, {})
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(1)
        writer.transport.abort()
        await asyncio.sleep(10)

    upstream = {"breaker": BREAKER, "timeouts": {"idle": 10}}
    async with world(tmp_path, route={"on_break": "resume"}, upstream=upstream) as parties:
        await nothing_left(parties, resumed)


@pytest.mark.parametrize("route", [{}, {"idempotency": {"on_ledger_down": "open"}}])
async def test_a_ledger_that_is_away(tmp_path: Path, route: Mapping[str, Any]) -> None:
    """Keyed calls that find no ledger, or lose it just before they are sent."""
    now = asyncio.get_running_loop().time
    ledger = FaultyLedger(MemoryLedger(lambda: EPOCH + now()))

    async def away(parties: World) -> None:
        ledger.down()
        assert (await parties.ask(headers=key(f"a-{now()}"))).status in (200, 503)
        ledger.up()
        await asyncio.sleep(40)
        parties.primary.then(faults.rate_limit(retry_after=5))
        parties.fallback.then(faults.rate_limit(retry_after=5))
        waiting = asyncio.create_task(parties.ask())
        await asyncio.sleep(0.5)
        ledger.fail("mark_sent", times=1)
        await parties.ask(headers=key(f"b-{now()}"))
        await waiting
        await asyncio.sleep(20)

    async with world(tmp_path, ledger=ledger, route=route, upstream={"breaker": BREAKER}) as given:
        await nothing_left(given, away)


@pytest.mark.parametrize("headers", [{}, sdk(0), key("held")], ids=["plain", "adoptable", "keyed"])
async def test_a_parsed_prompt_is_not_kept_while_its_answer_comes(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """It is many times as large as the body: neither who makes the call has it, nor who waits."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.at_event(1, Pause(5.0)))
        asked = [asyncio.create_task(parties.ask(stream=True, headers=headers)) for _ in range(3)]
        await asyncio.sleep(2.0)
        calls = [each for each in gc.get_objects() if isinstance(each, Call)]
        assert len(calls) >= len(asked)
        assert [each for each in calls if each.json is not None] == []
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}


async def test_a_prompt_that_is_rewritten_is_parsed_once(tmp_path: Path) -> None:
    """For as long as another attempt may need it, and by whoever makes it alone."""
    candidates = [{"upstream": "primary", "options": {"temperature": 0.5}}]
    for headers in ({}, sdk(0), key("held")):
        async with world(tmp_path, route={"candidates": candidates}) as parties:
            parties.primary.always(faults.slow_first_token(3.0))
            asked = asyncio.create_task(parties.ask(stream=True, headers=headers))
            await asyncio.sleep(2.0)
            calls = [each for each in gc.get_objects() if isinstance(each, Call)]
            assert len([each for each in calls if each.json is not None]) <= 1
            assert (await asked).status == 200
