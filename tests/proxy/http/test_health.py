"""`/healthz` and `/readyz` on the admin port: what an orchestrator asks."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from steer_proxy import open_files
from steer_proxy.app import ADMIN_PATIENCE, Sidecar
from tests.provider import Provider, faults
from tests.support.raw import ask, dialled, get, post, request, settings, stage
from tests.support.sidecar import configure


@pytest.mark.parametrize(("page", "text"), [("/healthz", b"ok\n"), ("/readyz", b"ready\n")])
async def test_in_good_health(page: str, text: bytes, tmp_path: Path) -> None:
    """200, a word, no cache, and nothing about us; HEAD gets the same without the word."""
    async with stage(tmp_path) as world, dialled(world.admin_port) as probe:
        for target in (page, f"{page}?verbose"):
            probe.send(get(target))
            reply = await probe.reply()
            assert (reply.status, reply.body) == (200, text)
            assert reply.value("Cache-Control") == "no-store"
            assert {"Server", "Date"}.isdisjoint(name for name, _ in reply.fields)
            probe.send(request("HEAD", target))
            head = await probe.reply("HEAD")
            assert (head.status, head.value("Content-Length")) == (200, str(len(text)))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/"), 404),
        (get("/healthz/"), 404),
        (get("/HEALTHZ"), 404),
        (get("//healthz"), 404),
        (get("/x/../healthz"), 404),
        (get("/%68ealthz"), 404),
        (post(b"x", "/healthz"), 405),
        (request("DELETE", "/readyz"), 405),
        (request("GET", "http://localhost/healthz"), 404),
        (request("GET", "/healthz", "A : b"), 400),
        (request("CONNECT", "localhost:1"), 400),
    ],
)
async def test_anything_else(data: bytes, status: int, tmp_path: Path) -> None:
    """There is nothing else here, and the same strictness."""
    async with stage(tmp_path) as world:
        reply = await ask(world.admin_port, data)
        assert reply.status == status
        assert reply.value("Allow") == ("GET, HEAD" if status == 405 else None)


async def test_while_calls_cannot_be_served(tmp_path: Path) -> None:
    """Probes are answered although the data port is full and its provider silent."""
    async with stage(tmp_path, limits={"max_connections": 1}) as world:
        world.provider.always(faults.silence())
        async with dialled(world.port) as caller:
            caller.send(get())
            await world.provider.wait_for_attempts(1)
            assert (await ask(world.admin_port, get("/readyz"))).status == 200


async def test_who_lingers_at_the_admin_port(tmp_path: Path) -> None:
    """No more than have room there keep files from calls, and probes find room at once."""
    async with stage(tmp_path) as world, contextlib.AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(dialled(world.admin_port))
            for _ in range(open_files.ADMIN_CONNECTIONS)
        ]
        for index, caller in enumerate(crowd):
            # Half a head, nothing at all, or a whole request whose connection stays.
            caller.send((get("/healthz")[:-2], b"", get("/healthz"))[index % 3])
        assert (await crowd[2].reply()).status == 200
        for _ in range(2 * len(crowd)):
            assert (await ask(world.admin_port, get("/healthz"))).status == 200
        assert await crowd[0].reader.read() == b""
        assert await crowd[1].reader.read() == b""


async def test_requests_to_the_admin_port_come_soon(tmp_path: Path) -> None:
    """Or not at all."""
    async with stage(tmp_path) as world, dialled(world.admin_port) as caller:
        caller.send(get("/healthz")[:-2])
        began = asyncio.get_running_loop().time()
        await caller.rest()
        assert asyncio.get_running_loop().time() - began <= ADMIN_PATIENCE + 0.1


async def test_before_the_data_port_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The admin port may be asked a moment earlier: not ready yet, but alive."""
    answers: list[int] = []
    loop = asyncio.get_running_loop()
    create = loop.create_server

    async def slowly(*arguments: object, **more: object) -> object:
        server = await create(*arguments, **more)  # type: ignore[call-overload]
        port = server.sockets[0].getsockname()[1]
        if not answers:
            answers.append((await ask(port, get("/readyz"))).status)
            answers.append((await ask(port, get("/healthz"))).status)
        return server

    monkeypatch.setattr(loop, "create_server", slowly)
    async with Provider() as provider:
        config = configure(settings(provider), tmp_path)
        answers.clear()
        async with Sidecar(config) as sidecar:
            assert answers == [503, 200]
            assert (await ask(sidecar.admin_port, get("/readyz"))).status == 200


async def test_while_draining(tmp_path: Path) -> None:
    """Unready from the first moment on, alive to the end."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(faults.silence(20.0))
        caller.send(get())
        await world.provider.wait_for_attempts(1)
        draining = asyncio.create_task(world.steer.sidecar.drain(60.0))
        await asyncio.sleep(0)
        reply = await ask(world.admin_port, get("/readyz"))
        assert (reply.status, reply.body) == (503, b"draining\n")
        reply = await ask(world.admin_port, request("HEAD", "/readyz"), "HEAD")
        assert reply.status == 503
        assert (await ask(world.admin_port, get("/healthz"))).status == 200
        assert (await caller.reply()).status == 200
        assert await draining is True
