"""Purging: in slices, with rests, on and on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from steer_proxy.engine.config import LedgerTerms
from steer_proxy.engine.purging import (
    AT_ONCE,
    BEHIND,
    EVERY,
    HURRY,
    REST,
    SHORTEST_REST,
    SLICE,
    SMALLEST,
    Pace,
)
from steer_proxy.ledger.values import MICROSECONDS, Purge, Purged
from tests.support.books import Books, a_call, keeping


def script(
    books: Books, busy: float, slices: int, queued: float = 0.0
) -> list[tuple[float, Purge]]:
    """Let the ledger have so many slices to remove, each keeping it busy for so many seconds after
    waiting for so many; when it was asked."""
    asked: list[tuple[float, Purge]] = []
    now = asyncio.get_running_loop().time
    more: Iterator[bool] = iter([True] * (slices - 1))

    async def purge(purge: Purge) -> Purged:
        asked.append((now(), purge))
        await asyncio.sleep(queued + busy)
        return Purged(requests=3, attempts=4, chunks=2, events=1, more=next(more, False), busy=busy)

    books.memory.purge = purge  # type: ignore[method-assign]
    return asked


async def test_once_a_minute() -> None:
    """What ended before the retention, and answers beyond the bound."""
    async with keeping(LedgerTerms(retention=1000.0, max_bytes=77)) as books:
        asked = script(books, 0.0, 1)
        began = books.clock.now()
        wall = books.clock.wall()
        await asyncio.sleep(10 * EVERY + 1)
        assert [round(at - began) for at, _ in asked] == [round(EVERY * n) for n in range(1, 11)]
        assert asked[0][1].max_bytes == 77
        assert asked[0][1].before_us == pytest.approx(
            (wall + EVERY - 1000.0) * MICROSECONDS, abs=MICROSECONDS
        )


@pytest.mark.parametrize("busy", [0.001, 0.004, 0.02, 0.1])
async def test_the_writer_is_busy_with_it_for_a_fifth_of_the_time(busy: float) -> None:
    """Each slice is followed by a rest four times as long, and by a short one at least."""
    async with keeping() as books:
        asked = script(books, busy, 50)
        await asyncio.sleep(1.5 * EVERY)
        await asyncio.sleep(50 * busy * (1 + REST))
        times = [at for at, _ in asked[:50]]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(times) == 50
        assert min(gaps) == pytest.approx(busy + max(SHORTEST_REST, REST * busy), rel=0.01)
        assert busy / (sum(gaps) / len(gaps)) <= 0.21


async def test_waiting_for_its_turn_does_not_slow_it_down() -> None:
    """Under load the ledger's queue and its disk take their time; a slice is no smaller for that,
    and what comes in meanwhile does not get ahead of it."""
    async with keeping() as books:
        asked = script(books, 0.001, 200, queued=0.03)
        await asyncio.sleep(1.5 * EVERY)
        assert {purge.limit for _, purge in asked} == {SLICE}
        seconds = asked[-1][0] - asked[0][0]
        assert len(asked) == 200
        assert SLICE * len(asked) / seconds > 1_000


async def test_a_sweep_that_does_not_end_hurries() -> None:
    """What comes in faster than it is removed would otherwise be there for ever."""
    async with keeping() as books:
        asked = script(books, 0.1, 100_000)
        await asyncio.sleep(EVERY + BEHIND + 5)
        times = [at for at, _ in asked]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        calm = [gap for at, gap in zip(times, gaps, strict=False) if at < times[0] + BEHIND - 1]
        late = [gap for at, gap in zip(times, gaps, strict=False) if at > times[0] + BEHIND + 1]
        assert min(calm) == pytest.approx(0.1 + REST * 0.1)
        assert max(late) == pytest.approx(0.1 + REST * 0.1 / HURRY)


async def test_the_next_sweep_is_calm_again() -> None:
    """It is the sweep that falls behind, not the process."""
    async with keeping() as books:
        script(books, 0.1, 300)
        await asyncio.sleep(EVERY + BEHIND + 30)
        asked = script(books, 0.1, 10)
        await asyncio.sleep(2 * EVERY)
        gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(asked[:10])]
        assert len(gaps) == 9
        assert min(gaps) == pytest.approx(0.1 + REST * 0.1)


@pytest.mark.parametrize(
    ("busy", "limits"),
    [
        (AT_ONCE / 2, [SLICE] * 6),
        (AT_ONCE * 2, [SLICE, 32, 16, SMALLEST, SMALLEST, SMALLEST]),
    ],
)
async def test_slices_that_take_too_long_get_smaller(busy: float, limits: list[int]) -> None:
    """Three milliseconds at once; and the next sweep begins anew."""
    async with keeping() as books:
        await asyncio.sleep(EVERY / 2)
        for _ in range(2):
            asked = script(books, busy, 6)
            await asyncio.sleep(EVERY)
            assert [purge.limit for _, purge in asked[:6]] == limits


def test_slices_grow_again() -> None:
    """One that was slow by chance does not make the purge slow for good."""
    pace = Pace(shared=False)
    limits = []
    for busy in (0.02, 0.02, *[0.001] * 8):
        pace.rest(busy)
        limits.append(pace.limit)
    assert limits == [32, 16, 24, 32, 40, 48, 56, SLICE, SLICE, SLICE]


def test_a_shared_ledger_is_kept_busy_longer_at_once() -> None:
    """Nobody waits for a slice there, and small ones would not keep up."""
    pace = Pace(shared=True)
    assert pace.rest(0.018) == pytest.approx(0.018 * REST)
    assert pace.limit == SLICE
    assert pace.rest(0.021) == pytest.approx(0.021 * REST)
    assert pace.limit == SLICE // 2


async def test_it_really_removes() -> None:
    """With the twin of the databases: old rows go, new ones stay."""
    async with keeping(LedgerTerms(retention=1000.0)) as books:
        wall = int(books.clock.wall() * MICROSECONDS)
        for index in range(450):
            books.keeper.log(a_call(f"old {index:03}", started_us=wall, ended_us=wall))
        late = wall + 1000 * MICROSECONDS
        books.keeper.log(a_call("new", started_us=late, ended_us=late))
        await asyncio.sleep(1000.0 - EVERY)
        assert len(books.calls) == 451
        await asyncio.sleep(3 * EVERY)
        assert books.calls == ["new"]
        assert books.ledger.called["purge"] >= 451 / SLICE


@pytest.mark.parametrize("bug", [False, True])
async def test_a_sweep_that_fails(bug: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The next one is made."""
    caplog.set_level("DEBUG")
    async with keeping() as books:

        def fault() -> None:
            if bug:
                raise ZeroDivisionError

        books.ledger.before("purge", fault)
        if not bug:
            books.ledger.fail("purge")
        await asyncio.sleep(3.5 * EVERY)
        assert books.ledger.called["purge"] == 3
        said = "purging the ledger failed" if bug else "could not be purged now: the test says so"
        assert any(said in text for text in caplog.messages)
        books.ledger.before("purge", None)
        books.ledger.up()
        asked = script(books, 0.0, 1)
        await asyncio.sleep(EVERY)
        assert len(asked) == 1
