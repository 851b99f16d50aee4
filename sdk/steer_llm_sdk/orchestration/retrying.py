"""Retries: the policy of each run, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from steer_llm_sdk.orchestration.config import OrchestrationConfig
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig
from steer_policies.config import RetryPolicy as Policy
from steer_policies.outcome import Failure


class Count(int):
    """A number of things that happened; its share of none is 0.0, not an error."""

    __slots__ = ()

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, int) and other == 0:
            return 0.0
        return super().__truediv__(other)


@dataclass(slots=True)
class RetryMetrics:
    """What became of retries since the orchestrator was made.

    `retry_attempts` counts attempts after the first one at a tool, `retry_successes` those of them
    that brought the result.
    """

    retry_attempts: int = field(default_factory=lambda: Count(0))
    retry_successes: int = field(default_factory=lambda: Count(0))

    def retried(self) -> None:
        """One more attempt is made at the same tool."""
        self.retry_attempts = Count(self.retry_attempts + 1)

    def succeeded(self) -> None:
        """It brought the result."""
        self.retry_successes = Count(self.retry_successes + 1)


class RetryManager:
    """The terms of retries, run by run, and their metrics."""

    def __init__(self, config: OrchestratorReliabilityConfig) -> None:
        self.config: Final = config
        self.unwanted: Final[frozenset[Failure]] = config.retry_policy.unwanted
        self.metrics: Final = RetryMetrics()
        self._policies: dict[tuple[int | None, bool], Policy] = {}

    def policy(self, options: OrchestrationConfig) -> Policy:
        """The policy that decides about a run's retries."""
        retries = options.own_retries if options.retry_on_failure else 0
        key = (None if retries is None else retries + 1, options.deterministic)
        policy = self._policies.get(key)
        if policy is None:  # at most fourteen of them
            attempts, deterministic = key
            policy = self.config.policy(attempts, deterministic=deterministic)
            self._policies[key] = policy
        return policy
