"""What every dialect can say about a request and an answer, without doing any I/O.

A dialect is a stateless object: it describes requests, applies a plan's model where the model
lives, classifies answers, reads streams and shapes errors so that the official SDK raises its own
class. Paths are relative to the upstream's base URL and begin with a slash. Everything here reads
foreign input and is therefore total: it returns a bounded value or None, and never raises for what
a peer sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple, Protocol

from steer_policies.config import DialectName
from steer_policies.outcome import Verdict


class Where(StrEnum):
    """Where a request carries its model's name."""

    BODY = "body"
    """The `model` member of a JSON body."""
    PATH = "path"
    """A path segment (Gemini)."""
    QUERY = "query"
    """The `model` query parameter (OpenAI realtime)."""
    FORM = "form"
    """The `model` field of a multipart form (OpenAI audio, image edits)."""
    NOWHERE = "nowhere"


class Special(NamedTuple):
    """What an answer is billed for that plain tokens and their prices do not tell.

    `counts` have prices of their own: parts of the tokens (written to a cache, audio, images), and
    searches. `context` is what other prices hold in: a service tier, by name. `unpriced` says that
    something was sold whose price is not known; `usd` is what the provider says that it charged.
    """

    counts: tuple[tuple[str, int], ...] = ()
    context: tuple[tuple[str, str], ...] = ()
    unpriced: bool = False
    usd: float | None = None


class Usage(NamedTuple):
    """Tokens as the provider counted them; None where it did not say, never zero in its place.

    `input` includes the cached part, `output` includes the reasoning part. Those four have columns
    in the ledger. `special` and `streamed` only decide what they cost; `streamed` is about how many
    tokens of completion came, where the provider's count of them has not.
    """

    input: int | None = None
    cached: int | None = None
    output: int | None = None
    reasoning: int | None = None
    special: Special | None = None
    streamed: int | None = None


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a dialect reads from a request, before any decision.

    `steered` says that the call may be planned, retried after bytes were written, and fall back:
    generation only. Everything else is pinned to the home upstream. `stream` says that the caller
    asked for an event stream. `max_tokens` is the caller's bound on the completion.
    `resumable` says that a broken stream may be resumed on another candidate (text only).
    `choices` is how many alternatives the caller asked for; a stream is finished when each is.
    """

    operation: str
    steered: bool
    model: str | None = None
    model_in: Where = Where.NOWHERE
    stream: bool = False
    max_tokens: int | None = None
    resumable: bool = False
    choices: int = 1


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A request after a plan's options were applied; `body` None means the original bytes serve."""

    path: str
    query: str
    body: bytes | None


class Progress(IntEnum):
    """How far a stream has come. Values only grow, in this order."""

    PRELUDE = 0
    """Nothing that a caller would miss: pings, role preludes, `message_start`."""
    CONTENT = 1
    """The first content, reasoning, tool-call or refusal delta was seen."""
    FINISHED = 2
    """All content is there (finish reason seen), only the terminal marker is missing."""
    COMPLETE = 3
    """The terminal marker was seen: what follows, if anything, is noise."""


class StreamReader(Protocol):
    """Reads one stream incrementally, keeping its bytes exactly as they came.

    `feed` returns the bytes of all whole events that `data` completed, up to but excluding an
    in-band error event; the rest is held. After an in-band error `error` is its verdict,
    `error_event` its bytes (and what had come after it), and further `feed` calls return b"".
    Everything returned plus everything held is everything fed, but for what `strip_usage` takes.

    An event larger than `MAX_HELD_EVENT` is returned as it comes, and inspected at its end all the
    same, without its long strings.
    """

    @property
    def progress(self) -> Progress:
        """How far the stream has come."""

    @property
    def error(self) -> Verdict | None:
        """What an in-band error means."""

    @property
    def error_event(self) -> bytes:
        """The bytes of an in-band error's event, and what had come after it."""

    @property
    def usage(self) -> Usage | None:
        """The provider's token counts so far."""

    @property
    def model(self) -> str | None:
        """The model that answers, as the provider names it."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return those that may be relayed."""

    def finish(self) -> bytes:
        """The body ended as its HTTP framing says: return what is still held (an event without its
        blank line). Where a dialect's stream has no terminal marker (Gemini's event stream), a
        stream that is FINISHED becomes COMPLETE here, and only here: do not call this for a body
        that was cut. May set `error`, and then returns b""."""

    @property
    def held(self) -> int:
        """How many bytes of an incomplete event are held."""

    @property
    def torn(self) -> bool:
        """Whether the beginning of an event was returned, and its end has not come."""

    @property
    def text(self) -> str | None:
        """All text so far when the reader was made with `keep_text`; None once anything but text
        (a tool call, say) was seen."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error in a dialect's own shape."""

    body: bytes
    content_type: str = "application/json"


class Dialect(Protocol):
    """One wire dialect."""

    name: DialectName

    def canonical_path(self, path: str) -> str:
        """The path as the provider knows it: aliases resolved, empty segments dropped. Every other
        method takes it, and it is what goes upstream and into an idempotency key's scope."""

    def describe(
        self, method: str, path: str, query: str, content_type: str, body: Any
    ) -> RequestFacts:
        """Read a request. `body` is the parsed JSON value; for a multipart form a mapping of its
        plain (non-file) fields; None when there is none or it is not understood."""

    def rewrite(
        self,
        facts: RequestFacts,
        path: str,
        query: str,
        content_type: str,
        raw: bytes,
        body: Any,
        options: Mapping[str, Any],
    ) -> Rewritten:
        """Apply a plan's options: `model` where the dialect keeps it, the rest as an RFC 7396 merge
        patch on a JSON body (a form takes only `model`). When nothing effectively changes, `path`
        and `query` are the given ones and `body` is None."""

    def classify(
        self, facts: RequestFacts, status: int, headers: Mapping[str, str], body: bytes, wall: float
    ) -> Verdict:
        """What a finished answer means. `headers` is case-insensitive or lower-cased; `body` holds
        at most the first 64 KiB of a non-2xx answer, decoded; `wall` is Unix time in seconds, used
        only where the answer has no `Date` of its own."""

    def usage_options(self, facts: RequestFacts, body: Any) -> Mapping[str, Any]:
        """What to merge into a request, after a plan's options, so that its stream counts tokens
        although the caller did not ask; empty where the caller did, or the dialect has no such
        option. What it brings, `read_stream` takes out again with `strip_usage`."""

    def read_stream(
        self,
        facts: RequestFacts,
        content_type: str,
        *,
        keep_text: bool = False,
        strip_usage: bool = False,
    ) -> StreamReader | None:
        """A reader for an answer of this content type; None when it is not a stream this dialect
        knows, and then only the HTTP framing tells its end. `strip_usage` takes out of what is
        relayed, and only of that, what came because of `usage_options`."""

    def read_answer(self, facts: RequestFacts, body: bytes) -> tuple[str | None, Usage | None]:
        """The model and usage a complete plain 2xx answer reports."""

    def error(self, status: int, code: str, message: str) -> ErrorAnswer:
        """One of Steer's own errors; `code` begins with `steer_`."""

    def error_event(self, facts: RequestFacts, content_type: str, code: str, message: str) -> bytes:
        """The event that tells a streaming caller that the stream broke; b"" where the dialect has
        none, and then only the connection's abrupt end tells."""

    def resumed(self, facts: RequestFacts, first: bytes, text: str) -> bytes | None:
        """One content event carrying `text` in the envelope (id, model, created, index) of the
        stream whose earlier bytes are `first`; None when that cannot be done faithfully."""

    def adopted(self, facts: RequestFacts, first: bytes, event: bytes) -> bytes | None:
        """A whole event of a second stream in the envelope of the one whose earlier bytes are
        `first`: what follows the resumed text (finish reason, usage, terminal marker). None when
        that cannot be done faithfully."""


#: Largest event a stream reader holds while waiting for its end, in bytes. A larger one (an image,
#: usually) is released as it comes: memory is bounded, and the caller's SDK sees the same bytes.
MAX_HELD_EVENT: Final = 1024 * 1024
