"""How a call's exchange ends: with a committed answer, the best failing one, or our own word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Generic, TypeVar

from steer_policies.config import UpstreamPolicy
from steer_policies.outcome import Failure
from steer_policies.plan import Candidate
from steer_proxy.engine.attempt import Answer, AttemptRecord, Problem
from steer_proxy.engine.hold import Hold

A = TypeVar("A", bound=Answer)


@dataclass(slots=True)
class Spent:
    """What the attempts of a call have taken of its limits so far: they are one call's."""

    records: list[AttemptRecord] = field(default_factory=list)
    waited: float = 0.0
    usd: float = 0.0
    tokens: int = 0


@dataclass(slots=True)
class Settled(Generic[A]):
    """How a call's exchange ended.

    With a committed answer `hold` is set. With a failing one, `answer` is the best there was, to be
    passed on untouched but for `retry_after` (seconds, when known) and `sdk_retry` (what
    `x-should-retry` should say; None leaves the SDK to its own rules). With none, `problem` says
    what to tell. `remaining` are the candidates not yet asked, for a stream that breaks later.
    """

    spent: Spent
    answer: A | None = None
    candidate: Candidate | None = None
    hold: Hold | None = None
    problem: Problem | None = None
    remaining: tuple[Candidate, ...] = ()
    retry_after: float | None = None
    sdk_retry: bool | None = None

    @property
    def attempts(self) -> list[AttemptRecord]:
        """All attempts of the call, the first first."""
        return self.spent.records


class Reason(StrEnum):
    """Why a candidate was not asked."""

    CIRCUIT = "its circuit is open"
    GATE = "its provider asked for patience"
    QUEUE_FULL = "its queue is full"
    QUEUE_SLOW = "no slot became free"
    BUDGET = "the call's budget is spent"
    CREDENTIAL = "its credential was refused"
    LATE = "the call's time is up"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A candidate that was not asked: for how many seconds it will not be, and why."""

    upstream: str
    seconds: float
    why: Reason


#: When to come again where Steer itself is short of something, in seconds.
OVERLOAD: Final = 1.0

#: Failures that are the provider's word on the caller's own request: nothing else fits it better.
_ABOUT_THE_REQUEST: Final = frozenset(
    {Failure.REJECTED, Failure.CONTEXT_LENGTH, Failure.CONTENT_POLICY}
)
#: Failures that speak of a credential.
_ABOUT_THE_CREDENTIAL: Final = frozenset({Failure.CREDENTIAL, Failure.QUOTA})
#: Failures that are silence.
_SILENCE: Final = frozenset(
    {Failure.FIRST_BYTE_TIMEOUT, Failure.FIRST_TOKEN_TIMEOUT, Failure.IDLE_TIMEOUT}
)
#: Failures after which the SDK's own rules are right: it does not retry these statuses.
_NOT_RETRIED_BY_SDKS: Final = _ABOUT_THE_REQUEST | {Failure.CREDENTIAL}


def _rank(failure: Failure | None, policy: UpstreamPolicy, index: int) -> int:
    """How fit a failing answer is to be shown to the caller; 0 means never."""
    if failure in _ABOUT_THE_REQUEST:
        return 4
    if index == 0:
        return 3
    if failure in _ABOUT_THE_CREDENTIAL and policy.own_credential:
        # The caller neither knows nor can mend the credential of another candidate.
        return 0 if failure is Failure.CREDENTIAL else 1
    return 2


@dataclass(slots=True)
class Best(Generic[A]):
    """The best failing answer so far, and what the last decision said about trying again."""

    answer: A | None = None
    candidate: Candidate | None = None
    retry_at: float | None = None
    uncertain: bool = False
    _merit: tuple[bool, int] = field(default=(False, 0))

    async def offer(
        self, answer: A, candidate: Candidate, policy: UpstreamPolicy, index: int, now: float
    ) -> None:
        """Keep an answer if it is at least as good as the one held; discard the other."""
        verdict = answer.verdict
        rank = 0 if answer.status is None else _rank(verdict.failure, policy, index)
        # Of one that was cut only the status can be told: it stands back behind any whole one.
        merit = (not answer.broken, rank)
        if rank == 0 or merit < self._merit:
            await answer.discard()
            return
        await self.discard()
        self.answer, self.candidate, self._merit = answer, candidate, merit
        self.retry_at = None if verdict.hint is None else now + verdict.hint.seconds

    async def discard(self) -> None:
        """Let go of the answer held, if any."""
        answer, self.answer = self.answer, None
        if answer is not None:
            await answer.discard()


def conclude(
    best: Best[A],
    spent: Spent,
    refusals: Sequence[Refusal],
    now: float,
) -> Settled[A]:
    """The end of an exchange in which no attempt succeeded."""
    # Until a circuit is probed or a provider's asked time is over, whichever comes first.
    wait = min((refusal.seconds for refusal in refusals if refusal.seconds > 0), default=None)
    if best.answer is not None:
        failure = best.answer.verdict.failure
        asked = wait if best.retry_at is None else max(0.0, best.retry_at - now)
        final = failure in _NOT_RETRIED_BY_SDKS
        return Settled(
            spent,
            answer=best.answer,
            candidate=best.candidate,
            retry_after=None if final else asked,
            sdk_retry=None if final else False,
        )
    problem = _problem(spent.records, refusals, uncertain=best.uncertain)
    return Settled(spent, problem=replace(problem, retry_after=wait or problem.retry_after))


def _problem(
    records: Sequence[AttemptRecord], refusals: Sequence[Refusal], *, uncertain: bool
) -> Problem:
    late = any(refusal.why is Reason.LATE for refusal in refusals)
    if not records and late:
        return Problem(504, "steer_deadline", "The call's time is up.", sdk_retry=False)
    if not records:
        told = "; ".join(f"{refusal.upstream}: {refusal.why}" for refusal in refusals)
        return Problem(
            503,
            "steer_unavailable",
            f"No upstream can take this call now ({told or 'none is configured'}).",
        )
    last = records[-1]
    tale = "; ".join(
        f"attempt {record.number} at {record.upstream}: {_words(record)}" for record in records
    )
    if uncertain:
        return Problem(
            504,
            "steer_outcome_uncertain",
            f"The call may have been executed and is not repeated ({tale}).",
            sdk_retry=False,
        )
    failure = last.verdict.failure
    if late or failure is Failure.DEADLINE:
        return Problem(504, "steer_deadline", f"The call's time is up ({tale}).", sdk_retry=False)
    if failure is Failure.QUEUE:
        told = f"Steer has no means for another connection now ({tale})."
        return Problem(503, "steer_overloaded", told, retry_after=OVERLOAD, sdk_retry=True)
    if failure in _SILENCE:
        told = f"No answer in time ({tale})."
        return Problem(504, "steer_upstream_timeout", told, sdk_retry=False)
    code = "steer_upstream_unreachable" if failure is Failure.CONNECT else "steer_upstream_broken"
    return Problem(502, code, f"No upstream answered ({tale}).", sdk_retry=False)


def _words(record: AttemptRecord) -> str:
    failure = str(record.verdict.failure or "ok").replace("_", " ")
    detail = record.verdict.code if record.status is None else str(record.status)
    return failure if detail is None else f"{failure} ({detail})"
