"""One key, one run: what is asked for, what is given, and what an error says of the tool.

How duplicates in a process wait is in `under_way`. What has become of the key elsewhere, or before,
is asked of a store: `stored` (get and store) or `in_sql` (the ledger), and decided in
`steer_policies.idempotency`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from steer_llm_sdk import checks
from steer_llm_sdk.errors import (
    BudgetExceeded,
    InvalidValue,
    PlanningError,
    UnknownTool,
    words_of,
)
from steer_policies.idempotency import OnLedgerDown, OnUncertain, State
from steer_policies.outcome import Executed
from steer_proxy.engine.attempt import AttemptRecord

LOGGER: Final = logging.getLogger("steer.sdk")

Work = Callable[[], Awaitable[dict[str, Any]]]
Judge = Callable[[BaseException], Executed]
Tell = Callable[[str, dict[str, Any]], Awaitable[None]]


class OnFailure(StrEnum):
    """What becomes of a key when its tool failed and may have had an effect before it did: by a
    time-out, a lost connection, an exception of its own.

    `uncertain` keeps the key: duplicates raise `UncertainOutcomeError`. `release` frees it: another
    run with it runs the tool again. Where it is known that nothing was executed (a 429, a refused
    connection, a ValueError), the key is free either way.
    """

    RELEASE = "release"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and what it is bound to.

    `fingerprint_of` is any JSON value: `{"request": ..., "tool": name or None}`, of a copy of the
    request and the tool named explicitly.
    """

    key: str
    fingerprint_of: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's result: JSON, and each caller's own copy.

    `replayed`: it was made before. `joined`: it was being made, and waited for. Not `stored`: it
    could not be kept, and the store's policy (`on_store_down="open"`) is to go on.
    """

    value: dict[str, Any]
    replayed: bool = False
    joined: bool = False
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for the ledger's rows: ids, the tool named explicitly, labels; and what it has
    tried so far, which grows while the run goes on."""

    request_id: str | None = None
    trace_id: str | None = None
    tool: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    records: Sequence[AttemptRecord] = ()


NOBODY: Final = Caller()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a store of idempotency records promises; see `IdempotencyManager`."""

    ttl: float = 900.0
    on_failure: OnFailure = OnFailure.UNCERTAIN
    on_uncertain: OnUncertain = OnUncertain.FAIL
    on_store_down: OnLedgerDown = OnLedgerDown.FAIL
    join_timeout: float = 300.0
    max_stored: int = 8 * 2**20

    def __post_init__(self) -> None:
        checks.number("ttl_seconds", self.ttl, least=0.0, above=True)
        checks.number("join_timeout", self.join_timeout, least=0.0, above=True)
        checks.whole("max_stored", self.max_stored, least=1)


class Once(Protocol):
    """Runs work once for each key."""

    async def run(
        self,
        identity: Identity,
        work: Work,
        *,
        caller: Caller = NOBODY,
        executed: Judge | None = None,
        tell: Tell | None = None,
    ) -> Outcome:
        """Run `work` once for the key: concurrent duplicates wait for it, later ones get what it
        gave. Its result is kept before this returns.

        When it fails, `executed` says of its error whether a tool was run: provably not, and the
        key is free again; maybe (it was interrupted), and the outcome is uncertain; yes, and the
        tool itself reported the failure, which is for `OnFailure` to decide. `executed_by` judges
        unless another is given. `tell` is awaited with an event's type and its facts when the store
        fails: `idempotency_store_unavailable` with `error`, `executed` and `policy`.

        Raises:
            InvalidValue: for a key that is none.
            ConflictError: the key is another request's.
            IdempotencyError: by its subclass.
            BaseException: whatever `work` raised, to all who waited for it.
        """


def executed_by(error: BaseException) -> Executed:
    """Whether a tool was run, by the error that ended the run."""
    if isinstance(error, (asyncio.CancelledError, TimeoutError)):
        return Executed.MAYBE
    if isinstance(error, BudgetExceeded):
        return Executed.NO if error.output is None else Executed.MAYBE
    if isinstance(error, (InvalidValue, UnknownTool, PlanningError)):
        return Executed.NO
    # A ToolExecutionError knows of its attempts; any other error is the tool's own word.
    return Executed.YES if getattr(error, "maybe_executed", True) else Executed.NO


def state_after(error: BaseException, terms: Terms, executed: Judge | None) -> State:
    """What a record becomes when its run ended with an error."""
    try:
        ran = (executed or executed_by)(error)
    except Exception:
        LOGGER.exception("whether the tool was run cannot be told")
        ran = Executed.MAYBE
    if ran is Executed.MAYBE:
        return State.UNCERTAIN
    if ran is Executed.YES and terms.on_failure is OnFailure.UNCERTAIN:
        return State.UNCERTAIN
    return State.RELEASED


async def tell_of_store(
    tell: Tell | None, terms: Terms, error: BaseException | str, *, executed: bool
) -> None:
    """Say that the store failed; whoever is told cannot make it worse."""
    why = words_of(error) if isinstance(error, BaseException) else error
    LOGGER.warning("the store of idempotency records is unavailable: %s", why)
    if tell is None:
        return
    facts = {
        "error": why,
        "executed": executed,
        "policy": str(terms.on_store_down),
    }
    try:
        await tell("idempotency_store_unavailable", facts)
    except Exception:  # a callback's own fault
        LOGGER.exception("an event could not be told")
