"""The lease of a process: while it is valid, nobody else takes its records for abandoned.

That a lease is over says little of its owner when the ledger was away: then those who live lapse,
too, and who is the first to come back must not judge the others. A process that lives is back no
later than its next renewal. So whoever judges must have been in touch with the ledger for that
long, without a renewal that failed: all the time it could have heard of the owner, had it lived.

The same holds after the ledger's clock was set, or a server with another clock has taken its place:
then the leases of all may be over at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from steer_proxy.engine.clock import Clock
from steer_proxy.engine.trouble import LOGGER, Reach, Seldom
from steer_proxy.ledger.protocol import Ledger, LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.values import MICROSECONDS

#: How long a process's records are its own after it was last heard of, in seconds.
LEASE: Final = 15.0

#: How often the lease is renewed, in seconds: two renewals may fail before it lapses.
RENEW: Final = 5.0

#: How soon a renewal that failed is tried again, in seconds.
AGAIN: Final = 1.0

#: By how much the ledger's clock runs ahead of ours before it counts as set, in seconds: replies
#: take no longer, and less ends no lease of a process that lives.
STEP: Final = 2.0


class LeaseKeeper:
    """Renews a process's lease for as long as it runs.

    `held` tells the ids of the records this process believes to own; `on_lost` is told those that
    are not its own any more. No lease is valid before that, nor before `admit`, which is asked each
    time, has let it be: both raise what a ledger raises.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        reach: Reach,
        *,
        owner: str,
        instance: str,
        held: Callable[[], Sequence[str]],
        on_lost: Callable[[frozenset[str]], Awaitable[None]],
        admit: Callable[[], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._reach = reach
        self._owner = owner
        self._instance = instance
        self._held = held
        self._on_lost = on_lost
        self._admit = admit
        self._until = float("-inf")
        self._in_touch_since = float("inf")
        self._ahead: float | None = None
        """How far the ledger's clock was ahead of this process's monotonic one."""
        self._renewal: asyncio.Task[LedgerUnavailable | None] | None = None
        self._told = Seldom(clock.now)

    @property
    def valid(self) -> bool:
        """Whether the lease is known to be valid now."""
        return self._clock.now() < self._until

    def may_judge(self, now_us: int | None) -> bool:
        """Whether a process whose lease is over, by the ledger's time just now, counts as dead: it
        could have renewed it."""
        self._compare(now_us, self._clock.now())
        return self._clock.now() >= self._in_touch_since + RENEW

    def _compare(self, now_us: int | None, now: float, *, renewed: bool = False) -> None:
        """Notice that the ledger's clock was set, by what it told, and when that came."""
        if now_us is None:
            return
        ahead = now_us / MICROSECONDS - now
        if self._ahead is not None and abs(ahead - self._ahead) > STEP:
            # A renewal may be on its way at this moment: one more second for its reply.
            since = now + AGAIN if self._in_touch_since < float("inf") else float("inf")
            self._in_touch_since = since
            self._ahead = ahead
        if renewed:
            self._ahead = ahead

    async def ensure(self) -> None:
        """Have a valid lease.

        Raises:
            LedgerUnavailable: when it cannot be had.
        """
        if not self.valid and (error := await self._renewed()) is not None:
            raise LedgerUnavailable(str(error)) from error

    async def run(self) -> None:
        """Renew the lease, for ever."""
        while True:
            error = await self._renewed()
            await self._clock.sleep(RENEW if error is None else AGAIN)

    def tasks(self) -> list[asyncio.Task[LedgerUnavailable | None]]:
        """The renewal that is under way, if there is one: who ends `run` ends it too."""
        return [] if self._renewal is None or self._renewal.done() else [self._renewal]

    async def end(self) -> None:
        """Let the lease end now, so that others need not wait for it. `run` is over."""
        if self._until == float("-inf"):
            return
        self._until = float("-inf")
        try:
            await self._ledger.retire(self._owner)
        except (LedgerUnavailable, LedgerUnusable) as error:
            LOGGER.info("the lease could not be ended, it lapses by itself: %s", error)

    async def _renewed(self) -> LedgerUnavailable | None:
        """Renew the lease, once for all who want it at the same time; why not, when it failed."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew_or_lose_touch())
        # Who leaves must not take the renewal of the others along.
        return await asyncio.shield(self._renewal)

    async def _renew_or_lose_touch(self) -> LedgerUnavailable | None:
        error = await self._renew()
        if error is not None:
            self._in_touch_since = float("inf")
        return error

    async def _renew(self) -> LedgerUnavailable | None:
        # The lease counts from when the ledger wrote it, which is no earlier than now.
        asked = self._clock.now()
        # A lapse is found once, and that reply may have been lost: until one comes, ask again.
        # While the lease is known to be valid nothing was lost, and claims may not be written yet.
        unsure = not self.valid
        try:
            found = await self._ledger.renew(
                self._owner, self._instance, LEASE, tuple(self._held()), unsure=unsure
            )
            replied = self._clock.now()
            await self._admit()
            if found.lost:
                self._until = float("-inf")  # whoever counts on it asks first
                await self._tell(found.lost)
        except LedgerUnavailable as error:
            self._reach.lost("lease", error)
            return error
        except LedgerUnusable as error:
            # Callers are not told the place of a key's file, nor of a database.
            self._reach.lost("lease", error)
            return LedgerUnavailable("it cannot be used as it is; Steer's log says why")
        except Exception as error:  # noqa: BLE001 - the next renewal must be tried
            if self._told.due():
                LOGGER.exception("the lease could not be renewed")
            return LedgerUnavailable(f"the lease could not be renewed: {type(error).__name__}")
        self._reach.found("lease")
        self._until = asked + LEASE
        if unsure or found.lapsed or self._in_touch_since == float("inf"):
            # The first one, or one after a while without: asleep, or without a ledger.
            self._in_touch_since = self._clock.now()
        self._compare(found.now_us, replied, renewed=True)
        return None

    async def _tell(self, lost: frozenset[str]) -> None:
        try:
            await self._on_lost(lost)
        except LedgerUnavailable:
            raise  # the next renewal is unsure, and tells them again
        except Exception:  # noqa: BLE001 - a bug there must not cost the lease
            LOGGER.exception("calls that were taken over could not be ended")
