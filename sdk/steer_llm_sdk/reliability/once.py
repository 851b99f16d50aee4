"""One key, one run: what is asked for, what is given, and how duplicates in a process wait.

The first run with a key is a task of its own; its caller and every duplicate wait for what it
brings. It ends early only when nobody is left to wait for it: one caller's cancellation or time
limit costs the others nothing. What has become of the key elsewhere, or before, is asked of a
store: `stored` (get and store) or `in_sql` (the ledger), and decided in
`steer_policies.idempotency`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

from steer_llm_sdk import checks
from steer_llm_sdk.errors import (
    BudgetExceeded,
    ConflictError,
    InvalidValue,
    OrchestratorError,
    PlanningError,
    UnknownTool,
    words_of,
)
from steer_llm_sdk.reliability.idempotency_errors import (
    KeyInProgressError,
    NotStorableError,
    UncertainOutcomeError,
)
from steer_llm_sdk.reliability.json_text import NotJSON, json_text
from steer_policies.fingerprint import RequestIdentity, fingerprint
from steer_policies.idempotency import MAX_JOINERS, OnLedgerDown, OnUncertain, State
from steer_policies.outcome import Executed
from steer_proxy.engine.attempt import AttemptRecord

LOGGER: Final = logging.getLogger("steer.sdk")

#: A request larger than this is digested in a thread, in characters.
AT_ONCE: Final = 128 * 1024

#: What a run is called in the ledger, and in fingerprints, where a call has its route and method.
ROUTE: Final = "sdk"
METHOD: Final = "RUN"

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


# --- What goes in and out -------------------------------------------------------------------------


def request_text(identity: Identity) -> str:
    """What a key is to be bound to, as JSON.

    Raises:
        InvalidValue: the key is none.
        NotStorableError: the request is not JSON.
    """
    checks.idempotency_key(identity.key)
    try:
        return json_text(identity.fingerprint_of)
    except NotJSON as error:
        raise NotStorableError(
            f"a request with an idempotency key must be JSON: {error}", error.path
        ) from None


async def fingerprint_of(secret: bytes, text: str) -> str:
    """What is equal for equal requests: 64 hexadecimal digits, by the rule of the sidecar's."""
    request = RequestIdentity(METHOD, ROUTE, "", (), text.encode())
    if len(text) <= AT_ONCE:
        return fingerprint(secret, request)
    return await asyncio.to_thread(fingerprint, secret, request)


def result_text(value: Any, terms: Terms) -> str:
    """A result as JSON that may be stored.

    Raises:
        NotStorableError: naming the place.
    """
    try:
        text = json_text(value)
    except NotJSON as error:
        raise NotStorableError(
            f"the result cannot be kept for its idempotency key: {error}. The tool was run and is "
            "not run again for this key; `value` holds its result.",
            error.path,
            value=value,
        ) from None
    if len(text) > terms.max_stored or len(text.encode()) > terms.max_stored:
        raise NotStorableError(
            "the result is too large to be kept for its idempotency key: it has more than "
            f"max_stored, {terms.max_stored} bytes. `value` holds it.",
            "",
            value=value,
        )
    return text


def conflict(key: str) -> ConflictError:
    """The key is taken."""
    return ConflictError(
        f"the idempotency key {key!r} was used for another request, or for another tool named "
        "explicitly: use a new key for a new request"
    )


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


# --- Runs under way -------------------------------------------------------------------------------


class Done(NamedTuple):
    """What a run brought: JSON text, where from, and the ledger's row that holds it."""

    text: str
    replayed: bool = False
    joined: bool = False
    stored: bool = True
    row: str | None = None
    cost_nusd: int | None = None


class Run:
    """One key's run in this process."""

    __slots__ = (
        "abandoned",
        "bound",
        "future",
        "interruptible",
        "joiners",
        "lost",
        "print",
        "task",
    )

    def __init__(self, print_: str, loop: asyncio.AbstractEventLoop) -> None:
        self.print = print_
        self.future: asyncio.Future[Done] = loop.create_future()
        self.bound: asyncio.Future[bool] = loop.create_future()
        """Whether the key is bound to this run's request: known once the store has been asked."""
        self.joiners = 0
        self.interruptible = False
        self.abandoned = False
        self.lost = False
        """Another process has taken the key over."""
        self.task: asyncio.Task[None] | None = None

    @property
    def left_behind(self) -> bool:
        """Its loop ended without a word to those it ran: nothing of it goes on, ever."""
        return self.future.get_loop().is_closed()

    @property
    def begun(self) -> bool:
        """Whether its work may have begun: it does as soon as the key is known to be its own."""
        return self.bound.done() and self.bound.result()

    def bind(self, mine: bool) -> None:  # noqa: FBT001 - it is the value
        """Say whether the key is bound to this run's request."""
        if not self.bound.done():
            self.bound.set_result(mine)

    def abandon(self) -> None:
        """Nobody waits any more: end what can be ended without losing track of the key."""
        self.abandoned = True
        self._interrupt()

    def lose(self) -> None:
        """Another process has taken the key over."""
        self.lost = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self.interruptible and self.task is not None:
            self.interruptible = False
            self.task.cancel()

    async def interruptibly(self, step: Callable[[], Awaitable[Any]]) -> Any:
        """Do what may be cut off; at once when nobody waits for it any more."""
        if self.abandoned or self.lost:
            raise asyncio.CancelledError
        self.interruptible = True
        try:
            return await step()
        finally:
            self.interruptible = False


CarryOut = Callable[[Run], Awaitable[Done]]
CutOff = Callable[[str, Run], None]


class Runs:
    """The runs of a process, by key; of one event loop at a time.

    `cut_off` is told the place of each run that its loop left behind after its work had begun.
    """

    def __init__(self, join_timeout: float, cut_off: CutOff | None = None) -> None:
        self._join_timeout = join_timeout
        self._cut_off = cut_off
        self._running: dict[str, Run] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._running)

    async def once(self, place: str, key: str, print_: str, carry_out: CarryOut) -> Done:
        """What the run in this place brings: one is started unless it runs already.

        `joined` is set for those who did not start it.
        """
        running = self._here()
        while (run := running.get(place)) is not None:
            if not run.abandoned:
                if run.print == print_:
                    break
                # Its request may turn out not to be the one the key is bound to.
                if await asyncio.shield(run.bound):
                    raise conflict(key)
            if run.task is not None:
                # A tool may refuse to be ended.
                ended, _ = await asyncio.wait((run.task,), timeout=self._join_timeout)
                if not ended:
                    raise self._goes_on(key)
        first = run is None
        if run is None:
            run = running[place] = Run(print_, asyncio.get_running_loop())
            run.task = asyncio.create_task(self._run(place, run, carry_out))
        elif run.joiners >= MAX_JOINERS:
            raise KeyInProgressError(f"{MAX_JOINERS} runs wait for the key {key!r} already")
        done = await self._wait(run, key, first=first)
        return done if first or done.replayed else done._replace(joined=True)

    async def _wait(self, run: Run, key: str, *, first: bool) -> Done:
        run.joiners += 1
        try:
            # What bounds the first one's run bounds its waiting.
            limit = None if first else self._join_timeout
            done, _ = await asyncio.wait((run.future,), timeout=limit)
            if not done:
                raise self._goes_on(key)
            return run.future.result()
        finally:
            run.joiners -= 1
            if not (run.joiners or run.future.done() or run.left_behind) and run.task is not None:
                run.abandon()
                await asyncio.wait((run.task,))

    def _goes_on(self, key: str) -> KeyInProgressError:
        return KeyInProgressError(
            f"the run with the idempotency key {key!r} goes on for more than "
            f"{self._join_timeout:g} s: run again with the same key to wait on"
        )

    async def _run(self, place: str, run: Run, carry_out: CarryOut) -> None:
        try:
            done = await carry_out(run)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            self._fail(
                run,
                UncertainOutcomeError(
                    "the run was cut off, and its tool may have been run: run again with the same "
                    "key, which tells, or runs it where nothing was done"
                ),
            )
            if not isinstance(error, asyncio.CancelledError) or not (run.abandoned or run.lost):
                raise
        except Exception as error:  # noqa: BLE001 - it is for those who wait
            self._fail(run, error)
        else:
            run.future.set_result(done)
        finally:
            # Thrown away with its loop, it may come here when the key is another run's already.
            if not run.left_behind:
                del self._running[place]
                run.bind(False)

    @staticmethod
    def _fail(run: Run, error: Exception) -> None:
        run.future.set_exception(error)
        run.future.exception()  # seen, even when nobody is left to see it

    async def close(self) -> None:
        """End what runs."""
        runs = list(self._here().values())
        for run in runs:
            run.abandon()
        if tasks := [run.task for run in runs if run.task is not None]:
            await asyncio.wait(tasks)

    def _here(self) -> dict[str, Run]:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._running and self._loop is not None and not self._loop.is_closed():
                raise OrchestratorError(
                    "idempotency_manager: it is in use in another event loop; give each running "
                    "loop a manager of its own"
                )
            for place, run in self._running.items():
                if run.begun and self._cut_off is not None:
                    self._cut_off(place, run)
            self._running.clear()
            self._loop = loop
        return self._running


def outcome(done: Done) -> Outcome:
    """What a caller gets of it."""
    return Outcome(json.loads(done.text), done.replayed, done.joined, done.stored)
