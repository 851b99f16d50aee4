"""Realtime conversations through Steer: the official SDK and other clients notice nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.provider import Provider, WebSocket, faults
from tests.support.exact import ExactClient, ask
from tests.support.sdk import done, doubles, driven, entered, plain
from tests.support.sidecar import configure, running
from tests.support.websocket import handshake, websocket
from tests.support.world import world

MODEL = "gpt-realtime"
PATH = f"/route/realtime?model={MODEL}"


# --- the official SDK


async def conversation(client: Any) -> Any:
    """What a session brings: created, updated, asked, answered, closed."""
    async with entered(client.realtime.connect(model=MODEL)) as session:
        events = [await done(session.recv())]
        await done(session.session.update(session={"type": "realtime", "instructions": "Plain."}))
        await done(session.response.create())
        while events[-1].type != "response.done":
            events.append(await done(session.recv()))
        await done(session.close(code=1000))
    return plain(events)


async def test_the_asynchronous_sdk(tmp_path: Path) -> None:
    """Every event as directly; the provider saw the same messages."""
    async with doubles(tmp_path) as both:
        direct, steered = both.urls("openai")
        async with openai.AsyncOpenAI(base_url=direct, api_key="sk-caller") as client:
            expected = await conversation(client)
        async with openai.AsyncOpenAI(base_url=steered, api_key="sk-caller") as client:
            assert await conversation(client) == expected
        assert len(expected) > 15
        (one,), (other,) = both.direct.attempts, both.behind.attempts
        assert other.messages == one.messages
        assert other.target == one.target
        assert other.header("authorization") == "Bearer sk-caller"
        assert other.header("sec-websocket-extensions") == one.header("sec-websocket-extensions")


@pytest.mark.real_time
async def test_the_synchronous_sdk(tmp_path: Path) -> None:
    """The same with the blocking client in a thread; closing takes no noticeable time."""

    def run(url: str) -> Any:
        with openai.OpenAI(base_url=url, api_key="sk-caller") as client:
            return driven(conversation(client))

    async with doubles(tmp_path) as both:
        direct, steered = both.urls("openai")
        expected = await asyncio.to_thread(run, direct)
        began = asyncio.get_running_loop().time()
        assert await asyncio.to_thread(run, steered) == expected
        assert asyncio.get_running_loop().time() - began < 2


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_a_refusal_reaches_the_sdk(tmp_path: Path, status: int) -> None:
    """The provider's own status and body, after the attempts that could help."""
    async with doubles(tmp_path) as both:
        both.both(faults.status(status))
        bodies = []
        for url in both.urls("openai"):
            async with openai.AsyncOpenAI(base_url=url, api_key="sk-caller") as client:
                with pytest.raises(InvalidStatus) as caught:
                    await conversation(client)
                assert caught.value.response.status_code == status
                bodies.append(caught.value.response.body)
        assert bodies[0] == bodies[1]
        assert b"error" in bodies[1]
        assert len(both.behind.attempts) == (1 if status == 401 else 3)


# --- other clients, other servers


async def test_the_handshake_is_the_providers(tmp_path: Path) -> None:
    """Fields of the 101 in order and spelling, and nothing added but Steer's own."""
    async with doubles(tmp_path) as both:
        asked = handshake("/realtime?model=m", ("Sec-WebSocket-Protocol", "realtime, other"))
        direct = await ask(both.direct.port, asked, path="/v1/realtime?model=m")
        proxied = await ask(both.port, asked, path="/openai/v1/realtime?model=m")
        assert direct.status == 101
        assert proxied.first_line == direct.first_line
        own = [pair for pair in proxied.fields if not pair[0].startswith("X-Steer-")]
        assert own == list(direct.fields)
        assert len(proxied.fields) == len(own) + 4


async def test_aiohttp(tmp_path: Path) -> None:
    """Another client library: text, bytes, a ping of its own, a close code of its own."""
    async with (
        world(tmp_path, "http") as parties,
        parties.session.ws_connect(
            f"{parties.steer.url}/route/socket", protocols=("a", "b")
        ) as socket,
    ):
        assert socket.protocol == "a"
        for size in (0, 1, 125, 126, 65_535, 65_536, 300_000):
            await socket.send_bytes(b"x" * size)
            assert await socket.receive_bytes() == b"x" * size
            await socket.send_str("é" * size)
            assert await socket.receive_str() == "é" * size
        await socket.ping(b"there?")
        await socket.close(code=4001, message=b"enough")
        assert socket.close_code == 4001


async def test_compression_is_the_ends_business(tmp_path: Path) -> None:
    """A real server and client agree on permessage-deflate; Steer passes what they make of it."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        upstream = {"dialect": "http", "base_url": f"http://127.0.0.1:{port}"}
        settings = {
            "upstreams": {"tools": upstream},
            "routes": [{"name": "tools", "path": "/tools", "candidates": ["tools"]}],
        }
        async with running(configure(settings, tmp_path)) as steer:
            url = f"ws://127.0.0.1:{steer.sidecar.port}/tools/socket"
            async with connect(url) as client:
                names = [extension.name for extension in client.protocol.extensions]
                assert names == ["permessage-deflate"]
                for message in ("plain " * 10_000, b"\x00" * 1_000_000, ""):
                    await client.send(message)
                    assert await client.recv() == message
                await client.send(["in ", "several ", "parts"])
                assert await client.recv() == "in several parts"
                # Pings every 20 seconds, answered by the other end, for an hour.
                await asyncio.sleep(3600)
                await client.send("still here")
                assert await client.recv() == "still here"
            assert client.close_code == 1000


async def test_a_provider_that_pings(tmp_path: Path) -> None:
    """Its pings reach the client, whose pongs come back."""
    pongs = []

    async def session(peer: WebSocket) -> None:
        await peer.send_frame(0x9, b"are you there?")
        opcode, _, payload = await peer._read_frame()
        pongs.append((opcode, payload))
        await peer.close()

    async with world(tmp_path, "http") as parties:
        parties.primary.always(faults.websocket_session(session))
        url = parties.steer.url.replace("http", "ws")
        async with connect(f"{url}/route/socket") as client:
            with pytest.raises(websockets.ConnectionClosedOK):
                await client.recv()
        assert pongs == [(0xA, b"are you there?")]


# --- before the conversation begins


async def test_a_handshake_is_retried(tmp_path: Path) -> None:
    """Until the 101 a failure can be hidden: by another attempt, then by the next candidate."""
    async with world(tmp_path) as parties:
        parties.primary.then(faults.status(503), faults.reset_before_answer(), faults.healthy())
        async with websocket(parties.steer.sidecar.port, PATH) as caller:
            assert caller.got.value("X-Steer-Attempts") == "3"
            assert json.loads(await caller.text())["type"] == "session.created"
        parties.primary.always(faults.status(503))
        async with websocket(parties.steer.sidecar.port, PATH) as caller:
            assert caller.got.value("X-Steer-Upstream") == "fallback"
            assert json.loads(await caller.text())["type"] == "session.created"


async def test_a_silent_handshake_is_left(tmp_path: Path) -> None:
    """It is waited for like a first byte, not like a plain answer."""
    limits = {"timeouts": {"first_byte": 6, "answer": 600}}
    async with world(tmp_path, upstream=limits) as parties:
        parties.primary.always(faults.silence())
        began = parties.now()
        async with websocket(parties.steer.sidecar.port, PATH) as caller:
            assert caller.got.value("X-Steer-Upstream") == "fallback"
            assert parties.now() - began == pytest.approx(6, abs=0.1)


async def test_a_caller_that_leaves_during_the_handshake(tmp_path: Path) -> None:
    """The attempt under way is given up, and nothing is kept."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.silence())
        async with ExactClient(parties.steer.sidecar.port) as caller:
            caller.writer.write(handshake(PATH).bytes(PATH, "localhost"))
            await parties.primary.wait_for_attempts(1)
            await asyncio.sleep(5)
        await parties.primary.wait_for_connections(0)
        assert parties.fallback.attempts == []


async def test_the_model_is_rewritten_where_it_is(tmp_path: Path) -> None:
    """In the query, and only there: what stands around it stays as it was spelled."""
    async with world(tmp_path, fallback_options={"model": "gpt-other mini"}) as parties:
        parties.primary.always(faults.status(503))
        path = f"/route/realtime?a=%20b&model={MODEL}&c=d+e&a="
        async with websocket(parties.steer.sidecar.port, path) as caller:
            assert caller.got.value("X-Steer-Model") == "gpt-other mini"
            session = json.loads(await caller.text())["session"]
            assert session["model"] == "gpt-other mini"
        (attempt,) = parties.fallback.attempts
        assert attempt.query == "a=%20b&model=gpt-other%20mini&c=d+e&a="


async def test_joining_a_call_is_pinned(tmp_path: Path) -> None:
    """A conversation that runs already is at the home upstream and nowhere else."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.status(503))
        got = await ask(parties.steer.sidecar.port, handshake("/route/realtime?call_id=rtc_1"))
        assert got.status == 503
        assert len(parties.primary.attempts) == 3
        assert parties.fallback.attempts == []


async def test_nothing_is_retried_after_the_handshake(tmp_path: Path) -> None:
    """A conversation that breaks is over; the SDK hears of it at once and says so."""
    async with world(tmp_path) as parties:
        parties.primary.always(faults.websocket_breaks(2))
        url = f"{parties.steer.url}/route"
        async with openai.AsyncOpenAI(base_url=url, api_key="caller-key") as client:
            with pytest.raises(ConnectionClosedError) as caught:
                await conversation(client)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1011
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


# --- who may not


REFUSED: dict[str, tuple[str, tuple[tuple[str, str], ...], int, str]] = {
    "a foreign page": (PATH, (("Origin", "https://evil.example"),), 403, "steer_foreign_origin"),
    "a cross-site request": (
        PATH,
        (("Sec-Fetch-Site", "cross-site"),),
        403,
        "steer_foreign_origin",
    ),
    "an idempotency key": (PATH, (("Idempotency-Key", "k"),), 400, "Idempotency-Key"),
    "a bad header": (PATH, (("X-Steer-Timeout", "soon"),), 400, "X-Steer-Timeout"),
    "no route": ("/nowhere/realtime", (), 404, "steer_no_route"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refusals_of_steers_own(tmp_path: Path, name: str) -> None:
    """They are answered as to any request, before any upstream is asked."""
    path, fields, status, text = REFUSED[name]
    async with world(tmp_path) as parties:
        got = await ask(parties.steer.sidecar.port, handshake(path, *fields))
        assert got.status == status
        assert text in got.body.decode()
        assert got.values("Upgrade") == []
        assert parties.primary.attempts == []


async def test_a_page_of_our_own_may(tmp_path: Path) -> None:
    """Pages served from this machine are no strangers."""
    async with world(tmp_path) as parties:
        fields = (("Origin", "http://localhost:3000"), ("Sec-Fetch-Site", "same-site"))
        async with websocket(parties.steer.sidecar.port, PATH, *fields) as caller:
            assert json.loads(await caller.text())["type"] == "session.created"


async def test_many_conversations_at_once(tmp_path: Path) -> None:
    """They neither wait for one another nor mix."""
    async with Provider() as provider:
        settings = {"upstreams": {"openai": {"base_url": f"{provider.base_url}/v1"}}}
        async with running(configure(settings, tmp_path)) as steer:
            url = f"{steer.url}/openai/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="sk-caller") as client:
                found = await asyncio.gather(*(conversation(client) for _ in range(20)))
            assert all(events == found[0] for events in found)
            await provider.wait_for_connections(0)
