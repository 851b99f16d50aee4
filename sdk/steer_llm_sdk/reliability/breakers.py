"""Circuit breakers of tools: the engine's, one for each provider and tool.

What the engine calls an upstream is a provider here, and what it calls a model is a tool: a failure
to connect counts against the provider with all its tools, any other against the tool alone. Beside
them the engine keeps a throttle gate for each: what a provider asks for by a 429 holds for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final

from steer_llm_sdk import checks
from steer_llm_sdk.calling import accepted
from steer_policies.breaker import PermitPair, Rejected
from steer_policies.breaker import State as CircuitState
from steer_policies.config import BreakerPolicy, DialectName, FailureCount, UpstreamPolicy
from steer_policies.outcome import Verdict
from steer_policies.throttle import Gate
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.events import HealthEvent
from steer_proxy.engine.registry import MAX_REMEMBERED, UpstreamState

__all__ = ["Breakers", "CircuitBreakerConfig", "CircuitState"]

#: The provider of tools that name none, and the key of the configuration for providers that have
#: none of their own.
DEFAULT: Final = "default"

#: More calls than ever happen: the share of failures decides nothing here, their number does.
_NEVER: Final = 2**62


@dataclass(frozen=True, slots=True)
class CircuitBreakerConfig:
    """When a provider's circuits open, and how they close again; times are seconds.

    A circuit opens after `failure_threshold` failures within `window_size`, stays open for
    `timeout`, then lets `half_open_requests` probes through at a time, and closes after
    `success_threshold` of them succeeded; one that fails opens it again.

    `on_open`, `on_close` and `on_half_open` are called when it happens: with the circuit's name,
    `provider:tool`, if they take an argument, else with none. They are plain functions.

    Raises:
        InvalidValue: naming the field.
    """

    failure_threshold: int = 5
    success_threshold: int = 2
    timeout: float = 60.0
    half_open_requests: int = 3
    window_size: float = 60.0
    on_open: Callable[..., object] | None = field(default=None, compare=False)
    on_close: Callable[..., object] | None = field(default=None, compare=False)
    on_half_open: Callable[..., object] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("failure_threshold", "success_threshold", "half_open_requests"):
            checks.whole(name, getattr(self, name), least=1)
        for name in ("timeout", "window_size"):
            checks.number(name, getattr(self, name), above=True)
        for name in ("on_open", "on_close", "on_half_open"):
            checks.function(name, getattr(self, name))

    @property
    def policy(self) -> BreakerPolicy:
        """The same as the breaker's own policy."""
        return BreakerPolicy(
            failure_threshold=self.failure_threshold,
            failure_count=FailureCount.WINDOW,
            min_calls=_NEVER,
            window=self.window_size,
            open_duration=self.timeout,
            max_open_duration=self.timeout,  # open for as long as it says, the second time too
            success_threshold=self.success_threshold,
            probes=self.half_open_requests,
        )

    def callback(self, state: str) -> Callable[..., object] | None:
        """What is to be called when a circuit gets into this state."""
        return {
            CircuitState.OPEN: self.on_open,
            CircuitState.CLOSED: self.on_close,
            CircuitState.HALF_OPEN: self.on_half_open,
        }[CircuitState(state)]


#: What holds for providers that the given configurations do not provide for.
USUAL: Final[Mapping[str, CircuitBreakerConfig]] = MappingProxyType(
    {
        "openai": CircuitBreakerConfig(window_size=300.0),
        "anthropic": CircuitBreakerConfig(
            failure_threshold=3, success_threshold=1, timeout=120.0, window_size=300.0
        ),
        "xai": CircuitBreakerConfig(failure_threshold=4, timeout=90.0, window_size=300.0),
        DEFAULT: CircuitBreakerConfig(window_size=300.0),
    }
)


@dataclass(frozen=True, slots=True)
class Change:
    """A circuit that changed its state; `name` is `provider:tool`, or the provider's alone."""

    name: str
    provider: str
    tool: str | None
    before: str
    after: str
    reason: str
    callback: Callable[..., object] | None

    def call_back(self) -> object:
        """Call what is to be called, if anything; what it raises is the caller's business."""
        if self.callback is None:
            return None
        return self.callback(*(self.name,)[: accepted(self.callback, 1)])


class Breakers:
    """The circuits of one orchestrator, remembered by provider and tool; bounded."""

    def __init__(self, configs: Mapping[str, CircuitBreakerConfig], clock: Clock) -> None:
        self._configs = configs
        self._clock = clock
        self._states: dict[str, UpstreamState] = {}
        self._known: dict[tuple[str, str], str] = {}
        self._changes: list[tuple[str, HealthEvent]] = []
        self._troubled: set[tuple[str, str | None]] = set()
        #: Counts what `states` depends on beside the states themselves.
        self.revision = 0

    def acquire(self, provider: str, tool: str) -> PermitPair | Rejected:
        """A permit to call a tool, or for how many seconds there is none."""
        key = (provider, tool)
        if key not in self._known:
            if len(self._known) >= MAX_REMEMBERED:
                self._forget()
            self._known[key] = f"{provider}:{tool}"
            self.revision += 1
        return self._made(provider, tool).acquire(tool, self._clock.now())

    def settle(
        self,
        provider: str,
        tool: str,
        permit: PermitPair,
        verdict: Verdict | None,
        seconds: float | None = None,
    ) -> None:
        """Give a permit back with what the call taught; None for nothing."""
        self._made(provider, tool).settle(tool, permit, verdict, seconds)

    def gate(self, provider: str, tool: str) -> Gate | None:
        """The gate that a provider's wish not to be called closes; None while there was none."""
        found = self._states.get(_place(provider, tool))
        return None if found is None else found.known_gate(tool, _CREDENTIAL)

    def throttle(self, provider: str, tool: str, seconds: float) -> None:
        """The provider asked not to be called for so long."""
        if len(self._states) >= MAX_REMEMBERED:
            self._forget()
        self._made(provider, tool).close_gate(tool, _CREDENTIAL, seconds)

    def credit(self, provider: str, tool: str, verdict: Verdict) -> None:
        """Teach a circuit what a call taught that was made under another provider's name."""
        permit = self.acquire(provider, tool)
        if isinstance(permit, PermitPair):
            self.settle(provider, tool, permit, verdict)

    def forget(self, provider: str, tool: str) -> None:
        """Tell of a circuit no more: the tool turned out to be another provider's."""
        self._known.pop((provider, tool), None)
        self.revision += 1

    def state(self, provider: str, tool: str) -> str:
        """closed, open or half_open: how a call would find it now."""
        found = self._states.get(_place(provider, tool))
        return _CLOSED if found is None else found.breaker_state(tool, self._clock.now())

    def open_for(self, provider: str, tool: str) -> float:
        """Seconds until a call or a probe is admitted; 0 when it is now."""
        found = self._states.get(_place(provider, tool))
        return 0.0 if found is None else found.open_for(tool, self._clock.now())

    def states(self, tools: Iterable[tuple[str, str]]) -> dict[str, str]:
        """The state of these tools' circuits, each after its provider, and of all that were used;
        by `provider:tool`."""
        names = {key: self._known.get(key) or f"{key[0]}:{key[1]}" for key in tools}
        return {name: self.state(*key) for key, name in (names | self._known).items()}

    @property
    def changed(self) -> bool:
        """Whether there are changes to tell."""
        return bool(self._changes)

    def changes(self) -> list[Change]:
        """What changed since this was last asked."""
        told, self._changes = self._changes, []
        return [self._change(place, event) for place, event in told]

    def _change(self, place: str, event: HealthEvent) -> Change:
        name = place if event.model is None else f"{event.upstream}:{event.model}"
        callback = self._config(event.upstream).callback(event.after)
        return Change(
            name, event.upstream, event.model, event.before, event.after, event.reason, callback
        )

    def _made(self, provider: str, tool: str) -> UpstreamState:
        place = _place(provider, tool)
        state = self._states.get(place)
        if state is None:
            policy = UpstreamPolicy(
                name=provider, dialect=DialectName.HTTP, breaker=self._config(provider).policy
            )
            state = self._states[place] = UpstreamState(
                policy, self._clock, partial(self._note, place)
            )
        return state

    def _note(self, place: str, event: HealthEvent) -> None:
        if event.kind != _BREAKER:  # a gate: who waits at it tells of that
            return
        self._changes.append((place, event))
        circuit = (place, event.model)
        if event.after == _CLOSED:
            self._troubled.discard(circuit)
        else:
            self._troubled.add(circuit)

    @property
    def calm(self) -> bool:
        """Whether every circuit is closed."""
        return not self._troubled

    def _config(self, provider: str) -> CircuitBreakerConfig:
        for configs in (self._configs, USUAL):
            for name in (provider, DEFAULT):
                if (found := configs.get(name)) is not None:
                    return found
        raise AssertionError("the usual configurations have a default")

    def _forget(self) -> None:
        """Make room: a closed circuit is as good as none; without any, the oldest goes."""
        closed = [key for key in self._known if self.state(*key) == _CLOSED]
        for key in closed or list(self._known)[:1]:
            del self._known[key]
        used = {_place(*key) for key in self._known}
        self._states = {place: state for place, state in self._states.items() if place in used}
        self._troubled = {circuit for circuit in self._troubled if circuit[0] in used}


_CLOSED: Final = str(CircuitState.CLOSED)
_BREAKER: Final = "breaker"

#: Tools have their credentials to themselves; to us there is one for each.
_CREDENTIAL: Final = 0


def _place(provider: str, tool: str) -> str:
    """Which tools share what is known of connecting: those of a provider, unless it has no name."""
    return f"{DEFAULT}:{tool}" if provider == DEFAULT else provider
