"""All attempts of one call: the loop over candidates, and over attempts at each of them.

For one candidate the loop is aiohttp-retry's (`attempt_loop`), driven by the decisions of
`steer_policies.retry`. One deadline and one delay budget span all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Generic, TypeVar

from steer_policies.breaker import Rejected
from steer_policies.config import Ambiguous, RetryPolicy, WhenAllOpen
from steer_policies.outcome import TRAITS, Elsewhere, Executed, Failure, Verdict, failed
from steer_policies.plan import Candidate, Plan
from steer_policies.retry import Decision, GiveUp, Hop, RetryIn, Standing, WaitSource, decide
from steer_policies.throttle import Gate, Pass
from steer_proxy.engine.announcing import announcing, soon
from steer_proxy.engine.attempt import Answer, AttemptRecord, Sender, Terms, Trace
from steer_proxy.engine.attempt_loop import run_attempts
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.conclusion import Best, Reason, Refusal, Settled, Spent, conclude
from steer_proxy.engine.gate import pass_gate, throttled
from steer_proxy.engine.hold import Hold
from steer_proxy.engine.registry import UpstreamState
from steer_proxy.engine.slots import QueueFull, QueueTimeout
from steer_proxy.engine.visit import Course, Entry, Tried, Visit

#: An attempt with less time than this left is not worth its bytes, in seconds.
LEAST_TIME: Final = 0.05

A = TypeVar("A", bound=Answer)


class Exchange(Generic[A]):
    """Runs one call's attempts to their end. Use once."""

    __slots__ = (
        "_best",
        "_clock",
        "_deferred",
        "_forced",
        "_pending",
        "_policy",
        "_refusals",
        "_sender",
        "_settled",
        "_spent",
        "_terms",
    )

    def __init__(
        self,
        plan: Plan,
        terms: Terms,
        policy: RetryPolicy,
        *,
        states: Mapping[str, UpstreamState],
        credentials: Mapping[str, int],
        clock: Clock,
        sender: Sender[A],
        spent: Spent | None = None,
    ) -> None:
        self._terms = terms
        self._policy = policy
        self._clock = clock
        self._sender = sender
        self._spent = spent or Spent()
        self._forced = False
        self._best: Best[A] = Best()
        self._refusals: list[Refusal] = []
        self._settled: Settled[A] | None = None
        self._deferred: list[Course] = []
        self._pending: list[Course] = []
        for index, candidate in enumerate(plan.candidates):
            state = states[candidate.upstream]
            credential = credentials.get(candidate.upstream, 0)
            self._pending.append(Course(index, candidate, state.policy, state, credential))

    @property
    def clear(self) -> bool:
        """Whether the first attempt can be made at once, as far as anyone can tell."""
        first, now = self._pending[0], self._clock.now()
        state, model = first.state, first.candidate.model
        return (
            state.slots.free
            and state.open_for(model, now) <= 0
            and state.gate(model, first.credential).closed_for(now) <= 0
        )

    async def run(self) -> Settled[A]:
        """Try until an answer is committed, or until nothing more can be tried.

        Cancellation gives back every slot and permit and discards what answers are held.
        """
        first = self._pending[0]
        try:
            while (course := await self._next()) is not None:
                await self._follow(course)
                if self._settled is not None:
                    await self._best.discard()
                    return self._settled
            if self._may_force(first):
                # Every breaker refused and the policy prefers a try to a refusal.
                self._forced = True
                await self._follow(first)
                if self._settled is not None:
                    return self._settled
            return conclude(self._best, self._spent, self._refusals, self._clock.now())
        except BaseException:
            await self._best.discard()
            raise

    async def _next(self) -> Course | None:
        """The next candidate; after all of them, the one that asked for the least patience."""
        if len(self._spent.records) >= self._policy.max_total_attempts:
            return None
        if self._pending:
            return self._pending.pop(0)
        if not self._deferred:
            return None
        course = min(self._deferred, key=lambda deferred: deferred.available_at)
        self._deferred.remove(course)
        delay = max(0.0, course.available_at - self._clock.now())
        course.available_at = 0.0
        if not self._fits(delay):
            return None
        if course.attempts and not course.state.budget(self._policy).take(self._clock.now()):
            return None
        await self._wait(delay)
        course.waited = delay
        return course

    async def _follow(self, course: Course) -> None:
        """Try one candidate until an answer is committed, or it is time to look elsewhere."""
        now = self._clock.now()
        if (
            course.policy.own_credential
            and course.state.credential_marked(now)
            and (self._others(course) or self._spent.records)
        ):
            self._refusals.append(Refusal(course.candidate.upstream, 0.0, Reason.CREDENTIAL))
            return
        visit = Visit(self, course)
        if course.waited:
            visit.wait(course.waited, WaitSource.GATE)
        await run_attempts(visit.attempt, self._policy.max_attempts)

    async def attempt(self, visit: Visit[A]) -> Tried[A]:
        """One whole attempt: what has to be had first, then the request up to its commit point."""
        course = visit.course
        entry = await self._enter(visit)
        if isinstance(entry, Tried):
            return entry
        state, now = course.state, self._clock.now()
        trace = Trace()
        try:
            if course.attempts == 0:
                state.budget(self._policy).on_call(now)
            course.attempts += 1
            until = self._terms.until or self._terms.deadline
            answer = await self._sender.attempt(course.candidate, until, trace)
        except BaseException:
            entry.gate.settle(entry.admission, None, self._clock.now())
            entry.hold.release()
            executed = Executed.MAYBE if trace.sent else Executed.NO
            self._record(visit, now, trace, None, failed(Failure.CANCELLED, executed=executed))
            raise
        self._learn(course, answer.verdict)
        if entry.gate.settle(entry.admission, throttled(answer.lesson), self._clock.now()):
            state.gate_shut(course.candidate.model, entry.gate, "the provider goes on throttling")
        self._record(visit, now, trace, answer.status, answer.verdict)
        return Tried(visit, answer, entry.hold)

    async def _enter(self, visit: Visit[A]) -> Entry | Tried[A]:
        """Pass the gate, get a slot, say that the call is about to be sent, and get permits last,
        so that no probe waits in line."""
        course = visit.course
        state, model = course.state, course.candidate.model
        if self._terms.deadline - self._clock.now() < LEAST_TIME:
            self._pending.clear()
            self._deferred.clear()
            return Tried(visit, why=Reason.LATE)
        if self._too_dear(course.candidate):
            return Tried(visit, why=Reason.BUDGET)
        if not self._forced and (wait := state.open_for(model, self._clock.now())) > 0:
            return Tried(visit, refused_for=wait, why=Reason.CIRCUIT)
        gate = state.gate(model, course.credential)
        admission = await self._pass_gate(gate, visit)
        if not isinstance(admission, Pass):
            course.available_at = self._clock.now() + admission
            return Tried(visit, refused_for=admission, why=Reason.GATE)
        slot = entered = False
        try:
            await self._slot(visit)
            slot = True
            now = self._clock.now()
            permits = None if self._forced else state.acquire(model, now)
            if isinstance(permits, Rejected):
                return Tried(visit, refused_for=permits.retry_in, why=Reason.CIRCUIT)
            entered = True
            return Entry(gate, admission, Hold(state, model, permits, now))
        except QueueFull:
            return Tried(visit, refused_for=1.0, why=Reason.QUEUE_FULL)
        except QueueTimeout:
            return Tried(visit, refused_for=1.0, why=Reason.QUEUE_SLOW)
        finally:
            if not entered:
                gate.settle(admission, None, self._clock.now())
                if slot:
                    state.slots.release()

    async def _slot(self, visit: Visit[A]) -> None:
        """Get a slot in which nothing has to be waited for any more."""
        slots, what = visit.course.state.slots, self._terms.announcement
        await self._queue(visit)
        while what is not None and not what.announced:
            held = True
            written: asyncio.Task[None] | None = None
            try:
                async with announcing(what) as written:
                    if not await soon(written):
                        # Others announce nothing, and shall not wait for it.
                        held = False
                        slots.release()
                    await written
            except BaseException:
                if held:
                    slots.release()
                raise
            finally:
                written = None  # it keeps the error it ended with, which keeps this frame
            if not held:
                await self._queue(visit)

    async def _queue(self, visit: Visit[A]) -> None:
        """Get a slot, and wait for it if need be."""
        slots, began = visit.course.state.slots, self._clock.now()
        if slots.try_acquire():
            return
        await slots.acquire(max(0.0, self._terms.deadline - began - LEAST_TIME))
        visit.wait(self._clock.now() - began, WaitSource.QUEUE)

    async def _pass_gate(self, gate: Gate, visit: Visit[A]) -> Pass | float:
        """Wait at the throttle gate if that is worth while; else for how long it stays shut."""

        async def wait(seconds: float) -> None:
            await self._wait(seconds)
            visit.wait(seconds, WaitSource.GATE)

        return await pass_gate(
            gate,
            self._clock.now,
            self._clock.jitter,
            lambda delay: self._worth_waiting(delay, visit.course),
            wait,
        )

    def _too_dear(self, candidate: Candidate) -> bool:
        """Whether one more attempt could exceed the budget, after what may have been billed."""
        terms, spent = self._terms, self._spent
        usd, tokens = candidate.estimated_usd, candidate.estimated_tokens
        if terms.budget_usd is not None and usd is not None and spent.usd + usd > terms.budget_usd:
            return True
        limit = terms.budget_tokens
        return limit is not None and tokens is not None and spent.tokens + tokens > limit

    def _worth_waiting(self, delay: float, course: Course) -> bool:
        patient = delay <= self._policy.hop_after or not self._others(course)
        return patient and self._fits(delay)

    def _record(
        self,
        visit: Visit[A],
        started: float,
        trace: Trace,
        status: int | None,
        verdict: Verdict,
    ) -> None:
        candidate = visit.course.candidate
        self._spent.records.append(
            AttemptRecord(
                number=len(self._spent.records) + 1,
                upstream=candidate.upstream,
                model=candidate.model,
                started=started,
                seconds=self._clock.now() - started,
                waited=visit.waited,
                wait_source=visit.source,
                status=status,
                verdict=verdict,
                trace=trace,
            )
        )
        visit.waited, visit.source = 0.0, WaitSource.NONE
        if verdict.executed is not Executed.NO:
            self._spent.usd += candidate.estimated_usd or 0.0
            self._spent.tokens += candidate.estimated_tokens or 0

    async def judge(self, visit: Visit[A], tried: Tried[A]) -> bool:
        """Whether this candidate is done with; waits before it says no."""
        course, answer, hold = visit.course, tried.answer, tried.hold
        if answer is None or hold is None:
            await self._refuse(course, tried)
            return True
        verdict = answer.verdict
        now = self._clock.now()
        if verdict.ok:
            hold.commit(answer.lesson, now)
            self._settled = Settled(
                self._spent,
                answer=answer,
                candidate=course.candidate,
                hold=hold,
                remaining=tuple(other.candidate for other in self._pending),
            )
            return True
        failure = verdict.failure or Failure.REJECTED
        hold.settle(answer.lesson)
        hold.release()
        decision = self._decide(course, verdict)
        await self._best.offer(answer, course.candidate, course.policy, course.index, now)
        match decision:
            case RetryIn(delay=delay, source=source):
                await self._wait(delay)
                visit.wait(delay, source)
                return False
            case Hop():
                self._hop(course, verdict)
            case GiveUp(uncertain=True):
                await self._give_up(self._doubtful() or self._spent.records[-1])
            case GiveUp():
                self._pending.clear()
                if TRAITS[failure].elsewhere is Elsewhere.NEVER:
                    self._deferred.clear()
        return True

    def _decide(self, course: Course, verdict: Verdict) -> Decision:
        now = self._clock.now()
        failure = verdict.failure or Failure.REJECTED
        standing = Standing(
            attempts_here=course.attempts,
            attempts_total=len(self._spent.records),
            waited=self._spent.waited,
            time_left=self._terms.deadline - now,
            others=self._others(course, failure),
            ambiguous=self._terms.ambiguous,
            unsent_only=self._terms.unsent_only,
            idempotent_upstream=self._terms.keyed and course.policy.forwards_idempotency_key,
            retry_allowed=True,
            jitter=self._clock.jitter(),
            executed_before=any(
                record.verdict.executed is not Executed.NO for record in self._spent.records[:-1]
            ),
        )
        decision = decide(self._policy, verdict, standing)
        if isinstance(decision, RetryIn) and not course.state.budget(self._policy).take(now):
            decision = decide(self._policy, verdict, replace(standing, retry_allowed=False))
        return decision

    def _learn(self, course: Course, verdict: Verdict) -> None:
        """What later calls should know: how long the provider asked for, a refused credential."""
        if verdict.failure is Failure.THROTTLED and verdict.hint is not None:
            course.state.close_gate(course.candidate.model, course.credential, verdict.hint.seconds)
        elif (
            verdict.failure in (Failure.CREDENTIAL, Failure.QUOTA) and course.policy.own_credential
        ):
            course.state.mark_credential(verdict.code or str(verdict.failure))

    async def _refuse(self, course: Course, tried: Tried[A]) -> None:
        self._refusals.append(Refusal(course.candidate.upstream, tried.refused_for, tried.why))
        doubtful = self._doubtful()
        if doubtful is not None and self._terms.ambiguous is Ambiguous.FAIL:
            # It was to be repeated here or nowhere, and here it cannot be.
            await self._give_up(doubtful)
        elif course.available_at:
            self._deferred.append(course)

    def _doubtful(self) -> AttemptRecord | None:
        """The last attempt that may have been executed."""
        records = reversed(self._spent.records)
        return next((each for each in records if each.verdict.executed is not Executed.NO), None)

    async def _give_up(self, doubtful: AttemptRecord) -> None:
        """Nothing more is tried, since what was tried may have been executed."""
        self._best.uncertain = True
        self._pending.clear()
        self._deferred.clear()
        if doubtful.status is None:
            # An older failure's answer would say that nothing happened.
            await self._best.discard()

    def _hop(self, course: Course, verdict: Verdict) -> None:
        """Go on to the candidates this failure allows, or come back after the time asked for."""
        failure = verdict.failure or Failure.REJECTED
        self._pending = [other for other in self._pending if self._allowed(failure, course, other)]
        asked = verdict.hint is not None and verdict.again
        if asked and verdict.hint is not None and course.attempts < self._policy.max_attempts:
            course.available_at = self._clock.now() + verdict.hint.seconds
            self._deferred.append(course)

    def _allowed(self, failure: Failure, course: Course, other: Course) -> bool:
        """Whether a failure at one candidate may be made up for at another."""
        if failure is Failure.CREDENTIAL and not course.policy.own_credential:
            # The caller's own key was refused: nobody else's is spent on the call.
            return False
        match TRAITS[failure].elsewhere:
            case Elsewhere.ANY:
                return True
            case Elsewhere.NEVER:
                return False
            case Elsewhere.IF_ROUTE_ASKS:
                return self._terms.fallback_on_refusal
            case Elsewhere.LARGER_CONTEXT:
                theirs = other.candidate.context_tokens
                return theirs is not None and theirs > (course.candidate.context_tokens or 0)

    def _others(self, course: Course, failure: Failure | None = None) -> bool:
        """Whether another candidate could take the call now, given what failed at this one."""
        now = self._clock.now()
        return any(
            (failure is None or self._allowed(failure, course, other))
            and other.state.open_for(other.candidate.model, now) <= 0
            and not (other.policy.own_credential and other.state.credential_marked(now))
            for other in self._pending
        )

    def _may_force(self, first: Course) -> bool:
        return (
            first.policy.breaker.when_all_open is WhenAllOpen.TRY
            and not self._spent.records
            and all(refusal.why is Reason.CIRCUIT for refusal in self._refusals)
        )

    def _fits(self, delay: float) -> bool:
        left = self._terms.deadline - self._clock.now()
        return (
            delay + LEAST_TIME <= left
            and self._spent.waited + delay <= self._policy.max_total_delay
        )

    async def _wait(self, delay: float) -> None:
        self._spent.waited += delay
        await self._clock.sleep(delay)
