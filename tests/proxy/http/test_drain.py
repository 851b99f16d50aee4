"""The end of a process, as its callers see it: no call is lost, or it is told so."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from steer_proxy.app import CUT_TIME, LULL
from steer_proxy.ledger.memory import MemoryLedger
from tests.provider import bytes_answer, faults
from tests.support.raw import ask, chat, dialled, get, post, request, stage


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_with_nothing_to_do(tmp_path: Path) -> None:
    """Over at once; connections that are kept alive hold nothing up."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(get())
        assert (await caller.reply()).status == 200
        began = now()
        assert await world.steer.sidecar.drain(60.0) is True
        assert now() - began < 2 * LULL


async def test_what_runs_is_finished(tmp_path: Path) -> None:
    """A plain call, a stream, a body still on its way, a pipelined call: all get their answers."""
    async with stage(tmp_path) as world:
        world.provider.always(lambda _, healthy: healthy)
        world.provider.pace = 2.0
        async with (
            dialled(world.port) as streaming,
            dialled(world.port) as sending,
            dialled(world.port) as waiting,
            dialled(world.port) as halfway,
        ):
            streaming.send(chat(stream=True))
            assert (await streaming.head()).status == 200
            await streaming.chunk()
            sending.send(request("POST", "/tool/x", "Content-Length: 5") + b"he")
            world.provider.always(faults.silence(8.0))
            waiting.send(get("/tool/waiting"))
            halfway.send(get("/tool/halfway")[:20])
            await world.provider.wait_for_attempts(2)
            draining = asyncio.create_task(world.steer.sidecar.drain(60.0))
            await asyncio.sleep(3.0)
            sending.send(b"llo")
            halfway.send(get("/tool/halfway")[20:])
            for caller in (waiting, sending, halfway):
                reply = await caller.reply()
                assert (reply.status, reply.closes) == (200, True)
                assert await caller.ended() == "close"
            body = b"".join([chunk async for chunk in streaming.chunks()])
            assert body.endswith(b"data: [DONE]\n\n")
            assert await draining is True
        assert len(world.forwarded) == 4


async def test_new_calls_are_still_served(tmp_path: Path) -> None:
    """On new connections and on kept ones, each told to go elsewhere next time."""
    async with stage(tmp_path) as world, dialled(world.port) as kept, dialled(world.port) as busy:
        kept.send(get())
        assert (await kept.reply()).closes is False
        world.provider.when(lambda attempt: attempt.target == "/slow", faults.silence(30.0))
        busy.send(get("/tool/slow"))
        await world.provider.wait_for_attempts(2)
        draining = asyncio.create_task(world.steer.sidecar.drain(60.0))
        await asyncio.sleep(10.0)
        kept.send(get())
        for reply in (
            await kept.reply(),
            await ask(world.port, get()),
            await ask(world.port, chat()),
        ):
            assert (reply.status, reply.closes) == (200, True)
        assert (await ask(world.port, get("/nowhere"))).closes
        assert (await ask(world.port, get("/tool/x", "A : b"))).closes
        assert not draining.done()
        assert (await busy.reply()).status == 200
        assert await draining is True


async def test_a_call_in_the_last_moment(tmp_path: Path) -> None:
    """A connection that was just opened is waited for, a little."""
    async with stage(tmp_path) as world:
        draining = asyncio.create_task(world.steer.sidecar.drain(60.0))
        await asyncio.sleep(LULL * 0.9)
        assert not draining.done()
        reply = await ask(world.port, get())
        assert (reply.status, reply.closes) == (200, True)
        assert await draining is True
        with pytest.raises(ConnectionRefusedError):
            await ask(world.port, get())


async def test_calls_that_wait_are_cut(tmp_path: Path) -> None:
    """503 in the dialect's shape, which the SDK may try again elsewhere; the provider is let go."""
    async with (
        stage(tmp_path) as world,
        dialled(world.port) as chatting,
        dialled(world.port) as tool,
    ):
        world.provider.always(faults.silence())
        chatting.send(chat())
        tool.send(get())
        attempts = await world.provider.wait_for_attempts(2)
        began = now()
        draining = asyncio.create_task(world.steer.sidecar.drain(25.0))
        for caller in (chatting, tool):
            reply = await caller.reply()
            assert now() - began == pytest.approx(25.0, abs=0.1)
            assert (reply.status, reply.code, reply.closes) == (503, "steer_draining", True)
            assert reply.value("X-Should-Retry") == "true"
            assert reply.value("Retry-After") == "1"
            assert await caller.ended() == "close"
        assert await draining is False
        assert now() - began < 25.0 + CUT_TIME
        for attempt in attempts:
            await attempt.finished.wait()
            assert attempt.closed_by_peer_at == pytest.approx(began + 25.0, abs=0.1)


async def test_streams_are_cut(tmp_path: Path) -> None:
    """The dialect's error event, and then no clean end: nobody takes it for complete."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.pace = 10.0
        caller.send(chat(stream=True))
        assert (await caller.head()).status == 200
        await caller.chunk()
        draining = asyncio.create_task(world.steer.sidecar.drain(25.0))
        data, _ = await caller.rest()
        assert await draining is False
        assert not data.endswith(b"0\r\n\r\n")
        last = [line for line in data.split(b"\n") if line.startswith(b"data: ")][-1]
        assert json.loads(last[6:])["error"]["code"] == "steer_draining"
        assert b"[DONE]" not in data


async def test_a_stream_of_http_1_0_is_cut(tmp_path: Path) -> None:
    """Its end would look clean: it gets a reset."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.pace = 10.0
        body = chat(stream=True).partition(b"\r\n\r\n")[2]
        caller.send(post(body, "/v1/chat/completions", version="HTTP/1.0"))
        assert (await caller.head()).status == 200
        await caller.reader.readuntil(b"\n\n")
        draining = asyncio.create_task(world.steer.sidecar.drain(25.0))
        data, end = await caller.rest()
        assert await draining is False
        assert (b"steer_draining" in data, end) == (True, "reset")


async def test_a_body_on_its_way_is_cut(tmp_path: Path) -> None:
    """Before there is a call, there is a dialect."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(request("POST", "/v1/chat/completions", "Content-Length: 9000") + b"x" * 8000)
        await asyncio.sleep(1.0)
        draining = asyncio.create_task(world.steer.sidecar.drain(5.0))
        reply = await caller.reply()
        assert (reply.status, reply.code) == (503, "steer_draining")
        assert await draining is False
        assert world.forwarded == []
        ledger = world.steer.sidecar.books.ledger
        assert isinstance(ledger, MemoryLedger)
        await world.steer.sidecar.books.stop()
        (row,) = ledger.calls.values()
        assert (row.status, row.error_class) == (503, "steer_draining")
        assert row.bytes_out == len(reply.body)


async def test_calls_that_come_after_the_cut(tmp_path: Path) -> None:
    """No new one begins on a connection that is still there; a new one cannot be opened."""
    async with stage(tmp_path) as world, dialled(world.port) as kept, dialled(world.port) as stuck:
        kept.send(get())
        assert (await kept.reply()).status == 200
        world.provider.always(faults.huge_answer(50_000_000))
        stuck.send(get("/tool/stuck"))
        await stuck.head()
        await asyncio.sleep(1.0)
        began = now()
        draining = asyncio.create_task(world.steer.sidecar.drain(5.0))
        await asyncio.sleep(5.5)
        kept.send(chat())
        reply = await kept.reply()
        assert (reply.status, reply.code, reply.closes) == (503, "steer_draining", True)
        with pytest.raises(ConnectionRefusedError):
            await ask(world.port, get())
        assert len(world.forwarded) == 2
        # Somebody who does not read cannot hold up the end.
        assert await draining is False
        assert now() - began < 5.0 + 2 * CUT_TIME


async def test_in_a_hurry(tmp_path: Path) -> None:
    """A second signal: cut now, and told so all the same."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(faults.silence())
        caller.send(chat())
        await world.provider.wait_for_attempts(1)
        began, hurry = now(), asyncio.Event()
        draining = asyncio.create_task(world.steer.sidecar.drain(25.0, hurry))
        await asyncio.sleep(2.0)
        hurry.set()
        reply = await caller.reply()
        assert (reply.status, reply.code) == (503, "steer_draining")
        assert await draining is False
        assert now() - began < 2.0 + CUT_TIME


async def test_a_slow_reader_gets_all_of_its_answer(tmp_path: Path) -> None:
    """A call is over when its answer has left, not when the handler has."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        size = 20_000_000
        world.provider.always(faults.huge_answer(size))
        caller.send(get())
        head = await caller.head()
        draining = asyncio.create_task(world.steer.sidecar.drain(60.0))
        await asyncio.sleep(30.0)
        assert not draining.done()
        body, _ = await caller.rest()
        assert len(body) == int(head.value("Content-Length") or 0)
        assert await draining is True


async def test_an_answer_that_is_still_being_read(tmp_path: Path) -> None:
    """Nothing is under way any more but bytes that the caller has not taken."""
    async with stage(tmp_path) as world, dialled(world.port, window=4096) as caller:
        body = b"x" * 1_000_000
        world.provider.always(bytes_answer(200, body))
        caller.send(get())
        await world.provider.wait_for_attempts(1)
        (connection,) = world.steer.sidecar._calls.connections
        assert connection.transport is not None
        # The kernel would take it all off our hands.
        server = connection.transport.get_extra_info("socket")
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await caller.head()
        await asyncio.sleep(1.0)
        draining = asyncio.create_task(world.steer.sidecar.drain(60.0))
        await asyncio.sleep(5.0)
        assert not draining.done()
        assert await caller.reader.readexactly(len(body)) == body
        assert await draining is True


async def test_half_a_request(tmp_path: Path) -> None:
    """A call that is arriving counts."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(get()[:30])
        await asyncio.sleep(1.0)
        draining = asyncio.create_task(world.steer.sidecar.drain(60.0))
        await asyncio.sleep(10.0)
        assert not draining.done()
        caller.send(get()[30:])
        reply = await caller.reply()
        assert (reply.status, reply.closes) == (200, True)
        assert await draining is True


async def test_closing_without_a_drain(tmp_path: Path) -> None:
    """Whatever runs is dropped at once, its provider's connection too, and nothing is left."""
    async with (
        stage(tmp_path) as world,
        dialled(world.port) as waiting,
        dialled(world.port) as streaming,
    ):
        world.provider.when(lambda attempt: attempt.target == "/x", faults.silence())
        world.provider.pace = 10.0
        waiting.send(get())
        streaming.send(chat(stream=True))
        attempts = await world.provider.wait_for_attempts(2)
        await streaming.head()
        began = now()
        await world.steer.sidecar.__aexit__(None, None, None)
        assert now() - began < 1.0
        for attempt in attempts:
            await attempt.finished.wait()
            assert attempt.closed_by_peer_at is not None
        data, _ = await streaming.rest()
        assert not data.endswith(b"0\r\n\r\n")
        assert (await waiting.rest())[0] == b""
