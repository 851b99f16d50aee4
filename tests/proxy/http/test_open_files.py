"""Out of file descriptors: our own trouble, of which no upstream is to blame."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from steer_proxy import open_files
from tests.support.raw import chat, dialled, get, stage


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Nothing can be opened: what is open stays so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
async def test_calls_are_told_and_no_breaker_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, keyed: bool
) -> None:
    """503 to come again after, whoever asks; a line a minute with cause and remedy; and with the
    first file that is free, calls are made again."""
    async with stage(tmp_path) as world:
        async with dialled(world.port) as caller:
            for index in range(12):
                with no_more_files():
                    caller.send(chat(*([f"Idempotency-Key: order-{index}"] * keyed)))
                    reply = await caller.reply()
                assert (reply.status, reply.code) == (503, "steer_overloaded")
                assert (reply.value("Retry-After"), reply.closes) == ("1", False)
        await asyncio.sleep(60.0)
        async with dialled(world.port) as caller:
            with no_more_files():
                caller.send(chat())
                assert (await caller.reply()).status == 503
            assert world.provider.attempts == []
            caller.send(chat(*(["Idempotency-Key: order-1"] * keyed)))
            assert (await caller.reply()).status == 200
    told = [text for text in caplog.messages if "no connection can be opened" in text]
    assert len(told) == 2, told
    assert "Too many open files" in told[0]
    assert "ulimit -n" in told[0]
    assert "limits.max_connections" in told[0]
    assert "breaker" not in caplog.text


async def test_no_more_callers_than_there_are_files_for(tmp_path: Path) -> None:
    """Where the limit is below what `limits.max_connections` needs, it is the limit that counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        async with (
            stage(tmp_path) as world,
            dialled(world.port) as first,
            dialled(world.port) as second,
            dialled(world.port) as third,
        ):
            for caller in (first, second):
                caller.send(get())
                assert (await caller.reply()).status == 200
            reply = await third.reply()
            assert (reply.status, reply.code) == (503, "steer_overloaded")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("hard", "fitting"), [(8288, None), (8287, 4095), (256, 80), (10, 1)], ids=str
)
def test_too_few_files_are_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hard: int, fitting: int
) -> None:
    """The soft limit is raised as far as may be; a hard one that is too low is the system's."""
    limit = (3, hard)

    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        nonlocal limit
        limit = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: limit)
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    open_files.raise_limit(4096)
    assert limit == (hard, hard)
    assert open_files.room(4096) == (fitting or 4096)
    assert len(caplog.messages) == (fitting is not None)
    assert all(f"limits.max_connections to {fitting}" in text for text in caplog.messages)
