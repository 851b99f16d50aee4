"""Telling of trouble once, not a thousand times."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from steer_proxy.ledger.protocol import LedgerUnusable

LOGGER: Final = logging.getLogger("steer.ledger")

#: The same trouble is told again after this many seconds, if it goes on.
EVERY: Final = 60.0


class Seldom:
    """Whether it is time to say the same thing again; `now` is monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._next = float("-inf")

    def due(self) -> bool:
        """True at first, and then once every `EVERY` seconds."""
        now = self._now()
        if now < self._next:
            return False
        self._next = now + EVERY
        return True


class Tally:
    """The same trouble that befalls many: when it is time to say it again, and how many had it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._seldom = Seldom(now)
        self._who: set[str] = set()

    def due(self, who: str) -> str | None:
        """It has befallen this one: None while it is not time to say so, else what to add to the
        line. One that has it time and again counts once."""
        self._who.add(who)
        if not self._seldom.due():
            return None
        count = len(self._who)
        self._who.clear()
        return f" ({count} since this was told last)" if count > 1 else ""


class Reach:
    """Whether the ledger can be reached, as those find who use it; its changes are logged.

    Each user speaks for itself: a full disk may fail the log's writes and let renewals pass, which
    is one trouble, not many.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._hopeless = False

    @property
    def reason(self) -> str | None:
        """Why it cannot be reached, or None when it can."""
        return next(iter(self._reasons.values()), None)

    def lost(self, user: str, error: Exception) -> None:
        """It could not do what this user asked."""
        hopeless = isinstance(error, LedgerUnusable)
        if hopeless and not self._hopeless:
            # Waiting does not mend it, though another attempt finds out when somebody has.
            LOGGER.error("the ledger cannot be used: %s", error)
            self._hopeless = True
        elif not self._reasons:
            LOGGER.warning("ledger unavailable: %s", error)
        self._reasons[user] = str(error) or type(error).__name__

    def found(self, user: str) -> None:
        """It did what this user asked."""
        if self._reasons.pop(user, None) is not None and not self._reasons:
            LOGGER.info("ledger is back")
            self._hopeless = False
