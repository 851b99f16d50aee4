"""What goes into a ledger and what comes out of it.

Row types have one field per column, in the table's order, so that a row is its own tuple of
parameters. Times are Unix microseconds, durations microseconds, money nano-dollars (1e-9 USD),
flags 0 or 1; None is "not known", never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from steer_policies.idempotency import State

MICROSECONDS: Final = 1_000_000
NANO_USD: Final = 1_000_000_000


class CallRow(NamedTuple):
    """One row of `requests`: a call, duplicates included."""

    # Identity
    id: str
    request_id: str
    trace_id: str | None = None
    parent_id: str | None = None
    instance: str | None = None
    config_rev: str | None = None
    caller: str | None = None
    labels: str | None = None
    """JSON object."""
    # Call
    route: str | None = None
    dialect: str | None = None
    operation: str | None = None
    method: str | None = None
    path: str | None = None
    stream: int | None = None
    model_requested: str | None = None
    model_answered: str | None = None
    upstream: str | None = None
    rule: str | None = None
    # Time
    started_us: int = 0
    ended_us: int | None = None
    duration_us: int | None = None
    wait_us: int | None = None
    first_token_us: int | None = None
    # Result
    status: int | None = None
    outcome: str | None = None
    error_class: str | None = None
    attempts: int | None = None
    ambiguous: int | None = None
    sdk_retry: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    # Money
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    tokens_reasoning: int | None = None
    cost_nusd: int | None = None
    wasted_nusd: int | None = None
    avoided_nusd: int | None = None
    cost_source: str | None = None
    # Key
    idem_key: str | None = None
    idem_scope: str | None = None
    idem_fp: str | None = None
    idem_role: str | None = None
    idem_state: str | None = None
    idem_live: int | None = None
    idem_epoch: int | None = None
    owner_id: str | None = None
    served_from: str | None = None
    sent_us: int | None = None
    expires_us: int | None = None
    keyring_id: str | None = None
    # Stored answer
    resp_headers: str | None = None
    """JSON: see `StoredHead`."""
    resp_bytes: int | None = None
    resp_chunks: int | None = None
    resp_sha256: str | None = None
    # Attempt: the only one, where it went well; others are rows of their own
    attempt_model: str | None = None
    attempt_credential: str | None = None
    attempt_upstream_request_id: str | None = None
    attempt_started_us: int | None = None
    attempt_duration_us: int | None = None
    attempt_connect_us: int | None = None
    attempt_headers_us: int | None = None
    attempt_first_token_us: int | None = None
    attempt_wait_source: str | None = None
    attempt_reused_conn: int | None = None
    attempt_bytes_sent: int | None = None
    attempt_bytes_received: int | None = None


#: The columns that tell of an only attempt.
ATTEMPT_COLUMNS: Final = tuple(name for name in CallRow._fields if name.startswith("attempt_"))
_NO_ATTEMPT: Final[Mapping[str, Any]] = dict.fromkeys(ATTEMPT_COLUMNS)

#: The columns that become known when a call ends: what finishing a keyed call's row sets, besides
#: `idem_state`, `idem_live`, `expires_us` and the stored answer.
RESULT_COLUMNS: Final = (
    "model_answered",
    "upstream",
    "rule",
    "ended_us",
    "duration_us",
    "wait_us",
    "first_token_us",
    "status",
    "outcome",
    "error_class",
    "attempts",
    "ambiguous",
    "bytes_out",
    "tokens_in",
    "tokens_cached",
    "tokens_out",
    "tokens_reasoning",
    "cost_nusd",
    "wasted_nusd",
    "cost_source",
    *ATTEMPT_COLUMNS,
)


class AttemptRow(NamedTuple):
    """One row of `attempts`: one of a call that failed or took more than one.

    An only attempt that went well is part of its call's row (`CallRow.attempt_started_us` is set).
    """

    request: str
    n: int
    upstream: str
    model: str | None = None
    credential: str | None = None
    upstream_request_id: str | None = None
    started_us: int = 0
    duration_us: int | None = None
    connect_us: int | None = None
    headers_us: int | None = None
    first_token_us: int | None = None
    wait_us: int | None = None
    wait_source: str | None = None
    status: int | None = None
    outcome: str | None = None
    failure_class: str | None = None
    executed: str | None = None
    reused_conn: int | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    tokens_reasoning: int | None = None
    cost_nusd: int | None = None
    cost_source: str | None = None
    wasted: int | None = None


def only_attempt(call: CallRow) -> AttemptRow | None:
    """The attempt that a call's own row tells of, as if it had a row; None when there is none."""
    if call.attempt_started_us is None:
        return None
    return AttemptRow(
        request=call.id,
        n=1,
        upstream=call.upstream or "",
        model=call.attempt_model,
        credential=call.attempt_credential,
        upstream_request_id=call.attempt_upstream_request_id,
        started_us=call.attempt_started_us,
        duration_us=call.attempt_duration_us,
        connect_us=call.attempt_connect_us,
        headers_us=call.attempt_headers_us,
        first_token_us=call.attempt_first_token_us,
        wait_us=call.wait_us,
        wait_source=call.attempt_wait_source,
        status=call.status,
        outcome=call.outcome,
        executed="yes",
        reused_conn=call.attempt_reused_conn,
        bytes_sent=call.attempt_bytes_sent,
        bytes_received=call.attempt_bytes_received,
        tokens_in=call.tokens_in,
        tokens_cached=call.tokens_cached,
        tokens_out=call.tokens_out,
        tokens_reasoning=call.tokens_reasoning,
        cost_nusd=call.cost_nusd,
        cost_source=call.cost_source,
        wasted=0,
    )


def told_apart(call: CallRow, attempts: Sequence[AttemptRow]) -> tuple[CallRow, list[AttemptRow]]:
    """The same rows with one for every attempt: for who cannot count on writing the call's."""
    only = only_attempt(call)
    if only is None:
        return call, list(attempts)
    return call._replace(**_NO_ATTEMPT), [only, *attempts]


class BreakerEventRow(NamedTuple):
    """One row of `breaker_events`: a change of a breaker, a gate, a credential, or one by hand."""

    id: str
    at_us: int
    instance: str | None = None
    kind: str | None = None
    upstream: str | None = None
    model: str | None = None
    credential: str | None = None
    from_state: str | None = None
    to_state: str | None = None
    reason: str | None = None
    generation: int | None = None
    until_us: int | None = None
    window_calls: int | None = None
    window_failures: int | None = None
    request: str | None = None
    actor: str | None = None


class ChunkRow(NamedTuple):
    """One row of `response_chunks`: a piece of a stored answer.

    `body` is `raw_bytes` bytes at `byte_offset` of the answer, encoded by `codec` (`identity`,
    `zstd`, and either with `+aesgcm`), encrypted with the key named `key_id` where it is.
    """

    request: str
    seq: int
    byte_offset: int
    at_us: int
    codec: str
    key_id: str | None
    raw_bytes: int
    body: bytes


Row = CallRow | AttemptRow | BreakerEventRow


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to run a keyed call.

    `row` is the call as it is known so far, with `id`, `idem_scope`, `idem_fp`, `idem_state`
    (`claimed` or `sent`), `idem_live` 1, `idem_epoch` 1, `owner_id` and `expires_us` set (and
    `sent_us` when sent). On PostgreSQL the database's time takes the place of `sent_us`, and
    `expires_us` keeps its distance to `started_us`.
    """

    row: CallRow


@dataclass(frozen=True, slots=True)
class Ref:
    """The row and the epoch a write means: a record that was taken over is not touched."""

    id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Record:
    """A key's live record, as found. `lapsed` and `expired` by the ledger's own time (whether a
    lapse counts, `Bookkeeper.judged` says), `expired` in a ledger that several share by the time of
    who looks, too; from `cost_nusd` on what its row says of the call, for the rows of duplicates.
    """

    id: str
    epoch: int
    state: State
    fingerprint: str
    owner_id: str
    lapsed: bool
    expired: bool
    stored: bool
    cost_nusd: int | None = None
    status: int | None = None
    outcome: str | None = None
    model_answered: str | None = None
    upstream: str | None = None
    now_us: int | None = field(default=None, compare=False)
    """The ledger's time when it was found, in a ledger that several share."""

    def made_of(self, row: CallRow) -> bool:
        """Whether a claim of this row has made it, whose reply was lost. By the owner too: what
        follows from an id alone would make two owners of one call, should ids ever meet."""
        return self.id == row.id and self.owner_id == (row.owner_id or "")


@dataclass(frozen=True, slots=True)
class Finish:
    """How a keyed call ended: its record's next state, what became known, and its answer.

    `state` is COMPLETED, UNCERTAIN or RELEASED. `row` gives the `RESULT_COLUMNS`, `expires_us` (as
    in `Claim`) and, when the answer is stored, `keyring_id` and the `resp_` columns; `chunks` are
    those not yet written.
    """

    ref: Ref
    state: State
    row: CallRow
    chunks: tuple[ChunkRow, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A completed record's answer: the columns to replay it from, and the chunks asked for."""

    id: str
    status: int
    headers: str
    """The JSON of `resp_headers`."""
    bytes: int
    chunks: int
    sha256: str | None
    keyring_id: str | None = None
    """The key that its head and its chunks are encrypted with; None: it was stored without keys.

    The pieces of an answer say themselves which key they need. Whoever may write the database could
    put others in their place that need none: the record's word stands against that.
    """
    first: tuple[ChunkRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Following:
    """How a call that another process runs has come along: its record, and new chunks.

    `record` tells the state also when it is no longer live (it then counts as lapsed, since nobody
    runs it for this key any more), and is None when the row is gone.
    """

    record: Record | None
    headers: str | None
    """The head of its answer once it is known (`resp_headers`)."""
    status: int | None
    chunks: tuple[ChunkRow, ...] = ()
    keyring_id: str | None = None
    """As in `StoredAnswer`; None also where there is no head yet, or where a version writes that
    names the key with the end alone."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a renewal found: whether the lease had lapsed meanwhile, and which of the records this
    owner had are no longer its own (asked only after a lapse, or when unsure)."""

    lapsed: bool
    lost: frozenset[str] = frozenset()
    now_us: int | None = field(default=None, compare=False)
    """The ledger's time, in a ledger that several share."""


@dataclass(frozen=True, slots=True)
class Purge:
    """What to remove: rows that ended before `before_us`, stored answers of expired keys, and the
    oldest stored answers beyond `max_bytes`. Never a live record's row."""

    before_us: int
    max_bytes: int | None = None
    limit: int = 500
    """Rows of one slice, a call with its attempts counted as one."""
    age_us: int | None = None
    """How old rows must be at least by the clock of a ledger that several share: theirs may be
    wrong."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What one slice removed; `more` when there is more to remove. `keys` are those that were freed
    since they had expired, `stored_bytes` what the chunks held before compression."""

    requests: int = 0
    attempts: int = 0
    chunks: int = 0
    events: int = 0
    keys: int = 0
    stored_bytes: int = 0
    more: bool = False
    busy: float = field(default=0.0, compare=False)
    """Seconds the database worked on it, without waiting for its turn and without the commit; of
    several statements that others need not wait for, the longest."""


@dataclass(slots=True)
class Batch:
    """Rows of the log, written together."""

    calls: list[CallRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    events: list[BreakerEventRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.calls) + len(self.attempts) + len(self.events)
