"""Idempotency in the SQL ledger: the records, tables and rules of the sidecar's keyed calls.

A run takes its key as `sent` in one statement: from then on its tool may be running, whatever
becomes of this process. Its result is committed before anybody gets it. A duplicate in another
process finds the record and waits for it; when its owner dies, the outcome is uncertain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any, Final

from steer_llm_sdk.reliability import answers
from steer_llm_sdk.reliability.idempotency_errors import (
    JoinedRunFailedError,
    KeyInProgressError,
    NotStorableError,
    ResultNotStoredError,
    StoreUnavailableError,
    UncertainOutcomeError,
)
from steer_llm_sdk.reliability.once import (
    METHOD,
    NOBODY,
    ROUTE,
    Caller,
    Done,
    Identity,
    Judge,
    Outcome,
    Run,
    Runs,
    Tell,
    Terms,
    Work,
    conflict,
    fingerprint_of,
    outcome,
    request_text,
    result_text,
    state_after,
    tell_of_store,
)
from steer_llm_sdk.reliability.open_ledger import OpenLedger, lifetime_of
from steer_llm_sdk.reliability.run_rows import RunRow
from steer_llm_sdk.reliability.stored import not_stored, uncertain
from steer_policies.fingerprint import principal, scope_of
from steer_policies.idempotency import (
    IdempotencyPolicy,
    Join,
    Mismatch,
    NotStored,
    OnLedgerDown,
    Replay,
    Role,
    State,
    Uncertain,
)
from steer_proxy.engine.claims import MAX_TURNS, Finished, Found, Owned
from steer_proxy.engine.clock import Clock, new_id
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import CallRow, Finish, Record, Ref

#: How often a run of another process is looked at, in seconds, even when nothing was heard.
EVERY: Final = 0.25

#: Keys are everybody's who uses the ledger: the principal of a route's scope `route`.
_EVERYBODY: Final = principal((), "", "route")


class SqlOnce:
    """`Once` over the ledger at a database URL."""

    def __init__(
        self,
        url: str,
        terms: Terms,
        encryption: Sequence[tuple[str, bytes]] = (),
        clock: Clock | None = None,
    ) -> None:
        self._terms = terms
        self._lifetime = lifetime_of(url, encryption, clock)
        self._runs = Runs(terms.join_timeout)
        self._later: set[asyncio.Task[None]] = set()
        self.policy: Final = IdempotencyPolicy(
            retention=terms.ttl,
            join_timeout=terms.join_timeout,
            on_uncertain=terms.on_uncertain,
            on_ledger_down=terms.on_store_down,
            scope="route",
            max_stored=terms.max_stored,
        )

    @property
    def terms(self) -> Terms:
        """What it promises."""
        return self._terms

    async def run(
        self,
        identity: Identity,
        work: Work,
        *,
        caller: Caller = NOBODY,
        executed: Judge | None = None,
        tell: Tell | None = None,
    ) -> Outcome:
        """See `Once`."""
        text = request_text(identity)
        opened, secret = await self._reach(tell)
        scope = self._scope(secret, identity.key)
        print_ = await fingerprint_of(secret, text)
        books = opened.books
        row = RunRow(new_id(opened.clock.wall()), books.instance, caller, opened.clock, len(text))

        async def carry_out(run: Run) -> Done:
            execution = _Execution(self, opened, run, identity.key, executed, tell)
            claim = row.claim(identity.key, scope, print_, books.owner, self._terms.ttl)
            return await execution.carry_out(row, claim, work)

        done = await self._runs.once(scope, identity.key, print_, carry_out)
        if (done.replayed or done.joined) and done.row is not None:
            role = Role.REPLAYED if done.replayed else Role.JOINED
            books.log(row.duplicate(identity.key, scope, print_, role, done.row, done.cost_nusd))
        return outcome(done)

    async def find(self, key: str) -> tuple[str, Any] | None:
        """The fingerprint and the result of a completed key; None when there is none.

        Raises:
            StoreUnavailableError: see there.
        """
        opened, secret = await self._reach(None)
        ledger = opened.books.ledger
        try:
            record = await ledger.find(self._scope(secret, key))
            if record is None or record.state is not State.COMPLETED or record.expired:
                return None
            text = await answers.read(ledger, opened.books.sealer, record.id)
        except (LedgerUnavailable, answers.Damaged) as error:
            raise StoreUnavailableError(f"the ledger cannot be read: {error}") from error
        return None if text is None else (record.fingerprint, json.loads(text))

    async def close(self) -> None:
        """End what runs, and close the ledger; it opens again when it is needed."""
        await self._runs.close()
        for task in self._later:
            task.cancel()
        if self._later:
            await asyncio.wait(self._later)
        await self._lifetime.close(self)

    def finish_later(self, opened: OpenLedger, finish: Finish) -> None:
        """Go on trying to write how a run has ended; its record stays ours meanwhile."""
        task = asyncio.create_task(self._finish_later(opened, finish))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    @staticmethod
    async def _finish_later(opened: OpenLedger, finish: Finish) -> None:
        try:
            await opened.claims.finish_later(finish)
        finally:
            opened.claims.let_go(finish.ref)

    async def _reach(self, tell: Tell | None) -> tuple[OpenLedger, bytes]:
        """The open ledger and its secret; of one that was never reached, one of our own."""
        try:
            opened = await self._lifetime.ledger(self)
        except StoreUnavailableError as error:
            await tell_of_store(tell, self._terms, error, executed=False)
            raise
        books = opened.books
        if books.ledger.secret is None:
            try:
                await books.ensure_lease()
            except LedgerUnavailable as error:
                if self._terms.on_store_down is OnLedgerDown.FAIL:
                    await tell_of_store(tell, self._terms, error, executed=False)
                    raise unavailable(error) from error
        return opened, books.ledger.secret or books.owner.encode()

    @staticmethod
    def _scope(secret: bytes, key: str) -> str:
        return scope_of(secret, _EVERYBODY, METHOD, ROUTE, key)


class _Execution:
    """One run, from its key to its record."""

    def __init__(
        self,
        once: SqlOnce,
        opened: OpenLedger,
        run: Run,
        key: str,
        executed: Judge | None,
        tell: Tell | None,
    ) -> None:
        self._once = once
        self._terms = once.terms
        self._opened = opened
        self._books = opened.books
        self._claims = opened.claims
        self._run = run
        self._key = key
        self._executed = executed
        self._tell = tell
        self._kept_for_later = False

    async def carry_out(self, row: RunRow, claim: CallRow, work: Work) -> Done:
        for _ in range(MAX_TURNS):
            taken = await self._take(claim)
            if isinstance(taken, Owned):
                self._run.bind(mine=True)
                try:
                    return await self._make(taken, row, work)
                finally:
                    if not self._kept_for_later:
                        self._claims.let_go(taken.ref)
            self._run.bind(taken.record.fingerprint == self._run.print)
            if (done := await self._found(taken)) is not None:
                return done
        raise KeyInProgressError(f"the idempotency key {self._key!r} changes hands too often")

    async def _take(self, claim: CallRow) -> Owned | Found:
        try:
            taken = await self._claims.take(claim, self._once.policy, self._run.lose)
        except LedgerUnavailable as error:
            await tell_of_store(self._tell, self._terms, error, executed=False)
            raise unavailable(error) from error
        except asyncio.CancelledError:
            # The loop is shutting down. The claim may have been made; nothing was run for it.
            ended = claim._replace(ended_us=claim.started_us)
            await self._claims.finish(Finish(Ref(claim.id, 1), State.RELEASED, ended))
            raise
        if isinstance(taken, Owned) and not taken.recorded:
            await tell_of_store(
                self._tell, self._terms, "the key cannot be recorded", executed=False
            )
        return taken

    # --- Our own run ----------------------------------------------------------------------------

    async def _make(self, owned: Owned, row: RunRow, work: Work) -> Done:
        value: dict[str, Any] | None = None
        started = False

        async def begin() -> dict[str, Any]:
            nonlocal started
            started = True
            return await work()

        try:
            value = await self._run.interruptibly(begin)
            try:
                text = result_text(value, self._terms)
            except NotStorableError:
                told = row.completed(self._terms.ttl, None, 0, answers.STATUS)
                await self._end(owned, State.COMPLETED, told)
                raise
            return await self._complete(owned, row, text, value)
        except BaseException as error:
            if value is not None:
                raise
            if self._run.lost:
                raise self._taken_over() from None
            state = state_after(error, self._terms, self._executed) if started else State.RELEASED
            await self._end(owned, state, row.failed(self._terms.ttl, error))
            raise
        finally:
            self._books.log_attempts(row.attempts(value))

    async def _complete(self, owned: Owned, row: RunRow, text: str, value: Any) -> Done:
        """Commit the result, before anybody gets it."""
        told = row.completed(self._terms.ttl, value, len(text), answers.STATUS)
        done = Done(text, row=owned.ref.id, cost_nusd=told.cost_nusd)
        if not owned.recorded:
            self._books.log(told)
            return done._replace(stored=False)
        sealer = self._books.sealer
        sealed = await answers.seal(sealer, owned.ref.id, text, row.now_us())
        finish = Finish(
            owned.ref,
            State.COMPLETED,
            told._replace(
                keyring_id=sealer.key_id,
                resp_headers=sealed.head,
                resp_bytes=sealed.bytes,
                resp_chunks=len(sealed.chunks),
                resp_sha256=sealed.sha256,
            ),
            sealed.chunks,
        )
        finished = await self._finish(finish)
        if finished is Finished.LOST:
            raise self._taken_over(value)
        if finished is Finished.UNRECORDED:
            self._books.log(told)
            return done._replace(stored=False)
        if finished is Finished.LATER:
            if self._terms.on_store_down is OnLedgerDown.FAIL:
                raise StoreUnavailableError(
                    f"the result for the idempotency key {self._key!r} could not be stored yet: "
                    f"{self._books.trouble or 'the ledger is unavailable'}. The tool was run; "
                    "`value` holds its result.",
                    value=value,
                )
            return done._replace(stored=False)
        return done

    async def _end(self, owned: Owned, state: State, row: CallRow) -> None:
        """End a record without a result."""
        if owned.recorded:
            await self._finish(Finish(owned.ref, state, row))
        else:
            self._books.log(row)

    async def _finish(self, finish: Finish) -> Finished:
        """Write how the run ended: now, else later."""
        try:
            finished = await self._claims.finish(finish)
        except asyncio.CancelledError:
            # The loop is shutting down; writing it twice is harmless.
            await self._claims.finish(finish)
            raise
        if finished is Finished.LATER:
            self._kept_for_later = True
            self._once.finish_later(self._opened, finish)
            why = self._books.trouble or "the ledger is unavailable"
            await tell_of_store(self._tell, self._terms, why, executed=True)
        return finished

    def _taken_over(self, *value: Any) -> UncertainOutcomeError:
        given = {"value": value[0]} if value else {}
        return UncertainOutcomeError(
            "this process did not renew its lease in time, and another one has taken the "
            f"idempotency key {self._key!r} over: run again with the same key for its result",
            **given,
        )

    # --- Another one's --------------------------------------------------------------------------

    async def _found(self, found: Found) -> Done | None:
        """What the key's record gives; None when the key is to be asked for again."""
        match found.decision(self._run.print, self._once.policy):
            case Replay():
                return await self._stored(found.record, replayed=True)
            case Join():
                done: Done | None = await self._run.interruptibly(
                    lambda: self._follow(found.record)
                )
                return done
            case Mismatch():
                raise conflict(self._key)
            case NotStored():
                raise not_stored(self._key)
            case Uncertain():
                raise uncertain(self._key, "settle it with `steer ledger resolve`, or ")
            case _:
                return None

    async def _follow(self, record: Record) -> Done | None:
        """Wait for the run of another process; None when it was lost."""
        limit = asyncio.timeout(self._terms.join_timeout)
        try:
            async with limit, self._books.ledger.watch(record.id) as news:
                return await self._come(record, news)
        except TimeoutError:
            if not limit.expired():
                raise
            raise KeyInProgressError(
                f"the run with the idempotency key {self._key!r}, of another process, goes on for "
                f"more than {self._terms.join_timeout:g} s: run again with the same key to wait on"
            ) from None

    async def _come(self, record: Record, news: asyncio.Event) -> Done | None:
        while True:
            news.clear()
            # Away for a moment is no news; the time limit bounds the patience.
            with contextlib.suppress(LedgerUnavailable):
                now = (await self._books.ledger.follow(record.id, 0, 0)).record
                if now is None or now.state is State.RELEASED:
                    raise JoinedRunFailedError(
                        f"the run with the idempotency key {self._key!r}, of another process, has "
                        "failed; the key is free again"
                    )
                if now.state is State.COMPLETED and now.stored:
                    return await self._stored(now, replayed=False)
                if now.state in (State.COMPLETED, State.UNCERTAIN) or now.lapsed:
                    return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await news.wait()

    async def _stored(self, record: Record, *, replayed: bool) -> Done:
        try:
            text = await answers.read(self._books.ledger, self._books.sealer, record.id)
        except answers.Damaged as error:
            raise ResultNotStoredError(
                f"the tool was run for the idempotency key {self._key!r}, and its result is "
                f"stored, but cannot be read: {error}"
            ) from error
        except LedgerUnavailable as error:
            if not replayed:
                raise
            await tell_of_store(self._tell, self._terms, error, executed=False)
            raise unavailable(error) from error
        if text is None:
            raise not_stored(self._key)
        return Done(
            text, replayed=replayed, joined=not replayed, row=record.id, cost_nusd=record.cost_nusd
        )


def unavailable(error: Exception) -> StoreUnavailableError:
    """Nothing protects a run from being made twice now, so it is not made."""
    return StoreUnavailableError(
        "this run cannot be protected from being made twice now: the ledger is unavailable "
        f"({error}). Nothing was run."
    )
