from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from steer_proxy.ledger import batcher
from steer_proxy.ledger.batcher import MAX_BATCH, Batcher, Outcome, Work
from steer_proxy.ledger.protocol import STATEMENT_TIMEOUT, LedgerUnavailable
from tests.support.virtual_time import VirtualTimeLoop


class Recorder:
    """Does batches, and says what they were; `gate` holds them up."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch: Sequence[Work]) -> Sequence[Outcome]:
        assert self.gate.wait(10)
        self.batches.append([work.arguments[0] for work in batch])
        return [Outcome(work.function(*work.arguments)) for work in batch]


def same(value: int) -> int:
    return value


async def test_what_queues_at_once_goes_as_one_batch() -> None:
    """And each caller gets its own value."""
    recorder = Recorder()
    work = Batcher("test", recorder)
    assert await asyncio.gather(*(work.run(same, n) for n in range(20))) == list(range(20))
    assert recorder.batches == [list(range(20))]
    await work.close(lambda: None)


@pytest.mark.real_time
async def test_what_queues_during_a_batch_is_the_next() -> None:
    """Nothing waits for a timer, and nothing overtakes."""
    recorder = Recorder()
    work = Batcher("test", recorder)
    recorder.gate.clear()
    first = asyncio.ensure_future(work.run(same, 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.ensure_future(work.run(same, n)) for n in range(1, 4)]
    await asyncio.sleep(0)
    recorder.gate.set()
    assert await asyncio.gather(first, *rest) == [0, 1, 2, 3]
    assert recorder.batches == [[0], [1, 2, 3]]
    await work.close(lambda: None)


@pytest.mark.real_time
async def test_who_gave_up_in_time_is_left_out() -> None:
    """Work that the thread does not have yet is taken back."""
    recorder = Recorder()
    work = Batcher("test", recorder)
    recorder.gate.clear()
    first = asyncio.ensure_future(work.run(same, 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second, third = (asyncio.ensure_future(work.run(same, n)) for n in (1, 2))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    recorder.gate.set()
    assert await third == 2
    assert first.cancelled()
    assert second.cancelled()
    assert recorder.batches == [[0], [2]]
    await work.close(lambda: None)


async def test_a_batch_is_bounded() -> None:
    """What is too much for one goes with the next."""
    recorder = Recorder()
    work = Batcher("test", recorder)
    await asyncio.gather(*(work.run(same, n) for n in range(MAX_BATCH + 5)))
    assert [len(batch) for batch in recorder.batches] == [MAX_BATCH, 5]
    await work.close(lambda: None)


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More is refused at once."""
    monkeypatch.setattr(batcher, "MAX_QUEUE", 30)
    work = Batcher("test", Recorder())
    waiting = [asyncio.ensure_future(work.run(same, n)) for n in range(30)]
    late = asyncio.ensure_future(work.run(same, -1))
    with pytest.raises(LedgerUnavailable, match="wait for the database"):
        await late
    assert await asyncio.gather(*waiting) == list(range(30))
    await work.close(lambda: None)


@pytest.mark.real_time
async def test_nobody_waits_longer_than_a_statement_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that hangs makes the ledger unavailable; closing does not wait for ever either."""
    monkeypatch.setattr(batcher, "STATEMENT_TIMEOUT", 0.05)
    recorder = Recorder()
    work = Batcher("test", recorder)
    recorder.gate.clear()
    with pytest.raises(LedgerUnavailable, match=r"within 0\.02 s"):
        await work.run(same, 0, timeout=0.02)
    await work.close(lambda: None)
    recorder.gate.set()
    assert STATEMENT_TIMEOUT > 1


async def test_what_was_done_while_nobody_looked() -> None:
    """A process that was stopped finds its time over and the work done: it counts."""
    done = threading.Event()

    def apply(batch: Sequence[Work]) -> Sequence[Outcome]:
        done.set()
        return [Outcome(work.function(*work.arguments)) for work in batch]

    work = Batcher("test", apply)
    waiting = asyncio.ensure_future(work.run(same, 7))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert done.wait(10)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.advance(10 * STATEMENT_TIMEOUT)
    assert await waiting == 7
    await work.close(lambda: None)


@pytest.mark.real_time
async def test_what_hangs_is_let_go_of_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits no longer; the last thing is done all the same, and who queued is told."""
    monkeypatch.setattr(batcher, "STATEMENT_TIMEOUT", 0.05)
    recorder, last = Recorder(), threading.Event()
    work = Batcher("test", recorder)
    recorder.gate.clear()
    first = asyncio.ensure_future(work.run(same, 0, timeout=30))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.ensure_future(work.run(same, 1, timeout=30))
    await asyncio.sleep(0)
    await work.close(last.set)
    assert not last.is_set()
    recorder.gate.set()
    assert await first == 0
    with pytest.raises(LedgerUnavailable, match="closed"):
        await second
    assert await asyncio.to_thread(last.wait, 10)


async def test_a_batch_that_fails_fails_for_everybody_in_it() -> None:
    """A defect of the batch's own code reaches who waits."""

    def broken(_: Sequence[Work]) -> Sequence[Outcome]:
        raise ZeroDivisionError

    work = Batcher("test", broken)
    results = await asyncio.gather(work.run(same, 1), work.run(same, 2), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2
    await work.close(lambda: None)


async def test_closing_does_what_is_queued_and_then_the_last() -> None:
    """Afterwards it takes nothing, and closing it again does nothing."""
    recorder = Recorder()
    work = Batcher("test", recorder)
    waiting = [asyncio.ensure_future(work.run(same, n)) for n in range(3)]
    await asyncio.sleep(0)
    last: list[int] = []
    await work.close(lambda: last.append(len(recorder.batches)))
    await work.close(lambda: last.append(-1))
    assert await asyncio.gather(*waiting) == [0, 1, 2]
    assert last == [1]
    with pytest.raises(LedgerUnavailable, match="closed"):
        await work.run(same, 4)
