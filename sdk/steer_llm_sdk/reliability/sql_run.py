"""One run over the ledger: it takes its key, makes its work, and commits how that ended.

The key is taken as `sent` in one statement, and a result is committed before anybody gets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from steer_llm_sdk.reliability import answers
from steer_llm_sdk.reliability.forms import result_text
from steer_llm_sdk.reliability.idempotency_errors import (
    KeyInProgressError,
    NotStorableError,
    StoreUnavailableError,
    UncertainOutcomeError,
    unavailable,
)
from steer_llm_sdk.reliability.once import Judge, Tell, Terms, Work, state_after, tell_of_store
from steer_llm_sdk.reliability.open_ledger import OpenLedger
from steer_llm_sdk.reliability.run_rows import RunRow
from steer_llm_sdk.reliability.sql_found import FoundRecord
from steer_llm_sdk.reliability.under_way import Done, Run
from steer_policies.idempotency import IdempotencyPolicy, OnLedgerDown, State
from steer_proxy.engine.claims import MAX_TURNS, Finished, Found, Owned
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import CallRow, Finish, Ref

FinishLater = Callable[[Finish], None]


def _go_on() -> None:
    """Nobody has the key any more: what runs is worth its result, although that is not kept."""


class Execution:
    """One run, from its key to its record.

    `finish_later` is given the end of a record that cannot be written now: it is held until then.
    """

    def __init__(
        self,
        opened: OpenLedger,
        terms: Terms,
        policy: IdempotencyPolicy,
        run: Run,
        key: str,
        executed: Judge | None,
        tell: Tell | None,
        finish_later: FinishLater,
    ) -> None:
        self._terms = terms
        self._policy = policy
        self._books = opened.books
        self._claims = opened.claims
        self._run = run
        self._key = key
        self._executed = executed
        self._tell = tell
        self._finish_later = finish_later
        self._found = FoundRecord(opened.books, terms, policy, run, key, tell)
        self._kept_for_later = False

    async def carry_out(self, row: RunRow, claim: CallRow, work: Work) -> Done:
        """Make the work, if the key can be taken; else what its record gives."""
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
            if (done := await self._found.gives(taken)) is not None:
                return done
        raise KeyInProgressError(f"the idempotency key {self._key!r} changes hands too often")

    async def _take(self, claim: CallRow) -> Owned | Found:
        try:
            taken = await self._claims.take(claim, self._policy, self._run.lose, _go_on)
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
            if self._run.thrown_away:
                raise
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
        sealed = await answers.seal(sealer, owned.ref.id, self._run.whose, text, row.now_us())
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
            self._finish_later(finish)
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
