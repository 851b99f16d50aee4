"""What a run waits, before retries and at gates: for how long it may, and the telling of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from steer_llm_sdk.orchestration.attempt import Candidate
from steer_llm_sdk.orchestration.retrying import RetryManager
from steer_llm_sdk.orchestration.run import Run
from steer_llm_sdk.streaming.events import Told
from steer_policies.outcome import Failure
from steer_policies.retry import MIN_ATTEMPT_TIME, WaitSource
from steer_policies.throttle import Gate, Pass
from steer_proxy.engine.gate import pass_gate


@dataclass(slots=True)
class Patience:
    """The waits of one trial, which began then. `waited` is their sum, in seconds."""

    run: Run
    manager: RetryManager
    began: float
    waited: float = 0.0
    _before: tuple[float, WaitSource] = (0.0, WaitSource.NONE)

    def time_left(self) -> float:
        """Seconds until nothing more is tried."""
        most = self.manager.config.max_total_retry_time
        return min(self.run.left(), self.began + most - self.run.clock.now())

    def fits(self, delay: float) -> bool:
        """Whether there is time for a delay, and for an attempt after it."""
        policy = self.manager.policy(self.run.options)
        return (
            delay + MIN_ATTEMPT_TIME <= self.time_left()
            and self.waited + delay <= policy.max_total_delay
        )

    def jitter(self) -> float:
        """A random number in [0, 1); 0 for runs that are to be deterministic."""
        return 0.0 if self.run.options.deterministic else self.run.clock.jitter()

    def taken(self) -> tuple[float, WaitSource]:
        """What was waited before an attempt, and why; the next one begins anew."""
        before, self._before = self._before, (0.0, WaitSource.NONE)
        return before

    @property
    def gates(self) -> bool:
        """Whether a provider's wish is waited for at all."""
        return Failure.THROTTLED not in self.manager.unwanted

    async def pass_gate(
        self, gate: Gate, candidate: Candidate, provider: str, others: Callable[[], bool]
    ) -> Pass | float:
        """Wait at a tool's gate if that is worth while; else for how long it stays shut.

        `others` says whether another tool could be asked meanwhile.
        """
        most = self.manager.policy(self.run.options).hop_after

        def worth_waiting(delay: float) -> bool:
            return self.gates and self.fits(delay) and (delay <= most or not others())

        async def wait(delay: float) -> None:
            await self.stand_back(candidate, provider, delay)

        return await pass_gate(gate, self.run.clock.now, self.jitter, worth_waiting, wait)

    async def stand_back(self, candidate: Candidate, provider: str, delay: float) -> None:
        """Wait since a tool's provider asked for patience."""
        await self._wait(
            Told.THROTTLED,
            provider,
            delay,
            WaitSource.GATE,
            delay=delay,
            source=candidate.name,
            tool_name=candidate.name,
        )

    async def again(
        self, candidate: Candidate, provider: str, delay: float, source: WaitSource, error: str
    ) -> None:
        """Wait for a retry; `error` is what it is made for."""
        self.manager.metrics.retried()
        await self._wait(
            Told.RETRY_ATTEMPT,
            provider,
            delay,
            source,
            attempt=candidate.attempts,
            delay=delay,
            source=candidate.name,
            tool_name=candidate.name,
            error=error,
        )

    async def _wait(
        self, what: Told, provider: str, seconds: float, why: WaitSource, /, **facts: object
    ) -> None:
        self.waited += seconds
        self._before = (self._before[0] + seconds, why)
        until = self.run.clock.now() + seconds
        await self.run.tell(what, provider, **facts)
        # What watching took is not waited for again; but never earlier than was decided.
        await self.run.clock.sleep(max(0.0, until - self.run.clock.now()))
