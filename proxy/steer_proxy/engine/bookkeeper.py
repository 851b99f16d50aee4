"""The ledger of a running process: its lease, its log, its housekeeping."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Self

from steer_policies.idempotency import is_running
from steer_proxy.engine.clock import Clock, new_id
from steer_proxy.engine.config import LedgerTerms
from steer_proxy.engine.costing import all_priced
from steer_proxy.engine.events import HealthEvent
from steer_proxy.engine.key_check import KeyCheck
from steer_proxy.engine.lease import LeaseKeeper
from steer_proxy.engine.log_queue import Attempted, LogQueue, Make
from steer_proxy.engine.purging import Purger
from steer_proxy.engine.redaction import Redaction
from steer_proxy.engine.trouble import LOGGER, Reach, Seldom
from steer_proxy.ledger.protocol import Ledger, LedgerUnavailable
from steer_proxy.ledger.redaction import Redact
from steer_proxy.ledger.sealing import Sealer
from steer_proxy.ledger.values import (
    MICROSECONDS,
    AttemptRow,
    Batch,
    BreakerEventRow,
    CallRow,
    Record,
)

#: How long the end may take, in seconds: to write what waits, and to end the lease.
FLUSH_TIME: Final = 5.0
RETIRE_TIME: Final = 1.0

Price = Callable[[Batch], Batch]


async def _nobody(_: frozenset[str]) -> None:
    """Nobody holds anything."""


class Bookkeeper:
    """The ledger of a running process: its lease, its log, its housekeeping.

    `start` opens the ledger, `stop` writes what waits and closes it; `async with` does both.
    `references` says, for messages, where each of the sealer's keys is kept. `price` puts costs on
    rows that lack them before they are written, in a thread; `forget` hears of those that will not
    be priced again; `redact` see `Redaction`.

    Attributes:
        owner: this process's id among the ledger's owners.
        instance: its name, for people.
        sealer: how answers are stored.
        held: tells the ids of the records this process runs, as far as the ledger has them.
        on_lost: is told those of them that the ledger does not have as its own any more.
    """

    def __init__(  # noqa: PLR0913 - what it keeps a ledger with, each by name
        self,
        ledger: Ledger,
        terms: LedgerTerms,
        clock: Clock,
        *,
        instance: str,
        sealer: Sealer | None = None,
        references: Mapping[str, str] | None = None,
        price: Price | None = None,
        forget: Callable[[Sequence[CallRow]], None] | None = None,
        redact: Redact | None = None,
    ) -> None:
        self.ledger: Final = ledger
        self.terms: Final = terms
        self.owner: Final = new_id(clock.wall())
        self.instance: Final = instance
        self.sealer: Final = sealer or Sealer()
        self.held: Callable[[], Sequence[str]] = tuple
        self.on_lost: Callable[[frozenset[str]], Awaitable[None]] = _nobody
        self._clock = clock
        self._price = price
        self._price_told = Seldom(clock.now)
        self._redaction = Redaction(redact, clock.now)
        self._reach = Reach()
        self._keys = KeyCheck(ledger, self.sealer.checks(), references or {})
        self._lease = LeaseKeeper(
            ledger,
            clock,
            self._reach,
            owner=self.owner,
            instance=instance,
            held=lambda: self.held(),  # noqa: PLW0108 - set later
            on_lost=lambda lost: self.on_lost(lost),  # noqa: PLW0108
            admit=self._keys.ensure,
        )
        self._queue = LogQueue(ledger, clock, self._reach, terms.queue, self._prepare, forget)
        self._purger = Purger(ledger, terms, clock)
        self._tasks: list[asyncio.Task[None]] = []

    # --- Life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ledger and begin to keep it. One that cannot be reached now is tried again.

        Raises:
            LedgerUnusable: it cannot be used as it is; the message says what to do.
        """
        try:
            await self.ledger.open()
            await self._keys.ensure()
        except LedgerUnavailable as error:
            # The first renewal tells when it is back.
            self._reach.lost("lease", error)
        except BaseException:
            await self.ledger.close()
            raise
        self._tasks = [
            asyncio.create_task(each.run()) for each in (self._lease, self._queue, self._purger)
        ]

    async def stop(self, within: float = FLUSH_TIME) -> None:
        """Write what waits in so many seconds, end the lease, close the ledger: a bounded time, and
        never an error."""
        running = [*self._tasks, *self._lease.tasks()]
        for task in running:
            task.cancel()
        try:
            if running:
                await asyncio.wait(running)
            await self._queue.close(within)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETIRE_TIME):
                    await self._lease.end()
        except Exception:  # noqa: BLE001 - what comes after it must be closed all the same
            LOGGER.exception("the ledger did not end well")
        finally:
            self._tasks = []
            await self.ledger.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- Lease ----------------------------------------------------------------------------------

    @property
    def leased(self) -> bool:
        """Whether this process's lease is known to be valid now: claims need it."""
        return self._lease.valid

    async def ensure_lease(self) -> None:
        """Have a valid lease; returns at once when there is one.

        Raises:
            LedgerUnavailable: when it cannot be had.
        """
        await self._lease.ensure()

    def judged(self, record: Record) -> Record:
        """A record as it counts here and now: its owner, whose lease is over, may just not have
        come back to the ledger yet. For all who decide by a record: one that has lapsed and is not
        to be judged is running."""
        if not self.ledger.shared or not record.lapsed or not is_running(record.state):
            return record
        if self._lease.may_judge(record.now_us):
            return record
        return dataclasses.replace(record, lapsed=False)

    # --- Log ------------------------------------------------------------------------------------

    def log(self, call: CallRow, attempts: Sequence[AttemptRow] = ()) -> None:
        """Let a call and its attempts be written soon. Never waits, never raises; beyond
        `terms.queue` waiting rows they are dropped, and counted."""
        self._queue.put(Attempted(call, attempts) if attempts else call)

    def log_later(self, make: Make) -> None:
        """Let the rows that this makes of a call be written soon, as `log` does."""
        self._queue.put_later(make)

    def log_attempts(self, attempts: Sequence[AttemptRow]) -> None:
        """Let the attempts of a call be written soon, whose own row its claim has written."""
        if attempts:
            self._queue.put(Attempted(None, attempts))

    def event(self, event: HealthEvent) -> None:
        """Let a change of a breaker, a gate or a credential be written soon."""
        self._queue.put(self._event_row(event))

    def redacted(self, row: CallRow) -> CallRow:
        """A call's row as it may be written, for those who write it themselves: claims do."""
        return self._redaction.call(row)

    def _event_row(self, event: HealthEvent) -> BreakerEventRow:
        wall = self._clock.wall()
        until = None if event.until is None else wall + event.until - self._clock.now()
        return BreakerEventRow(
            id=new_id(wall),
            at_us=int(wall * MICROSECONDS),
            instance=self.instance,
            kind=event.kind,
            upstream=event.upstream,
            model=event.model,
            from_state=event.before,
            to_state=event.after,
            reason=event.reason,
            generation=event.generation,
            until_us=None if until is None else int(until * MICROSECONDS),
            window_calls=event.window_calls,
            window_failures=event.window_failures,
        )

    async def _prepare(self, batch: Batch) -> Batch:
        """Rows as they may be written; what takes its time happens in a thread."""
        price = None if all_priced(batch.calls) else self._price
        if price is None and not self._redaction.active:
            return batch
        return await asyncio.to_thread(self._prepared, batch, price)

    def _prepared(self, batch: Batch, price: Price | None) -> Batch:
        """In a thread: prices first, by the model's true name."""
        if price is not None:
            try:
                batch = price(batch)
            except Exception:  # noqa: BLE001 - a row without its cost is better than no row
                if self._price_told.due():
                    LOGGER.exception("calls could not be priced")
        return self._redaction.batch(batch)

    # --- What there is to see -------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """Why the ledger cannot be reached, as far as is known; None when it can."""
        return self._reach.reason

    @property
    def queued(self) -> int:
        """Rows of the log that wait."""
        return self._queue.queued

    @property
    def written(self) -> int:
        """Rows of the log that were written."""
        return self._queue.written

    @property
    def dropped(self) -> int:
        """Rows of the log that are lost."""
        return self._queue.dropped
