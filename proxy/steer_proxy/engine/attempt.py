"""The attempt protocol: what the exchange needs of whoever carries a request to an upstream.

The engine decides and counts; a `Sender` (the HTTP front's, or another) does one whole attempt and
comes back with an `Answer` that was read up to the commit point. A failure of the upstream is an
answer with a failing verdict, never an exception: exceptions are cancellation and bugs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from steer_policies.config import Ambiguous
from steer_policies.outcome import Verdict
from steer_policies.plan import Candidate
from steer_policies.retry import WaitSource


class Answer(Protocol):
    """What one attempt brought back."""

    @property
    def verdict(self) -> Verdict:
        """What it means."""

    @property
    def lesson(self) -> Verdict | None:
        """What breakers learn from it at the commit; None for nothing."""

    @property
    def status(self) -> int | None:
        """The HTTP status; None when no answer head came."""

    async def discard(self) -> None:
        """Let go of everything it holds. Idempotent."""


A_co = TypeVar("A_co", bound=Answer, covariant=True)


class Sender(Protocol[A_co]):
    """Carries out one whole attempt."""

    async def attempt(self, candidate: Candidate, deadline: float) -> A_co:
        """Send the request to a candidate and read its answer up to the commit point.

        `deadline` is absolute on the loop's clock.
        """


@dataclass(slots=True)
class AttemptRecord:
    """One attempt as the log, the headers and the ledger tell it. Times are monotonic seconds."""

    number: int
    upstream: str
    model: str | None
    started: float
    seconds: float
    waited: float
    wait_source: WaitSource
    status: int | None
    verdict: Verdict


@dataclass(slots=True)
class Terms:
    """What a call allows the exchange to do.

    `deadline` is absolute on the loop's clock. `unsent_only` is for pinned, non-idempotent
    requests: only a provably unsent one may be repeated. `fallback_on_refusal` lets a
    content-policy refusal go on to other candidates; `keyed` says that the call has an idempotency
    key. `budget_usd` bounds the estimated cost of all attempts that may have been billed.
    """

    deadline: float
    ambiguous: Ambiguous
    unsent_only: bool = False
    fallback_on_refusal: bool = False
    keyed: bool = False
    budget_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Steer's own answer when no upstream gave one to pass on.

    `retry_after` is seconds until another try can make sense, when known; `sdk_retry` what
    `x-should-retry` should say, None to leave the SDK to its own rules.
    """

    status: int
    code: str
    message: str
    retry_after: float | None = None
    sdk_retry: bool | None = None
