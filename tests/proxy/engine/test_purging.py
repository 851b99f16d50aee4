"""Purging: in slices, with rests, on and on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from steer_proxy.engine.config import LedgerTerms
from steer_proxy.engine.purging import AT_ONCE, EVERY, REST, SHORTEST_REST, SLICE, SMALLEST
from steer_proxy.ledger.values import MICROSECONDS, Purge, Purged
from tests.support.books import Books, a_call, keeping


def script(books: Books, took: float, slices: int) -> list[tuple[float, Purge]]:
    """Let the ledger have so many slices to remove, each in so many seconds; when it was asked."""
    asked: list[tuple[float, Purge]] = []
    now = asyncio.get_running_loop().time
    more: Iterator[bool] = iter([True] * (slices - 1))

    async def purge(purge: Purge) -> Purged:
        asked.append((now(), purge))
        await asyncio.sleep(took)
        return Purged(requests=3, attempts=4, chunks=2, events=1, more=next(more, False))

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


@pytest.mark.parametrize("took", [0.001, 0.004, 0.02, 0.5])
async def test_the_writer_is_busy_with_it_for_a_tenth_of_the_time(took: float) -> None:
    """Each slice is followed by a rest nine times as long, and by a short one at least."""
    async with keeping() as books:
        asked = script(books, took, 50)
        await asyncio.sleep(1.5 * EVERY)
        await asyncio.sleep(50 * took * (1 + REST))
        times = [at for at, _ in asked[:50]]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(times) == 50
        assert min(gaps) == pytest.approx(took + max(SHORTEST_REST, REST * took), rel=0.01)
        assert took / (sum(gaps) / len(gaps)) <= 0.11


@pytest.mark.parametrize(
    ("took", "limits"),
    [
        (AT_ONCE / 2, [SLICE] * 8),
        (AT_ONCE * 2, [SLICE, 100, 50, 25, 12, SMALLEST, SMALLEST, SMALLEST]),
    ],
)
async def test_slices_that_take_too_long_get_smaller(took: float, limits: list[int]) -> None:
    """Five milliseconds at once; and the next sweep begins anew."""
    async with keeping() as books:
        asked = script(books, took, 8)
        await asyncio.sleep(1.5 * EVERY)
        assert [purge.limit for _, purge in asked] == limits


async def test_slices_grow_again() -> None:
    """One that was slow by chance does not make the purge slow for good."""
    async with keeping() as books:
        slow = iter([0.02, 0.02])
        asked = script(books, 0.0, 30)
        inner = books.memory.purge

        async def sometimes(purge: Purge) -> Purged:
            await asyncio.sleep(next(slow, 0.0))
            return await inner(purge)

        books.memory.purge = sometimes  # type: ignore[method-assign]
        await asyncio.sleep(1.5 * EVERY)
        assert [wish.limit for _, wish in asked][:6] == [200, 100, 50, 60, 70, 80]
        assert asked[-1][1].limit == SLICE


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
