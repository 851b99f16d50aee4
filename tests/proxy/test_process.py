"""`python -m steer_proxy serve` as an operator has it: signals, ports, the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from steer_proxy.ledger import migrate
from tests.provider import Provider, faults
from tests.support.raw import Reply, ask, chat, dialled, get, settings

ROOT = Path(__file__).resolve().parents[2]
SERVING = re.compile(r"serving \d+ routes on http://127\.0\.0\.1:(\d+)")
HEALTH = re.compile(r"health on http://127\.0\.0\.1:(\d+)/readyz")

pytestmark = pytest.mark.real_time


class Process:
    """A running sidecar, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []
        self.port = 0
        self.admin_port = 0
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.said.append(line.decode().rstrip())
            self._news.set()
        self._news.set()

    async def hear(self, pattern: re.Pattern[str] | str) -> re.Match[str]:
        """Wait until a line with the pattern was said."""
        seen = 0
        async with asyncio.timeout(30):
            while True:
                for line in self.said[seen:]:
                    if (match := re.search(pattern, line)) is not None:
                        return match
                seen = len(self.said)
                assert not self._reading.done(), self.said
                self._news.clear()
                await self._news.wait()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end; the exit code."""
        async with asyncio.timeout(30):
            await self._reading
            return await self.process.wait()

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@contextlib.asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Process]:
    process = Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "steer_proxy",
            "serve",
            *arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": "policies:proxy", "PYTHONWARNINGS": "error", "PATH": ""},
        )
    )
    try:
        yield process
    finally:
        await process.stop()


def write(path: Path, provider: Provider, **more: Any) -> None:
    basis = {"listen": {"port": 0}, "admin": {"port": 0}, "database": {"url": "memory:"}}
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump({**basis, **settings(provider), **more}))
    new.replace(path)


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, provider: Provider, **more: Any) -> AsyncIterator[Process]:
    path = tmp_path / "steer.yaml"
    write(path, provider, **more)
    async with started("--config", str(path)) as steer:
        steer.port = int((await steer.hear(SERVING))[1])
        steer.admin_port = int((await steer.hear(HEALTH))[1])
        yield steer


class Load:
    """Callers that call on and on until they are told to go elsewhere.

    Half of them keep their connection, half open one for each call. What is counted as lost is a
    call whose connection was accepted and that got no answer.
    """

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.replies: list[Reply] = []
        self.lost: list[str] = []
        self.refused = 0
        self._callers = [
            asyncio.create_task(self._keeping() if index % 2 else self._dialling())
            for index in range(count)
        ]

    async def _keeping(self) -> None:
        async with dialled(self.port) as caller:
            closes = False
            while not closes:
                caller.send(chat())
                try:
                    reply = await caller.reply()
                except (OSError, EOFError) as error:
                    self.lost.append(repr(error))
                    return
                self.replies.append(reply)
                closes = reply.closes

    async def _dialling(self) -> None:
        closes = False
        while not closes:
            try:
                reply = await ask(self.port, chat())
            except ConnectionRefusedError:
                self.refused += 1
                return
            except (OSError, EOFError) as error:
                self.lost.append(repr(error))
                return
            self.replies.append(reply)
            closes = reply.closes

    async def run_for(self, replies: int) -> None:
        """Wait until so many calls more were answered."""
        goal = len(self.replies) + replies
        async with asyncio.timeout(30):
            while len(self.replies) < goal:
                assert not self.lost, self.lost
                await asyncio.sleep(0.01)

    async def over(self) -> None:
        """Wait until every caller has gone."""
        async with asyncio.timeout(30):
            await asyncio.gather(*self._callers)


async def test_sigterm_under_load(tmp_path: Path) -> None:
    """No accepted call is lost: those under way are finished, later ones served and sent away."""
    async with Provider() as provider, serving(tmp_path, provider) as steer:
        provider.always(lambda _, healthy: healthy)
        provider.pace = 0.02
        slow = asyncio.create_task(ask(steer.port, chat(max_tokens=7)))
        provider.when(lambda attempt: attempt.object.get("max_tokens") == 7, faults.silence(1.0))
        load = Load(steer.port, 16)
        await load.run_for(200)
        steer.send(signal.SIGTERM)
        await steer.hear("draining: [1-9]")
        reply = await ask(steer.admin_port, get("/readyz"))
        assert (reply.status, reply.body) == (503, b"draining\n")
        await load.over()
        assert (await slow).status == 200
        assert await steer.ended() == 0
        assert load.lost == []
        assert {reply.status for reply in load.replies} == {200}
        # Every answer reached its caller, and every call that was forwarded is one of them.
        assert len(provider.attempts) == len(load.replies) + 1
        assert steer.said[-1].endswith("stopped")


async def test_an_idle_process_stops_at_once(tmp_path: Path) -> None:
    """And says so; SIGINT does the same."""
    async with Provider() as provider:
        for number in (signal.SIGTERM, signal.SIGINT):
            async with serving(tmp_path, provider) as steer, dialled(steer.port) as caller:
                caller.send(get())
                assert (await caller.reply()).status == 200
                began = asyncio.get_running_loop().time()
                steer.send(number)
                assert await steer.ended() == 0
                assert asyncio.get_running_loop().time() - began < 5.0
                assert steer.said[-1].endswith("stopped")
                assert await caller.ended() == "close"


@pytest.mark.parametrize("hurry", [False, True])
async def test_calls_that_are_cut(hurry: bool, tmp_path: Path) -> None:
    """When the drain's time is up, or at the second signal: a word to the caller, then the end."""
    timeout = 60.0 if hurry else 0.5
    async with (
        Provider() as provider,
        serving(tmp_path, provider, drain_timeout=timeout) as steer,
        dialled(steer.port) as caller,
    ):
        provider.always(faults.silence())
        caller.send(chat())
        await provider.wait_for_attempts(1)
        steer.send(signal.SIGTERM)
        await steer.hear("draining: 1 ")
        if hurry:
            steer.send(signal.SIGTERM)
        reply = await caller.reply()
        assert (reply.status, reply.code, reply.closes) == (503, "steer_draining", True)
        assert await steer.ended() == 0
        assert "have been cut" in steer.said[-2]
        assert steer.said[-1].endswith("stopped")


async def test_reload_under_load(tmp_path: Path) -> None:
    """By the file's change and by SIGHUP: new calls go elsewhere, and none is lost."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other, serving(tmp_path, one) as steer:
        load = Load(steer.port, 8)
        await load.run_for(50)
        write(path, other)
        await steer.hear("configuration [0-9a-f]+ is in effect")
        before = len(one.attempts)
        await load.run_for(50)
        # Calls that had begun may still have been on their way.
        assert len(one.attempts) - before <= 8
        path.write_text("routes: nonsense")
        steer.send(signal.SIGHUP)
        await steer.hear("is refused, the old one stays: .*routes")
        await load.run_for(50)
        steer.said.clear()
        write(path, one)
        steer.send(signal.SIGHUP)
        await steer.hear("is in effect")
        before = len(one.attempts)
        await load.run_for(50)
        assert len(one.attempts) - before >= 40
        steer.send(signal.SIGTERM)
        await load.over()
        assert await steer.ended() == 0
        assert load.lost == []
        assert {reply.status for reply in load.replies} == {200}


@pytest.mark.parametrize(
    ("block", "option"), [("listen", "--port"), ("admin", "--admin-port")], ids=["data", "admin"]
)
async def test_a_port_in_use(block: str, option: str, tmp_path: Path) -> None:
    """One line that says which and what to do; exit 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with Provider() as provider:
            path = tmp_path / "steer.yaml"
            write(path, provider, **{block: {"port": port}})
            async with started("--config", str(path)) as steer:
                assert await steer.ended() == 1
                (line,) = steer.said
                assert line == (
                    f"steer: port {port} on 127.0.0.1 is in use; "
                    f"stop what uses it or choose another ({option})"
                )


async def test_an_invalid_configuration(tmp_path: Path) -> None:
    """Exit 2: nothing was started."""
    path = tmp_path / "steer.yaml"
    path.write_text("routes: nonsense")
    async with started("--config", str(path)) as steer:
        assert await steer.ended() == 2
        assert any("routes" in line for line in steer.said)
        assert not any("Traceback" in line for line in steer.said)


def database(path: Path) -> dict[str, str]:
    """The block that names a SQLite file."""
    return {"url": f"sqlite:///{path}"}


def logged(path: Path) -> list[tuple[str, int]]:
    """The calls in a ledger that nobody writes any more."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT path, status FROM requests ORDER BY started_us"
        ).fetchall()


async def test_the_ledger_of_a_process(tmp_path: Path) -> None:
    """Made at the first start; another process is refused it with the remedy; a drain writes what
    waits, and whoever comes after a kill -9 goes on with the file."""
    path = tmp_path / "steer.db"
    more = {"database": database(path)}
    async with Provider() as provider:
        async with serving(tmp_path, provider, **more) as steer:
            await steer.hear(f"ledger in SQLite file {path}$")
            async with started("--config", str(tmp_path / "steer.yaml")) as second:
                assert await second.ended() == 1
                (line,) = second.said
                assert line.startswith("steer: ")
                assert str(path) in line
                assert "postgresql://" in line.lower()
            assert (await ask(steer.port, get("/tool/1"))).status == 200
            steer.send(signal.SIGTERM)
            assert await steer.ended() == 0
        assert logged(path) == [("/tool/1", 200)]
        async with serving(tmp_path, provider, **more) as steer:
            assert (await ask(steer.port, get("/tool/2"))).status == 200
            steer.send(signal.SIGKILL)
            assert await steer.ended() == -signal.SIGKILL
        async with serving(tmp_path, provider, **more) as steer:
            assert (await ask(steer.port, get("/tool/3"))).status == 200
            steer.send(signal.SIGTERM)
            assert await steer.ended() == 0
        # What waited when it was killed is lost, as far as it was not written yet.
        assert [row for row in logged(path) if row[0] != "/tool/2"] == [
            ("/tool/1", 200),
            ("/tool/3", 200),
        ]


async def test_a_ledger_that_is_away(tmp_path: Path) -> None:
    """Calls are served, readiness is given, one line says why nothing is written; unless the ledger
    is required: then it is exit 1, with the same line."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = f"postgresql://127.0.0.1:{nobody.getsockname()[1]}/steer"
        async with Provider() as provider:
            async with serving(tmp_path, provider, database={"url": url}) as steer:
                assert (await ask(steer.port, chat())).status == 200
                reply = await ask(steer.admin_port, get("/readyz"))
                assert reply.status == 200
                assert reply.body.startswith(b"ready\nledger: unavailable")
                assert sum("ledger unavailable" in line for line in steer.said) == 1
            arguments = ("--config", str(tmp_path / "steer.yaml"), "--require-ledger")
            async with started(*arguments) as steer:
                assert await steer.ended() == 1
                (line,) = [line for line in steer.said if line.startswith("steer: ")]
                assert line.startswith("steer: the ledger is required and cannot be reached: ")


async def test_a_database_without_a_schema(tmp_path: Path, postgres_empty_url: str) -> None:
    """Calls without a key are served, those with one refused, and one line names the remedy, which
    needs no restart; where the ledger is required, it is exit 1 with the same line."""
    keyed = chat("Idempotency-Key: order-1")
    async with Provider() as provider:
        write(tmp_path / "steer.yaml", provider, database={"url": postgres_empty_url})
        arguments = ("--config", str(tmp_path / "steer.yaml"), "--require-ledger")
        async with started(*arguments) as steer:
            assert await steer.ended() == 1
            (line,) = [line for line in steer.said if line.startswith("steer: ")]
            assert "the database has no ledger yet: run `steer db upgrade`" in line
        async with serving(tmp_path, provider, database={"url": postgres_empty_url}) as steer:
            assert (await ask(steer.port, chat())).status == 200
            refused = await ask(steer.port, keyed)
            assert (refused.status, refused.code) == (503, "steer_ledger_unavailable")
            reply = await ask(steer.admin_port, get("/readyz"))
            assert (reply.status, reply.body[:25]) == (200, b"ready\nledger: unavailable")
            assert sum("run `steer db upgrade`" in line for line in steer.said) == 1
            await asyncio.to_thread(migrate.upgrade, postgres_empty_url)
            await steer.hear("ledger is back")
            assert (await ask(steer.port, keyed)).status == 200


async def test_a_ledger_that_cannot_be(tmp_path: Path) -> None:
    """A folder that is not there, say: one line that names the file; exit 1."""
    path = tmp_path / "nowhere" / "steer.db"
    async with Provider() as provider:
        write(tmp_path / "steer.yaml", provider)
        arguments = ("--config", str(tmp_path / "steer.yaml"))
        async with started(*arguments, "--database-url", f"sqlite:///{path}") as steer:
            assert await steer.ended() == 1
            (line,) = steer.said
            assert line.startswith("steer: the ledger cannot be used: ")
            assert str(path) in line


async def test_encryption_keys_of_a_process(tmp_path: Path) -> None:
    """Another secret under a known name is exit 1 with the reference; an older key in the ring
    still opens what it sealed; one that is not there any more is told, and costs its answers."""
    path, first, second = tmp_path / "steer.db", tmp_path / "first", tmp_path / "second"
    first.write_text("11" * 32)
    second.write_text("22" * 32)

    def ring(**keys: Path) -> dict[str, Any]:
        named = [{"id": name, "secret": {"file": str(place)}} for name, place in keys.items()]
        return {"database": {"url": f"sqlite:///{path}", "encryption": {"keys": named}}}

    async with Provider() as provider:

        async def keyed(**keys: Path) -> tuple[Reply, list[str]]:
            async with serving(tmp_path, provider, **ring(**keys)) as steer:
                reply = await ask(steer.port, chat("Idempotency-Key: one"))
                steer.send(signal.SIGTERM)
                assert await steer.ended() == 0
                return reply, [line for line in steer.said if "encrypted with key" in line]

        made, warned = await keyed(january=first)
        assert (made.status, warned) == (200, [])
        write(tmp_path / "steer.yaml", provider, **ring(january=second))
        async with started("--config", str(tmp_path / "steer.yaml")) as steer:
            assert await steer.ended() == 1
            (line,) = steer.said
            assert line.startswith("steer: the ledger cannot be used: encryption key 'january' ")
            assert f"(file {second}) is not the key of that name" in line
        replayed, warned = await keyed(february=second, january=first)
        assert (replayed.status, replayed.body, warned) == (200, made.body, [])
        refused, warned = await keyed(february=second)
        assert refused.status == 409
        assert b"steer_replay_unavailable" in refused.body
        assert len(warned) == 1
        assert "'january', which is not in the ring" in warned[0]
        assert len(provider.attempts) == 1
