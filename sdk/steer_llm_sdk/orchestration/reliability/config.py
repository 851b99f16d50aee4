"""How an orchestrator retries, falls back and breaks circuits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from steer_llm_sdk import checks
from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.reliability.breakers import USUAL, CircuitBreakerConfig
from steer_policies.config import Ambiguous
from steer_policies.config import RetryPolicy as Policy
from steer_policies.outcome import Failure


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how far apart one tool is tried; times are seconds.

    Attributes:
        max_attempts: attempts at one tool, the first included; 1 to 20.
        initial_delay: the delay before the second attempt; each further one is `backoff_factor`
            times longer, up to `max_delay`.
        jitter_factor: delays are spread by this share, 0 to 1.
        retry_on_timeout: try again after a time-out.
        retry_on_rate_limit: try again after a 429.
        retry_on_server_error: try again after a 5xx, or an error that says nothing of itself.
        retry_on_network_error: try again when a connection failed or was lost.
        respect_retry_after: wait as long as the provider asks, longer than `max_delay` if need be;
            what does not fit is not waited for at all. False keeps our own pace.
        max_total_delay: all delays of a run together.
        ambiguous: what follows an attempt that may have had an effect although it gave no result
            (a time-out, a lost connection, an exception of its own): `retry` tries again and falls
            back, `fail` does neither. None is `fail` in a run with an idempotency key, but for
            tools that are `idempotent`, else `retry`.

    Raises:
        InvalidValue: naming the field.
    """

    max_attempts: int = 3
    initial_delay: float = 1.0
    max_delay: float = 60.0
    backoff_factor: float = 2.0
    jitter_factor: float = 0.1
    retry_on_timeout: bool = True
    retry_on_rate_limit: bool = True
    retry_on_server_error: bool = True
    retry_on_network_error: bool = True
    respect_retry_after: bool = True
    max_total_delay: float = 300.0
    ambiguous: str | None = None

    def __post_init__(self) -> None:
        checks.whole("max_attempts", self.max_attempts, least=1, most=20)
        for name in ("initial_delay", "max_delay", "max_total_delay"):
            checks.number(name, getattr(self, name))
        checks.number("backoff_factor", self.backoff_factor, least=1, most=10)
        checks.number("jitter_factor", self.jitter_factor, most=1)
        for name in _FLAGS:
            checks.flag(name, getattr(self, name))
        if self.ambiguous is not None:
            ambiguous = checks.choice("ambiguous", Ambiguous, self.ambiguous)
            object.__setattr__(self, "ambiguous", ambiguous)
        if self.initial_delay > self.max_delay:
            raise InvalidValue(
                "initial_delay", f"must not exceed max_delay, which is {self.max_delay:g}"
            )

    @property
    def unwanted(self) -> frozenset[Failure]:
        """The failures that are not to be tried again."""
        return frozenset(
            failure
            for flag, failures in _FLAGS.items()
            if failures and not getattr(self, flag)
            for failure in failures
        )


_FLAGS: Final[Mapping[str, tuple[Failure, ...]]] = {
    "retry_on_timeout": (
        Failure.FIRST_BYTE_TIMEOUT,
        Failure.FIRST_TOKEN_TIMEOUT,
        Failure.IDLE_TIMEOUT,
    ),
    "retry_on_rate_limit": (Failure.THROTTLED,),
    "retry_on_server_error": (Failure.SERVER_ERROR, Failure.OVERLOADED, Failure.BUSY),
    "retry_on_network_error": (
        Failure.CONNECT,
        Failure.RESET,
        Failure.PROTOCOL,
        Failure.TRUNCATED,
    ),
    "respect_retry_after": (),
}


@dataclass(frozen=True, slots=True)
class OrchestratorReliabilityConfig:
    """How an orchestrator retries, falls back and breaks circuits; times are seconds.

    Attributes:
        retry_policy: attempts at one tool.
        circuit_breaker_configs: by provider; `default` is for those without one of their own.
        enable_fallback: False tries the plan's first tool alone.
        max_fallback_attempts: how many of a plan's fallback tools are tried.
        max_total_retry_time: after this long, counted from a run's first attempt, nothing is tried
            again.
        max_total_attempts: attempts of a run at all its tools, 1 to 60.

    Raises:
        InvalidValue: naming the field.
    """

    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    circuit_breaker_configs: Mapping[str, CircuitBreakerConfig] = field(
        default_factory=lambda: USUAL
    )
    enable_fallback: bool = True
    max_fallback_attempts: int = 2
    max_total_retry_time: float = 300.0
    max_total_attempts: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.retry_policy, RetryPolicy):
            raise InvalidValue("retry_policy", "must be a RetryPolicy")
        checks.mapping("circuit_breaker_configs", self.circuit_breaker_configs)
        for name, config in self.circuit_breaker_configs.items():
            checks.text("circuit_breaker_configs", name)
            if not isinstance(config, CircuitBreakerConfig):
                raise InvalidValue(
                    f"circuit_breaker_configs[{name!r}]",
                    f"must be a CircuitBreakerConfig, not {checks.shown(config)}",
                )
        checks.flag("enable_fallback", self.enable_fallback)
        checks.whole("max_fallback_attempts", self.max_fallback_attempts, least=0)
        checks.number("max_total_retry_time", self.max_total_retry_time)
        checks.whole("max_total_attempts", self.max_total_attempts, least=1, most=60)

    def policy(self, attempts: int | None, *, deterministic: bool) -> Policy:
        """The policy that decides about retries; `attempts` takes the place of `max_attempts`."""
        own = self.retry_policy
        return Policy(
            max_attempts=own.max_attempts if attempts is None else attempts,
            max_total_attempts=self.max_total_attempts,
            initial_delay=own.initial_delay,
            max_delay=own.max_delay,
            backoff_factor=own.backoff_factor,
            jitter_factor=0.0 if deterministic else own.jitter_factor,
            max_total_delay=own.max_total_delay,
            ambiguous=None if own.ambiguous is None else Ambiguous(own.ambiguous),
        )
