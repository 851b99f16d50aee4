"""Waiting for a task that may outlast the wait."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def result_by(task: asyncio.Task[T], deadline: float) -> T | None:
    """A task's result, or None when the loop time `deadline` comes first. The task is left alone
    in any case, also when this is cancelled."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    timer = loop.call_at(deadline, wake)
    try:
        if not task.done():
            await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(wake)
    return task.result() if task.done() else None
