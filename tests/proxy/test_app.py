"""What can go wrong before the first call, and what is left when it did."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from steer_proxy import app
from steer_proxy.engine.config import Config
from steer_proxy.settings import ConfigSource
from steer_proxy.watch import stamp
from tests.provider import Provider
from tests.support.raw import ask, get, settings, stage
from tests.support.sidecar import configure


async def test_the_data_port_is_taken(tmp_path: Path) -> None:
    """The admin port is let go of again, and nothing is left."""
    async with Provider() as provider:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            config = configure({**settings(provider), "listen": {"port": port}}, tmp_path)
            sidecar = app.Sidecar(config)
            with pytest.raises(app.StartError, match=f"port {port} on 127.0.0.1 is in use"):
                await sidecar.__aenter__()
            assert sidecar.admin_port
            with pytest.raises(ConnectionRefusedError):
                await ask(sidecar.admin_port, get("/healthz"))
        async with app.Sidecar(config) as second:
            assert second.port == port


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EADDRINUSE, "port 80 on h is in use; stop what uses it or choose another (--port)"),
        (errno.EADDRNOTAVAIL, "h is not an address of this machine"),
        (errno.EACCES, "listening on port 80 of h is not permitted"),
        (errno.EPERM, "listening on port 80 of h is not permitted"),
        (errno.EMFILE, "cannot listen on h port 80: Too many open files"),
    ],
)
def test_why_a_port_cannot_be_had(number: int, said: str) -> None:
    """One line each, with a remedy where there is one."""
    assert app._why_not("h", 80, "--port", OSError(number, os.strerror(number))) == said


async def test_an_address_that_is_not_ours(tmp_path: Path) -> None:
    """An address of TEST-NET-1 belongs to nobody."""
    async with Provider() as provider:
        listen = {"host": "192.0.2.1", "port": 0, "token": {"env": "TOKEN"}}
        config = configure({**settings(provider), "listen": listen}, tmp_path, {"TOKEN": "t"})
        with pytest.raises(app.StartError, match="not an address of this machine"):
            async with app.Sidecar(config):
                pass


def test_without_the_c_extension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused: the parser in Python is slow, and lets more pass."""
    monkeypatch.setattr(app, "NO_EXTENSIONS", True)
    assert app.serve(ConfigSource()) == 1
    assert "aiohttp's C extension is not loaded" in capsys.readouterr().err


async def test_a_bug_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 in our shape, without a word about the inside; the log has the traceback."""
    async with stage(tmp_path) as world:
        monkeypatch.setattr(world.steer.gateway, "_plan", lambda _: 1 / 0)
        reply = await ask(world.port, get())
        assert (reply.status, reply.code, reply.closes) == (500, "steer_internal_error", True)
        assert b"ZeroDivision" not in reply.body
        monkeypatch.undo()
        assert (await ask(world.port, get())).status == 200
    (record,) = [record for record in caplog.records if record.name == "steer.http"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_configuration_without_anything(tmp_path: Path) -> None:
    """`steer serve` in an empty folder: a route for each provider of the catalogue."""
    path = tmp_path / "none"
    assert stamp(path) is None
    config: Config = configure({}, tmp_path)
    async with app.Sidecar(config) as sidecar:
        reply = await ask(sidecar.port, get("/nowhere"))
        assert reply.status == 404
        assert "/openai/v1" in reply.message


def test_what_serving_imports() -> None:
    """Heavy libraries load when they are used: a sidecar is started with every pod."""
    code = (
        "import sys, steer_proxy.app; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )

    async def loaded() -> set[str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return set(output.decode().split())

    modules = asyncio.run(loaded())
    assert "aiohttp" in modules
    assert modules.isdisjoint(
        {
            "alembic",
            "anyio",
            "genai_prices",
            "httpx",
            "opentelemetry",
            "rich",
            "sqlalchemy",
            "typer",
        }
        | {"watchfiles", "numpy", "requests", "pytest"}
    )
