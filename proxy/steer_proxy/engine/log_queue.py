"""The log's queue: rows wait here, bounded, until they are written together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from steer_proxy.engine.clock import Clock
from steer_proxy.engine.trouble import LOGGER, Reach, Seldom
from steer_proxy.ledger.protocol import (
    Ledger,
    LedgerRefused,
    LedgerUnavailable,
    LedgerUnusable,
)
from steer_proxy.ledger.values import AttemptRow, Batch, BreakerEventRow, CallRow

#: So many waiting rows are written at once: a larger batch costs each row less of the disk and of
#: the interpreter's lock (10 us for a call with its attempt, where 256 take 11), but keeps keyed
#: calls waiting for longer.
FULL: Final = 512

#: The first row that waits is written after this many seconds at the latest.
DELAY: Final = 0.25

#: The most rows of one batch, and what that shrinks to while batches fail: a slow disk may need
#: longer for a large one than a statement may take.
BATCH: Final = 1_000
SMALL_BATCH: Final = 50

#: So many calls are made rows of at once: what is seldom run has left the processor's caches when
#: it is run again, and that costs more than what it does. Few enough not to keep others waiting.
TOGETHER: Final = 16

#: While the ledger is away: the pause before the next attempt, in seconds, and what it grows to.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 5.0


class Attempted(NamedTuple):
    """A call with rows for its attempts, which are written together; `row` is None where the call's
    own is written by its claim."""

    row: CallRow | None
    attempts: Sequence[AttemptRow]


Item = CallRow | BreakerEventRow | Attempted
"""What waits together: nearly always one row with nothing around it, since the collector looks at
all that waits."""

Make = Callable[[], tuple[CallRow, Sequence[AttemptRow]]]
"""Makes the rows of a call that is over."""


class LogQueue:
    """Rows on their way to the ledger: at most `bound` of them, about in the order they came.

    `prepare` is applied to each batch before it is written, and `done` hears of its calls when it
    is, or never will be. While nothing waits, nothing runs.

    Attributes:
        queued: rows that wait or are being written.
        written: rows that were written.
        dropped: rows that will never be: no room was left for them, or they could not be written.
            A call that was not made into rows yet counts as one.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        reach: Reach,
        bound: int,
        prepare: Callable[[Batch], Awaitable[Batch]] | None = None,
        done: Callable[[Sequence[CallRow]], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._reach = reach
        self._bound = bound
        self._prepare = prepare
        self._done = done
        self._items: deque[Item] = deque()
        self._unmade: list[Make] = []
        self._most = BATCH
        self._flying = 0
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._full_told = Seldom(clock.now)
        self._bad_told = Seldom(clock.now)
        self._unmade_told = Seldom(clock.now)
        self.queued = 0
        self.written = 0
        self.dropped = 0

    def put(self, item: Item) -> None:
        """Let it be written soon. Neither waits nor raises."""
        if self._admit(_size(item)):
            self._items.append(item)

    def put_later(self, make: Make) -> None:
        """Let the rows that this makes be written soon; it is called with others of its kind. Until
        then it counts as one row. Neither waits nor raises."""
        if self._admit(1):
            self._unmade.append(make)
            if len(self._unmade) >= TOGETHER:
                self._make()

    def _admit(self, rows: int) -> bool:
        """Whether there is room for so many rows, which then wait."""
        queued = self.queued + rows
        if self._closed or queued > self._bound:
            self._drop(rows)
            return False
        self.queued = queued
        if queued - self._flying >= FULL:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self._due.set)
        return True

    def _make(self) -> None:
        """Make what is not made yet."""
        unmade, self._unmade = self._unmade, []
        for make in unmade:
            try:
                row, attempts = make()
            except Exception:  # noqa: BLE001 - a bug: its call is served, and others are in here too
                self.queued -= 1
                self.dropped += 1
                if self._unmade_told.due():
                    LOGGER.exception("what became of a call could not be told")
                continue
            self.queued += len(attempts)
            if self.queued > self._bound:
                self.queued -= 1 + len(attempts)
                self._drop(1 + len(attempts))
            else:
                self._items.append(Attempted(row, attempts) if attempts else row)
        if self.queued - self._flying >= FULL:  # with the attempts, which nobody knew of before
            self._due.set()

    async def run(self) -> None:
        """Write what waits whenever it is due, for ever."""
        pause = FIRST_PAUSE
        while True:
            await self._due.wait()
            self._disarm()
            if await self._write_while(FULL):
                pause = FIRST_PAUSE
                if self.queued and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(DELAY, self._due.set)
            else:
                await self._clock.sleep(pause * (0.5 + self._clock.jitter() / 2))
                pause = min(2 * pause, LONGEST_PAUSE)
                self._due.set()

    async def close(self, within: float) -> None:
        """Write everything within so many seconds; what cannot be, is dropped. `run` is over."""
        self._closed = True
        self._disarm()
        try:
            async with asyncio.timeout(within):
                while not await self._write_while(1):
                    await self._clock.sleep(FIRST_PAUSE / 2)
        except TimeoutError:
            pass
        finally:
            self._disarm()
            if left := self.queued:
                self._items.clear()
                self._unmade.clear()
                self.queued = 0
                self.dropped += left
                LOGGER.warning("%d rows of the log could not be written and are lost", left)
            if self.dropped > left:
                LOGGER.warning("%d rows of the log were lost in all", self.dropped)

    def _disarm(self) -> None:
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _write_while(self, waiting: int) -> bool:
        """Write a batch, and more while so many rows wait; whether the ledger took them."""
        while items := self._take():
            if not await self._write(items):
                return False
            if self.queued < waiting:
                break
        return True

    def _take(self) -> list[Item]:
        if self._unmade:
            self._make()
        items, waiting = self._items, self.queued
        if waiting <= self._most:
            taken, rows = list(items), waiting
            items.clear()
        else:
            taken, rows = [], 0
            while items:
                more = _size(items[0])
                if taken and rows + more > self._most:
                    break
                taken.append(items.popleft())
                rows += more
        self._flying = rows
        return taken

    async def _write(self, items: list[Item]) -> bool:
        """Write a batch; False when the ledger is away. What was not written waits again."""
        rows, done = self._flying, False
        calls: Sequence[CallRow] = ()
        try:
            batch = _batch(items)
            calls = batch.calls
            if self._prepare is not None:
                batch = await self._prepare(batch)
            await self._ledger.write(batch)
            done = True
            self._reach.found("log")
            self.written += rows
            self._most = min(2 * self._most, BATCH)
        except (LedgerUnavailable, LedgerUnusable) as error:
            self._reach.lost("log", error)
            self._most = max(SMALL_BATCH, self._most // 2)
            return False
        except Exception as error:  # noqa: BLE001 - a bug, in one row as a rule
            # A row that cannot be written must not hold up all others: halve until it is alone.
            self._most = max(1, rows // 2)
            if done := len(items) == 1:
                self.dropped += rows
                if self._bad_told.due():
                    trace = None if isinstance(error, LedgerRefused) else error
                    LOGGER.error(
                        "rows of the log that cannot be written are left out, %d until now: %s",
                        self.dropped,
                        error,
                        exc_info=trace,
                    )
        finally:
            # After a cancellation too: a row that was written all the same is left alone.
            self._flying = 0
            if done:
                self.queued -= rows
                if self._done is not None:
                    self._done(calls)
            else:
                self._items.extendleft(reversed(items))
        return True

    def _drop(self, rows: int) -> None:
        self.dropped += rows
        if self._full_told.due():
            LOGGER.warning(
                "the log's queue is full: %d rows were dropped until now (ledger.queue: %d)",
                self.dropped,
                self._bound,
            )


def _size(item: Item) -> int:
    """How many rows it is."""
    if type(item) is not Attempted:
        return 1
    return (item.row is not None) + len(item.attempts)


def _batch(items: list[Item]) -> Batch:
    calls = [item for item in items if type(item) is CallRow]
    if len(calls) == len(items):  # as nearly always
        return Batch(calls)
    batch = Batch()
    for item in items:
        row, attempts = item if isinstance(item, Attempted) else (item, ())
        batch.attempts.extend(attempts)
        if isinstance(row, BreakerEventRow):
            batch.events.append(row)
        elif row is not None:
            batch.calls.append(row)
    return batch
