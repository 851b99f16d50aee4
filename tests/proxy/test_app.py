"""What can go wrong before the first call, and what is left when it did."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steer_proxy import app
from steer_proxy.engine.config import Config, Database, EncryptionKey, LedgerTerms, Secret
from steer_proxy.engine.lease import RENEW
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.settings import ConfigSource
from steer_proxy.watch import stamp
from tests.provider import Provider, faults
from tests.support.faulty_ledger import FaultyLedger
from tests.support.raw import ask, get, post, settings, stage
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


async def test_calls_are_logged_and_the_end_writes_what_waits(tmp_path: Path) -> None:
    """With the name of the process; a drain does not wait for the log's timer."""
    ledger = MemoryLedger(time.time)
    async with stage(tmp_path, ledger) as world:
        assert (await ask(world.port, get("/tool/a"))).status == 200
        assert ledger.calls == {}
        assert await world.steer.sidecar.drain(10.0) is True
    (row,) = ledger.calls.values()
    assert (row.path, row.status) == ("/tool/a", 200)
    assert row.instance == world.steer.sidecar.books.instance
    assert str(os.getpid()) in (row.instance or "")


async def test_changes_of_health_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A circuit that opens is a line of the log and a row of the ledger, with what it had seen."""
    ledger = MemoryLedger(time.time)
    async with stage(tmp_path, ledger) as world:
        world.provider.always(faults.status(500))
        for _ in range(5):
            await ask(world.port, post(b"x"))
    (row,) = ledger.events.values()
    assert (row.kind, row.upstream, row.model) == ("breaker", "tool", None)
    assert (row.from_state, row.to_state, row.generation) == ("closed", "open", 1)
    assert row.window_calls == row.window_failures == 5
    assert row.until_us is not None
    assert row.until_us > row.at_us
    assert any("closed -> open" in text for text in caplog.messages)


async def test_a_reload_keeps_the_ledger(tmp_path: Path) -> None:
    """Its place and its terms are read once; what calls cost follows the new configuration."""
    ledger = MemoryLedger(time.time)
    async with stage(tmp_path, ledger) as world:
        sidecar = world.steer.sidecar
        books, old = sidecar.books, sidecar.config
        other = replace(
            old,
            database=Database(url="sqlite:////nowhere/steer.db"),
            ledger=LedgerTerms(queue=1),
            revision="other",
        )
        sidecar.reconfigure(other)
        assert sidecar.books is books
        assert (sidecar.config.database, sidecar.config.ledger) == (old.database, old.ledger)
        assert (await ask(world.port, get())).status == 200
    (row,) = ledger.calls.values()
    assert row.config_rev == "other"


async def test_a_ledger_that_is_required(tmp_path: Path) -> None:
    """Without it there is no start; when it goes later, no readiness, and calls are served on."""
    ledger = FaultyLedger(MemoryLedger(time.time))
    required = {"database": {"url": "memory:", "required": True}}
    ledger.fail("open", times=1)
    async with Provider() as provider:
        config = configure({**settings(provider), **required}, tmp_path)
        with pytest.raises(app.StartError, match="required and cannot be reached: the test says"):
            async with app.Sidecar(config, ledger=ledger):
                pass
        async with app.Sidecar(config, ledger=ledger) as sidecar:
            assert (await ask(sidecar.admin_port, get("/readyz"))).status == 200
            ledger.down()
            await asyncio.sleep(RENEW + 0.1)
            reply = await ask(sidecar.admin_port, get("/readyz"))
            assert reply.status == 503
            assert reply.body.startswith(b"ledger unavailable\n")
            assert (await ask(sidecar.admin_port, get("/healthz"))).status == 200
            assert (await ask(sidecar.port, get())).status == 200
            ledger.up()
            await asyncio.sleep(RENEW + 0.1)
            reply = await ask(sidecar.admin_port, get("/readyz"))
            assert (reply.status, reply.body) == (200, b"ready\n")


async def test_a_ledger_that_is_not(tmp_path: Path) -> None:
    """Readiness does not depend on it, but tells of it."""
    ledger = FaultyLedger(MemoryLedger(time.time))
    ledger.fail("open", times=1)
    ledger.fail("renew")
    ledger.fail("write")
    async with stage(tmp_path, ledger, ledger={"queue": 2}) as world:
        for _ in range(6):
            assert (await ask(world.port, get())).status == 200
        reply = await ask(world.admin_port, get("/readyz"))
        assert reply.status == 200
        assert reply.body == (
            b"ready\nledger: unavailable, 2 rows of the log wait\n"
            b"ledger: 4 rows of the log were dropped\n"
        )
        ledger.up()
        await asyncio.sleep(RENEW)
        reply = await ask(world.admin_port, get("/readyz"))
        assert reply.body == b"ready\nledger: 4 rows of the log were dropped\n"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"database": {"url": {"file": "url"}}}, "file .*url cannot be read"),
        (
            {"database": {"encryption": {"keys": [{"id": "k", "secret": {"file": "key"}}]}}},
            "file .*key cannot be read",
        ),
    ],
)
async def test_a_ledger_whose_secrets_are_gone(
    keys: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the file and the start: one line that names the reference."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "url").write_text("memory:")
    (tmp_path / "key").write_text("00" * 32)
    async with Provider() as provider:
        config = configure({**settings(provider), **keys}, tmp_path)
        for name in ("url", "key"):
            (tmp_path / name).unlink()
        config = replace(config, database=_unread(config.database))
        with pytest.raises(app.StartError, match=said):
            async with app.Sidecar(config):
                pass


def _unread(database: Database) -> Database:
    """With references that have never been read: they remember what they read."""
    url = database.url if isinstance(database.url, str) else Secret(file="url")
    keys = tuple(EncryptionKey(id=key.id, secret=Secret(file="key")) for key in database.encryption)
    return Database(url=url, encryption=keys)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {},
            (
                "for openai, ai-sdk, langchain-openai, litellm: export "
                "OPENAI_BASE_URL=http://127.0.0.1:{port}/openai/v1 (`steer env` prints them all)"
            ),
        ),
        (
            {
                "catalogue": False,
                "upstreams": {"groq": {"base_url": "http://127.0.0.1:9/openai/v1"}},
                "routes": [{"name": "c", "path": "/c", "candidates": ["groq"]}],
            },
            None,
        ),
        (
            {
                "catalogue": False,
                "listen": {"host": "0.0.0.0", "port": 0},
                "upstreams": {"groq": {"base_url": "http://127.0.0.1:9/openai/v1"}},
                "routes": [{"name": "c", "path": "/c/openai/v1", "candidates": ["groq"]}],
            },
            "for groq: export GROQ_BASE_URL=http://127.0.0.1:{port}/c",
        ),
    ],
)
async def test_what_to_do_next_is_told(
    settings: dict[str, Any], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that leads to a route there is; nothing where none does."""
    config = configure(settings, tmp_path)
    caplog.set_level("INFO", "steer")
    async with app.Sidecar(config) as sidecar:
        app._announce(config, sidecar)
        told = [text for text in caplog.messages if "export" in text]
        assert told == ([] if said is None else [said.format(port=sidecar.port)])


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
