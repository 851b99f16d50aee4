"""What a call holds of an upstream while its answer lasts: a slot and breaker permits."""

from __future__ import annotations

from steer_policies.breaker import PermitPair
from steer_policies.outcome import SUCCESS, Verdict
from steer_proxy.engine.registry import UpstreamState


class Hold:
    """A concurrency slot and breaker permits, given back exactly once.

    A probe is settled at commit, so that a long stream does not keep a breaker half-open; any
    other permit is settled when the answer has ended, so that a stream cut in the middle counts as
    the failure it is.
    """

    __slots__ = ("_began", "_model", "_pair", "_released", "_state")

    def __init__(
        self, state: UpstreamState, model: str | None, pair: PermitPair | None, began: float
    ) -> None:
        self._state = state
        self._model = model
        self._pair = pair
        self._began = began
        self._released = False

    def commit(self, now: float) -> None:
        """The answer reached its commit point in good order at `now`."""
        if self._pair is not None and self._pair.probe:
            self.settle(SUCCESS, now)

    def settle(self, verdict: Verdict | None, now: float | None = None) -> None:
        """Tell the breakers what was learned, None for nothing; only the first word counts.

        `now` gives the moment up to which the duration is counted, where a duration means anything.
        """
        if self._pair is not None:
            pair, self._pair = self._pair, None
            seconds = None if now is None else now - self._began
            self._state.settle(self._model, pair, verdict, seconds)

    def release(self) -> None:
        """Give back the slot, and the permits without a vote if nothing was learned. Idempotent."""
        self.settle(None)
        if not self._released:
            self._released = True
            self._state.slots.release()
