"""The throttle gate: what a 429 closes, so that nobody asks again before the provider wants it.

Being throttled is no failure, and no breaker learns from it. The gate closes until the time the
provider asked for. Then one call goes ahead to see whether the provider means it; if it is not
refused, admissions double every second until the gate is fully open. Otherwise all that waited
would arrive at once and be refused at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

MAX_CLOSED: Final = 86_400.0
"""Longest time a gate closes for one answer, in seconds: a slip of a unit must not shut an upstream
out for good. A call that was asked for longer gives up on the candidate all the same."""

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Bounds of the pause, in seconds, when a probe is refused without being told for how long; it
doubles with each closing in a row."""

PROBE_PATIENCE: Final = 3.0
"""Seconds until a probe that has not come back counts as let through: a refusal comes at once, a
generation takes its time. It also bounds how long a lost probe can hold the others up."""

PROBE_POLL: Final = 0.5
"""Seconds, and up to twice as many, after which a call asks again while a probe is out."""

RAMP_START: Final = 2.0
RAMP_SECONDS: Final = 8.0
"""A ramp begins with this many admissions and doubles them every second for so many seconds, at
which it has let 512 calls through, more than may be waiting for an upstream."""

_SHORTEST_WAIT: Final = 0.01


class GateState(StrEnum):
    """Where a gate stands."""

    OPEN = "open"
    CLOSED = "closed"
    PROBING = "probing"
    RAMPING = "ramping"


class GateEvent(StrEnum):
    """What moves a gate."""

    REFUSED = "refused"
    """The provider throttled a call."""
    DUE = "due"
    """A call came after the asked time was over: it becomes the probe."""
    INCONCLUSIVE = "inconclusive"
    """The probe ended without telling anything: the next call becomes the probe."""
    LET_THROUGH = "let_through"
    """The probe was not throttled, or has been out for long enough to tell."""
    RAMPED = "ramped"
    """The ramp is over."""


_REFUSED: Final = GateEvent.REFUSED
GATE_TRANSITIONS: Final[Mapping[tuple[GateState, GateEvent], GateState]] = MappingProxyType(
    {
        (GateState.OPEN, _REFUSED): GateState.CLOSED,
        (GateState.CLOSED, _REFUSED): GateState.CLOSED,
        (GateState.CLOSED, GateEvent.DUE): GateState.PROBING,
        (GateState.PROBING, _REFUSED): GateState.CLOSED,
        (GateState.PROBING, GateEvent.INCONCLUSIVE): GateState.CLOSED,
        (GateState.PROBING, GateEvent.LET_THROUGH): GateState.RAMPING,
        (GateState.RAMPING, _REFUSED): GateState.CLOSED,
        (GateState.RAMPING, GateEvent.RAMPED): GateState.OPEN,
    }
)
"""Every transition there is."""

# Found faster than a member of an enumeration, and asked for by every call.
_OPEN: Final = GateState.OPEN


class Pass:
    """Go; tell the gate with `Gate.settle` what came of it."""

    __slots__ = ("generation",)

    def __init__(self, generation: int) -> None:
        self.generation = generation


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait `seconds`, then call `admit` again: the gate may have been closed anew meanwhile."""

    seconds: float


Admission = Pass | Wait


class Gate:
    """The gate of one upstream, model and credential. `now` is monotonic seconds.

    Attributes:
        generation: how many times it has closed.
    """

    __slots__ = (
        "_admitted",
        "_free",
        "_probe",
        "_since",
        "_state",
        "_streak",
        "_turns",
        "_until",
        "generation",
    )

    def __init__(self) -> None:
        self._state: GateState = _OPEN
        self._until = -math.inf
        self._since = 0.0
        self._streak = 0
        self._turns = 0
        self._admitted = 0
        self._probe: Pass | None = None
        self.generation = 0
        # One for all calls of a generation: an open gate costs no allocation.
        self._free = Pass(0)

    def state(self, now: float) -> GateState:
        """The state a call would meet: what is only waiting for a call to happen has happened."""
        if self._state is GateState.CLOSED and now >= self._until:
            return GateState.PROBING
        if self._state is GateState.PROBING and now >= self._since + PROBE_PATIENCE:
            return GateState.RAMPING
        if self._state is GateState.RAMPING and now >= self._since + RAMP_SECONDS:
            return _OPEN
        return self._state

    @property
    def until(self) -> float:
        """The monotonic time until which it was last closed; minus infinity if it never was."""
        return self._until

    def closed_for(self, now: float) -> float:
        """Seconds until a call may pass; 0 when one might pass now. Takes no turn.

        While a probe is out this is an upper bound.
        """
        if self._state is GateState.CLOSED:
            return max(0.0, self._until - now)
        if self._state is GateState.PROBING:
            return max(0.0, self._since + PROBE_PATIENCE - now)
        return 0.0

    def close(self, now: float, seconds: float | None = None) -> bool:
        """Close for `seconds` from now. Returns whether this call closed it.

        A gate that is closed already keeps the later of both times (LiteLLM #40130 kept the
        earlier). Without an asked time (None, or nothing above 0) an open gate stays open: the
        refused call's own backoff will do, and one stray 429 is no reason to hold up everybody. But
        a gate that is being probed or ramped closes again, for a pause that grows.
        """
        state = self.state(now)
        if state is _OPEN:
            self._streak = 0
        if seconds is not None and seconds > 0.0:
            asked = min(seconds, MAX_CLOSED)
        elif state is GateState.CLOSED or state is _OPEN:
            return False
        else:
            # Six doublings exceed the longest pause; the bound keeps the power small.
            asked = min(FIRST_PAUSE * 2.0 ** min(self._streak - 1, 6), LONGEST_PAUSE)
        self._until = max(self._until, now + asked)
        if state is GateState.CLOSED:
            return False
        self._move(GateEvent.REFUSED)
        self._streak += 1
        self._turns = 0
        self._probe = None
        self.generation += 1
        self._free = Pass(self.generation)
        return True

    def admit(self, now: float, jitter: float) -> Admission:
        """Pass, or wait; `jitter` is a random number in [0, 1).

        A wait is never shorter than asked, and longer by at most a tenth (at most 1 s), plus the
        place in the queue: the nth to ask is told the time at which the ramp is expected to have
        come to n. Each refusal is such a turn, so ask `closed_for` when not about to wait.
        """
        if self._state is _OPEN:
            return self._free
        if self._state is GateState.CLOSED:
            left = self._until - now
            if left > 0.0:
                place = min(math.log2(1.0 + self._turns / RAMP_START), RAMP_SECONDS)
                self._turns += 1
                return Wait(left + jitter * min(0.1 * left, 1.0) + place)
            self._move(GateEvent.DUE)
            self._since = now
            self._probe = Pass(self.generation)
            return self._probe
        if self._state is GateState.PROBING:
            if now < self._since + PROBE_PATIENCE:
                return Wait(PROBE_POLL * (1.0 + jitter))
            self._ramp(now)
        return self._ramped(now, jitter)

    def settle(
        self,
        admission: Pass,
        throttled: bool | None,  # noqa: FBT001 - what came of it, not a flag that changes what is done
        now: float,
    ) -> bool:
        """Tell what came of a call: throttled, not throttled, or nothing known (None).

        Where the provider named a time, call `close` with it first. A refusal counts as `close`
        without a time does, unless the gate was closed since the call went out: then it is no news.
        Returns whether the gate was closed by it.
        """
        if throttled:
            return admission.generation == self.generation and self.close(now)
        if admission is self._probe:
            if throttled is None:
                self._move(GateEvent.INCONCLUSIVE)
                self._probe = None
            else:
                self._ramp(now)
        return False

    def _ramp(self, now: float) -> None:
        self._move(GateEvent.LET_THROUGH)
        self._probe = None
        self._since = now
        self._admitted = 0
        self._turns = 0

    def _ramped(self, now: float, jitter: float) -> Admission:
        """Admit as the ramp allows; RAMP_START * 2^t calls in all within t seconds of its start."""
        elapsed = now - self._since
        if now >= self._since + RAMP_SECONDS:
            self._move(GateEvent.RAMPED)
            return self._free
        if self._admitted < RAMP_START * 2.0**elapsed:
            self._admitted += 1
            return self._free
        # Those told to wait before have the turns before.
        self._turns = max(self._turns, self._admitted) + 1
        due = min(math.log2((self._turns - 1) / RAMP_START), RAMP_SECONDS) - elapsed
        return Wait(max(due, _SHORTEST_WAIT) + 0.1 * jitter)

    def _move(self, event: GateEvent) -> None:
        self._state = GATE_TRANSITIONS[self._state, event]
