"""How long and how many: bounds of callers' connections, and requests in a row on one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from steer_proxy.http.connection import FAREWELL, UNREAD, Connection
from steer_proxy.http.server import LINGER
from tests.provider import Answer, Pause
from tests.provider.answers import bytes_answer
from tests.support.raw import RawCaller, Stage, dialled, get, post, request, stage

#: Seconds; different from each other, so that a test sees which of them held.
LIMITS = {"head_timeout": 7, "keep_alive": 20, "body_timeout": 11}


def now() -> float:
    return asyncio.get_running_loop().time()


async def closed_after(caller: RawCaller) -> float:
    """Seconds until the connection ends, without a word before."""
    began = now()
    await caller.ended()
    return now() - began


async def test_a_connection_that_says_nothing(tmp_path: Path) -> None:
    """Closed after head_timeout: its first request is overdue."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        assert await closed_after(caller) == pytest.approx(7, abs=0.1)


async def test_a_head_that_stalls(tmp_path: Path) -> None:
    """Closed after head_timeout, counted from the connection's beginning."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        caller.send(get()[:20])
        assert await closed_after(caller) == pytest.approx(7, abs=0.1)
        assert world.forwarded == []


async def test_a_head_that_drips(tmp_path: Path) -> None:
    """A byte a second keeps nothing open: the limit is the whole head's."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        dripping = asyncio.create_task(caller.send_slowly(get("/tool/x", "A: " + "b" * 60), 1, 1.0))
        assert await closed_after(caller) == pytest.approx(7, abs=0.1)
        dripping.cancel()
        await asyncio.wait({dripping})
        assert world.forwarded == []


async def test_a_second_head_that_stalls(tmp_path: Path) -> None:
    """On a kept-alive connection the limit counts from the head's first byte."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        caller.send(get())
        assert (await caller.reply()).status == 200
        await asyncio.sleep(15)
        caller.send(get()[:20])
        # The limit of idle connections would have closed it after five.
        assert await closed_after(caller) == pytest.approx(7, abs=0.1)
        assert len(world.forwarded) == 1


async def test_half_a_head_behind_a_call(tmp_path: Path) -> None:
    """It is not waited for when its time is up, but the call before it is still answered."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        world.provider.always(lambda _, healthy: Answer((Pause(30.0), *healthy.steps)))
        caller.send(get("/tool/1"))
        await asyncio.sleep(1.0)
        caller.send(get("/tool/2")[:-10])
        await asyncio.sleep(10.0)
        caller.send(get("/tool/2")[-10:])
        assert (await caller.reply()).status == 200
        assert await caller.ended() == "close"
        assert world.forwarded == [("GET", "/1")]


async def test_an_idle_connection(tmp_path: Path) -> None:
    """Closed keep_alive seconds after its last answer, not before."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        for _ in range(3):
            caller.send(get())
            assert (await caller.reply()).status == 200
            await asyncio.sleep(19)
        caller.send(get())
        assert (await caller.reply()).status == 200
        assert await closed_after(caller) == pytest.approx(20, abs=0.1)


async def test_a_long_call_is_not_idle(tmp_path: Path) -> None:
    """No limit of connections touches a call that waits for its answer."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        world.provider.always(lambda _, healthy: Answer((Pause(300.0), *healthy.steps)))
        caller.send(get())
        assert (await caller.reply()).status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 9000", "Transfer-Encoding: chunked"])
async def test_a_body_that_stalls(framing: str, tmp_path: Path) -> None:
    """408 after body_timeout without a byte, and the connection is closed."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        began = now()
        piece = b"fa0\r\n" + b"x" * 4000 + b"\r\n"
        caller.send(request("POST", "/v1/chat/completions", framing) + piece)
        await asyncio.sleep(10)
        caller.send(piece)
        reply = await caller.reply()
        assert now() - began == pytest.approx(21, abs=0.1)
        assert (reply.status, reply.code, reply.closes) == (408, "steer_body_timeout", True)
        assert await caller.ended() == "close"
        assert world.forwarded == []
        assert world.steer.gateway._budget.used == 0


async def test_a_body_that_drips(tmp_path: Path) -> None:
    """A byte now and then earns next to no time: it would hold a connection for years."""
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        began = now()
        caller.send(request("POST", "/tool/x", "Content-Length: 1000000"))
        dripping = asyncio.create_task(caller.send_slowly(b"x" * 1000, 1, 5.0))
        assert (await caller.reply()).status == 408
        assert now() - began == pytest.approx(11, abs=0.5)
        dripping.cancel()
        await asyncio.wait({dripping})


async def test_a_slow_body_that_gets_there(tmp_path: Path) -> None:
    """A slow caller with something to say is waited for."""
    body = b"x" * 60_000
    async with stage(tmp_path, limits=LIMITS) as world, dialled(world.port) as caller:
        caller.send(request("POST", "/tool/x", f"Content-Length: {len(body)}"))
        await caller.send_slowly(body, 1000, 2.0)
        assert (await caller.reply()).status == 200
        assert world.provider.attempts[0].body == body


async def test_a_caller_that_stays_after_a_refusal(tmp_path: Path) -> None:
    """It sees the end at once; what it still sends is read for a moment, then it is dropped."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(request("POST", "/nowhere", "Content-Length: 5000"))
        assert (await caller.reply()).status == 404
        assert await closed_after(caller) < 0.1
        connections = world.steer.sidecar._calls
        caller.send(b"x" * 1000)
        await asyncio.sleep(LINGER * 0.9)
        assert len(connections.connections) == 1
        await asyncio.sleep(LINGER * 0.2)
        assert connections.connections == []
        assert world.forwarded == []


async def test_requests_in_a_row(tmp_path: Path) -> None:
    """Pipelined requests are answered in their order, however long each takes."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        delays = {"/0": 9.0, "/1": 3.0, "/2": 1.0}
        world.provider.always(
            lambda attempt, healthy: Answer(
                (Pause(delays.get(attempt.target, 0.0)), *healthy.steps)
            )
        )
        count = 100
        for index in range(count):
            caller.send(
                post(b"%d" % index, f"/tool/{index}") if index % 2 else get(f"/tool/{index}")
            )
        for index in range(count):
            reply = await caller.reply()
            assert json.loads(reply.body)["target"] == f"/{index}"
        assert [target for _, target in world.forwarded] == [f"/{index}" for index in range(count)]


async def test_one_too_many(tmp_path: Path) -> None:
    """Told so and closed at once, without being read; a place that becomes free is given again."""
    async with stage(tmp_path, limits={"max_connections": 2}) as world:
        async with dialled(world.port) as first, dialled(world.port) as second:
            for caller in (first, second):
                caller.send(get())
                assert (await caller.reply()).status == 200
            async with dialled(world.port) as third:
                third.send(get("/tool/third"))
                reply = await third.reply()
                assert (reply.status, reply.code, reply.closes) == (503, "steer_overloaded", True)
                assert reply.value("Retry-After") == "1"
                await third.rest()
            # The two that are open are not touched, and the admin port has places of its own.
            first.send(get())
            assert (await first.reply()).status == 200
            async with dialled(world.admin_port) as probe:
                probe.send(get("/healthz"))
                assert (await probe.reply()).status == 200
            second.hang_up()
            await second.writer.wait_closed()
            async with dialled(world.port) as fourth:
                fourth.send(get())
                assert (await fourth.reply()).status == 200
        assert ("GET", "/third") not in world.forwarded


def test_on_uvloop(tmp_path: Path) -> None:
    """What leans on transports holds on uvloop's, which are of another kind."""

    async def main() -> None:
        limits = {"max_connections": 2, "head_timeout": 0.05}
        async with stage(tmp_path, limits=limits) as world, dialled(world.port) as caller:
            caller.send(get("/tool/x"))
            assert (await caller.reply()).status == 200
            caller.send(get("/tool/x", "A : b"))
            assert (await caller.reply()).status == 400
            assert await caller.ended() == "close"
            async with dialled(world.port) as other, dialled(world.port) as third:
                assert (await third.reply()).status == 503
                assert await third.ended() == "close"
                assert await other.ended() == "close"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# --- Callers that do not read ---------------------------------------------------------------------


@contextlib.asynccontextmanager
async def narrow(world: Stage) -> AsyncIterator[tuple[socket.socket, Connection]]:
    """A caller that reads when it is told to, for whom the kernel keeps hardly anything; and its
    connection."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as caller:
        caller.setblocking(False)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(caller, ("127.0.0.1", world.port))
        await asyncio.sleep(0.1)
        (connection,) = world.steer.sidecar._calls.connections
        assert isinstance(connection, Connection)
        assert connection.transport is not None
        ours = connection.transport.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield caller, connection


async def lost(connection: Connection, within: float) -> float:
    """Seconds until nothing of a connection is left."""
    began = now()
    while connection._manager is not None:
        assert now() - began < within
        await asyncio.sleep(0.5)
    return now() - began


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "kept alive"])
async def test_the_rest_of_an_answer_that_nobody_reads(tmp_path: Path, closes: bool) -> None:
    """It keeps its connection for a moment, whoever closed that; else it would for ever."""
    async with stage(tmp_path, limits=LIMITS) as world, narrow(world) as (caller, connection):
        world.provider.always(lambda *_: bytes_answer(200, b"x" * 60_000))
        caller.sendall(get("/tool/x", *(["Connection: close"] if closes else [])))
        await asyncio.sleep(1.0)
        assert world.steer.gateway.active == 0
        waited = await lost(connection, 60.0)
        expected = FAREWELL if closes else FAREWELL + LIMITS["keep_alive"]
        assert waited == pytest.approx(expected, abs=2.0)


async def test_the_rest_of_an_answer_that_is_read_slowly(tmp_path: Path) -> None:
    """As long as some of it is taken, the caller gets all of it."""
    async with stage(tmp_path, limits=LIMITS) as world, narrow(world) as (caller, connection):
        world.provider.always(lambda *_: bytes_answer(200, b"x" * 60_000))
        caller.sendall(get("/tool/x", "Connection: close"))
        await asyncio.sleep(1.0)
        began, came = now(), b""
        while data := await asyncio.get_running_loop().sock_recv(caller, 2048):
            came += data
            await asyncio.sleep(FAREWELL / 3)
        assert came.endswith(b"\r\n\r\n" + b"x" * 60_000)
        assert now() - began > 3 * FAREWELL
        await lost(connection, 1.0)


async def test_a_caller_that_reads_none_of_its_answers(tmp_path: Path) -> None:
    """It holds them up for as long as it may, and no longer."""
    async with stage(tmp_path, limits=LIMITS) as world, narrow(world) as (caller, connection):
        world.provider.always(lambda *_: bytes_answer(200, b"x" * 60_000))
        caller.sendall(get() * 5)
        await asyncio.sleep(UNREAD - 10)
        assert connection.busy
        assert await lost(connection, 60.0) == pytest.approx(10, abs=2.0)
