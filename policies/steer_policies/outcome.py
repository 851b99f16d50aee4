"""What became of an attempt, in the words every other module uses.

A failure is named by its phase and by whose fault it is. `TRAITS` is the one table that says what
follows from each name: whether asking again can help, who else may be asked, and which breaker
learns from it. A call site that needs such a fact looks it up here, so that two places cannot
disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Executed(StrEnum):
    """Whether the provider may have run, and billed, an attempt."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


class Outcome(StrEnum):
    """The coarse result of an attempt, as the ledger and the metrics report it."""

    OK = "ok"
    THROTTLED = "throttled"
    UPSTREAM_5XX = "upstream_5xx"
    TIMEOUT = "timeout"
    NETWORK = "network"
    BROKEN = "broken"
    CLIENT_4XX = "client_4xx"
    CANCELLED = "cancelled"


class Failure(StrEnum):
    """Why an attempt did not give the caller an answer to keep."""

    CONNECT = "connect"
    """Name resolution, TCP or TLS failed: not a byte of the request was written."""
    RESET = "reset"
    """The connection was lost after bytes were written and before the answer's head."""
    PROTOCOL = "protocol"
    """What came back is not HTTP."""
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    """Silence: no answer head within the limit."""
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a token of text, not a secret
    """A stream began, but its first content did not come within the limit."""
    IDLE_TIMEOUT = "idle_timeout"
    """An answer began and then fell silent."""
    TRUNCATED = "truncated"
    """An answer began and ended without its end."""
    THROTTLED = "throttled"
    """The provider asks for patience: 429, or the same said inside a stream."""
    OVERLOADED = "overloaded"
    """The provider has no capacity: 503, 529, or the same said inside a stream."""
    SERVER_ERROR = "server_error"
    """Any other 5xx, or an unspecific error inside a stream."""
    BUSY = "busy"
    """The provider asks for another try of this request: 408, 409, 425, `x-should-retry: true`."""
    QUOTA = "quota"
    """Credit or a spending limit is used up: no waiting mends it within a call."""
    CREDENTIAL = "credential"
    """401 or 403: this credential is not accepted."""
    CONTEXT_LENGTH = "context_length"
    """The prompt does not fit this model; a larger one may take it."""
    CONTENT_POLICY = "content_policy"
    """The provider refuses the content: its answer is the answer."""
    REJECTED = "rejected"
    """Any other 4xx: the request itself is at fault."""
    FAULT = "fault"
    """Code of the caller's own that was asked in a provider's place failed by itself: a bug, or
    something it was not made for. Only where tools are functions."""
    QUEUE = "queue"
    """No free slot at this upstream within the bounded queue, or no file or memory left for a
    connection to it: our own limit."""
    DEADLINE = "deadline"
    """The call's own deadline passed."""
    CANCELLED = "cancelled"
    """The caller went away, or the process is draining."""


class Vote(StrEnum):
    """What a breaker learns from an attempt; NONE gives the permit back and counts nothing."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"


class Elsewhere(StrEnum):
    """Which other candidates may be asked after a failure."""

    NEVER = "never"
    ANY = "any"
    LARGER_CONTEXT = "larger_context"
    IF_ROUTE_ASKS = "if_route_asks"


@dataclass(frozen=True, slots=True)
class Traits:
    """What follows from a failure.

    `model_vote` goes to the breaker of upstream + model, `upstream_vote` to the breaker of the
    upstream as a whole (connect, TLS and name resolution are shared by all its models).
    """

    outcome: Outcome
    here: bool
    elsewhere: Elsewhere
    model_vote: Vote
    upstream_vote: Vote
    executed: Executed


_NO, _MAYBE = Executed.NO, Executed.MAYBE
_OK, _BAD, _NONE = Vote.SUCCESS, Vote.FAILURE, Vote.NONE
_ANY, _NEVER = Elsewhere.ANY, Elsewhere.NEVER

TRAITS: Final[Mapping[Failure, Traits]] = MappingProxyType(
    {
        Failure.CONNECT: Traits(Outcome.NETWORK, True, _ANY, _NONE, _BAD, _NO),
        Failure.RESET: Traits(Outcome.NETWORK, True, _ANY, _BAD, _OK, _MAYBE),
        Failure.PROTOCOL: Traits(Outcome.BROKEN, True, _ANY, _BAD, _OK, _MAYBE),
        Failure.FIRST_BYTE_TIMEOUT: Traits(Outcome.TIMEOUT, True, _ANY, _BAD, _OK, _MAYBE),
        Failure.FIRST_TOKEN_TIMEOUT: Traits(Outcome.TIMEOUT, True, _ANY, _BAD, _OK, _MAYBE),
        Failure.IDLE_TIMEOUT: Traits(Outcome.TIMEOUT, True, _ANY, _BAD, _OK, _MAYBE),
        Failure.TRUNCATED: Traits(Outcome.BROKEN, True, _ANY, _BAD, _OK, _MAYBE),
        # Throttling is the provider at work as it should be: the gate learns, no breaker does.
        Failure.THROTTLED: Traits(Outcome.THROTTLED, True, _ANY, _NONE, _OK, _NO),
        Failure.OVERLOADED: Traits(Outcome.UPSTREAM_5XX, True, _ANY, _BAD, _OK, _NO),
        Failure.SERVER_ERROR: Traits(Outcome.UPSTREAM_5XX, True, _ANY, _BAD, _OK, _NO),
        Failure.BUSY: Traits(Outcome.CLIENT_4XX, True, _ANY, _OK, _OK, _NO),
        # Nothing the provider answered about quota or credential says that it is broken.
        Failure.QUOTA: Traits(Outcome.THROTTLED, False, _ANY, _OK, _OK, _NO),
        Failure.CREDENTIAL: Traits(Outcome.CLIENT_4XX, False, _ANY, _OK, _OK, _NO),
        Failure.CONTEXT_LENGTH: Traits(
            Outcome.CLIENT_4XX, False, Elsewhere.LARGER_CONTEXT, _OK, _OK, _NO
        ),
        Failure.CONTENT_POLICY: Traits(
            Outcome.CLIENT_4XX, False, Elsewhere.IF_ROUTE_ASKS, _OK, _OK, _NO
        ),
        Failure.REJECTED: Traits(Outcome.CLIENT_4XX, False, _NEVER, _OK, _OK, _NO),
        # A bug says nothing of any provider. What it had done until then, nobody knows.
        Failure.FAULT: Traits(Outcome.BROKEN, False, _ANY, _NONE, _NONE, _MAYBE),
        # The following three are ours, not the upstream's: nobody learns from them.
        Failure.QUEUE: Traits(Outcome.THROTTLED, False, _ANY, _NONE, _NONE, _NO),
        Failure.DEADLINE: Traits(Outcome.TIMEOUT, False, _NEVER, _NONE, _NONE, _MAYBE),
        Failure.CANCELLED: Traits(Outcome.CANCELLED, False, _NEVER, _NONE, _NONE, _MAYBE),
    }
)


class HintSource(StrEnum):
    """Where a provider said how long to wait."""

    RETRY_AFTER = "retry_after"
    RESET = "reset"
    BODY_HINT = "body_hint"


@dataclass(frozen=True, slots=True)
class RetryHint:
    """A delay a provider asked for, in seconds from the arrival of its answer."""

    seconds: float
    source: HintSource


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one attempt's result means.

    `failure` is None for an answer to keep. `hint` is the provider's own "not now". `code` is the
    provider's machine-readable reason, bounded to 64 characters, for logs and the ledger; never
    prompt or completion text. `again` is False when the provider said `x-should-retry: false`.
    """

    failure: Failure | None
    executed: Executed
    hint: RetryHint | None = None
    code: str | None = None
    again: bool = True

    @property
    def ok(self) -> bool:
        """Whether the answer is one to keep."""
        return self.failure is None

    @property
    def outcome(self) -> Outcome:
        """The coarse result, as the ledger reports it."""
        return Outcome.OK if self.failure is None else TRAITS[self.failure].outcome


SUCCESS: Final = Verdict(failure=None, executed=Executed.YES)


def failed(
    failure: Failure,
    *,
    executed: Executed | None = None,
    hint: RetryHint | None = None,
    code: str | None = None,
    again: bool = True,
) -> Verdict:
    """A verdict with the failure's usual `executed`, unless the caller knows better."""
    return Verdict(failure, executed or TRAITS[failure].executed, hint, code, again)
