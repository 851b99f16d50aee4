"""One key, one paid call: the life of an idempotency record, and what a request with its key gets.

A key has at most one live record. The record's states and moves are the table `MOVES`; every write
to a ledger names the row and the epoch it means, and is allowed only from the states this table
gives. `decide` says what becomes of a request that finds a live record.

A record whose owner (a process) no longer renews its lease is *lapsed*: if nothing was sent, anyone
may take it over; if something may have been sent, its outcome is uncertain. No state is written for
that: it is how a record looks to others. Its owner, if it is alive after all, may still complete
it, as long as nobody has taken over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Final

from steer_policies.config import ByteSize, Seconds

_FORBID_UNKNOWN: Final = {"extra": "forbid"}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")


class State(StrEnum):
    """Where a record stands."""

    CLAIMED = "claimed"
    """A process has taken the key; nothing was sent upstream."""
    SENT = "sent"
    """From now on the call may have been executed. Durable before the first byte goes upstream."""
    COMPLETED = "completed"
    """The answer is there (or is known to be too large to keep): the call is never made again."""
    UNCERTAIN = "uncertain"
    """The call may have been executed, and its answer is lost."""
    RELEASED = "released"
    """Provably not executed, or given up by hand: the key is free. No longer live."""


class Move(StrEnum):
    """What happens to a record."""

    SEND = "send"
    COMPLETE = "complete"
    DOUBT = "doubt"
    RELEASE = "release"
    SETTLE = "settle"
    """By hand: the call counts as made, its answer as lost."""
    REOPEN = "reopen"
    """By hand: the key may be used again."""


_CLAIMED, _SENT, _COMPLETED = State.CLAIMED, State.SENT, State.COMPLETED
_UNCERTAIN, _RELEASED = State.UNCERTAIN, State.RELEASED

#: Every move there is: from which state to which. A record begins as claimed or, when nothing has
#: to be waited for, directly as sent.
MOVES: Final[Mapping[tuple[State, Move], State]] = MappingProxyType(
    {
        (_CLAIMED, Move.SEND): _SENT,
        (_CLAIMED, Move.RELEASE): _RELEASED,
        (_CLAIMED, Move.REOPEN): _RELEASED,
        (_SENT, Move.COMPLETE): _COMPLETED,
        (_SENT, Move.RELEASE): _RELEASED,
        (_SENT, Move.DOUBT): _UNCERTAIN,
        (_SENT, Move.SETTLE): _COMPLETED,
        (_SENT, Move.REOPEN): _RELEASED,
        # Declared uncertain too early, and then the answer came after all.
        (_UNCERTAIN, Move.COMPLETE): _COMPLETED,
        (_UNCERTAIN, Move.SETTLE): _COMPLETED,
        (_UNCERTAIN, Move.REOPEN): _RELEASED,
    }
)


def sources(move: Move) -> tuple[State, ...]:
    """The states a move is allowed from: what a ledger's fenced write asks for."""
    return tuple(state for state, each in MOVES if each is move)


def is_running(state: State) -> bool:
    """Whether somebody makes the call, as long as its owner lives."""
    return state in (State.CLAIMED, State.SENT)


class Role(StrEnum):
    """How a request with a key was served; the ledger's `idem_role`."""

    OWNER = "owner"
    JOINED = "joined"
    REPLAYED = "replayed"
    ADOPTED = "adopted"


class Status(StrEnum):
    """The response header `Idempotency-Status`."""

    NEW = "new"
    REPLAYED = "replayed"
    JOINED = "joined"
    NOT_STORED = "not-stored"
    UNCERTAIN = "uncertain"
    RERUN = "rerun"


class OnUncertain(StrEnum):
    """What a duplicate of a call gets that may have been executed."""

    FAIL = "fail"
    RERUN = "rerun"


class OnLedgerDown(StrEnum):
    """What becomes of a keyed call while the ledger cannot be reached."""

    FAIL = "fail"
    OPEN = "open"


class Save(StrEnum):
    """Which answers are kept for replay.

    `final` adds the provider's own refusals of the request; `nothing` keeps none: a duplicate is
    never run, and is told that the answer is not stored.
    """

    SUCCESS = "success"
    FINAL = "final"
    NOTHING = "nothing"


#: Requests that may wait for one running call of theirs in a process; more are told to come back.
MAX_JOINERS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyPolicy:
    """A route's terms for keyed calls, and for orphans.

    `retention` is how long a finished record answers for its key, `join_timeout` how long a
    duplicate waits for the running call, both in seconds. `max_stored` bounds a stored answer in
    bytes, before compression. `scope` is `caller` (what the caller presents as its credential),
    `route` (everybody), or `header:NAME`. `adopt` lets a call whose SDK gave up waiting go on for
    `adopt_grace` seconds, for that SDK's own retry.

    Raises:
        ValueError: naming the field.
    """

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    retention: Seconds = 86_400.0
    join_timeout: Seconds = 300.0
    on_uncertain: OnUncertain = OnUncertain.FAIL
    on_ledger_down: OnLedgerDown = OnLedgerDown.FAIL
    scope: str = "caller"
    require_key: bool = False
    save: Save = Save.SUCCESS
    max_stored: ByteSize = 8 * 2**20
    adopt: bool = True
    adopt_grace: Seconds = 10.0

    def __post_init__(self) -> None:
        for name in ("retention", "join_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0")
        if self.adopt_grace < 0:
            raise ValueError("adopt_grace must not be negative")
        if self.max_stored < 0:
            raise ValueError("max_stored must not be negative")
        if self.scope not in ("caller", "route"):
            kind, _, name = self.scope.partition(":")
            if kind != "header" or not _HEADER_NAME.fullmatch(name):
                raise ValueError("scope must be caller, route or header:NAME")


@dataclass(frozen=True, slots=True)
class Standing:
    """How a live record looks to a request that finds it.

    `lapsed` says that its owner's lease is over although it could have been renewed, `expired` that
    its retention is over. `stored` is whether the answer of a completed record was kept.
    """

    state: State
    fingerprint: str
    lapsed: bool = False
    expired: bool = False
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Join:
    """The call is running: wait for its answer."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The call is done: give its stored answer."""


@dataclass(frozen=True, slots=True)
class NotStored:
    """The call is done, its answer was not kept; it is not made again."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used for another request."""


@dataclass(frozen=True, slots=True)
class Uncertain:
    """The call may have been executed; it is not made again."""


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Claim the key anew, in the record's place; `rerun` when the call may have been executed."""

    rerun: bool = False


Decision = Join | Replay | NotStored | Mismatch | Uncertain | TakeOver


def decide(found: Standing, fingerprint: str, on_uncertain: OnUncertain) -> Decision:
    """What becomes of a request that finds a live record for its key."""
    running = is_running(found.state)
    if found.state is State.RELEASED or (found.expired and not (running and not found.lapsed)):
        return TakeOver()
    if found.fingerprint != fingerprint:
        return Mismatch()
    if found.state is State.COMPLETED:
        return Replay() if found.stored else NotStored()
    if running and not found.lapsed:
        return Join()
    if found.state is State.CLAIMED:
        return TakeOver()
    return TakeOver(rerun=True) if on_uncertain is OnUncertain.RERUN else Uncertain()
