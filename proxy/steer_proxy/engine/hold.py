"""What a call holds of an upstream while its answer lasts: a slot and breaker permits."""

from __future__ import annotations

from steer_policies.breaker import PermitPair
from steer_policies.outcome import Verdict
from steer_proxy.engine.registry import UpstreamState


class Hold:
    """A concurrency slot and breaker permits, given back exactly once.

    A probe is settled at commit, so that a long stream does not keep a breaker half-open; any
    other permit is settled when the answer has ended, so that a stream cut in the middle counts as
    the failure it is.
    """

    __slots__ = ("_began", "_committed", "_model", "_pair", "_released", "_state")

    def __init__(
        self, state: UpstreamState, model: str | None, pair: PermitPair | None, began: float
    ) -> None:
        self._state = state
        self._model = model
        self._pair = pair
        self._began = began
        self._committed: float | None = None
        self._released = False

    def commit(self, lesson: Verdict | None, now: float) -> None:
        """The answer reached its commit point at `now`, and this is what it taught so far."""
        self._committed = now
        if self._pair is not None and self._pair.probe:
            self.settle(lesson)

    def settle(self, verdict: Verdict | None) -> None:
        """Tell the breakers what was learned, None for nothing; only the first word counts.

        The time told with it is that to the commit: how long an answer then lasts is a matter of
        its length and of its caller's pace.
        """
        if self._pair is not None:
            pair, self._pair = self._pair, None
            seconds = None if self._committed is None else self._committed - self._began
            self._state.settle(self._model, pair, verdict, seconds)

    def release(self) -> None:
        """Give back the slot, and the permits without a vote if nothing was learned. Idempotent."""
        self.settle(None)
        if not self._released:
            self._released = True
            self._state.slots.release()
