"""kill -9 at every point of a keyed call's life, and what its duplicate gets; on both databases.

The process kills itself at a step of the ledger (`tests.support.crashing`), or the test kills it
when the provider has come to a certain byte. What the ledger then says of the key decides what a
duplicate must get: nothing or `claimed`, the call is made, once; `sent`, nobody can tell, and so it
is not made again; `completed`, the stored answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.provider import Answer, Await, Fault, Provider, Signal, WaitUntilClosed, faults
from tests.support import postgres
from tests.support.ports import free_port
from tests.torture.caller import Patience, attempt
from tests.torture.checker import Evidence, LedgerRow, Violation, check
from tests.torture.database import Database, Postgres, Sqlite
from tests.torture.history import Call, End, Try
from tests.torture.provider_log import arrivals, signed
from tests.torture.replica import Replica, replicas

pytestmark = pytest.mark.real_time

#: The lease of these processes, and what may pass after it until a duplicate has its answer, in
#: seconds.
LEASE: Final = 0.6
GRACE: Final = 8.0

_PATIENT: Final = Patience(30.0)


def settings(port: int, url: str) -> dict[str, Any]:
    upstream = {
        "dialect": "openai",
        "base_url": f"http://127.0.0.1:{port}/v1",
        "concurrency": {"limit": 1, "queue": 16},
    }
    return {
        "catalogue": False,
        "database": {"url": url},
        "upstreams": {"llm": upstream, "other": {**upstream, "concurrency": {"limit": 64}}},
        "routes": [
            {"name": "chat", "path": "/v1", "candidates": ["llm"]},
            {
                "name": "rerun",
                "path": "/rerun/v1",
                "candidates": ["other"],
                "idempotency": {"on_uncertain": "rerun"},
            },
        ],
    }


@dataclass(frozen=True)
class Stage:
    """A provider, the process that will die, the one that gets the duplicate, and their ledger."""

    provider: Provider
    mortal: Replica
    heir: Replica
    """The same process, started again, where only one may write."""
    database: Database
    call: Call
    others: list[asyncio.Task[Try]] = field(default_factory=list)

    async def start(self, crash: str = "", **more: str) -> None:
        """Have the mortal serve, and die or stand still where `crash` says."""
        self.mortal.start(CRASH_AT=crash, **more)
        await self.mortal.ready()

    async def ask(self, replica: Replica, **more: Any) -> Try:
        return await attempt(self.call, 0, replica.name, replica.port, _PATIENT, **more)

    async def queue(self) -> asyncio.Task[Try]:
        """The call, claimed and then let go: the upstream's only place is taken until it is."""
        go = asyncio.Event()
        self.provider.then(faults.steps_first(Await(go)))
        other = Call(f"before-{self.call.key}", "ann")
        asked = attempt(other, 0, self.mortal.name, self.mortal.port, _PATIENT)
        self.others.append(asyncio.create_task(asked))
        await self.provider.wait_for_attempts(1)
        first = asyncio.create_task(self.ask(self.mortal))
        await self.until("claimed")
        go.set()
        return first

    async def until(self, state: str) -> None:
        """Wait until the ledger says this of the call."""
        deadline = time.monotonic() + 10
        while (row := self.row()) is None or row.state != state:
            assert time.monotonic() < deadline, row
            await asyncio.sleep(0.02)

    @property
    def executions(self) -> int:
        """How often the provider has executed the call."""
        seen = arrivals(self.provider.attempts)
        return sum(each.executed for each in seen if each.marker.key == self.call.key)

    async def insist(self, replica: Replica, **more: Any) -> Try:
        """Ask, and again for as long as we are told to, as an SDK does; and again where a stream
        that was followed breaks off."""
        for _ in range(50):
            tried = await self.ask(replica, **more)
            if tried.value("x-should-retry") != "true" and tried.end is End.COMPLETE:
                return tried
            await asyncio.sleep(0.05)
        raise AssertionError("told to come again, and again")

    async def inherit(self) -> None:
        """Have somebody serve after the death."""
        if self.heir is self.mortal:
            self.heir.start()
            await self.heir.ready()

    def wrong(self, *tries: Try) -> list[Violation]:
        """What the checker has against these tries of the call."""
        rows = [row for row in self.database.rows() if row.key == self.call.key]
        seen = arrivals(self.provider.attempts)
        mine = [each for each in seen if each.marker.key == self.call.key]
        return check(Evidence(tries, mine, rows))

    def row(self) -> LedgerRow | None:
        """The call's live row."""
        rows = [row for row in self.database.rows() if row.key == self.call.key and row.live]
        assert len(rows) <= 1, rows
        return rows[0] if rows else None


class World:
    """What the tests of one database share; each test has a key of its own."""

    def __init__(self, folder: Path, database: Database, heir: Replica | None) -> None:
        self.folder = folder
        self.database = database
        self.heir = heir
        self.port = 0


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A database, and, where several may share it, a process that survives all tests."""
    folder = tmp_path_factory.mktemp("crashes")
    port = free_port()
    with contextlib.ExitStack() as stack:
        database: Database
        heir = None
        if request.param == "sqlite":
            database = Sqlite(folder / "steer.db")
        else:
            server: postgres.Server = request.getfixturevalue("postgres_server")
            database = Postgres(server, server.migrated())
            made = replicas(folder, "heir", settings(port, database.url), CRASH_LEASE=str(LEASE))
            (heir,) = stack.enter_context(made)
            heir.start()
        shared = World(folder, database, heir)
        shared.port = port
        yield shared


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key of the test's own."""
    return "".join(each if each.isalnum() else "-" for each in request.node.name)


@contextlib.asynccontextmanager
async def stage(world: World, call: Call) -> AsyncIterator[Stage]:
    names = settings(world.port, world.database.url)
    async with Provider(world.port, distinct=True) as provider:
        provider.always(signed)
        with replicas(world.folder, "mortal", names, CRASH_LEASE=str(LEASE)) as (mortal,):
            if world.heir is not None:
                await world.heir.ready()
            here = Stage(provider, mortal, world.heir or mortal, world.database, call)
            try:
                yield here
            finally:
                for each in here.others:
                    each.cancel()
                if here.others:
                    await asyncio.wait(here.others)


def wait_here(reached: asyncio.Event) -> Answer:
    return Answer((Signal(reached), WaitUntilClosed()))


@dataclass(frozen=True)
class Point:
    """A crash point. `crash` is a step of the ledger; else the provider comes to `at`.

    `state` is what the ledger must say of the key then, `executions` what the provider saw.
    """

    name: str
    state: str | None
    executions: int
    crash: str = ""
    at: Any = None
    stream: bool = False
    padding: int = 0
    queued: bool = False
    """Whether the call has to wait for another before it can be sent."""


POINTS = [
    Point("before the claim commits", None, 0, "before claim 1"),
    Point("after the claim", "sent", 0, "after claim 1"),
    Point("before it is marked as sent", "claimed", 0, "before mark_sent 1", queued=True),
    Point("after it was marked as sent", "sent", 0, "after mark_sent 1", queued=True),
    Point(
        "in the middle of the body",
        "sent",
        0,
        at=lambda reached: faults.before_body(wait_here(reached), reads_on=False),
        padding=16_000_000,
    ),
    Point("before the answer's head", "sent", 1, at=wait_here),
    Point(
        "in the middle of a stream",
        "sent",
        1,
        at=lambda reached: (
            Fault("signed", signed) | faults.at_event(4, Signal(reached), WaitUntilClosed())
        ),
        stream=True,
    ),
    Point("after the last byte, before the commit", "sent", 1, "before finish 1"),
    Point(
        "after a stream's last byte, before the commit", "sent", 1, "before finish 1", stream=True
    ),
    Point("after the commit, before the caller saw it", "completed", 1, "after finish 1"),
    Point(
        "after a stream's commit, before the caller saw it",
        "completed",
        1,
        "after finish 1",
        stream=True,
    ),
]


@pytest.mark.parametrize("point", POINTS, ids=[point.name for point in POINTS])
async def test_kill(point: Point, world: World, key: str) -> None:
    """At most one execution or a declared uncertain answer, and nothing stays stuck."""
    async with stage(world, Call(key, "ann", point.stream)) as here:
        await here.start(point.crash)
        reached = asyncio.Event()
        if point.at is not None:
            here.provider.then(point.at(reached))
        if point.queued:
            first = await here.queue()
        else:
            first = asyncio.create_task(here.ask(here.mortal, padding=point.padding))
        if point.at is not None:
            await asyncio.wait_for(reached.wait(), 10)
            here.mortal.send(signal.SIGKILL)
        assert await here.mortal.ended() == -signal.SIGKILL
        died = time.monotonic()
        lost = await first
        assert lost.end is End.CUT
        assert not lost.succeeded
        row = here.row()
        assert (None if row is None else row.state) == point.state
        await here.inherit()
        again = await here.insist(here.heir, padding=point.padding)
        assert again.end is End.COMPLETE
        assert time.monotonic() - died < LEASE + GRACE
        if point.state == "sent":
            assert (again.status, again.code) == (409, "steer_key_uncertain")
            assert again.value("x-should-retry") == "false"
        else:
            assert again.succeeded, again
            told = "replayed" if point.state == "completed" else "new"
            assert again.value("Idempotency-Status") == told
        more = 0 if point.state in {"sent", "completed"} else 1
        assert here.executions == point.executions + more
        # And so it stays.
        third = await here.ask(here.heir, padding=point.padding)
        assert here.wrong(lost, again, third) == []
        assert third.status == again.status


@pytest.mark.parametrize("world", ["postgres"], indirect=True)
async def test_a_zombie_that_had_sent_nothing(world: World, key: str) -> None:
    """Stopped while it waited, its key is taken over; awake again, it sends nothing and says so."""
    async with stage(world, Call(key, "ann")) as here:
        await here.start("before mark_sent 1", CRASH_WITH="SIGSTOP")
        zombie = await here.queue()
        await here.mortal.stopped()
        heir = await here.insist(here.heir)
        assert heir.succeeded
        assert here.executions == 1
        here.mortal.send(signal.SIGCONT)
        told = await zombie
        assert told.end is End.COMPLETE
        assert told.status is not None
        assert told.status >= 400, told
        assert here.executions == 1
        again = await here.ask(here.mortal)
        assert again.value("Idempotency-Status") == "replayed"
        assert here.wrong(heir, told, again) == []


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("world", ["postgres"], indirect=True)
async def test_a_zombie_whose_call_was_made_again(world: World, key: str, stream: bool) -> None:
    """Its route reruns what is uncertain; awake again, it changes nothing, and says so."""
    async with stage(world, Call(key, "ann", stream, rerun=True)) as here:
        await here.start()
        reached, go = asyncio.Event(), asyncio.Event()
        middle = faults.at_event(4, Signal(reached), Await(go))
        before = faults.steps_first(Signal(reached), Await(go))
        here.provider.then(Fault("signed", signed) | (middle if stream else before))
        zombie = asyncio.create_task(here.ask(here.mortal))
        await asyncio.wait_for(reached.wait(), 10)
        here.mortal.send(signal.SIGSTOP)
        heir = await here.insist(here.heir)
        assert heir.value("Idempotency-Status") == "rerun"
        assert heir.succeeded
        here.mortal.send(signal.SIGCONT)
        go.set()
        told = await zombie
        assert not told.succeeded, told
        if not stream:
            assert told.end is End.COMPLETE
        again = await here.ask(here.mortal)
        assert again.value("Idempotency-Status") == "replayed"
        assert (again.status, again.body) == (heir.status, heir.body)
        assert here.executions == 2
        assert here.wrong(heir, again) == []


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_sleeper_whose_key_nobody_took(world: World, key: str, stream: bool) -> None:
    """Others hold its call for uncertain while it sleeps; awake again, it completes it for all."""
    async with stage(world, Call(key, "ann", stream)) as here:
        await here.start()
        reached, go = asyncio.Event(), asyncio.Event()
        middle = faults.at_event(4, Signal(reached), Await(go))
        before = faults.steps_first(Signal(reached), Await(go))
        here.provider.then(Fault("signed", signed) | (middle if stream else before))
        sleeper = asyncio.create_task(here.ask(here.mortal))
        await asyncio.wait_for(reached.wait(), 10)
        here.mortal.send(signal.SIGSTOP)
        if here.heir is not here.mortal:
            told = await here.insist(here.heir)
            assert (told.status, told.code) == (409, "steer_key_uncertain")
        else:
            await asyncio.sleep(1.5 * LEASE)
        here.mortal.send(signal.SIGCONT)
        go.set()
        whole = await sleeper
        assert whole.succeeded, whole
        again = await here.ask(here.heir)
        assert again.value("Idempotency-Status") == "replayed"
        assert here.executions == 1
        assert here.wrong(whole, again) == []
