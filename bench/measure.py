"""The measurements themselves: the same load on both proxies, in turns, several rounds."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.client import Load, LoadError, close, connect, hold_streams, run_calls
from bench.payload import JSON_CALL, STREAM_CALL
from bench.processes import Server, announced, steer

#: Chunks in a stream, the pause before each in seconds, and how many streams run at once.
CHUNKS: Final = 100
PACE: Final = 0.01
STREAMS: Final = 100

#: Streams held open to see what each takes, and the pause before each chunk of theirs. All of it is
#: also the wait for the first token, in which a proxy holds most.
HELD: Final = 1000
HELD_PACE: Final = 1.0

#: Callers at once under load, and how often each calls where latency is measured: far below what
#: the machine can do, or it would be the queue that is measured.
TOGETHER: Final = 32
INTERVAL: Final = 0.1

#: Time a server gets to finish what it was doing before its meters are read, in seconds.
SETTLE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    `starts` is how often each server is started; the first `generations` of each are put under
    load, for `rounds` rounds. `holds` is how often open streams are counted; the rest are calls per
    connection and round.
    """

    starts: int
    generations: int
    rounds: int
    holds: int
    alone: int
    together: int
    paced: int


FULL: Final = Effort(starts=5, generations=3, rounds=3, holds=2, alone=250, together=80, paced=10)
QUICK: Final = Effort(starts=2, generations=2, rounds=1, holds=1, alone=150, together=40, paced=6)


@dataclass(slots=True)
class Samples:
    """What was measured of one server in each round: seconds and bytes, latencies of each call."""

    start: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    call_alone: list[float] = field(default_factory=list)
    call_together: list[float] = field(default_factory=list)
    chunk: list[float] = field(default_factory=list)
    latency_alone: list[list[float]] = field(default_factory=list)
    latency_together: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Run:
    """All samples of a run: the provider called directly, the bare pass-through, and Steer."""

    direct: Samples
    bare: Samples
    steer: Samples


Start = Callable[[Path, Server], contextlib.AbstractContextManager[Server]]


def measure(effort: Effort, say: Callable[[str], None]) -> Run:
    """Run everything; `say` is told what is under way."""
    run = Run(Samples(), Samples(), Samples())
    parties: tuple[tuple[Start, Samples], ...] = ((_bare, run.bare), (steer, run.steer))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with provider(PACE) as wall:
            for number in range(effort.starts):
                say(f"start {number + 1} of {effort.starts}")
                with contextlib.ExitStack() as stack:
                    running = []
                    for start, samples in parties:
                        server = stack.enter_context(_started(start, wall))
                        samples.start.append(server.started_in)
                        runner.run(asyncio.sleep(0.2))
                        samples.idle.append(server.memory())
                        running.append((server, samples))
                    # Where things happen to lie in memory makes one process faster than its twin
                    # by some percent: hence several of each.
                    if number < effort.generations:
                        runner.run(_rounds(effort, wall, running, run.direct))
        with provider(HELD_PACE) as wall:
            for number in range(effort.holds):
                say(f"{HELD} open streams, {number + 1} of {effort.holds}")
                for start, samples in parties:
                    with _started(start, wall) as server:
                        samples.held.append(runner.run(_memory_per_stream(server)))
    return run


# --- Servers


def _bare(folder: Path, wall: Server) -> contextlib.AbstractContextManager[Server]:
    return announced(folder, "-m", "bench.bare", f"http://127.0.0.1:{wall.port}")


@contextlib.contextmanager
def _started(start: Start, wall: Server) -> Iterator[Server]:
    """A server in a folder of its own, for its configuration, database and log."""
    with scratch() as folder, start(folder, wall) as server:
        yield server


@contextlib.contextmanager
def provider(pace: float) -> Iterator[Server]:
    """The provider: the one the tests use, in good health."""
    options = ("-m", "tests.provider", "--pace", str(pace), "--events", str(CHUNKS))
    with scratch() as folder, announced(folder, *options) as server:
        yield server


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="steer-bench-") as name:
        yield Path(name)


# --- Loads


async def _rounds(
    effort: Effort, wall: Server, running: list[tuple[Server, Samples]], direct: Samples
) -> None:
    expected = await _answers(wall)
    for server, _ in running:
        if await _answers(server) != expected:
            raise LoadError("an answer through a proxy is not the provider's")
    parties = [(wall, direct), *running]
    for _ in range(effort.rounds):
        for server, samples in parties:
            load, used = await _calls(server, 1, effort.alone)
            samples.call_alone.append(used / effort.alone)
            samples.latency_alone.append(load.seconds)
        for server, samples in parties:
            load, _ = await _calls(server, TOGETHER, effort.paced, INTERVAL)
            samples.latency_together.append(load.seconds)
        for server, samples in parties[1:]:
            load, used = await _calls(server, TOGETHER, effort.together)
            samples.call_together.append(used / len(load.seconds))
        for server, samples in parties[1:]:
            samples.chunk.append(await _streams(server) / (STREAMS * CHUNKS))
        # Who goes second finds warmer caches: let everyone be second as often.
        parties[1:] = parties[:0:-1]


async def _answers(server: Server) -> tuple[bytes, bytes]:
    """The body of each kind of call; makes them a few times, so that everything is warm."""
    async with _connected(server, TOGETHER) as connections:
        plain = await run_calls(connections, JSON_CALL, 20)
        streamed = await run_calls(connections, STREAM_CALL, 1)
    return plain.body, streamed.body


async def _calls(
    server: Server, connections: int, each: int, interval: float = 0.0
) -> tuple[Load, float]:
    """JSON calls, and the processor seconds the server needed for them."""
    async with _connected(server, connections) as opened:
        return await _costing(server, partial(run_calls, opened, JSON_CALL, each, interval))


async def _streams(server: Server) -> float:
    """Processor seconds for `STREAMS` streams at once."""
    async with _connected(server, STREAMS) as opened:
        _, used = await _costing(server, partial(run_calls, opened, STREAM_CALL, 1))
        return used


async def _memory_per_stream(server: Server) -> float:
    """Bytes that each further open stream takes."""
    async with _connected(server, 20) as few:
        await hold_streams(few, STREAM_CALL)
        before = server.memory()
        async with _connected(server, HELD, warm=False) as many:
            await hold_streams(many, STREAM_CALL)
            await asyncio.sleep(1.0)
            return (server.memory() - before) / HELD


async def _costing(server: Server, work: Callable[[], Awaitable[Load]]) -> tuple[Load, float]:
    """The work's result, and the processor seconds the server needed for it."""
    await asyncio.sleep(SETTLE)
    before = server.cpu()
    load = await work()
    await asyncio.sleep(SETTLE)
    return load, server.cpu() - before


@contextlib.asynccontextmanager
async def _connected(server: Server, count: int, *, warm: bool = True) -> Any:
    """Connections, each used once before, so that the server's own pool is filled, too."""
    connections = await connect(server.port, count)
    try:
        if warm:
            await run_calls(connections, JSON_CALL, 1)
        yield connections
    finally:
        close(connections)
