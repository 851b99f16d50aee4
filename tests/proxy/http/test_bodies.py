"""Request bodies: kept in memory or on disk, sent again as they came, and let go of in any case."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from steer_proxy.engine.config import Limits
from steer_proxy.http import body as body_module
from steer_proxy.http.body import MemoryBudget, ReplayBody, read_body
from steer_proxy.http.spool import Spool
from tests.provider import faults
from tests.support.raw import ask, chunked, dialled, get, post, request, stage

KIB, MIB = 2**10, 2**20
LIMITS = Limits()

#: Where the provider does not echo what it gets.
SINK = "/tool/mcp"


def random_bytes(size: int) -> bytes:
    """Bytes in which a lost, repeated or swapped piece shows."""
    return random.Random(size).randbytes(size)


def temporary_files() -> set[str]:
    """Files without a name that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if "(deleted)" in target and target.startswith(tempfile.gettempdir()):
            found.add(target)
    return found


_OTHERS: set[str] = set()


@pytest.fixture(autouse=True)
def _know_the_others() -> None:
    """Those of pytest itself, which captures output in them."""
    _OTHERS.clear()
    _OTHERS.update(temporary_files())


def spools() -> set[str]:
    """Files of request bodies that are open."""
    return temporary_files() - _OTHERS


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(
    "size",
    [0, 1, 64 * KIB, MIB - 1, MIB, MIB + 1, 5 * MIB, 63 * MIB],
    ids=["0", "1", "64K", "1M-1", "1M", "1M+1", "5M", "63M"],
)
async def test_every_attempt_gets_the_same_bytes(size: int, framing: str, tmp_path: Path) -> None:
    """Two failures and a success: three times the caller's body, from memory or from disk."""
    body = random_bytes(size)
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.when(lambda attempt: attempt.number < 3, faults.status(503))
        if framing == "length":
            caller.send(request("PUT", SINK, body=body))
        else:
            pieces = [body[at : at + 50_000] for at in range(0, size, 50_000)]
            caller.send(request("PUT", SINK, "Transfer-Encoding: chunked") + chunked(*pieces))
        reply = await caller.reply()
        assert (reply.status, reply.value("X-Steer-Attempts")) == (202, "3")
        attempts = world.provider.attempts
        assert len(attempts) == 3
        assert all(attempt.body == body for attempt in attempts)
        assert [attempt.header_values("Content-Length") for attempt in attempts] == [
            [str(size)]
        ] * 3
        assert world.steer.gateway._budget.used == 0
        assert spools() == set()


@pytest.mark.parametrize(
    ("size", "in_memory"), [(0, True), (1000, True), (1001, False), (100_000, False)]
)
async def test_where_a_body_is_kept(size: int, in_memory: bool, tmp_path: Path) -> None:
    """In memory up to spool_above; beyond it all of it is on disk, and the memory is free."""
    async with stage(tmp_path, limits={"spool_above": 1000}) as world:
        world.provider.always(faults.silence())
        async with dialled(world.port) as caller:
            caller.send(post(b"x" * size))
            (attempt,) = await world.provider.wait_for_attempts(1)
            await attempt.received.wait()
            assert world.steer.gateway._budget.used == (size if in_memory else 0)
            assert len(spools()) == (0 if in_memory else 1)
        await attempt.finished.wait()
        await asyncio.sleep(1)
        assert world.steer.gateway._budget.used == 0
        assert spools() == set()


async def test_when_all_memory_is_taken(tmp_path: Path) -> None:
    """Further bodies go to disk, however small, and all calls go on."""
    limits = {"spool_above": 1000, "body_memory": 1500}
    async with stage(tmp_path, limits=limits) as world:
        world.provider.always(faults.silence(10.0))
        callers = [
            asyncio.create_task(ask(world.port, post(b"x" * 1000, f"/tool/{index}")))
            for index in range(5)
        ]
        for attempt in await world.provider.wait_for_attempts(5):
            await attempt.received.wait()
        assert world.steer.gateway._budget.used == 1000
        assert len(spools()) == 4
        for reply in await asyncio.gather(*callers):
            assert reply.status == 200
        assert [attempt.body for attempt in world.provider.attempts] == [b"x" * 1000] * 5
        assert world.steer.gateway._budget.used == 0
        assert spools() == set()


@pytest.mark.parametrize("data", [b"x" * 2000, b"x" * 500])
async def test_every_way_out_frees_what_was_held(data: bytes, tmp_path: Path) -> None:
    """Refused after its body, refused by the provider, failed, cut in the middle, timed out."""
    limits = {"spool_above": 1000, "max_body": 5000, "body_timeout": 5}
    async with stage(tmp_path, limits=limits) as world:
        ways: list[tuple[Any, bytes, int]] = [
            (faults.status(400), post(data), 400),
            (faults.status(503), post(data), 503),
            (faults.reset_before_answer(), post(data), 504),
            (faults.healthy(), post(data, "/tool/x", "X-Steer-Upstream: nowhere"), 400),
            (faults.silence(), post(data, "/tool/x", "X-Steer-Timeout: 3"), 504),
            (
                faults.healthy(),
                request("POST", "/tool/x", "Content-Length: 4999") + data,
                408,
            ),
            (
                faults.healthy(),
                request("POST", "/tool/x", "Transfer-Encoding: chunked")
                + chunked(data)[:-5]
                + b"oops\r\n",
                400,
            ),
            (
                faults.healthy(),
                request("POST", "/tool/x", "Transfer-Encoding: chunked") + chunked(data * 20),
                413,
            ),
        ]
        for fault, message, status in ways:
            world.provider.always(fault)
            reply = await ask(world.port, message)
            assert reply.status == status, (fault, reply)
            await asyncio.sleep(1)
            assert world.steer.gateway._budget.used == 0, fault
            assert spools() == set(), fault


async def test_a_caller_that_leaves_while_its_body_goes_to_disk(tmp_path: Path) -> None:
    """The file is closed when the thread that writes it is done, not under it."""
    async with stage(tmp_path) as world:
        for size in range(0, 4 * MIB, 300 * KIB):
            async with dialled(world.port) as caller:
                caller.send(request("POST", "/tool/x", f"Content-Length: {8 * MIB}"))
                caller.send(b"x" * size)
                await asyncio.sleep(0)
                caller.hang_up()
        await asyncio.sleep(1)
        assert spools() == set()
        assert world.steer.gateway._budget.used == 0
        assert (await ask(world.port, get())).status == 200


async def test_a_disk_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503 and one line in the log that says what to do about."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with stage(tmp_path) as world:
        monkeypatch.setattr(os, "pwrite", full)
        reply = await ask(world.port, post(b"x" * 2 * MIB))
        assert (reply.status, reply.code, reply.closes) == (503, "steer_overloaded", True)
        monkeypatch.undo()
        assert spools() == set()
        assert (await ask(world.port, post(b"x" * 2 * MIB))).status == 200
    (line,) = [record for record in caplog.records if record.name == "steer.http"]
    assert "No space left on device" in line.getMessage()
    assert line.exc_info is None


async def test_nowhere_to_put_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bodies do not need one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    async with stage(tmp_path) as world:
        assert (await ask(world.port, post(b"x" * 2 * MIB))).status == 503
        assert (await ask(world.port, post(b"x" * 1000))).status == 200


async def test_readers_of_one_spool_do_not_disturb_each_other() -> None:
    """An attempt that is being abandoned may still read while the next one begins."""
    data = random_bytes(3 * MIB)
    spool = Spool()
    for at in range(0, len(data), 100_000):
        await spool.append(data[at : at + 100_000])
    body = ReplayBody(None, len(data), spool=spool)

    async def read() -> bytes:
        return b"".join([piece async for piece in body.pieces()])

    assert set(await asyncio.gather(read(), body.read(), read())) == {data}
    body.close()
    body.close()
    assert spools() == set()


class _Held:
    """Makes a system call wait in its thread until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._call = getattr(os, name)
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.go_on = threading.Event()
        monkeypatch.setattr(os, name, self)

    def __call__(self, *arguments: Any) -> Any:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.go_on.wait(10)
        return self._call(*arguments)


async def test_a_spool_closed_under_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader gets its bytes: a descriptor closed under it could be another file by then."""
    spool = Spool()
    await spool.append(b"x" * 1000)
    held = _Held(monkeypatch, "pread")
    reading = asyncio.create_task(spool.read(0, 1000))
    await held.begun.wait()
    spool.close()
    assert len(spools()) == 1
    held.go_on.set()
    assert await reading == b"x" * 1000
    assert spools() == set()
    with pytest.raises(ValueError, match="closed"):
        await spool.read(0, 1)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_writer_that_is_cancelled(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread writes on; the file is closed when it is done, whatever comes of it."""
    spool = Spool()
    await spool.append(b"x" * 1000)
    held = _Held(monkeypatch, "pwrite")
    if fails:
        held._call = lambda *_: 1 / 0
    writing = asyncio.create_task(spool.append(b"y" * 1000))
    await held.begun.wait()
    writing.cancel()
    await asyncio.wait({writing})
    assert writing.cancelled()
    spool.close()
    assert len(spools()) == 1
    held.go_on.set()
    await asyncio.sleep(1.0)
    assert spools() == set()


class _Flow(BaseProtocol):
    """Remembers whether its reader wants more."""

    connected = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.wanted = asyncio.Event()
        self.wanted.set()

    def pause_reading(self) -> None:
        self.wanted.clear()

    def resume_reading(self, resume_parser: bool = True) -> None:
        self.wanted.set()


class _Feed:
    """A body on its way in, without a connection."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._flow = _Flow(loop)
        self.content = StreamReader(self._flow, 2**16, loop=loop)

    async def pieces(self, data: bytes, size: int) -> None:
        for at in range(0, len(data), size):
            await self._flow.wanted.wait()
            self.content.feed_data(data[at : at + size])
            await asyncio.sleep(0)
        self.content.feed_eof()


@pytest.mark.parametrize("size", [MIB - 1, 2 * MIB])
async def test_many_small_pieces(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body in tiny pieces costs no more memory than it is long, and no write for each piece."""
    writes: list[int] = []
    append = Spool.append

    async def counted(spool: Spool, data: bytes | bytearray) -> None:
        writes.append(len(data))
        await append(spool, data)

    monkeypatch.setattr(Spool, "append", counted)
    data = random_bytes(size)
    feed, budget = _Feed(), MemoryBudget(LIMITS.body_memory)
    feeding = asyncio.create_task(feed.pieces(data, 1024))
    body = await read_body(feed.content, None, LIMITS, budget)
    await feeding
    assert await body.read() == data
    assert budget.used == (size if size <= MIB else 0)
    # The first write is what had been in memory; none is a small piece, except for the last.
    assert all(written >= body_module.PIECE for written in writes[:-1])
    body.close()
    assert budget.used == 0


async def test_a_large_body_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """While 63 MiB come in, are written, read and parsed, small calls are answered."""
    body = b'{"model": "m", "text": "' + b"x" * (63 * MIB) + b'"}'
    async with stage(tmp_path) as world:
        kind = "Content-Type: application/json"
        large = asyncio.create_task(ask(world.port, post(body, SINK, kind)))
        answered = 0
        while not large.done():
            assert (await ask(world.port, get("/tool/small"))).status == 200
            answered += 1
        assert (await large).status == 202
        assert answered > 20


async def test_large_bodies_are_parsed_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is in memory as a whole for that moment, outside the budget."""
    from steer_proxy.http import payload

    inside, most = 0, 0
    parse = payload._json

    def counted(raw: bytes) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return parse(raw)

    monkeypatch.setattr(payload, "_json", counted)
    data = post(b'{"a": "' + b"x" * 2 * MIB + b'"}', "/tool/x", "Content-Type: application/json")
    async with stage(tmp_path) as world:
        world.provider.always(faults.status(200, {"ok": True}))
        replies = await asyncio.gather(*(ask(world.port, data) for _ in range(4)))
        assert [reply.status for reply in replies] == [200] * 4
    assert most == 1


@pytest.mark.parametrize("options", [{}, {"model": "gpt-4o-mini"}], ids=["as it is", "rewritten"])
async def test_the_value_of_a_large_body(options: dict[str, str], tmp_path: Path) -> None:
    """While the provider thinks, memory holds it only if another attempt could need it."""
    kind = "Content-Type: application/json"
    body = b'{"model": "gpt-4o", "messages": "' + b"x" * (2 * MIB) + b'"}'
    route = {"name": "llm", "path": "/v1", "candidates": [{"upstream": "llm", "options": options}]}
    async with stage(tmp_path, routes=[route]) as world, dialled(world.port) as caller:
        world.provider.then(faults.status(503), faults.silence(10.0))
        caller.send(post(body, "/v1/chat/completions", kind))
        first, second = await world.provider.wait_for_attempts(2)
        (progress,) = world.steer.gateway._running.values()
        assert progress.call is not None
        assert (progress.call.json is None) == (not options)
        assert progress.call.body.memory is None
        assert (await caller.reply()).status == 200
        assert first.body == second.body
        assert first.json["model"] == options.get("model", "gpt-4o")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_trailers_of_a_request_are_dropped(framing: str, tmp_path: Path) -> None:
    """Nothing announces them to the provider, and none arrives."""
    async with stage(tmp_path) as world:
        fields = ("TE: trailers", "Trailer: X-Sum")
        if framing == "length":
            data = post(b"hi", "/tool/x", *fields)
        else:
            data = request("POST", "/tool/x", "Transfer-Encoding: chunked", *fields) + chunked(
                b"hi", trailers="X-Sum: 1\r\nX-Other: 2\r\n"
            )
        assert (await ask(world.port, data)).status == 200
        (attempt,) = world.provider.attempts
        assert attempt.body == b"hi"
        assert attempt.trailers == []
        names = {name.lower() for name, _ in attempt.headers}
        assert names.isdisjoint({"te", "trailer", "x-sum", "x-other", "transfer-encoding"})
