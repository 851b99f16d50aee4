"""Two counts over a sliding window, in bounded memory.

The breaker's failure rate and the retry budget both ask the same question: how many calls were
there in the last so many seconds, and how many of them were marked (failed, or were retries)? One
ring of slots answers both.
"""

from __future__ import annotations

import math
from typing import Final

SLOTS: Final = 10
"""Slots per window: old counts leave in steps of a tenth of it, as in Finagle's WindowedAdder and
Hystrix's rolling statistics. Counts therefore live for 0.9 to 1 times the window."""


class Window:
    """Calls and marks of the last `seconds` seconds; `now` is monotonic and never goes back.

    Counting costs one comparison and one list item, since it is done for every healthy call; adding
    up is left to the rare moment when somebody asks.
    """

    __slots__ = ("_calls", "_ends", "_marks", "_slot", "_width")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / SLOTS
        self._calls = [0] * SLOTS
        self._marks = [0] * SLOTS
        self._slot = 0
        self._ends = -math.inf

    def count(self, now: float) -> None:
        """Count one call."""
        if now >= self._ends:
            self._advance(now)
        self._calls[self._slot] += 1

    def mark(self, now: float) -> None:
        """Count one mark; whether the marked call itself is counted is the caller's business."""
        if now >= self._ends:
            self._advance(now)
        self._marks[self._slot] += 1

    def totals(self, now: float) -> tuple[int, int]:
        """Calls and marks within the window."""
        if now >= self._ends:
            self._advance(now)
        return sum(self._calls), sum(self._marks)

    def clear(self) -> None:
        """Forget everything counted so far."""
        self._calls = [0] * SLOTS
        self._marks = [0] * SLOTS

    def _advance(self, now: float) -> None:
        """Make the slot that contains `now` the current one, emptying those passed over."""
        if now - self._ends >= self._width * SLOTS:  # idle for a whole window, or never used yet
            self.clear()
            self._ends = now + self._width
            return
        steps = int((now - self._ends) / self._width) + 1
        for _ in range(steps):
            self._slot = (self._slot + 1) % SLOTS
            self._calls[self._slot] = 0
            self._marks[self._slot] = 0
        self._ends += steps * self._width
