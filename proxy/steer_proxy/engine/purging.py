"""Purging: what is over leaves the ledger, in slices too small to be felt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from steer_proxy.engine.clock import Clock
from steer_proxy.engine.config import LedgerTerms
from steer_proxy.engine.trouble import LOGGER, Seldom
from steer_proxy.ledger.protocol import Ledger, LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.values import MICROSECONDS, Purge, Purged

#: How often the ledger is looked through, in seconds; spread, since processes may share it.
EVERY: Final = 60.0

#: Rows of a slice: at most, and at least. They dirty some three pages each, which the commit they
#: are in has to write: more of them would be felt there.
SLICE: Final = 64
SMALLEST: Final = 8

#: How long the database may work on a slice, in seconds: where the calls wait for the one writer,
#: and where they do not (and a small slice costs almost what a large one does).
AT_ONCE: Final = 0.003
AT_ONCE_SHARED: Final = 0.02

#: A slice is followed by a pause of so many times as long as the database worked on it, and at
#: least so many seconds: the writer is the calls' own for four fifths of the time.
REST: Final = 4.0
SHORTEST_REST: Final = 0.02

#: A sweep that has not come to its end after so many seconds has fallen behind what comes in, and
#: rests as many times less.
BEHIND: Final = 120.0
HURRY: Final = 4.0


@dataclass(slots=True)
class Pace:
    """How much to remove at once, and how long to rest then.

    Attributes:
        shared: whether others can write to the ledger meanwhile.
        limit: rows of the next slice.
    """

    shared: bool
    limit: int = SLICE

    def rest(self, busy: float, *, behind: bool = False) -> float:
        """How many seconds to rest after a slice that kept the database busy for so many."""
        if busy > (AT_ONCE_SHARED if self.shared else AT_ONCE):
            self.limit = max(SMALLEST, self.limit // 2)
        else:
            self.limit = min(SLICE, self.limit + SMALLEST)
        return max(SHORTEST_REST, REST * busy) / (HURRY if behind else 1.0)


@dataclass(slots=True)
class Purger:
    """Removes what the terms no longer keep.

    Attributes:
        removed: rows that were removed, of all tables.
    """

    ledger: Ledger
    terms: LedgerTerms
    clock: Clock
    removed: int = 0

    async def run(self) -> None:
        """Purge now and then, for ever."""
        told = Seldom(self.clock.now)
        while True:
            await self.clock.sleep(EVERY * (0.5 + self.clock.jitter()))
            try:
                await self.sweep()
            except (LedgerUnavailable, LedgerUnusable) as error:
                # Who must reach it tells of that; this can wait.
                LOGGER.debug("the ledger could not be purged now: %s", error)
            except Exception:  # noqa: BLE001 - the next sweep must be tried
                if told.due():
                    LOGGER.exception("purging the ledger failed")

    async def sweep(self) -> None:
        """Remove all there is to remove, slice by slice.

        Raises:
            LedgerUnavailable: in the middle of it; the next sweep goes on.
        """
        pace = Pace(self.ledger.shared)
        began = self.clock.now()
        age = int(self.terms.retention * MICROSECONDS)
        before = int(self.clock.wall() * MICROSECONDS) - age
        while True:
            purged = await self.ledger.purge(Purge(before, self.terms.max_bytes, pace.limit, age))
            self.removed += _rows(purged)
            if not purged.more:
                return
            behind = self.clock.now() - began > BEHIND
            await self.clock.sleep(pace.rest(purged.busy, behind=behind))


def _rows(purged: Purged) -> int:
    return purged.requests + purged.attempts + purged.chunks + purged.events
