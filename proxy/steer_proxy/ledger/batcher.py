"""Work for one thread, handed over in batches.

Whenever the thread is idle, all that waits goes over at once: a batch is what queued during the
last one. There is no timer, and one hop between threads serves many callers. A database that pays
for each commit (an fsync) or each hop is kept busy with few of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from steer_proxy.lateness import after_a_look, is_late
from steer_proxy.ledger.protocol import STATEMENT_TIMEOUT, LedgerUnavailable

#: The largest batch: it bounds how long one takes.
MAX_BATCH: Final = 512
#: How much may wait: many times what a disk that works keeps waiting.
MAX_QUEUE: Final = 8192

_T = TypeVar("_T")


class Work(NamedTuple):
    """A function to be called in the thread: with what the batch works on, then `arguments`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    atomic: bool
    """Whether it undoes itself when it fails, being one statement."""
    durable: bool = True
    """Whether it must be on disk when its outcome is told."""


class Outcome(NamedTuple):
    """What became of one piece of work: its value, or its error."""

    value: Any = None
    error: BaseException | None = None


#: Does a batch in the thread; an outcome for each piece of work, in order.
Apply = Callable[[Sequence[Work]], Sequence[Outcome]]


class Batcher:
    """Queues work and hands it to a thread of its own, batch by batch.

    Whoever gives up waiting takes their work back, unless the thread has it already.
    """

    def __init__(self, name: str, apply: Apply) -> None:
        self._name = name
        self._apply = apply
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"steer-{name}")
        self._queue: deque[tuple[asyncio.Future[Any], Work]] = deque()
        self._busy = False
        self._closed = False
        self._idle: asyncio.Event | None = None
        self._ended = False

    async def run(
        self,
        function: Callable[..., _T],
        *arguments: Any,
        atomic: bool = True,
        durable: bool = True,
        timeout: float = STATEMENT_TIMEOUT,
    ) -> _T:
        """Have `function` called, and wait for what it returns, at most `timeout` seconds.

        Raises:
            LedgerUnavailable: the queue is full, or it took too long, or the batch failed.
        """
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        if len(self._queue) >= MAX_QUEUE:
            raise LedgerUnavailable(f"{MAX_QUEUE} operations wait for the database already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._queue.append((future, Work(function, arguments, atomic, durable)))
        if not self._busy:
            # Not at once: whoever else is about to queue in this turn of the loop comes along.
            self._busy = True
            loop.call_soon(self._next, loop)
        # A timer by hand: `asyncio.timeout` costs as much as the rest of this function.
        due = loop.time() + timeout
        timer = loop.call_at(due, _overdue, loop, due, future, timeout)
        try:
            return await future
        finally:
            timer.cancel()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over what waits, if anything does."""
        if self._ended:
            for future, _ in self._queue:
                if not future.done():
                    future.set_exception(LedgerUnavailable("the ledger was closed"))
            self._queue.clear()
        batch: list[tuple[asyncio.Future[Any], Work]] = []
        while self._queue and len(batch) < MAX_BATCH:
            entry = self._queue.popleft()
            if not entry[0].done():  # else its caller has given up
                batch.append(entry)
        if not batch:
            self._busy = False
            if self._idle is not None:
                self._idle.set()
            return
        done = loop.run_in_executor(self._thread, self._apply, [work for _, work in batch])
        done.add_done_callback(lambda done: self._done(loop, batch, done))

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[asyncio.Future[Any], Work]],
        done: asyncio.Future[Sequence[Outcome]],
    ) -> None:
        outcomes: Sequence[Outcome]
        if done.cancelled():
            outcomes = [Outcome(error=LedgerUnavailable("the ledger was closed"))] * len(batch)
        elif (error := done.exception()) is not None:
            outcomes = [Outcome(error=error)] * len(batch)
        else:
            outcomes = done.result()
        for (future, _), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if outcome.error is None:
                future.set_result(outcome.value)
            else:
                future.set_exception(outcome.error)
        self._next(loop)

    async def close(self, last: Callable[[], None]) -> None:
        """Do what is queued, call `last` in the thread, and end it; all within bounds.

        `last` is called in any case: where the thread hangs, as soon as it comes back.
        """
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT):
                if self._busy:
                    self._idle = asyncio.Event()
                    await self._idle.wait()
                self._ended = True
                # Shielded: whoever waits no longer does not take it back.
                await asyncio.shield(loop.run_in_executor(self._thread, last))
        except TimeoutError:
            pass  # it hangs: what it holds it lets go of when it goes on, or with the process
        finally:
            if not self._ended:
                self._ended = True
                self._thread.submit(last)
            self._thread.shutdown(wait=False)


def _overdue(
    loop: asyncio.AbstractEventLoop, due: float, future: asyncio.Future[Any], timeout: float
) -> None:
    if is_late(loop, due):  # and the thread may have been done long before
        after_a_look(loop, _expire, future, timeout)
    else:
        _expire(future, timeout)


def _expire(future: asyncio.Future[Any], timeout: float) -> None:
    if not future.done():
        future.set_exception(LedgerUnavailable(f"the database did not answer within {timeout:g} s"))
