"""What Steer says itself about keyed calls: one text for each situation, wherever it is noticed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from steer_policies.idempotency import Status
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.claims import NO_LEDGER
from steer_proxy.http.call import Call
from steer_proxy.http.lines import line
from steer_proxy.http.problems import Refusal

#: When a duplicate should come again, in seconds: the SDKs wait that long if they are told.
COME_AGAIN: Final = 2.0


@dataclass(frozen=True, slots=True)
class KeyedProblem:
    """A problem, and what `Idempotency-Status` says with it; None for nothing."""

    problem: Problem
    status: Status | None = None

    def refusal(self, call: Call) -> Refusal:
        """The problem as a call's whole answer."""
        if self.status is not None:
            call.says = (*call.says, status_line(self.status))
        return Refusal(self.problem)


def status_line(status: Status) -> bytes:
    """The header line that says how a keyed call was served."""
    return line("Idempotency-Status", status)


def _final(code: str, message: str) -> Problem:
    return Problem(409, code, message, sdk_retry=False)


MISMATCH: Final = KeyedProblem(
    Problem(
        422,
        "steer_key_mismatch",
        "This idempotency key was used for another request: method, path, body or a header that "
        "matters differs. Use a new key for a new request.",
        sdk_retry=False,
    )
)
IN_PROGRESS: Final = KeyedProblem(
    Problem(
        409,
        "steer_key_in_progress",
        "The call with this idempotency key is still running: try again with the same key.",
        retry_after=COME_AGAIN,
        sdk_retry=True,
    )
)
STILL_RUNNING: Final = KeyedProblem(
    Problem(
        504,
        "steer_deadline",
        "The call's time is up, and it goes on: another try with the same key joins it.",
        sdk_retry=True,
    )
)
TOO_SHORT: Final = KeyedProblem(
    Problem(
        504,
        "steer_deadline",
        "The call's time was up before the ledger had told whose its idempotency key is: try "
        "again with the same key.",
        sdk_retry=True,
    )
)
NOT_STORED: Final = KeyedProblem(
    _final(
        "steer_result_not_stored",
        "The call with this idempotency key was made, and is not made again. Its answer is not "
        "stored: it was too large, the route keeps none, or it has been removed since.",
    ),
    Status.NOT_STORED,
)
UNREADABLE: Final = KeyedProblem(
    _final(
        "steer_replay_unavailable",
        "The call with this idempotency key was made, and is not made again. Its answer is stored "
        "and cannot be read: look into Steer's log and its key ring.",
    )
)
TAKEN_OVER: Final = KeyedProblem(
    Problem(
        409,
        "steer_key_taken_over",
        "This process did not renew its lease in time, and another one has taken this call's key "
        "over: try again with the same key for its answer.",
        retry_after=1.0,
        sdk_retry=True,
    )
)
FAILED_ELSEWHERE: Final = KeyedProblem(
    Problem(
        502,
        "steer_joined_call_failed",
        "The call with this idempotency key, made by another Steer, has failed and may be made "
        "again.",
        retry_after=1.0,
        sdk_retry=True,
    )
)
DRAINING: Final = KeyedProblem(
    Problem(
        503,
        "steer_draining",
        "Steer is shutting down and could not finish this call.",
        retry_after=1.0,
        sdk_retry=True,
    )
)
CALLED_OFF: Final = KeyedProblem(
    Problem(
        409,
        "steer_key_in_progress",
        "Whoever asked for this call left before it was sent, and it was not made: try again with "
        "the same key.",
        retry_after=1.0,
        sdk_retry=True,
    )
)
BROKEN_OFF: Final = KeyedProblem(
    Problem(500, "steer_internal_error", "Steer could not finish this call.", sdk_retry=True)
)
BROKEN_OFF_LATE: Final = KeyedProblem(
    Problem(
        500,
        "steer_internal_error",
        "Steer could not finish this call, which may have been executed, so it is not made again.",
        sdk_retry=False,
    ),
    Status.UNCERTAIN,
)
OVERLOADED: Final = KeyedProblem(
    Problem(
        503,
        "steer_overloaded",
        "As many keyed calls are running as may.",
        retry_after=1.0,
        sdk_retry=True,
    )
)


def no_ledger(why: str) -> KeyedProblem:
    """The ledger cannot be asked, and the route wants no call without it."""
    return KeyedProblem(
        Problem(
            503,
            NO_LEDGER,
            "Steer cannot protect this call from being made twice now: its ledger is unavailable "
            f"({why}).",
            retry_after=1.0,
            sdk_retry=True,
        )
    )


def uncertain(id_: str) -> KeyedProblem:
    """The call of this row may have been executed, and is not made again."""
    return KeyedProblem(
        _final(
            "steer_key_uncertain",
            "The call with this idempotency key may have been executed, and its answer is lost, "
            f"so it is not made again. Find out, then: steer ledger resolve {id_} --discard (it "
            "was executed) or --rerun (it was not, and the next call with the key is made).",
        ),
        Status.UNCERTAIN,
    )
