"""Idempotency over a store that only gets and stores: the process's own, or a custom one.

A record is a JSON object: `{"steer": 1, "state": "completed", "fingerprint": ..., "value": ...}`.
Nothing is written before the tool has been run, and nothing when the key is free again; a run that
may have had an effect leaves `"state": "uncertain"`. Duplicates in this process wait for the run;
those of other processes are recognised once it is completed (the SQL ledger does better).
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import Any, Final, Protocol

from steer_llm_sdk.errors import words_of
from steer_llm_sdk.reliability.forms import fingerprint_of, request_text, result_text
from steer_llm_sdk.reliability.idempotency_errors import (
    NotStorableError,
    StoreUnavailableError,
    conflict,
    not_stored,
    uncertain,
)
from steer_llm_sdk.reliability.once import (
    LOGGER,
    NOBODY,
    Caller,
    Identity,
    Judge,
    Outcome,
    Tell,
    Terms,
    Work,
    state_after,
    tell_of_store,
)
from steer_llm_sdk.reliability.under_way import Done, Run, Runs, outcome
from steer_policies.idempotency import (
    Mismatch,
    NotStored,
    OnLedgerDown,
    Replay,
    Standing,
    State,
    TakeOver,
    decide,
)

#: What the records are written in.
VERSION: Final = 1

#: How long a store may take for one answer, in seconds.
STORE_TIME: Final = 5.0

#: Records kept in memory that the store did not take, until it does.
MAX_UNSAVED: Final = 1000

#: A store keeps no secret for us, and processes must agree.
_SECRET: Final = b"steer sdk"


class Store(Protocol):
    """What a custom store must do; both may raise whatever they like."""

    async def get(self, key: str) -> Any:
        """What was stored for the key; None when there is nothing (any more)."""

    async def store(self, key: str, value: Any) -> None:
        """Keep a JSON value for the key."""


class Known:
    """What a process knows of the runs over a store, beside the store itself.

    Those under way, and the records that the store did not take. It does not hold the store: it may
    be kept for as long as there is one.
    """

    def __init__(self, terms: Terms) -> None:
        self.runs: Final = Runs(terms.join_timeout, self._cut_off)
        self.unsaved: Final[OrderedDict[str, dict[str, Any]]] = OrderedDict()

    def hold(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record until the store has it."""
        self.unsaved[key] = record
        while len(self.unsaved) > MAX_UNSAVED:
            self.unsaved.popitem(last=False)

    def _cut_off(self, key: str, run: Run) -> None:
        """A loop ended without a word while it ran this: its tool may have been run."""
        if key not in self.unsaved:
            self.hold(key, record_of(State.UNCERTAIN, run))


class StoreOnce:
    """`Once` over a store; all that are made over one store share what is `known` of it."""

    def __init__(self, store: Store, terms: Terms, known: Known | None = None) -> None:
        self._store = store
        self._terms = terms
        self._known = known or Known(terms)

    async def run(
        self,
        identity: Identity,
        work: Work,
        *,
        caller: Caller = NOBODY,  # noqa: ARG002 - for stores that keep a log
        executed: Judge | None = None,
        tell: Tell | None = None,
    ) -> Outcome:
        """See `Once`."""
        print_ = await fingerprint_of(_SECRET, request_text(identity))
        key = identity.key

        async def carry_out(run: Run) -> Done:
            return await _Execution(self, run, key, executed, tell).carry_out(work)

        return outcome(await self._known.runs.once(key, key, print_, carry_out))

    async def close(self) -> None:
        """End what runs."""
        await self._known.runs.close()

    @property
    def terms(self) -> Terms:
        """What it promises."""
        return self._terms

    # --- The store ------------------------------------------------------------------------------

    async def load(self, key: str) -> dict[str, Any] | None:
        """A key's record.

        Raises:
            Exception: the store's own errors; ValueError for what is no record.
        """
        if (unsaved := self._known.unsaved.get(key)) is not None:
            try:
                await self.save(key, unsaved)
            except Exception as error:  # noqa: BLE001 - the record is here all the same
                LOGGER.warning("a record is not stored yet: %s", words_of(error))
            return unsaved
        async with asyncio.timeout(STORE_TIME):
            found = await self._store.get(key)
        if found is not None and (
            not isinstance(found, dict)
            or found.get("steer") != VERSION
            or found.get("state") not in (State.COMPLETED, State.UNCERTAIN)
            or not isinstance(found.get("value", {}), dict)
        ):
            raise ValueError("what is stored under this key is no record of a run")
        return found

    async def save(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record; in memory, too, until the store has it.

        Raises:
            Exception: the store's own errors.
        """
        self._known.hold(key, record)
        async with asyncio.timeout(STORE_TIME):
            await self._store.store(key, record)
        self._known.unsaved.pop(key, None)


class _Execution:
    """One run, from asking the store to telling it."""

    def __init__(
        self, once: StoreOnce, run: Run, key: str, executed: Judge | None, tell: Tell | None
    ) -> None:
        self._once = once
        self._terms = once.terms
        self._run = run
        self._key = key
        self._executed = executed
        self._tell = tell

    async def carry_out(self, work: Work) -> Done:
        found = await self._find()
        self._run.bind(found is None or found.get("fingerprint") == self._run.print)
        if found is not None and (done := self._given(found)) is not None:
            return done
        try:
            value = await self._run.interruptibly(work)
        except BaseException as error:
            if self._run.thrown_away:
                raise
            if state_after(error, self._terms, self._executed) is State.UNCERTAIN:
                await self._remember(record_of(State.UNCERTAIN, self._run))
            raise
        try:
            text = result_text(value, self._terms)
        except NotStorableError:
            await self._remember(record_of(State.COMPLETED, self._run))
            raise
        # Parsed anew: the tool may hold on to what it returned, and change it.
        record = {**record_of(State.COMPLETED, self._run), "value": json.loads(text)}
        return Done(text, stored=await self._keep(record, value))

    async def _find(self) -> dict[str, Any] | None:
        """The key's record; None when there is none, or when the policy is to go on without."""
        try:
            found: dict[str, Any] | None = await self._run.interruptibly(
                lambda: self._once.load(self._key)
            )
        except Exception as error:  # a store may raise anything
            await tell_of_store(self._tell, self._terms, error, executed=False)
            if self._terms.on_store_down is OnLedgerDown.OPEN:
                return None
            raise StoreUnavailableError(
                "the store of idempotency records cannot be asked for the key "
                f"{self._key!r}: {words_of(error)}. Nothing was run."
            ) from error
        return found

    def _given(self, found: dict[str, Any]) -> Done | None:
        """What the record gives; None when the tool is to be run."""
        standing = Standing(
            State(found["state"]), str(found.get("fingerprint")), stored="value" in found
        )
        match decide(standing, self._run.print, self._terms.on_uncertain):
            case Replay():
                return Done(json.dumps(found["value"]), replayed=True)
            case TakeOver():
                return None
            case Mismatch():
                raise conflict(self._key)
            case NotStored():
                raise not_stored(self._key)
            case _:
                raise uncertain(self._key)

    async def _keep(self, record: dict[str, Any], value: Any) -> bool:
        """Store a result; whether that worked, where the policy lets it fail."""
        try:
            await self._once.save(self._key, record)
        except Exception as error:  # a store may raise anything
            await tell_of_store(self._tell, self._terms, error, executed=True)
            if self._terms.on_store_down is OnLedgerDown.OPEN:
                return False
            raise StoreUnavailableError(
                f"the result for the idempotency key {self._key!r} could not be stored: "
                f"{words_of(error)}. The tool was run; `value` holds its result.",
                value=value,
            ) from error
        return True

    async def _remember(self, record: dict[str, Any]) -> None:
        """Store what is not a result, if the store takes it; the run's own error is the one."""
        try:
            await self._once.save(self._key, record)
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            await tell_of_store(self._tell, self._terms, error, executed=True)


def record_of(state: State, run: Run) -> dict[str, Any]:
    """A run's record, but for its result."""
    return {"steer": VERSION, "state": str(state), "fingerprint": run.print}
