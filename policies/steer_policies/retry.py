"""The decision after a failed attempt: again here, the next candidate, or the end.

"No" is a value too: every answer says why, in words for people. What a failure allows comes from
`outcome.TRAITS`; this module adds the bounds: attempts, time, delay, the retry budget, and what may
have been executed already.

RFC 9110, section 9.2.2: a proxy must not by itself repeat a request that is not idempotent. Steer's
users ask for it, by `retry.ambiguous`; a request whose bytes were never written is repeated freely,
but counted, for every loop has a bound (gRPC A6).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from steer_policies.backoff import backoff
from steer_policies.config import Ambiguous, RetryPolicy
from steer_policies.outcome import TRAITS, Elsewhere, Executed, Failure, Verdict

MIN_ATTEMPT_TIME: Final = 0.05
"""Seconds an attempt needs at the least: a delay that leaves less is not worth waiting for."""

MAX_WAIT: Final = 86_400.0
"""Asked to stay away for longer than this, in seconds, no call comes back, whatever its limits."""

UNSENT: Final = frozenset({Failure.CONNECT, Failure.QUEUE})
"""Failures at which provably not a byte of the request was written."""

SILENT: Final = frozenset(
    {Failure.FIRST_BYTE_TIMEOUT, Failure.FIRST_TOKEN_TIMEOUT, Failure.IDLE_TIMEOUT}
)
"""Failures of silence: another wait as long would likely follow, so another candidate is better."""


class WaitSource(StrEnum):
    """What an attempt waited for; the ledger's `wait_source`."""

    NONE = "none"
    BACKOFF = "backoff"
    RETRY_AFTER = "retry_after"
    RESET = "reset"
    BODY_HINT = "body_hint"
    GATE = "gate"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a call stands after a failed attempt; times are seconds, attempts include the failed one.

    Attributes:
        attempts_here: attempts at this candidate.
        attempts_total: attempts of the call.
        waited: the sum of its delays so far.
        time_left: until the call's deadline.
        others: another candidate could take the call now, and the failure's `Elsewhere` allows it.
        ambiguous: what to do when the request may have been executed.
        unsent_only: pinned and not idempotent: repeat only what was provably not sent.
        idempotent_upstream: this upstream is given an idempotency key, and so can be asked again.
        retry_allowed: this upstream's retry budget has a retry left.
        jitter: a random number in [0, 1).
        executed_before: an earlier attempt of this call may have been executed.
        unwanted: the caller asked that failures of this kind are not tried again here.
    """

    attempts_here: int
    attempts_total: int
    waited: float
    time_left: float
    others: bool
    ambiguous: Ambiguous
    unsent_only: bool
    idempotent_upstream: bool
    retry_allowed: bool
    jitter: float
    executed_before: bool = False
    unwanted: bool = False


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Try the same candidate again after `delay` seconds."""

    delay: float
    source: WaitSource
    why: str


@dataclass(frozen=True, slots=True)
class Hop:
    """Go to the next candidate now."""

    why: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Answer the caller now.

    `retry_after` is the provider's own asked delay in seconds, to be passed on. `uncertain` says
    that the request may have been executed, and therefore was not repeated.
    """

    why: str
    retry_after: float | None = None
    uncertain: bool = False


Decision = RetryIn | Hop | GiveUp


def when_ambiguous(configured: Ambiguous | None, *, once: bool) -> Ambiguous:
    """What to do when a request may have been executed, unless it is configured: an idempotency key
    says that it must not be made twice, and so `once` may other things."""
    if configured is not None:
        return configured
    return Ambiguous.FAIL if once else Ambiguous.RETRY


def decide(policy: RetryPolicy, verdict: Verdict, standing: Standing) -> Decision:
    """What to do after a failed attempt.

    Raises:
        ValueError: the verdict is no failure.
    """
    failure = verdict.failure
    if failure is None:
        raise ValueError("an answer to keep leaves nothing to decide")
    asked = (verdict.hint.seconds if verdict.hint is not None else 0.0) or None
    # Bound to the place where it may have been executed: nobody else knows the idempotency key.
    bound = standing.ambiguous is Ambiguous.FAIL and (
        verdict.executed is not Executed.NO or standing.executed_before
    )
    if bound and not standing.idempotent_upstream:
        return GiveUp("the request may have been executed", asked, uncertain=True)
    if end := _end(policy, failure, standing):
        return GiveUp(end, asked, uncertain=bound)
    hop = standing.others and TRAITS[failure].elsewhere is not Elsewhere.NEVER and not bound
    why = _not_here(policy, verdict, failure, standing, hop=hop)
    if why is None:
        again = _wait(policy, verdict, failure, standing, hop=hop)
        if isinstance(again, RetryIn):
            return again
        why = again
    return Hop(why) if hop else GiveUp(why, asked, uncertain=bound)


def _end(policy: RetryPolicy, failure: Failure, standing: Standing) -> str | None:
    """Why the call may not be tried again anywhere; None if it may."""
    if standing.unsent_only and failure not in UNSENT:
        return "the request was sent and is not one to repeat"
    if standing.attempts_total >= policy.max_total_attempts:
        return f"all {policy.max_total_attempts} attempts of the call are spent"
    if standing.time_left < MIN_ATTEMPT_TIME:
        return "no time is left for another attempt"
    return None


def _not_here(
    policy: RetryPolicy, verdict: Verdict, failure: Failure, standing: Standing, *, hop: bool
) -> str | None:
    """Why the same candidate may not be tried again, whenever that would be; None if it may.

    `hop` says that there is another way.
    """
    if not TRAITS[failure].here:
        return f"asking again here does not mend {failure.value}"
    if not verdict.again:
        return "the provider says not to retry"
    if standing.unwanted:
        return f"retrying after {failure.value} is switched off"
    if standing.attempts_here >= policy.max_attempts:
        return f"all {policy.max_attempts} attempts here are spent"
    if not standing.retry_allowed:
        return "the upstream's retry budget is used up"
    if hop and failure in SILENT:
        return "the upstream is silent, and another can be asked"
    return None


def _wait(
    policy: RetryPolicy, verdict: Verdict, failure: Failure, standing: Standing, *, hop: bool
) -> RetryIn | str:
    """A retry at the same candidate when its delay fits, or why it does not."""
    room = min(standing.time_left - MIN_ATTEMPT_TIME, policy.max_total_delay - standing.waited)
    hint = verdict.hint
    # A hint of zero asks for nothing (the official SDKs ignore it too): our own pace is kept.
    if hint is None or hint.seconds <= 0.0:
        delay = backoff(policy, standing.attempts_here - 1, standing.jitter)
        if delay > room:
            return "the backoff does not fit the time left"
        return RetryIn(delay, WaitSource.BACKOFF, f"{failure.value}: backing off")
    if hint.seconds > MAX_WAIT:
        return "the provider asked for more than a day"
    if hint.seconds > room:
        return f"the asked {hint.seconds:g} s do not fit the time left"
    if hop and hint.seconds > policy.hop_after:
        return f"the asked {hint.seconds:g} s are too long while another can be asked"
    # Never earlier than asked, and a little later, so that not all come back at the same moment.
    spread = standing.jitter * min(0.1 * hint.seconds, 1.0)
    delay = min(hint.seconds + spread, room)
    return RetryIn(delay, WaitSource(hint.source.value), f"{failure.value}: waiting as asked")
