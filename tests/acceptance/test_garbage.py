"""What a call held is free when it is over: nothing waits for Python's collector of cycles.

Else bodies and answers would stay for thousands of calls, and the collector would stop the process
for a quarter of a second to find them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_keyed import drop, key
from tests.provider import faults
from tests.provider.steps import Pause
from tests.support.world import World, world

Act = Callable[[World], Awaitable[object]]

#: Calls of each kind: what is left behind once may be a cache's.
CALLS = 3


@contextlib.contextmanager
def collected() -> Iterator[Counter[str]]:
    """What of ours only the collector could free, by type, known at the end."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
    finally:
        gc.set_debug(0)
        kinds = [type(each) for each in gc.garbage]
        gc.garbage.clear()
        found.update(kind.__name__ for kind in kinds if kind.__module__.startswith("steer_"))


async def plain(parties: World) -> None:
    """A call and a stream without a key."""
    assert (await parties.ask()).status == 200
    assert (await parties.ask(stream=True)).status == 200


async def keyed(parties: World) -> None:
    """A call and a stream with keys, and their replays."""
    name = f"k-{len(parties.primary.attempts)}"
    for stream in (False, True):
        for said in ("new", "replayed"):
            reply = await parties.ask(stream=stream, headers=key(f"{name}-{stream}"))
            assert reply.headers["Idempotency-Status"] == said


async def joined(parties: World) -> None:
    """Duplicates of a running call, one with another body."""
    parties.primary.then(faults.silence(1.0))
    headers = key(f"j-{len(parties.primary.attempts)}")
    replies = await asyncio.gather(
        parties.ask(headers=headers),
        parties.ask(headers=headers),
        parties.ask(headers=headers, temperature=1),
    )
    assert sorted(reply.status for reply in replies) == [200, 200, 422]


async def failing(parties: World) -> None:
    """A call that is tried again, and one that cannot be, each with a key and without."""
    number = len(parties.primary.attempts)
    for again, refused in (({}, {}), (key(f"again-{number}"), key(f"refused-{number}"))):
        parties.primary.then(faults.overloaded())
        assert (await parties.ask(headers=again)).status == 200
        parties.primary.then(faults.context_length_exceeded())
        assert (await parties.ask(headers=refused)).status == 400


async def uncertain(parties: World) -> None:
    """A call with a key that breaks off in the middle, and another try."""
    headers = key(f"u-{len(parties.primary.attempts)}")
    parties.primary.then(faults.cut_after(bytes=20))
    assert (await parties.ask(headers=headers)).status == 504
    assert (await parties.ask(headers=headers)).status == 409


async def broken(parties: World) -> None:
    """Upstreams that hang up, fall silent or stop in the middle of a stream."""
    for fault in (faults.reset_before_answer(), faults.silence()):
        parties.primary.then(fault)
        await parties.ask(headers={"x-stainless-read-timeout": "3"})
    parties.primary.then(faults.cut_after(events=2))
    assert (await parties.ask(stream=True)).status == 200


async def left(parties: World) -> None:
    """A stream whose caller hangs up, with a key."""
    parties.primary.then(faults.at_event(2, Pause(1.0)))
    headers = key(f"l-{len(parties.primary.attempts)}")
    await drop(parties, 1, headers)
    assert (await parties.ask(stream=True, headers=headers)).status == 200


@pytest.mark.parametrize("act", [plain, keyed, joined, failing, uncertain, broken, left])
async def test_nothing_waits_for_the_collector(tmp_path: Path, act: Act) -> None:
    """However a call ends."""
    async with world(tmp_path) as parties:
        await act(parties)  # what is made once
        with collected() as found:
            for _ in range(CALLS):
                await act(parties)
        assert found == {}
