"""A changed configuration takes effect under load: no call is lost, none gets half of each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from steer_proxy import app
from steer_proxy.settings import ConfigSource
from steer_proxy.watch import EVERY, stamp, watch
from tests.provider import Provider, faults
from tests.support.raw import ask, chat, get, settings
from tests.support.sidecar import Running

#: How soon a change is noticed, in seconds: it has to look the same twice.
SOON = 3 * EVERY


def text(provider: Provider, **more: Any) -> str:
    """A whole file."""
    basis = {"listen": {"port": 0}, "admin": {"port": 0}, "database": {"url": "memory:"}}
    return yaml.safe_dump({**basis, **settings(provider), **more})


def in_place(path: Path, content: str) -> None:
    path.write_text(content)


def by_rename(path: Path, content: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(content)
    new.replace(path)


def by_removal(path: Path, content: str) -> None:
    path.unlink()
    path.write_text(content)


_NUMBERS = itertools.count()


def by_symlink(path: Path, content: str) -> None:
    """As Kubernetes updates a mounted ConfigMap: `..data` is a link that is swapped.

    `path` is a link to `..data/<name>`, `..data` one to a folder with a time in its name.
    """
    folder, data = path.parent, path.parent / "..data"
    version = folder / f"..{next(_NUMBERS)}"
    version.mkdir()
    (version / path.name).write_text(content)
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    before = data.resolve() if data.is_symlink() else None
    link.replace(data)
    if not path.is_symlink():
        path.unlink(missing_ok=True)
        path.symlink_to(f"..data/{path.name}")
    if before is not None:
        (before / path.name).unlink()
        before.rmdir()


WAYS = [in_place, by_rename, by_removal, by_symlink]


class Watched(Running):
    """A sidecar that keeps its configuration current, as `serve` has it."""

    def __init__(self, sidecar: app.Sidecar, path: Path) -> None:
        super().__init__(sidecar)
        self.path = path
        self.signalled = asyncio.Event()

    @property
    def port(self) -> int:
        return self.sidecar.port

    @property
    def revision(self) -> str:
        return self.sidecar.config.revision


@contextlib.asynccontextmanager
async def watched(path: Path) -> AsyncIterator[Watched]:
    source = ConfigSource(path=path, env={})
    known = stamp(path)
    async with app.Sidecar(source.load()) as sidecar:
        running = Watched(sidecar, path)
        reload = running.signalled
        tasks = [
            asyncio.create_task(app._keep_current(source, sidecar, reload)),
            asyncio.create_task(watch(path, known, reload.set)),
        ]
        try:
            yield running
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@pytest.mark.parametrize("write", WAYS)
async def test_a_changed_file(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    """However it was changed, and again after that."""
    path = tmp_path / "conf" / "steer.yaml"
    path.parent.mkdir()
    async with Provider() as one, Provider() as other:
        (by_symlink if write is by_symlink else in_place)(path, text(one))
        async with watched(path) as steer:
            for provider in (other, one, other):
                write(path, text(provider))
                before = len(provider.attempts)
                await asyncio.sleep(SOON)
                assert (await ask(steer.port, get())).status == 200
                assert len(provider.attempts) == before + 1


async def test_a_file_that_is_gone_for_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for, without a word."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other:
        path.write_text(text(one))
        async with watched(path) as steer:
            path.unlink()
            await asyncio.sleep(60)
            assert (await ask(steer.port, get())).status == 200
            assert caplog.records == []
            path.write_text(text(other))
            await asyncio.sleep(SOON)
            assert (await ask(steer.port, get())).status == 200
        assert len(other.attempts) == 1


async def test_a_file_that_is_still_being_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read when it has come to rest: half of it would be refused, or worse, taken."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other:
        path.write_text(text(one))
        async with watched(path) as steer:
            whole = text(other)
            for size in range(1, len(whole), 40):
                path.write_text(whole[:size])
                await asyncio.sleep(EVERY * 0.7)
            path.write_text(whole)
            await asyncio.sleep(SOON)
            assert (await ask(steer.port, get())).status == 200
        assert len(other.attempts) == 1
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("routes: [", "steer.yaml:1: is not YAML"),
        ("upstream: {}", "did you mean"),
        ("limits: {max_body: -1}", "limits.max_body"),
        (
            "upstreams: {x: {credential: {env: NOT_SET}, base_url: http://x, dialect: http}}",
            "NOT_SET",
        ),
        ("\x00\xff", "steer.yaml"),
    ],
)
async def test_an_invalid_file(
    content: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused in a line that says why; the old one stays; the next valid one is taken."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other:
        path.write_text(text(one))
        async with watched(path) as steer:
            revision = steer.revision
            path.write_bytes(content.encode("latin-1"))
            await asyncio.sleep(SOON)
            assert steer.revision == revision
            assert (await ask(steer.port, get())).status == 200
            (line,) = [record.getMessage() for record in caplog.records if record.name == "steer"]
            assert line.startswith("the changed configuration is refused, the old one stays: ")
            assert said in line
            path.write_text(text(other))
            await asyncio.sleep(SOON)
            assert (await ask(steer.port, get())).status == 200
        assert (len(one.attempts), len(other.attempts)) == (1, 1)


async def test_whatever_goes_wrong_while_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error nobody thought of does not end the process, nor the watch."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other:
        path.write_text(text(one))
        async with watched(path) as steer:
            with monkeypatch.context() as patched:
                patched.setattr(ConfigSource, "load", lambda _: 1 / 0)
                steer.signalled.set()
                await asyncio.sleep(1.0)
            assert "ZeroDivisionError" in caplog.text
            path.write_text(text(other))
            await asyncio.sleep(SOON)
            assert (await ask(steer.port, get())).status == 200
        assert len(other.attempts) == 1


async def test_a_signal_without_a_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing happens, and nothing is said."""
    caplog.set_level(logging.INFO, "steer")
    path = tmp_path / "steer.yaml"
    async with Provider() as provider:
        path.write_text(text(provider))
        async with watched(path) as steer:
            gateway, addresses = steer.gateway, steer.gateway._addresses
            steer.signalled.set()
            os.utime(path)
            await asyncio.sleep(SOON)
            assert gateway._addresses is addresses
        assert [record for record in caplog.records if record.name.startswith("steer")] == []


async def test_calls_keep_the_revision_they_began_with(tmp_path: Path) -> None:
    """Retries of a call go where its own revision says, new calls where the new one does."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other:
        path.write_text(text(one))
        async with watched(path) as steer:
            one.then(faults.status(503) | faults.silence(10.0), faults.healthy())
            old = asyncio.create_task(ask(steer.port, chat()))
            await one.wait_for_attempts(1)
            gone = settings(other)
            gone["upstreams"] = {"new": {"dialect": "openai", "base_url": f"{other.base_url}/v1"}}
            gone["routes"] = [{"name": "llm", "path": "/v1", "candidates": ["new"]}]
            path.write_text(yaml.safe_dump(gone))
            await asyncio.sleep(SOON)
            assert not old.done()
            reply = await ask(steer.port, chat())
            assert (reply.status, reply.value("X-Steer-Upstream")) == (200, "new")
            reply = await old
            assert (reply.status, reply.value("X-Steer-Upstream")) == (200, "llm")
            assert reply.value("X-Steer-Attempts") == "2"
            assert (await ask(steer.port, get())).status == 404
        assert (len(one.attempts), len(other.attempts)) == (2, 1)


async def test_under_load(tmp_path: Path) -> None:
    """Ten changes under eight callers: every call is answered, by one provider or the other."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other:
        path.write_text(text(one))
        async with watched(path) as steer:
            done = asyncio.Event()
            statuses: list[int] = []

            async def call(delay: float) -> None:
                while not done.is_set():
                    statuses.append((await ask(steer.port, chat())).status)
                    await asyncio.sleep(delay)

            one.pace = other.pace = 0.05
            callers = [asyncio.create_task(call(0.2 + index / 100)) for index in range(8)]
            revisions = set()
            for index in range(10):
                provider = other if index % 2 == 0 else one
                by_rename(path, text(provider, drain_timeout=index + 1))
                await asyncio.sleep(SOON)
                revisions.add(steer.revision)
            done.set()
            await asyncio.gather(*callers)
            assert len(revisions) == 10
            assert set(statuses) == {200}
            assert len(statuses) == len(one.attempts) + len(other.attempts)
            assert min(len(one.attempts), len(other.attempts)) > 30


async def test_what_takes_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Named in the log, and not changed behind the operator's back either."""
    path = tmp_path / "steer.yaml"
    async with Provider() as one, Provider() as other:
        path.write_text(text(one))
        async with watched(path) as steer:
            more = {"limits": {"max_body": 1}, "listen": {"port": 0, "allowed_hosts": ["new"]}}
            path.write_text(text(other, **more))
            await asyncio.sleep(SOON)
            assert (await ask(steer.port, chat())).status == 200
            assert (await ask(steer.port, get("/tool/x", host="new"))).status == 403
            assert len(other.attempts) == 1
        said = [record.getMessage() for record in caplog.records if record.name == "steer"]
        assert said == [
            "the change of listen.allowed_hosts takes effect at the next start",
            "the change of limits.max_body takes effect at the next start",
        ]
