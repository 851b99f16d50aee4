"""What the ledger costs: keyed calls beside unkeyed ones, logged ones beside forgotten ones.

All servers of a comparison run at the same time and take turns, as in `bench.measure`. What is
measured on a full ledger stands beside an empty one of the same minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console
from rich.table import Table

from bench.client import Connection, Load, Request, close, connect, run_calls
from bench.measure import provider, scratch
from bench.payload import JSON_CALL
from bench.processes import Server, announced, steer
from bench.report import LOGGED, short

#: Callers at once.
CALLERS: Final = 64

#: The seconds of which the slowest call is taken: of a whole run, a busy machine would tell us only
#: about itself.
WINDOW: Final = 2.0

#: Time a server gets to write down what it was doing before its meters are read, in seconds: more
#: than a row waits.
SETTLE: Final = 0.4

#: How often each calls where a delay is looked for, in seconds: the server is a quarter busy.
INTERVAL: Final = 0.25

_MICRO: Final = 1e6
_MILLI: Final = 1e3

#: A disk's own word: PostgreSQL as it comes, where the tests' does not wait for the disk.
_DURABLE: Final = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: processes of each kind, rounds of each, calls per caller and round,
    rows of the full ledger, how many of them are purged under load, and in at most how many windows
    of time."""

    generations: int
    rounds: int
    calls: int
    rows: int
    purged: int
    windows: int


FULL: Final = Effort(generations=5, rounds=4, calls=40, rows=1_000_000, purged=100_000, windows=300)
QUICK: Final = Effort(generations=2, rounds=2, calls=20, rows=100_000, purged=10_000, windows=10)


@dataclass(slots=True)
class Costs:
    """Of each round: seconds of a processor, and of time, for each call."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, load: Load, used: float, took: float) -> None:
        """One round."""
        self.cpu.append(used / len(load.seconds))
        self.wall.append(took / len(load.seconds))


@dataclass(slots=True)
class Run:
    """All samples.

    `undisturbed` and `disturbed` are the slowest calls of each `WINDOW`, in seconds, without and
    with a purge that removed `purged` of `over` rows in `purging` seconds.
    """

    bare: Costs = field(default_factory=Costs)
    bare_again: Costs = field(default_factory=Costs)
    forgotten: Costs = field(default_factory=Costs)
    logged: Costs = field(default_factory=Costs)
    unkeyed: Costs = field(default_factory=Costs)
    keyed: Costs = field(default_factory=Costs)
    replayed: Costs = field(default_factory=Costs)
    keyed_postgres: Costs = field(default_factory=Costs)
    keyed_full: Costs = field(default_factory=Costs)
    replayed_full: Costs = field(default_factory=Costs)
    keyed_empty: Costs = field(default_factory=Costs)
    replayed_empty: Costs = field(default_factory=Costs)
    undisturbed: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)
    rows: int = 0
    over: int = 0
    purged: int = 0
    purging: float = 0.0


def measure(effort: Effort, say: Callable[[str], None]) -> Run:
    """Run everything; `say` is told what is under way."""
    run = Run(rows=effort.rows, over=effort.purged)
    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        contextlib.ExitStack() as stack,
        provider(0.0) as upstream,
    ):
        # Where things happen to lie in memory makes one process faster than its twin by some
        # percent: hence several of each.
        for number in range(effort.generations):
            say(f"calls that are logged, and not, {number + 1} of {effort.generations}")
            with _sqlite(upstream) as (server, _), _forgetful(upstream) as other:
                runner.run(_compare_logging(effort, server, other, run))
            say(f"calls with and without a key, {number + 1} of {effort.generations}")
            with _sqlite(upstream) as (server, _), _bare(upstream) as bare:
                runner.run(_compare_keys(effort, server, bare, run))
        say("calls with a key, on PostgreSQL")
        with _postgres(upstream) as shared, _bare(upstream) as bare:
            runner.run(_keyed_alone(effort, shared, bare, run))
        say(f"a ledger of {effort.rows:,} rows")
        full = stack.enter_context(scratch())
        path = _filled(upstream, runner, full, effort)
        with _sqlite(upstream) as (empty, _), _sqlite(upstream, path) as (server, _):
            runner.run(_full_and_empty(effort, empty, server, run))
        say(f"purging {effort.purged:,} rows")
        _age(path, effort.purged)
        with _sqlite(upstream, path) as (server, _):
            run.undisturbed = runner.run(_windows(server, 10, lambda: True))
        with _sqlite(upstream, path, CRASH_PURGE="0.1") as (server, _):
            began = time.perf_counter()
            run.disturbed = runner.run(_windows(server, effort.windows, partial(_over, path)))
            run.purging = time.perf_counter() - began
        run.purged = effort.purged - _over(path)
    return run


# --- Servers


@contextlib.contextmanager
def _sqlite(
    upstream: Server, path: Path | None = None, **variables: str
) -> Iterator[tuple[Server, Path]]:
    with scratch() as own:
        path = path or own / "ledger.db"
        module = "tests.support.crashing" if variables else "steer_proxy"
        url = f"--database-url=sqlite:///{path}"
        with steer(own, upstream, url, module=module, variables=variables) as server:
            yield server, path


@contextlib.contextmanager
def _forgetful(upstream: Server) -> Iterator[Server]:
    with (
        scratch() as own,
        steer(own, upstream, "--database-url=memory:", module="bench.unlogged") as server,
    ):
        yield server


@contextlib.contextmanager
def _bare(upstream: Server) -> Iterator[Server]:
    with (
        scratch() as own,
        announced(own, "-m", "bench.bare", f"http://127.0.0.1:{upstream.port}") as server,
    ):
        yield server


@contextlib.contextmanager
def _postgres(upstream: Server) -> Iterator[Server]:
    from tests.support import postgres

    with scratch() as own, postgres.running(**_DURABLE) as database:
        url = database.url(database.migrated())
        with steer(own, upstream, f"--database-url={url}") as server:
            yield server


# --- Loads

_numbers = itertools.count(1)


def _keyed(key: str) -> bytes:
    line = f"\r\nIdempotency-Key: {key}\r\nContent-Length: ".encode()
    return JSON_CALL.replace(b"\r\nContent-Length: ", line, 1)


def _new_key() -> bytes:
    return _keyed(f"bench-{next(_numbers)}")


@contextlib.asynccontextmanager
async def _connected(server: Server) -> AsyncIterator[list[Connection]]:
    connections = await connect(server.port, CALLERS)
    try:
        await run_calls(connections, JSON_CALL, 2)
        yield connections
    finally:
        close(connections)


async def _round(
    server: Server, request: Request, calls: int, costs: Costs, *, before: Request | None = None
) -> None:
    """One round of calls; `before` is asked once, that there is something to replay."""
    async with _connected(server) as connections:
        if before is not None:
            await run_calls(connections[:1], before, 1)
        await asyncio.sleep(SETTLE)
        used, began = server.cpu(), time.perf_counter()
        load = await run_calls(connections, request, calls)
        took = time.perf_counter() - began
        await asyncio.sleep(SETTLE)
        costs.add(load, server.cpu() - used, took)


async def _compare_logging(effort: Effort, server: Server, other: Server, run: Run) -> None:
    """Both see the same calls, none with a key: a process that has served those is another one."""
    for number in range(effort.rounds + 1):
        # Whoever is first finds cold caches, once.
        into = run if number else Run()
        turns = [
            partial(_round, other, JSON_CALL, effort.calls, into.forgotten),
            partial(_round, server, JSON_CALL, effort.calls, into.logged),
        ]
        for turn in turns if number % 2 else turns[::-1]:
            await turn()


async def _compare_keys(effort: Effort, server: Server, bare: Server, run: Run) -> None:
    known = _keyed("bench-known")
    for number in range(effort.rounds + 1):
        into = run if number else Run()
        turns = [
            partial(_round, server, JSON_CALL, effort.calls, into.unkeyed),
            partial(_round, server, _new_key, effort.calls, into.keyed),
            partial(_round, server, known, effort.calls, into.replayed, before=known),
            partial(_round, bare, JSON_CALL, effort.calls, into.bare),
        ]
        for turn in turns if number % 2 else turns[::-1]:
            await turn()


async def _keyed_alone(effort: Effort, server: Server, bare: Server, run: Run) -> None:
    for number in range(effort.rounds + 1):
        into = run if number else Run()
        await _round(server, _new_key, effort.calls, into.keyed_postgres)
        await _round(bare, JSON_CALL, effort.calls, into.bare_again)


async def _full_and_empty(effort: Effort, empty: Server, full: Server, run: Run) -> None:
    for number in range(effort.rounds + 1):
        pairs = (
            (empty, run.keyed_empty, run.replayed_empty),
            (full, run.keyed_full, run.replayed_full),
        )
        for server, keyed, replayed in pairs if number % 2 else pairs[::-1]:
            known = _keyed(f"bench-known-{number}")
            # The first round warms up.
            claims, replays = (keyed, replayed) if number else (Costs(), Costs())
            await _round(server, _new_key, effort.calls, claims)
            await _round(server, known, effort.calls, replays, before=known)


async def _windows(server: Server, most: int, goes_on: Callable[[], object]) -> list[float]:
    """The slowest call of each window of time, for at most so many and while it goes on."""
    slowest: list[float] = []
    async with _connected(server) as connections:
        while len(slowest) < most and goes_on():
            load = await run_calls(connections, _new_key, int(WINDOW / INTERVAL), INTERVAL)
            slowest.append(max(load.seconds))
    return slowest


# --- A full ledger

#: As many copies of the rows of one keyed call as are asked for, each under an id and a key of its
#: own: UUIDs made of a number.
_COPY: Final = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)
INSERT INTO {table} ({columns}) SELECT {values} FROM {table}, n WHERE {id} = :id
"""
_ID: Final = "printf('00000000-0000-7000-8000-%012d', i)"
_CHANGED: Final = {
    "requests": {
        "id": _ID,
        "request_id": _ID,
        "idem_key": "'filled-' || i",
        "idem_scope": "printf('%064d', i)",
        "started_us": "started_us - i * 1000",
    },
    "attempts": {"request": _ID, "started_us": "started_us - i * 1000"},
    "response_chunks": {"request": _ID},
}


def _filled(upstream: Server, runner: asyncio.Runner, own: Path, effort: Effort) -> Path:
    """A ledger with so many calls, all with keys that are still kept."""
    path = own / "full.db"
    with _sqlite(upstream, path) as (server, _):

        async def once() -> None:
            connections = await connect(server.port, 1)
            await run_calls(connections, _keyed("bench-first"), 1)
            close(connections)

        runner.run(once())
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("PRAGMA synchronous = OFF")
        found = "SELECT id FROM requests WHERE idem_key = 'bench-first'"
        (name,) = opened.execute(found).fetchone()
        for table, changed in _CHANGED.items():
            columns = [row[1] for row in opened.execute(f"PRAGMA table_info({table})")]
            statement = _COPY.format(
                table=table,
                columns=", ".join(columns),
                values=", ".join(changed.get(column, column) for column in columns),
                id="id" if table == "requests" else "request",
            )
            opened.execute(statement, {"rows": effort.rows, "id": name})
    _write_back(path)
    return path


def _write_back(path: Path) -> None:
    """Have it on the disk now: the first call would wait for all of it."""
    with path.open("rb") as file:
        os.fsync(file)


#: Rows that were copied in, and are over: half of them keys that have expired, half of them calls
#: that are no longer live.
_AGE: Final = """
UPDATE requests SET started_us = 1, ended_us = 1, expires_us = 1,
    idem_live = CASE WHEN idem_key GLOB '*[02468]' THEN idem_live END
WHERE idem_key IN (SELECT idem_key FROM requests WHERE idem_key LIKE 'filled-%' LIMIT :rows)
"""


def _age(path: Path, rows: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        opened.execute(_AGE, {"rows": rows})
    _write_back(path)


_LEFT: Final = "SELECT count(*) FROM requests WHERE started_us = 1"


def _over(path: Path) -> int:
    """How many rows are left that are over."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
        (count,) = opened.execute(_LEFT).fetchone()
        return int(count)


# --- Report


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: a figure, what it is compared with, and the bound of the one or of their ratio."""

    what: str
    unit: str
    reference: float | None
    value: float
    ratio: float | None = None
    most_ratio: float | None = None
    most: float | None = None
    least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.most_ratio is not None:
            return self.ratio is not None and self.ratio <= self.most_ratio
        if self.most is not None:
            return self.value - (self.reference or 0.0) <= self.most
        return None if self.least is None else self.value >= self.least

    @property
    def target(self) -> str:
        """The bound in words."""
        if self.most_ratio is not None:
            return f"<= {self.most_ratio:g}x"
        if self.most is not None:
            return f"<= {self.most:g} {self.unit} more"
        return "" if self.least is None else f">= {self.least:,g} {self.unit}"


def figures(run: Run) -> list[Figure]:
    """The report's lines."""
    rows = f"{run.rows:,} rows"
    return [
        *_rates("keyed calls, SQLite", run.keyed, run.bare, 1000),
        *_rates("keyed calls, PostgreSQL", run.keyed_postgres, run.bare_again, 600),
        _cost("CPU per keyed call, beside an unkeyed one", run.unkeyed, run.keyed, 2.5),
        _cost("CPU per replay, beside an unkeyed call", run.unkeyed, run.replayed, 1.0),
        _cost("CPU per unkeyed call, beside one not logged", run.forgotten, run.logged, LOGGED),
        _time(f"time per keyed call, {rows}, beside none", run.keyed_empty, run.keyed_full, 2.0),
        _time(f"time per replay, {rows}, beside none", run.replayed_empty, run.replayed_full, 2.0),
        Figure(
            f"slowest call of {WINDOW:g} s, median, while rows are purged, beside none",
            "ms",
            statistics.median(run.undisturbed) * _MILLI,
            statistics.median(run.disturbed) * _MILLI,
            most=50.0,
        ),
        Figure(
            f"purged under load, {run.purged:,} of {run.over:,} rows",
            "rows/s",
            None,
            run.purged / run.purging,
        ),
    ]


def _rates(what: str, costs: Costs, bare: Costs, least: float) -> list[Figure]:
    """What the machine does, and what tells how fast it is while it does that."""
    # Of the best rounds: what else runs on the machine only ever makes it slower.
    return [
        Figure(what, "calls/s", None, 1 / min(costs.wall), least=least),
        Figure("CPU per call of the pass-through meanwhile", "µs", None, min(bare.cpu) * _MICRO),
    ]


def _cost(what: str, reference: Costs, costs: Costs, most: float) -> Figure:
    return _ratio(what, reference.cpu, costs.cpu, most)


def _time(what: str, reference: Costs, costs: Costs, most: float) -> Figure:
    return _ratio(what, reference.wall, costs.wall, most)


def _ratio(what: str, theirs: list[float], ours: list[float], most: float) -> Figure:
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    reference, value = statistics.median(theirs) * _MICRO, statistics.median(ours) * _MICRO
    return Figure(what, "µs", reference, value, ratio, most_ratio=most)


def show(lines: list[Figure]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ledger")
    for name in ("beside", "Steer", "unit", "ratio", "target"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    table.add_column("")
    for each in lines:
        table.add_row(
            each.what,
            "" if each.reference is None else short(each.reference),
            short(each.value),
            each.unit,
            "" if each.ratio is None else f"{each.ratio:.2f}x",
            each.target,
            {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[each.met],
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\n{CALLERS} callers at once; the purge beside {CALLERS / INTERVAL:g} keyed calls/s. "
        "SQLite: synchronous=FULL. PostgreSQL: with fsync, on this machine, one sidecar.",
        style="dim",
    )
