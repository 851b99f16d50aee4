"""Slots: bounded, fair, and never lost."""

from __future__ import annotations

import asyncio

import pytest

from steer_policies.config import ConcurrencyLimit
from steer_proxy.engine.slots import QueueFull, QueueTimeout, Slots


def slots(limit: int, queue: int) -> Slots:
    """Slots of that size."""
    return Slots(ConcurrencyLimit(limit=limit, queue=queue))


async def test_free_slots_are_given_at_once() -> None:
    """No waiting while there are any."""
    some = slots(2, 0)
    await some.acquire(0)
    await some.acquire(0)
    assert some.busy == 2


async def test_no_room_in_the_queue_is_told_at_once() -> None:
    """More waiters than allowed are refused without waiting."""
    some = slots(1, 0)
    await some.acquire(0)
    with pytest.raises(QueueFull):
        await some.acquire(10)


async def test_waiting_is_bounded() -> None:
    """A waiter gives up after its time, and leaves the queue."""
    some = slots(1, 1)
    await some.acquire(0)
    began = asyncio.get_running_loop().time()
    with pytest.raises(QueueTimeout):
        await some.acquire(3)
    assert 3 <= asyncio.get_running_loop().time() - began < 3.1
    assert some.waiting == 0


async def test_who_waits_longest_is_served_first() -> None:
    """First come, first served; a newcomer does not overtake."""
    some = slots(1, 5)
    await some.acquire(0)
    order: list[int] = []

    async def worker(number: int) -> None:
        await some.acquire(60)
        order.append(number)
        await asyncio.sleep(1)
        some.release()

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(worker(number))
        await asyncio.sleep(0)
        assert not some.try_acquire()
        some.release()
    assert order == [0, 1, 2, 3]
    assert some.busy == 0


async def test_a_cancelled_waiter_loses_nothing() -> None:
    """A slot handed over in the instant of cancellation goes to the next in line."""
    some = slots(1, 5)
    await some.acquire(0)
    first = asyncio.create_task(some.acquire(60))
    second = asyncio.create_task(some.acquire(60))
    await asyncio.sleep(0)
    some.release()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert some.busy == 1
    some.release()
    assert some.busy == 0
    assert some.waiting == 0


async def test_a_waiter_cancelled_before_its_turn_is_skipped() -> None:
    """Its place in the queue is simply gone."""
    some = slots(1, 5)
    await some.acquire(0)
    first = asyncio.create_task(some.acquire(60))
    second = asyncio.create_task(some.acquire(60))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    some.release()
    await second
    some.release()
    assert some.busy == 0
