"""The attempt protocol: what the exchange needs of whoever carries a request to an upstream.

The engine decides and counts; a `Sender` (the HTTP front's, or another) does one whole attempt and
comes back with an `Answer` that was read up to the commit point. A failure of the upstream is an
answer with a failing verdict, never an exception: exceptions are cancellation and bugs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from steer_policies.config import Ambiguous
from steer_policies.dialects.base import StreamReader, Usage
from steer_policies.outcome import Verdict
from steer_policies.plan import Candidate
from steer_policies.retry import WaitSource
from steer_proxy.engine.announcing import Announcement


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

    @property
    def broken(self) -> bool:
        """Whether it was cut, and little more than its status can be told."""

    async def discard(self) -> None:
        """Let go of everything it holds. Idempotent."""


A_co = TypeVar("A_co", bound=Answer, covariant=True)


class Counted(Protocol):
    """A body that counts what has come of it."""

    total_bytes: int


class Trace:
    """What is measured of one attempt, while it goes on and until its answer has ended.

    Moments are loop time, None for what did not happen. `sent` counts the bytes of the request that
    were given to the connection, head and body; `received` those of the answer's body as they came,
    before any decoding. `status` is that of the answer's head, however it went on; `verdict` is the
    last word on an answer that was committed: it may have broken later.
    """

    __slots__ = (
        "body",
        "connected",
        "ended",
        "first_token",
        "headed",
        "model",
        "reader",
        "received",
        "request_id",
        "reused",
        "sent",
        "status",
        "usage",
        "verdict",
    )

    def __init__(self) -> None:
        self.connected: float | None = None
        self.headed: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self.reused: bool | None = None
        self.sent = 0
        self.received: int | None = None
        self.status: int | None = None
        self.request_id: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.verdict: Verdict | None = None
        #: Where the counts come from while the answer is read.
        self.body: Counted | None = None
        self.reader: StreamReader | None = None

    def settle(self) -> None:
        """Take the counts as they are, and let go of what they come from. Idempotent."""
        if self.body is not None:
            self.received, self.body = self.body.total_bytes, None
        if self.reader is not None:
            self.model, self.usage, self.reader = self.reader.model, self.reader.usage, None


class Sender(Protocol[A_co]):
    """Carries out one whole attempt."""

    async def attempt(self, candidate: Candidate, deadline: float, trace: Trace) -> A_co:
        """Send the request to a candidate and read its answer up to the commit point.

        `deadline` is absolute on the loop's clock; what is measured goes into `trace`.
        """


@dataclass(slots=True)
class AttemptRecord:
    """One attempt as the log, the headers and the ledger tell it. Times are monotonic seconds.

    `seconds` and `verdict` are those up to its commit; `trace` has what was measured beside and
    after them.
    """

    number: int
    upstream: str
    model: str | None
    started: float
    seconds: float
    waited: float
    wait_source: WaitSource
    status: int | None
    verdict: Verdict
    trace: Trace = field(default_factory=Trace)

    @property
    def final(self) -> Verdict:
        """What became of the attempt in the end."""
        return self.trace.verdict or self.verdict


@dataclass(slots=True)
class Terms:
    """What a call allows the exchange to do.

    `deadline` is absolute on the loop's clock. `unsent_only` is for pinned, non-idempotent
    requests: only a provably unsent one may be repeated. `fallback_on_refusal` lets a
    content-policy refusal go on to other candidates; `keyed` says that the call has an idempotency
    key. `budget_usd` and `budget_tokens` bound the estimated cost and tokens of all attempts that
    may have been billed. An attempt under way at the deadline may go on until `until`, where
    somebody may still want its answer; no other begins. `announcement` is what must be written
    down before anything is sent.
    """

    deadline: float
    ambiguous: Ambiguous
    until: float | None = None
    unsent_only: bool = False
    fallback_on_refusal: bool = False
    keyed: bool = False
    budget_usd: float | None = None
    budget_tokens: int | None = None
    announcement: Announcement | None = None


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
