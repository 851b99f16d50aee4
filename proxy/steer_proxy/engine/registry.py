"""What the engine remembers of each upstream: breakers, gates, slots, budgets, credential marks.

One registry lives as long as the process, across configuration reloads. Model names are foreign
input, so everything keyed by them is bounded and forgets the least recently used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from steer_policies.breaker import (
    Breaker,
    PermitPair,
    Rejected,
    Transition,
    acquire_both,
    settle_both,
)
from steer_policies.config import RetryPolicy, UpstreamPolicy
from steer_policies.outcome import TRAITS, Verdict, Vote
from steer_policies.retry_budget import RetryBudget
from steer_policies.throttle import Gate
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.events import EventSink, HealthEvent, log_event
from steer_proxy.engine.slots import Slots

#: Models (and model + credential pairs) remembered per upstream; beyond it the least recently used
#: is forgotten, which costs no more than learning its state again.
MAX_REMEMBERED: Final = 1024

#: How long a credential that was refused (401, 403, no credit) is passed over, in seconds.
CREDENTIAL_MARK: Final = 60.0

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Remembered(Generic[_K, _V]):
    """A bounded mapping that makes what it does not know and forgets the least recently used."""

    def __init__(self, make: Callable[[], _V]) -> None:
        self._make = make
        self._values: OrderedDict[_K, _V] = OrderedDict()

    def __getitem__(self, key: _K) -> _V:
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = self._make()
            if len(self._values) > MAX_REMEMBERED:
                self._values.popitem(last=False)
        else:
            self._values.move_to_end(key)
        return value

    def peek(self, key: _K) -> _V | None:
        return self._values.get(key)

    def items(self) -> list[tuple[_K, _V]]:
        return list(self._values.items())


class UpstreamState:
    """Everything remembered of one upstream."""

    def __init__(self, policy: UpstreamPolicy, clock: Clock, sink: EventSink) -> None:
        self.policy: Final = policy
        self.slots: Final = Slots(policy.concurrency)
        self._clock = clock
        self._sink = sink
        self._breaker = Breaker(policy.breaker, upstream_wide=True)
        self._models: _Remembered[str | None, Breaker] = _Remembered(
            lambda: Breaker(policy.breaker)
        )
        self._gates: _Remembered[tuple[str | None, int], Gate] = _Remembered(Gate)
        self._budgets: dict[tuple[float, float, float], RetryBudget] = {}
        self._marked_until = 0.0
        self.recent_failures = 0
        self.latency_ms: float | None = None

    def gate(self, model: str | None, credential: int) -> Gate:
        """The throttle gate of a model under a credential."""
        return self._gates[(model, credential)]

    def known_gate(self, model: str | None, credential: int) -> Gate | None:
        """The same, unless nobody has asked for it yet: then it is open."""
        return self._gates.peek((model, credential))

    def budget(self, policy: RetryPolicy) -> RetryBudget:
        """The retry budget, shared by all calls that retry by the same ratio, floor and window."""
        key = (policy.budget_ratio, policy.budget_floor, policy.budget_window)
        if (budget := self._budgets.get(key)) is None:
            if len(self._budgets) >= MAX_REMEMBERED:
                self._budgets.clear()
            budget = self._budgets[key] = RetryBudget(*key)
        return budget

    def acquire(self, model: str | None, now: float) -> PermitPair | Rejected:
        """Permits of the model's and the upstream's breaker, both or neither."""
        pair = acquire_both(self._models[model], self._breaker, now)
        if isinstance(pair, PermitPair):
            for transition in pair.transitions:
                self._tell(model, transition)
        return pair

    def settle(
        self, model: str | None, pair: PermitPair, verdict: Verdict | None, seconds: float | None
    ) -> None:
        """Give permits back with what was learned; None says that nothing was."""
        now = self._clock.now()
        model_vote, upstream_vote = votes(verdict)
        if model_vote is Vote.SUCCESS:
            self.recent_failures = 0
            if seconds is not None:
                self.latency_ms = _smoothed(self.latency_ms, seconds * 1000.0)
        elif model_vote is Vote.FAILURE or upstream_vote is Vote.FAILURE:
            self.recent_failures += 1
        for transition in settle_both(
            pair, model_vote, upstream_vote, now, self._clock.jitter(), seconds
        ):
            self._tell(model, transition)

    def _tell(self, model: str | None, transition: Transition) -> None:
        self._sink(
            HealthEvent(
                "breaker",
                self.policy.name,
                None if transition.upstream_wide else model,
                str(transition.from_state),
                str(transition.to_state),
                transition.reason,
                transition.until,
                transition.generation,
                transition.window_calls,
                transition.window_failures,
            )
        )

    def close_gate(self, model: str | None, credential: int, seconds: float) -> None:
        """The provider asked for patience: hold this model and credential back."""
        now = self._clock.now()
        gate = self.gate(model, credential)
        if gate.close(now, seconds):
            self.gate_shut(model, gate, f"the provider asked for {seconds:.1f} s")

    def gate_shut(self, model: str | None, gate: Gate, reason: str) -> None:
        """Tell that a gate of this upstream was shut until a time."""
        self._sink(HealthEvent("gate", self.policy.name, model, "open", "shut", reason, gate.until))

    def mark_credential(self, reason: str) -> None:
        """This upstream's own credential was refused: pass it over for a while."""
        now = self._clock.now()
        if self._marked_until <= now:
            self._sink(
                HealthEvent(
                    "credential",
                    self.policy.name,
                    None,
                    "good",
                    "refused",
                    reason,
                    now + CREDENTIAL_MARK,
                )
            )
        self._marked_until = now + CREDENTIAL_MARK

    def credential_marked(self, now: float) -> bool:
        """Whether this upstream's own credential was refused lately."""
        return self._marked_until > now

    def breaker_state(self, model: str | None, now: float) -> str:
        """The worse of the model's and the upstream's breaker: closed, half_open or open."""
        states = [self._breaker.state(now)]
        if (breaker := self._models.peek(model)) is not None:
            states.append(breaker.state(now))
        return max((str(state) for state in states), key=_SEVERITY.__getitem__)

    def open_for(self, model: str | None, now: float) -> float:
        """Seconds until a probe is admitted; 0 when calls or probes pass now."""
        waits = [self._breaker.retry_in(now)]
        if (breaker := self._models.peek(model)) is not None:
            waits.append(breaker.retry_in(now))
        return max(waits)


_SEVERITY: Final = {"closed": 0, "half_open": 1, "open": 2}


def votes(verdict: Verdict | None) -> tuple[Vote, Vote]:
    """What the model's and the upstream's breaker learn from a verdict."""
    if verdict is None:
        return Vote.NONE, Vote.NONE
    if verdict.failure is None:
        return Vote.SUCCESS, Vote.SUCCESS
    traits = TRAITS[verdict.failure]
    return traits.model_vote, traits.upstream_vote


def _smoothed(before: float | None, sample: float) -> float:
    return sample if before is None else before + 0.2 * (sample - before)


class Registry:
    """The upstream states of the process, by name."""

    def __init__(self, clock: Clock, sink: EventSink = log_event) -> None:
        self._clock = clock
        self._sink = sink
        #: The states of the newest revision, by upstream name.
        self.states: Mapping[str, UpstreamState] = {}

    def bind(self, policies: Iterable[UpstreamPolicy]) -> Mapping[str, UpstreamState]:
        """The states of one configuration revision, by upstream name.

        What is known of an upstream whose policy did not change is taken over; a changed policy
        begins anew, and what left the configuration is forgotten. Calls keep the states of the
        revision they began with.
        """
        bound: dict[str, UpstreamState] = {}
        for policy in policies:
            known = self.states.get(policy.name)
            same = known is not None and known.policy == policy
            bound[policy.name] = known if known is not None and same else self._made(policy)
        self.states = bound
        return bound

    def _made(self, policy: UpstreamPolicy) -> UpstreamState:
        return UpstreamState(policy, self._clock, self._sink)


@dataclass(slots=True)
class LiveView:
    """The live context a planner may ask about, for one call and its credential."""

    states: Mapping[str, UpstreamState]
    clock: Clock
    credentials: Mapping[str, int]

    def breaker(self, upstream: str, model: str | None) -> str:
        """closed, half_open or open."""
        state = self.states.get(upstream)
        return "closed" if state is None else state.breaker_state(model, self.clock.now())

    def throttled_for(self, upstream: str, model: str | None) -> float:
        """Seconds for which the provider asked not to be called."""
        state = self.states.get(upstream)
        if state is None:
            return 0.0
        gate = state.gate(model, self.credentials.get(upstream, 0))
        return gate.closed_for(self.clock.now())

    def recent_failures(self, upstream: str) -> int:
        """Consecutive failures, as of now."""
        state = self.states.get(upstream)
        return 0 if state is None else state.recent_failures

    def latency_ms(self, upstream: str) -> float | None:
        """Smoothed time to commit of successful calls, in milliseconds; None before the first."""
        state = self.states.get(upstream)
        return None if state is None else state.latency_ms
