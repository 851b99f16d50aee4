"""How many retries an upstream may get, so that an outage is not amplified.

Finagle's `RetryBudget`: retries may be a share of the recent calls plus a constant rate, which lets
a nearly idle upstream be retried at all. See https://finagle.github.io/blog/2016/02/08/retry-budgets/.
"""

from __future__ import annotations

from typing import Final

from steer_policies.window import Window

_ROUNDING: Final = 1e-9
"""0.29 * 100 is 28.999999999999996: a whole retry is not lost to binary fractions."""


class RetryBudget:
    """The retry budget of one upstream.

    Within any `window` seconds, at most `ratio` times the calls plus `floor_per_second * window`
    retries are allowed. The window should be longer than the longest usual call: a retry is counted
    when it is dispatched, the call it belongs to when it began.
    """

    __slots__ = ("_floor", "_ratio", "_window")

    def __init__(self, ratio: float, floor_per_second: float, window: float) -> None:
        self._ratio = ratio
        self._floor = floor_per_second * window
        self._window = Window(window)

    def on_call(self, now: float) -> None:
        """Count a first attempt, at its dispatch."""
        self._window.count(now)

    def allows(self, now: float) -> bool:
        """Whether `take` would succeed; takes nothing."""
        calls, retries = self._window.totals(now)
        return retries + 1 <= self._ratio * calls + self._floor + _ROUNDING

    def take(self, now: float) -> bool:
        """Take one retry, at its dispatch; False means that this upstream has had its share."""
        allowed = self.allows(now)
        if allowed:
            self._window.mark(now)
        return allowed
