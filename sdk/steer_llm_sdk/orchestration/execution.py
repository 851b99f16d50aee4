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
from typing import Final

from steer_llm_sdk import telemetry
from steer_llm_sdk.errors import words_of
from steer_llm_sdk.orchestration.account import OPEN, SHUT, UNFIT, Account
from steer_llm_sdk.orchestration.attempt import (
    Answer,
    Candidate,
    accepts,
    attempt,
    has_a_say,
    named_by,
    spanned,
)
from steer_llm_sdk.orchestration.circuits import Circuits, Entry
from steer_llm_sdk.orchestration.failures import provider_of, status_of, verdict_on
from steer_llm_sdk.orchestration.metadata import ToolMetadata
from steer_llm_sdk.orchestration.patience import Patience
from steer_llm_sdk.orchestration.retrying import RetryManager
from steer_llm_sdk.orchestration.run import Run
from steer_llm_sdk.reliability.breakers import Breakers
from steer_llm_sdk.streaming.events import Told
from steer_policies.breaker import Rejected
from steer_policies.config import Ambiguous
from steer_policies.config import RetryPolicy as Policy
from steer_policies.outcome import SUCCESS, TRAITS, Elsewhere, Failure, Verdict, failed
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
from steer_policies.throttle import Pass

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
    account: Account = field(init=False)
    pending: list[Candidate] = field(init=False)
    deferred: list[Candidate] = field(default_factory=list)
    tried: list[Candidate] = field(default_factory=list)
    began: float = field(init=False)
    _patience: Patience | None = None

    def __post_init__(self) -> None:
        self.account = Account(self.run)
        self.pending = list(self.candidates)
        self.began = self.run.clock.now()

    # What follows is of use where something failed: most trials never ask for it.

    @property
    def patience(self) -> Patience:
        """What was waited, and may be."""
        if self._patience is None:
            self._patience = Patience(self.run, self.executor.retry_manager, self.began)
        return self._patience

    @property
    def policy(self) -> Policy:
        """The policy that decides about retries."""
        return self.executor.retry_manager.policy(self.run.options)

    @property
    def ambiguous(self) -> Ambiguous:
        """What follows an attempt that may have had an effect."""
        keyed = self.run.options.idempotency_key is not None
        return when_ambiguous(self.policy.ambiguous, once=keyed)

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
        raise self.account.failure()

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
        if self.account.made >= self.policy.max_total_attempts or not self.patience.fits(delay):
            return None
        if candidate.attempts:
            await self._again(candidate, delay, WaitSource.GATE)
        else:
            await self.patience.stand_back(candidate, self._provider(candidate), delay)
        return candidate

    async def _fall_back(self, before: Candidate, candidate: Candidate) -> Answer | None:
        """Try another tool in the place of one that could not do it."""
        run = self.run
        reason = before.refused or "failed"
        if before.verdict is not None:
            reason = str(before.verdict.failure)
        await run.tell(
            Told.FALLBACK,
            self._provider(candidate),
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
        if has_a_say(candidate.tool) and not await self._accepted(candidate):
            return None
        while (entry := await self._enter(candidate)) is not None:
            started = self.run.clock.now()
            if not candidate.attempts:
                self.tried.append(candidate)
            self.account.made += 1
            try:
                value = await attempt(self.run, candidate, entry.provider)
            except asyncio.CancelledError:
                self._record(candidate, failed(Failure.CANCELLED), started)
                raise
            except Exception as error:  # noqa: BLE001 - whatever a tool raises is its failure
                verdict = self._heard(verdict_on(error, self.run.clock.wall()))
                self._record(candidate, verdict, started, error)
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
                    self.account.made,
                    tuple(self.tried),
                    fallback_used=candidate is not self.candidates[0],
                )
            finally:
                self.executor.circuits.give_back(self.run, candidate.metadata, entry)
        return None

    def _record(
        self,
        candidate: Candidate,
        verdict: Verdict,
        started: float,
        error: Exception | None = None,
    ) -> None:
        """Keep what became of an attempt, where that is kept."""
        if self.run.records is not None:
            status = None if error is None else status_of(error)
            self.account.record(candidate, verdict, started, self.patience.taken(), status)

    async def _accepted(self, candidate: Candidate) -> bool:
        """Whether the tool itself says that it can take the request."""
        try:
            accepted = await accepts(self.run, candidate)
        except Exception as error:  # noqa: BLE001 - raising is another way to say no
            self.account.last = error
            accepted = False
        if not accepted:
            self._refuse(candidate, UNFIT)
        return accepted

    async def _enter(self, candidate: Candidate) -> Entry | None:
        """What an attempt needs to have: the gate first, permits last, so that no probe waits in
        line. None when the tool's circuit is open, or its provider asked for patience."""
        circuits, metadata = self.executor.circuits, candidate.metadata
        gate, admission = circuits.gate(metadata), None
        if gate is not None and circuits.ready(self.run, metadata):
            passed = await self.patience.pass_gate(
                gate, candidate, self._provider(candidate), self._others
            )
            if not isinstance(passed, Pass):
                self._refuse(candidate, SHUT, passed)
                return None
            admission = passed
        entry = await circuits.enter(self.run, metadata, gate, admission)
        if isinstance(entry, Rejected):
            self._refuse(candidate, OPEN, entry.retry_in)
            return None
        return entry

    def _refuse(self, candidate: Candidate, why: str, retry_in: float | None = None) -> None:
        """A tool is not tried now."""
        self.account.refused(candidate, why, retry_in)
        if self.account.maybe_executed and self.ambiguous is Ambiguous.FAIL:
            # It was to be repeated here or nowhere, and here it cannot be.
            self.pending.clear()
            self.deferred.clear()
        elif why == SHUT and retry_in is not None and self.patience.gates:
            candidate.available_at = self.run.clock.now() + retry_in
            self.deferred.append(candidate)

    def _heard(self, verdict: Verdict) -> Verdict:
        """A verdict as far as its provider's wish is to be respected."""
        if self.executor.retry_manager.config.retry_policy.respect_retry_after:
            return verdict
        return replace(verdict, hint=None)

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
        self.account.attempted(candidate, entry.provider, verdict)
        await self.executor.circuits.learn(
            self.run, candidate.metadata, entry, verdict, seconds, named
        )

    async def _once_more(self, candidate: Candidate, error: Exception, verdict: Verdict) -> bool:
        """Whether the same tool is tried again; waits before it says yes."""
        self.account.last = error
        failure = verdict.failure or Failure.SERVER_ERROR
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
                await self._again(candidate, delay, source)
                return True
            case Hop():
                self._hop(candidate, verdict)
            case GiveUp(retry_after=asked, uncertain=uncertain):
                if asked is not None:
                    self.account.asked(asked)
                self.pending.clear()
                if uncertain or TRAITS[failure].elsewhere is Elsewhere.NEVER:
                    self.deferred.clear()
        return False

    def _decide(self, candidate: Candidate, verdict: Verdict, failure: Failure) -> Decision:
        standing = Standing(
            attempts_here=candidate.attempts,
            attempts_total=self.account.made,
            waited=self.patience.waited,
            time_left=self.patience.time_left(),
            others=TRAITS[failure].elsewhere is Elsewhere.ANY and self._others(),
            ambiguous=self.ambiguous,
            unsent_only=False,
            idempotent_upstream=candidate.metadata.idempotent,
            retry_allowed=True,
            jitter=self.patience.jitter(),
            executed_before=self.account.maybe_executed,
            unwanted=failure in self.executor.retry_manager.unwanted,
        )
        return decide(self.policy, verdict, standing)

    def _hop(self, candidate: Candidate, verdict: Verdict) -> None:
        """Go on to the next tool, or come back to this one after the time asked for."""
        if (
            verdict.hint is not None
            and verdict.again
            and candidate.attempts < self.policy.max_attempts
            and verdict.failure not in self.executor.retry_manager.unwanted
        ):
            candidate.available_at = self.run.clock.now() + verdict.hint.seconds
            self.deferred.append(candidate)

    async def _again(self, candidate: Candidate, delay: float, source: WaitSource) -> None:
        provider, error = self._provider(candidate), words_of(self.account.last)
        await self.patience.again(candidate, provider, delay, source, error)

    def _others(self) -> bool:
        """Whether another tool could be tried now."""
        circuits, now = self.executor.circuits, self.run.clock.now()
        return self._may_fall_back() and any(
            circuits.ready(self.run, each.metadata)
            and ((gate := circuits.gate(each.metadata)) is None or gate.closed_for(now) <= 0)
            for each in self.pending
        )

    def _may_fall_back(self) -> bool:
        """Whether fewer fallback tools than may be were tried."""
        tried = sum(1 for each in self.tried if each is not self.candidates[0])
        return tried < self.executor.retry_manager.config.max_fallback_attempts

    def _provider(self, candidate: Candidate) -> str:
        return self.executor.provider(candidate.metadata)
