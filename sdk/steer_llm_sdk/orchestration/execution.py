"""The attempts of a run: at one tool, again at the same, at the next.

What a failure means is told by `failures`, what to do after it by `steer_policies.retry`, whether a
tool may be called by its circuit; here it is only done. A permit of a circuit is held for one
attempt, and given back however that ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from steer_llm_sdk import telemetry
from steer_llm_sdk.errors import CircuitOpen, ToolExecutionError, words_of
from steer_llm_sdk.orchestration.attempt import (
    Answer,
    Candidate,
    accepts,
    attempt,
    named_by,
    spanned,
)
from steer_llm_sdk.orchestration.circuits import Circuits, Entry
from steer_llm_sdk.orchestration.failures import provider_of, status_of, verdict_on
from steer_llm_sdk.orchestration.metadata import ToolMetadata
from steer_llm_sdk.orchestration.retrying import RetryManager
from steer_llm_sdk.orchestration.run import Run
from steer_llm_sdk.reliability.breakers import Breakers
from steer_llm_sdk.streaming.events import Told
from steer_policies.breaker import Rejected
from steer_policies.config import Ambiguous
from steer_policies.outcome import SUCCESS, TRAITS, Elsewhere, Executed, Failure, Verdict, failed
from steer_policies.retry import (
    Decision,
    GiveUp,
    Hop,
    RetryIn,
    Standing,
    WaitSource,
    decide,
    when_ambiguous,
)
from steer_proxy.engine.attempt import AttemptRecord

LOGGER: Final = logging.getLogger("steer.sdk")


class ReliableExecutor:
    """Makes the attempts of runs; one lives as long as its orchestrator."""

    def __init__(self, retry_manager: RetryManager, breakers: Breakers | None) -> None:
        self.retry_manager: Final = retry_manager
        self.circuits: Final = Circuits(breakers)

    async def execute(self, run: Run, candidates: Sequence[Candidate]) -> Answer:
        """Try the candidates in order until one gives a result.

        Raises:
            ToolExecutionError: none did.
        """
        return await Trial(self, run, candidates).result()

    def provider(self, metadata: ToolMetadata) -> str:
        """Whose circuit a tool stands under: as it last said, or as it declares."""
        return self.circuits.provider(metadata)


@dataclass(slots=True)
class Trial:
    """All attempts of one run, or of one tool of a parallel one. Use once."""

    executor: ReliableExecutor
    run: Run
    candidates: Sequence[Candidate]
    pending: list[Candidate] = field(init=False)
    deferred: list[Candidate] = field(default_factory=list)
    tried: list[Candidate] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    made: int = 0
    waited: float = 0.0
    maybe_executed: bool = False
    retry_at: float | None = None
    last: Exception | None = None
    began: float = field(init=False)
    ambiguous: Ambiguous = field(init=False)
    before: tuple[float, WaitSource] = (0.0, WaitSource.NONE)
    """What was waited before the next attempt, and why."""

    def __post_init__(self) -> None:
        self.pending = list(self.candidates)
        self.began = self.run.clock.now()
        options = self.run.options
        self.ambiguous = when_ambiguous(
            self.executor.retry_manager.policy(options).ambiguous,
            once=options.idempotency_key is not None,
        )

    async def result(self) -> Answer:
        """The first result.

        Raises:
            ToolExecutionError: there was none.
        """
        before: Candidate | None = None
        while (candidate := await self._next()) is not None:
            if before is None or before is candidate:
                answer = await self._follow(candidate)
            else:
                answer = await self._fall_back(before, candidate)
            if answer is not None:
                return answer
            before = candidate
        raise self._failure()

    async def _next(self) -> Candidate | None:
        """The next tool; after all of them, the one that asked for the least patience."""
        if self.pending:
            if self.pending[0] is self.candidates[0] or self._may_fall_back():
                return self.pending.pop(0)
            self.pending.clear()
        if not self.deferred:
            return None
        candidate = min(self.deferred, key=lambda each: each.available_at)
        self.deferred.remove(candidate)
        delay = max(0.0, candidate.available_at - self.run.clock.now())
        policy = self.executor.retry_manager.policy(self.run.options)
        if (
            self.made >= policy.max_total_attempts
            or delay > self._time_left()
            or self.waited + delay > policy.max_total_delay
        ):
            return None
        await self._again(candidate, delay, WaitSource.GATE)
        return candidate

    async def _fall_back(self, before: Candidate, candidate: Candidate) -> Answer | None:
        """Try another tool in the place of one that could not do it."""
        run = self.run
        reason = before.refused or "failed"
        if before.verdict is not None:
            reason = str(before.verdict.failure)
        await run.tell(
            Told.FALLBACK,
            self.executor.provider(candidate.metadata),
            source=before.name,
            from_tool=before.name,
            to_tool=candidate.name,
            tool_name=candidate.name,
            reason=reason,
        )
        facts = {telemetry.TOOL: candidate.name, telemetry.FALLBACK_FROM: before.name}
        with spanned(run, telemetry.FALLBACK, facts):
            return await self._follow(candidate)

    async def _follow(self, candidate: Candidate) -> Answer | None:
        """Try one tool until it gives a result, or it is time to look elsewhere."""
        if not await self._accepted(candidate):
            return None
        while (entry := await self._enter(candidate)) is not None:
            started = self.run.clock.now()
            if not candidate.attempts:
                self.tried.append(candidate)
            self.made += 1
            try:
                value = await attempt(self.run, candidate, entry.provider)
            except asyncio.CancelledError:
                self._record(candidate, failed(Failure.CANCELLED), started)
                raise
            except Exception as error:  # noqa: BLE001 - whatever a tool raises is its failure
                verdict = verdict_on(error, self.run.clock.wall())
                self._record(candidate, verdict, started, status_of(error))
                await self._learn(candidate, entry, verdict, started, provider_of(error))
                if not await self._once_more(candidate, error, verdict):
                    return None
            else:
                self._record(candidate, SUCCESS, started)
                named = named_by(value)
                await self._learn(candidate, entry, SUCCESS, started, named)
                if candidate.attempts > 1:
                    self.executor.retry_manager.metrics.succeeded()
                provider = named or candidate.metadata.provider
                return Answer(
                    value,
                    candidate,
                    provider,
                    self.made,
                    tuple(self.tried),
                    fallback_used=candidate is not self.candidates[0],
                )
            finally:
                self.executor.circuits.give_back(candidate.metadata, entry)
        return None

    async def _accepted(self, candidate: Candidate) -> bool:
        """Whether the tool itself says that it can take the request."""
        try:
            accepted = await accepts(self.run, candidate)
        except Exception as error:  # noqa: BLE001 - raising is another way to say no
            self.last = error
            accepted = False
        if not accepted:
            self._refused(candidate, "refuses the request")
        return accepted

    async def _enter(self, candidate: Candidate) -> Entry | None:
        """What an attempt needs to have; None when the tool's circuit is open."""
        entry = await self.executor.circuits.enter(self.run, candidate.metadata)
        if isinstance(entry, Rejected):
            self._refused(candidate, "its circuit is open")
            at = self.run.clock.now() + entry.retry_in
            self.retry_at = at if self.retry_at is None else min(at, self.retry_at)
            return None
        return entry

    async def _learn(
        self,
        candidate: Candidate,
        entry: Entry,
        verdict: Verdict,
        started: float,
        named: str | None,
    ) -> None:
        """Remember what an attempt taught, and teach it the tool's circuit."""
        seconds = self.run.clock.now() - started
        candidate.verdict = verdict
        candidate.elapsed += seconds
        failure = verdict.failure
        self.details.append(
            {
                "tool": candidate.name,
                "provider": entry.provider,
                "attempt": candidate.attempts,
                "outcome": str(verdict.outcome),
                "failure": None if failure is None else str(failure),
            }
        )
        if failure is not None and verdict.executed is not Executed.NO:
            self.maybe_executed = self.run.maybe_executed = True
        await self.executor.circuits.learn(
            self.run, candidate.metadata, entry, verdict, seconds, named
        )

    def _record(
        self, candidate: Candidate, verdict: Verdict, started: float, status: int | None = None
    ) -> None:
        """Keep what became of an attempt, where that is kept."""
        waited, self.before = self.before, (0.0, WaitSource.NONE)
        if (records := self.run.records) is None:
            return
        records.append(
            AttemptRecord(
                number=len(records) + 1,
                upstream=candidate.name,
                model=None,
                started=started,
                seconds=self.run.clock.now() - started,
                waited=waited[0],
                wait_source=waited[1],
                status=status,
                verdict=verdict,
            )
        )

    async def _once_more(self, candidate: Candidate, error: Exception, verdict: Verdict) -> bool:
        """Whether the same tool is tried again; waits before it says yes."""
        self.last = error
        failure = verdict.failure or Failure.SERVER_ERROR
        if not self.executor.retry_manager.config.retry_policy.respect_retry_after:
            verdict = replace(verdict, hint=None)
        decision = self._decide(candidate, verdict, failure)
        LOGGER.info(
            "attempt %d at %s failed for request %s (%s): %s",
            candidate.attempts,
            candidate.name,
            self.run.request_id,
            failure,
            decision.why,
        )
        match decision:
            case RetryIn(delay=delay, source=source):
                await self._again(candidate, delay, source, error)
                return True
            case Hop():
                self._hop(candidate, verdict)
            case GiveUp(retry_after=asked, uncertain=uncertain):
                if asked is not None:
                    self.retry_at = self.run.clock.now() + asked
                self.pending.clear()
                if uncertain or TRAITS[failure].elsewhere is Elsewhere.NEVER:
                    self.deferred.clear()
        return False

    def _decide(self, candidate: Candidate, verdict: Verdict, failure: Failure) -> Decision:
        manager = self.executor.retry_manager
        standing = Standing(
            attempts_here=candidate.attempts,
            attempts_total=self.made,
            waited=self.waited,
            time_left=self._time_left(),
            others=TRAITS[failure].elsewhere is Elsewhere.ANY and self._others(),
            ambiguous=self.ambiguous,
            unsent_only=False,
            idempotent_upstream=candidate.metadata.idempotent,
            retry_allowed=True,
            jitter=0.0 if self.run.options.deterministic else self.run.clock.jitter(),
            executed_before=self.maybe_executed,
            unwanted=failure in manager.unwanted,
        )
        return decide(manager.policy(self.run.options), verdict, standing)

    def _hop(self, candidate: Candidate, verdict: Verdict) -> None:
        """Go on to the next tool, or come back to this one after the time asked for."""
        policy = self.executor.retry_manager.policy(self.run.options)
        if (
            verdict.hint is not None
            and verdict.again
            and candidate.attempts < policy.max_attempts
            and verdict.failure not in self.executor.retry_manager.unwanted
        ):
            candidate.available_at = self.run.clock.now() + verdict.hint.seconds
            self.deferred.append(candidate)

    def _others(self) -> bool:
        """Whether another tool could be tried now."""
        circuits = self.executor.circuits
        return self._may_fall_back() and any(
            circuits.ready(self.run, each.metadata) for each in self.pending
        )

    def _may_fall_back(self) -> bool:
        """Whether fewer fallback tools than may be were tried."""
        tried = sum(1 for each in self.tried if each is not self.candidates[0])
        return tried < self.executor.retry_manager.config.max_fallback_attempts

    def _time_left(self) -> float:
        most = self.executor.retry_manager.config.max_total_retry_time
        return min(self.run.left(), self.began + most - self.run.clock.now())

    async def _again(
        self,
        candidate: Candidate,
        delay: float,
        source: WaitSource,
        error: Exception | None = None,
    ) -> None:
        """Tell of a retry, and wait for its time."""
        self.waited += delay
        self.before = (delay, source)
        self.executor.retry_manager.metrics.retried()
        until = self.run.clock.now() + delay
        told = self.last if error is None else error
        await self.run.tell(
            Told.RETRY_ATTEMPT,
            self.executor.provider(candidate.metadata),
            attempt=candidate.attempts,
            delay=delay,
            source=candidate.name,
            tool_name=candidate.name,
            error=words_of(told),
        )
        # What watching took is not waited for again; but never earlier than was decided.
        await self.run.clock.sleep(max(0.0, until - self.run.clock.now()))

    def _refused(self, candidate: Candidate, why: str) -> None:
        """Remember why a tool was not tried."""
        candidate.refused = why
        self.details.append({"tool": candidate.name, "attempt": 0, "refused": why})
        if self.maybe_executed and self.ambiguous is Ambiguous.FAIL:
            # It was to be repeated here or nowhere, and here it cannot be.
            self.pending.clear()
            self.deferred.clear()

    def _failure(self) -> ToolExecutionError:
        """What is raised when no tool gave a result."""
        tale = "; ".join(
            f"{each['tool']}: {each.get('refused') or each['failure'] or 'ok'}"
            for each in self.details
        )
        wait = None
        if self.retry_at is not None:
            wait = max(0.0, self.retry_at - self.run.clock.now())
        names = [each["tool"] for each in self.details]
        kind = ToolExecutionError
        message = f"no tool gave a result ({tale})"
        if not self.tried and wait is not None:
            kind = CircuitOpen
            message = f"no tool can be called now ({tale})"
        elif self.last is not None:
            message = f"{words_of(self.last)} ({tale})"
        error = kind(
            message,
            tool_name=names[-1] if names else None,
            attempts=self.made,
            retry_after=wait,
            maybe_executed=self.maybe_executed,
            details=tuple(self.details),
        )
        error.__cause__ = self.last
        return error
