"""What a call's end is called in its row: how it came out, who served it, what it waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from steer_policies.outcome import Executed, Failure, Outcome, Verdict
from steer_policies.retry import WaitSource
from steer_proxy.engine.attempt import AttemptRecord, Problem
from steer_proxy.engine.conclusion import Spent
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.ledger.values import MICROSECONDS

#: The outcome of a call that went well, as text: looking for a member's value is a call.
OK: Final = Outcome.OK.value
_QUEUE: Final = WaitSource.QUEUE


def served_by(records: Sequence[AttemptRecord], answer: HttpAnswer | None) -> AttemptRecord | None:
    """The attempt whose answer the caller got, or the one that went on with it."""
    if answer is None:
        return None
    last = records[-1] if records else None
    if last is not None and last.final.ok:
        return last
    return next((each for each in records if each.trace is answer.trace), last)


def only_good(
    spent: Spent | None, verdict: Verdict | None, problem: Problem | None, status: int | None
) -> AttemptRecord | None:
    """The only attempt of a call, if all went so well that one row can tell of both.

    What was waited before the attempt must be what the call waited; what waiting in a queue took
    is not in the sum.
    """
    if spent is None or len(spent.records) != 1 or problem is not None:
        return None
    if verdict is None or verdict.failure is not None:
        return None
    (only,) = spent.records
    if only.status != status or (only.trace.verdict or only.verdict).failure is not None:
        return None
    waited = 0.0 if only.wait_source is _QUEUE else only.waited
    return only if spent.waited == waited else None


def ending(
    verdict: Verdict | None,
    problem: Problem | None,
    answer: HttpAnswer | None,
    last: AttemptRecord | None,
    status: int | None,
) -> tuple[str, str | None]:
    """A call's outcome and error class."""
    if problem is not None:
        if last is not None and last.final.failure not in (None, Failure.CANCELLED):
            return last.final.outcome.value, problem.code
        return refused(problem.status), problem.code
    if verdict is None or status is None or answer is None:
        return Outcome.CANCELLED.value, "cancelled"
    if verdict.failure is None:
        return OK, None
    if last is not None and last.trace is not answer.trace and last.final.ok:
        return OK, None  # another answer went on where this one broke
    return verdict.outcome.value, verdict.failure.value


def refused(status: int) -> str:
    """The outcome of a call that was never tried, by what its caller was told."""
    if status in (429, 503):
        return Outcome.THROTTLED.value
    if status in (408, 504):
        return Outcome.TIMEOUT.value
    return (Outcome.CLIENT_4XX if status < 500 else Outcome.BROKEN).value


def all_waited_us(spent: Spent | None) -> int:
    """All that a call waited for before its attempts, in microseconds, in queues too."""
    if spent is None:
        return 0
    waited = spent.waited
    for each in spent.records:
        if each.wait_source is _QUEUE:
            waited += each.waited
    return int(waited * MICROSECONDS)


def any_ambiguous(records: Sequence[AttemptRecord]) -> int:
    """Whether one of the attempts may have been executed, for all that is known."""
    for each in records:
        if each.final.executed is Executed.MAYBE:
            return 1
    return 0
