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

#: Rows of a slice: at most, and at least.
SLICE: Final = 200
SMALLEST: Final = 10

#: How long a slice may take, in seconds.
AT_ONCE: Final = 0.005

#: A slice that took so long is followed by a pause of so many times as long, and at least so many
#: seconds: the writer is the calls' own for nine tenths of the time.
REST: Final = 9.0
SHORTEST_REST: Final = 0.02


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
        limit = SLICE
        before = int((self.clock.wall() - self.terms.retention) * MICROSECONDS)
        while True:
            began = self.clock.now()
            purged = await self.ledger.purge(Purge(before, self.terms.max_bytes, limit))
            # The wait in the writer's queue counts too: a busy ledger is purged more slowly.
            took = self.clock.now() - began
            self.removed += _rows(purged)
            if not purged.more:
                return
            limit = max(SMALLEST, limit // 2) if took > AT_ONCE else min(SLICE, limit + SMALLEST)
            await self.clock.sleep(max(SHORTEST_REST, REST * took))


def _rows(purged: Purged) -> int:
    return purged.requests + purged.attempts + purged.chunks + purged.events
