"""The circuit breaker: stop calling what is broken, and find out soon when it works again.

Closed, it counts. Open, it refuses until its time is over. Half-open, it lets a few probes through
and believes what they find. `TRANSITIONS` is the whole machine; what each bug of other breakers
taught is a test by the bug's name.

Nothing here waits or holds a lock: a call takes a permit, goes out, and gives the permit back with
a vote. `Vote.NONE` gives it back and says nothing; it is what a cancelled call, a queue wait or our
own deadline is settled with, so that a permit is always given back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from steer_policies.config import BreakerPolicy, FailureCount
from steer_policies.outcome import Vote
from steer_policies.window import Window

PROBE_LIFE: Final = 60.0
"""A probe holds its place for the open duration or this many seconds, whichever is longer. Then
another call is admitted beside it: a permit lost in spite of all cannot wedge the breaker."""

PROBE_POLL: Final = 1.0
"""While all probes are out, nobody knows when one returns: ask again after this many seconds."""

_SPREAD: Final = 0.2


class State(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Event(StrEnum):
    """What moves a breaker."""

    TRIPPED = "tripped"
    """Too many failures while closed."""
    DUE = "due"
    """A call came after the open duration was over."""
    RELAPSED = "relapsed"
    """A probe failed."""
    RECOVERED = "recovered"
    """Enough probes succeeded."""


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.CLOSED, Event.TRIPPED): State.OPEN,
        (State.OPEN, Event.DUE): State.HALF_OPEN,
        (State.HALF_OPEN, Event.RELAPSED): State.OPEN,
        (State.HALF_OPEN, Event.RECOVERED): State.CLOSED,
    }
)
"""Every transition there is. Each begins a new generation, and only permits of the present one vote
(as in gobreaker): what began before a transition says nothing about the state after it."""

# Names of this module are found faster than members of an enumeration; every call compares them.
_CLOSED: Final = State.CLOSED
_OPEN: Final = State.OPEN
_SUCCESS: Final = Vote.SUCCESS


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state, for events, metrics and the ledger.

    `until` is the monotonic time at which an open breaker becomes due, else None. `window_calls`
    and `window_failures` are what the window held when it happened. `upstream_wide` says that it is
    the breaker of the upstream as a whole.
    """

    from_state: State
    to_state: State
    reason: str
    generation: int
    until: float | None
    window_calls: int = 0
    window_failures: int = 0
    upstream_wide: bool = False


class Permit:
    """The right to make one call; give it back with `Breaker.settle`, whatever happened.

    `since` is when a probe was let out; infinite for a permit of the closed state. `transition` is
    set on the permit whose taking made the breaker half-open.
    """

    # Not a frozen dataclass: one is made for every call, and `settled` must be able to change.
    __slots__ = ("generation", "settled", "since", "transition")

    def __init__(
        self, generation: int, since: float = math.inf, transition: Transition | None = None
    ) -> None:
        self.generation = generation
        self.settled = False
        self.since = since
        self.transition = transition

    @property
    def probe(self) -> bool:
        """Whether the breaker waits for this call's result in half-open."""
        return self.since < math.inf


@dataclass(frozen=True, slots=True)
class Rejected:
    """No permit now; ask again in `retry_in` seconds, always more than 0.

    Exact while the breaker is open; while all probes are out, a guess of at most `PROBE_POLL`.
    """

    retry_in: float


class Breaker:
    """One breaker. `now` is monotonic seconds, `jitter` a random number in [0, 1).

    `upstream_wide` is told with its transitions: it stands for all models of an upstream.

    Attributes:
        generation: how many transitions there have been.
        failures: consecutive failures while closed; stays as it was until the breaker closes again.
    """

    __slots__ = (
        "_anywhere",
        "_duration",
        "_policy",
        "_probes",
        "_slow",
        "_state",
        "_successes",
        "_until",
        "_upstream_wide",
        "_window",
        "failures",
        "generation",
    )

    def __init__(self, policy: BreakerPolicy, *, upstream_wide: bool = False) -> None:
        self._policy = policy
        self._upstream_wide = upstream_wide
        self._slow = math.inf if policy.slow_call is None else policy.slow_call
        self._window = Window(policy.window)
        self._anywhere = policy.failure_count is FailureCount.WINDOW
        self._state = _CLOSED
        self._duration = policy.open_duration
        self._until = 0.0
        self._probes: list[Permit] = []
        self._successes = 0
        self.failures = 0
        self.generation = 0

    def state(self, now: float) -> State:
        """The state a call would meet: an open breaker whose time is over shows as half-open."""
        if self._state is _OPEN and now >= self._until:
            return State.HALF_OPEN
        return self._state

    def retry_in(self, now: float) -> float:
        """Seconds until a permit may be had; 0 exactly when `acquire` would give one now."""
        if self._state is _CLOSED:
            return 0.0
        if self._state is _OPEN:
            return max(0.0, self._until - now)
        if len(self._probes) < self._policy.probes:
            return 0.0
        life = max(self._policy.open_duration, PROBE_LIFE)
        return max(0.0, min(PROBE_POLL, self._probes[0].since + life - now))

    def acquire(self, now: float) -> Permit | Rejected:
        """Take a permit, or learn when to ask again."""
        if self._state is _CLOSED:
            return Permit(self.generation)
        wait = self.retry_in(now)
        return Rejected(wait) if wait > 0.0 else self._admit(now)

    def settle(
        self,
        permit: Permit,
        vote: Vote,
        now: float,
        jitter: float,
        seconds: float | None = None,
    ) -> Transition | None:
        """Give a permit back with what the call taught; settling it again changes nothing.

        `seconds` is how long the call took: a success slower than the policy's `slow_call` counts
        as a failure.
        """
        if permit.settled:
            return None
        permit.settled = True
        if permit.generation != self.generation:
            return None
        if vote is _SUCCESS and seconds is not None and seconds > self._slow:
            vote = Vote.FAILURE
        if self._state is _CLOSED:
            if vote is _SUCCESS:
                self.failures = 0
                self._window.count(now)
                return None
            return None if vote is Vote.NONE else self._failed_closed(now, jitter)
        # A permit of the present generation that is not of the closed state is a probe.
        if permit in self._probes:
            self._probes.remove(permit)
        if vote is Vote.NONE:
            return None
        if vote is Vote.FAILURE:
            return self._open(Event.RELAPSED, "a probe failed", now, jitter)
        self._successes += 1
        if self._successes < self._policy.success_threshold:
            return None
        return self._close(now)

    def _admit(self, now: float) -> Permit:
        """A permit, given that `retry_in` is 0."""
        if self._state is _CLOSED:
            return Permit(self.generation)
        transition = None
        if self._state is _OPEN:
            transition = self._move(Event.DUE, "the open duration is over", now, None)
        elif len(self._probes) >= self._policy.probes:
            # The oldest has outlived its place. Should it return after all, its vote still counts.
            self._probes.pop(0)
        permit = Permit(self.generation, now, transition)
        self._probes.append(permit)
        return permit

    def _failed_closed(self, now: float, jitter: float) -> Transition | None:
        """Count a failure and trip if it was one too many.

        Only a failure trips, as in Polly: the success that completes `min_calls` is no reason to.
        """
        self.failures += 1
        self._window.count(now)
        self._window.mark(now)
        threshold = self._policy.failure_threshold
        if not self._anywhere and self.failures >= threshold:
            return self._open(Event.TRIPPED, f"consecutive failures: {self.failures}", now, jitter)
        calls, failures = self._window.totals(now)
        if self._anywhere and failures >= threshold:
            return self._open(Event.TRIPPED, f"failures in the window: {failures}", now, jitter)
        if calls >= self._policy.min_calls and failures / calls >= self._policy.failure_rate:
            return self._open(Event.TRIPPED, f"failed: {failures} of {calls} calls", now, jitter)
        return None

    def _open(self, event: Event, reason: str, now: float, jitter: float) -> Transition:
        """Open for the present duration, spread so that a fleet does not probe in step."""
        longest = self._policy.max_open_duration
        spread = self._duration * (1.0 - _SPREAD + 2.0 * _SPREAD * jitter)
        self._duration = min(2.0 * self._duration, longest)
        # The maximum, so that opening again can only extend.
        self._until = max(self._until, now + min(spread, longest))
        return self._move(event, reason, now, self._until)

    def _close(self, now: float) -> Transition:
        """Close with a clean slate: what happened before the outage ended is no evidence now."""
        transition = self._move(Event.RECOVERED, f"successful probes: {self._successes}", now, None)
        self._window.clear()
        self._duration = self._policy.open_duration
        self.failures = 0
        return transition

    def _move(self, event: Event, reason: str, now: float, until: float | None) -> Transition:
        source = self._state
        self._state = TRANSITIONS[source, event]
        self.generation += 1
        self._successes = 0
        self._probes.clear()
        calls, failures = self._window.totals(now)
        return Transition(
            source,
            self._state,
            reason,
            self.generation,
            until,
            calls,
            failures,
            self._upstream_wide,
        )


class PermitPair:
    """Permits of both breakers a call depends on; give them back with `settle_both`."""

    __slots__ = ("model", "model_permit", "upstream", "upstream_permit")

    def __init__(
        self, model: Breaker, model_permit: Permit, upstream: Breaker, upstream_permit: Permit
    ) -> None:
        self.model = model
        self.model_permit = model_permit
        self.upstream = upstream
        self.upstream_permit = upstream_permit

    @property
    def probe(self) -> bool:
        """Whether the call is a probe of either breaker: to be settled as soon as it tells."""
        return self.model_permit.probe or self.upstream_permit.probe

    @property
    def transitions(self) -> tuple[Transition, ...]:
        """The changes of state that taking the permits caused."""
        return _both(self.model_permit.transition, self.upstream_permit.transition)


def acquire_both(
    model_breaker: Breaker, upstream_breaker: Breaker, now: float
) -> PermitPair | Rejected:
    """Permits of both breakers or of neither.

    Both are asked before either is changed: there is no permit to give back when one refuses, and a
    breaker does not become half-open for a call that cannot be made.
    """
    wait = max(model_breaker.retry_in(now), upstream_breaker.retry_in(now))
    if wait > 0.0:
        return Rejected(wait)
    return PermitPair(
        model_breaker,
        model_breaker._admit(now),  # noqa: SLF001 - the same module: `acquire` would ask again
        upstream_breaker,
        upstream_breaker._admit(now),  # noqa: SLF001
    )


def settle_both(
    pair: PermitPair,
    model_vote: Vote,
    upstream_vote: Vote,
    now: float,
    jitter: float,
    seconds: float | None = None,
) -> tuple[Transition, ...]:
    """Give both permits back, each with its own vote; a second time changes nothing.

    `seconds` is how long the call took, for the model's `slow_call` only: how long a model
    generates says nothing about the upstream's network. Votes come from `outcome.TRAITS`.
    """
    return _both(
        pair.model.settle(pair.model_permit, model_vote, now, jitter, seconds),
        pair.upstream.settle(pair.upstream_permit, upstream_vote, now, jitter),
    )


def _both(model: Transition | None, upstream: Transition | None) -> tuple[Transition, ...]:
    if model is None and upstream is None:
        return ()
    return tuple(transition for transition in (model, upstream) if transition is not None)
