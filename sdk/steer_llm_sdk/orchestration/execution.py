"""The attempts of a run: at one tool, again at the same, at the next.

What a failure means is told by `failures`, what to do after it by `steer_policies.retry`, whether a
tool may be called by its circuit; here it is only done. A permit of a circuit is held for one
attempt, and given back however that ends.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

from steer_llm_sdk import telemetry
from steer_llm_sdk.current import CURRENT, RunTerms
from steer_llm_sdk.errors import CircuitOpen, ToolExecutionError
from steer_llm_sdk.orchestration.failures import provider_of, verdict_on
from steer_llm_sdk.orchestration.metadata import ToolMetadata
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.retrying import RetryManager
from steer_llm_sdk.orchestration.run import Run, copied
from steer_llm_sdk.orchestration.tools import Tool
from steer_llm_sdk.reliability.breakers import DEFAULT, Breakers
from steer_llm_sdk.streaming.events import Told
from steer_policies.breaker import PermitPair, Rejected
from steer_policies.config import Ambiguous
from steer_policies.outcome import SUCCESS, TRAITS, Elsewhere, Executed, Failure, Verdict
from steer_policies.retry import Decision, GiveUp, Hop, RetryIn, Standing, decide
from steer_proxy.engine.registry import MAX_REMEMBERED

LOGGER: Final = logging.getLogger("steer.sdk")


@dataclass(slots=True)
class Candidate:
    """A tool that may take the run: its options, and how it stands."""

    tool: Tool
    metadata: ToolMetadata
    options: dict[str, Any]
    attempts: int = 0
    available_at: float = 0.0
    elapsed: float = 0.0
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.metadata.name


@dataclass(slots=True)
class Answer:
    """What a tool gave, and what it took."""

    value: Any
    candidate: Candidate
    provider: str | None
    attempts: int
    tried: Sequence[Candidate]
    fallback_used: bool


class ReliableExecutor:
    """Makes the attempts of runs; one lives as long as its orchestrator."""

    def __init__(self, retry_manager: RetryManager, breakers: Breakers | None) -> None:
        self.retry_manager: Final = retry_manager
        self.breakers: Final = breakers
        self._learned: dict[str, tuple[ToolMetadata, str]] = {}

    async def execute(self, run: Run, candidates: Sequence[Candidate]) -> Answer:
        """Try the candidates in order until one gives a result.

        Raises:
            ToolExecutionError: none did.
        """
        return await Trial(self, run, candidates).result()

    def provider(self, metadata: ToolMetadata) -> str:
        """Whose circuit a tool stands under: as it last said, or as it declares."""
        learned = self._learned.get(metadata.name)
        if learned is not None and learned[0] is metadata:  # the same tool, not its successor
            return learned[1]
        return metadata.provider or DEFAULT

    def learn(self, metadata: ToolMetadata, provider: str) -> None:
        """Remember whose tool it is."""
        if len(self._learned) >= MAX_REMEMBERED:
            self._learned.clear()
        self._learned[metadata.name] = (metadata, provider)


@dataclass(slots=True)
class _Entry:
    """An attempt that may be made: under whose name, and with what permit."""

    provider: str
    permit: PermitPair | None


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

    def __post_init__(self) -> None:
        self.pending = list(self.candidates)
        self.began = self.run.clock.now()

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
        await self._again(candidate, delay)
        return candidate

    async def _fall_back(self, before: Candidate, candidate: Candidate) -> Answer | None:
        """Try another tool in the place of one that could not do it."""
        run = self.run
        reason = "circuit open" if before.verdict is None else str(before.verdict.failure)
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
        with self._span(telemetry.FALLBACK, facts):
            return await self._follow(candidate)

    async def _follow(self, candidate: Candidate) -> Answer | None:
        """Try one tool until it gives a result, or it is time to look elsewhere."""
        if not await self._accepted(candidate):
            return None
        while (entry := await self._enter(candidate)) is not None:
            started = self.run.clock.now()
            try:
                value = await self._attempt(candidate, entry)
            except Exception as error:  # noqa: BLE001 - whatever a tool raises is its failure
                verdict = verdict_on(error, self.run.clock.wall())
                await self._learn(candidate, entry, verdict, started, provider_of(error))
                if not await self._once_more(candidate, error, verdict):
                    return None
            else:
                named = _named_by(value)
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
                self._give_back(candidate, entry)
        return None

    async def _accepted(self, candidate: Candidate) -> bool:
        """Whether the tool itself says that it can take the request."""
        validate = getattr(candidate.tool, "validate_request", None)
        if validate is None:
            return True
        try:
            valid = validate(copied(self.run.request))
            if inspect.isawaitable(valid):
                valid = await valid
        except Exception as error:  # noqa: BLE001 - raising is another way to say no
            self.last = error
            valid = False
        if valid is False:
            self._note(candidate, "refuses the request")
            return False
        return True

    async def _enter(self, candidate: Candidate) -> _Entry | None:
        """What an attempt needs to have; None when the tool's circuit is open."""
        breakers = self.executor.breakers
        provider = self.executor.provider(candidate.metadata)
        if breakers is None or not self.run.options.enable_circuit_breaker:
            return _Entry(provider, None)
        permit = breakers.acquire(provider, candidate.name)
        if isinstance(permit, Rejected):
            self._note(candidate, "its circuit is open")
            at = self.run.clock.now() + permit.retry_in
            self.retry_at = at if self.retry_at is None else min(at, self.retry_at)
            return None
        entry = _Entry(provider, permit)
        if permit.probe:
            try:
                await self._tell_changes(breakers)
            except BaseException:
                self._give_back(candidate, entry)
                raise
        return entry

    async def _attempt(self, candidate: Candidate, entry: _Entry) -> Any:
        """One attempt at a tool."""
        run = self.run
        if not candidate.attempts:
            self.tried.append(candidate)
        candidate.attempts += 1
        self.made += 1
        request, options = copied(run.request), copied(candidate.options)
        limit = run.options.per_agent_timeout_ms
        if run.tracer is None and limit is None:
            return await self._execute(candidate, request, options, run.terms)
        facts = {
            telemetry.TOOL: candidate.name,
            telemetry.PROVIDER: entry.provider,
            telemetry.NUMBER: candidate.attempts,
        }
        terms, until = run.terms, None
        if limit is not None:
            until = run.clock.now() + limit / 1000.0
            terms = replace(terms, deadline=min(terms.deadline, until))
        with self._span(telemetry.ATTEMPT, facts):
            async with asyncio.timeout_at(until):
                return await self._execute(candidate, request, options, terms)

    async def _execute(
        self, candidate: Candidate, request: Any, options: Any, terms: RunTerms
    ) -> Any:
        run = self.run
        events = run.events if run.options.streaming else None
        run.under_way += 1
        token = CURRENT.set(terms)
        try:
            value: Any = candidate.tool.execute(request, options, events)
            return await value if inspect.isawaitable(value) else value
        except asyncio.CancelledError:
            run.maybe_executed = True
            raise
        finally:
            CURRENT.reset(token)
            run.under_way -= 1

    async def _learn(
        self,
        candidate: Candidate,
        entry: _Entry,
        verdict: Verdict,
        started: float,
        named: str | None,
    ) -> None:
        """Remember what an attempt taught, under the name of the provider it was made at."""
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
        actual = named
        if failure is not None and candidate.metadata.provider:
            actual = None  # an error's word counts where the tool declares nothing
        moved = actual is not None and actual != entry.provider
        if actual is not None and moved:
            self.executor.learn(candidate.metadata, actual)
        breakers, permit = self.executor.breakers, entry.permit
        if breakers is None or permit is None:
            return
        entry.permit = None
        if actual is not None and moved:
            breakers.settle(entry.provider, candidate.name, permit, None)
            breakers.forget(entry.provider, candidate.name)
            breakers.credit(actual, candidate.name, verdict)
        else:
            breakers.settle(entry.provider, candidate.name, permit, verdict, seconds)
        await self._tell_changes(breakers)

    def _give_back(self, candidate: Candidate, entry: _Entry) -> None:
        """Give a permit back that nothing was learned with."""
        if self.executor.breakers is not None and entry.permit is not None:
            self.executor.breakers.settle(entry.provider, candidate.name, entry.permit, None)

    async def _tell_changes(self, breakers: Breakers) -> None:
        """Tell of circuits that changed their state."""
        for change in breakers.changes():
            LOGGER.info(
                "circuit %s: %s -> %s (%s)",
                change.name,
                change.before,
                change.after,
                change.reason,
            )
            try:
                done = change.call_back()
                if inspect.isawaitable(done):
                    await done
            except Exception as error:  # noqa: BLE001 - a user's function that only watches
                LOGGER.warning(
                    "on_%s of circuit %s failed: %s",
                    change.after,
                    change.name,
                    self.run.redactor.text(repr(error)),
                )
            await self.run.tell(
                Told.CIRCUIT_BREAKER_STATE,
                change.provider,
                circuit=change.name,
                source=change.tool or change.provider,
                before=change.before,
                state=change.after,
                reason=change.reason,
            )

    async def _once_more(self, candidate: Candidate, error: Exception, verdict: Verdict) -> bool:
        """Whether the same tool is tried again; waits before it says yes."""
        self.last = error
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
            case RetryIn(delay=delay):
                await self._again(candidate, delay, error)
                return True
            case Hop():
                self._hop(candidate, verdict)
            case GiveUp(retry_after=asked):
                if asked is not None:
                    self.retry_at = self.run.clock.now() + asked
                self.pending.clear()
                if TRAITS[failure].elsewhere is Elsewhere.NEVER:
                    self.deferred.clear()
        return False

    def _decide(self, candidate: Candidate, verdict: Verdict, failure: Failure) -> Decision:
        manager = self.executor.retry_manager
        if verdict.hint is not None and not manager.config.retry_policy.respect_retry_after:
            verdict = Verdict(failure, verdict.executed, None, verdict.code, verdict.again)
        standing = Standing(
            attempts_here=candidate.attempts,
            attempts_total=self.made,
            waited=self.waited,
            time_left=self._time_left(),
            others=TRAITS[failure].elsewhere is Elsewhere.ANY and self._others(),
            ambiguous=Ambiguous.RETRY,
            unsent_only=False,
            idempotent_upstream=False,
            retry_allowed=True,
            jitter=0.0 if self.run.options.deterministic else self.run.clock.jitter(),
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
        breakers = self.executor.breakers
        if not self._may_fall_back():
            return False
        if breakers is None or not self.run.options.enable_circuit_breaker:
            return bool(self.pending)
        return any(
            breakers.open_for(self.executor.provider(each.metadata), each.name) <= 0
            for each in self.pending
        )

    def _may_fall_back(self) -> bool:
        """Whether fewer fallback tools than may be were tried."""
        tried = sum(1 for each in self.tried if each is not self.candidates[0])
        return tried < self.executor.retry_manager.config.max_fallback_attempts

    def _time_left(self) -> float:
        most = self.executor.retry_manager.config.max_total_retry_time
        return min(self.run.left(), self.began + most - self.run.clock.now())

    async def _again(
        self, candidate: Candidate, delay: float, error: Exception | None = None
    ) -> None:
        """Tell of a retry, and wait for its time."""
        self.waited += delay
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
            error=_words(told),
        )
        # What watching took is not waited for again; but never earlier than was decided.
        await self.run.clock.sleep(max(0.0, until - self.run.clock.now()))

    def _note(self, candidate: Candidate, why: str) -> None:
        """Remember why a tool was not tried."""
        self.details.append({"tool": candidate.name, "attempt": 0, "refused": why})

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
            message = f"{_words(self.last)} ({tale})"
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

    def _span(self, name: str, facts: dict[str, Any]) -> Any:
        if self.run.tracer is None:
            return nullcontext()
        return telemetry.span(self.run.tracer, name, facts)


def _named_by(value: Any) -> str | None:
    """The provider that a result names."""
    if isinstance(value, OrchestrationOutput):
        value = value.metadata
    provider = value.get("provider") if isinstance(value, dict) else None
    return provider if isinstance(provider, str) and provider else None


def _words(error: BaseException | None) -> str:
    return "" if error is None else str(error) or type(error).__name__
