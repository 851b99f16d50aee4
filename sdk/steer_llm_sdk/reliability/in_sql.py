"""Idempotency in the SQL ledger: the records, tables and rules of the sidecar's keyed calls.

A run takes its key as `sent` in one statement: from then on its tool may be running, whatever
becomes of this process. Its result is committed before anybody gets it. A duplicate in another
process finds the record and waits for it; when its owner dies, the outcome is uncertain.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from steer_llm_sdk.reliability import answers
from steer_llm_sdk.reliability.forms import METHOD, ROUTE, fingerprint_of, request_text
from steer_llm_sdk.reliability.idempotency_errors import StoreUnavailableError, unavailable
from steer_llm_sdk.reliability.once import (
    NOBODY,
    Caller,
    Identity,
    Judge,
    Outcome,
    Tell,
    Terms,
    Work,
    tell_of_store,
)
from steer_llm_sdk.reliability.open_ledger import OpenLedger, lifetime_of
from steer_llm_sdk.reliability.run_rows import RunRow
from steer_llm_sdk.reliability.sql_run import Execution
from steer_llm_sdk.reliability.under_way import Done, Run, Runs, outcome
from steer_policies.fingerprint import principal, scope_of
from steer_policies.idempotency import IdempotencyPolicy, OnLedgerDown, Role, State
from steer_proxy.engine.clock import Clock, new_id
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import Finish

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
            execution = Execution(
                opened,
                self._terms,
                self.policy,
                run,
                identity.key,
                executed,
                tell,
                partial(self._end_later, opened),
            )
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
            scope = self._scope(secret, key)
            record = await ledger.find(scope)
            if record is None or record.state is not State.COMPLETED or record.expired:
                return None
            whose = (scope, record.fingerprint)
            text = await answers.read(ledger, opened.books.sealer, record.id, whose)
        except (LedgerUnavailable, answers.Damaged) as error:
            raise StoreUnavailableError(f"the ledger cannot be read: {error}") from error
        return None if text is None else (record.fingerprint, json.loads(text))

    async def close(self) -> None:
        """End what runs, and close the ledger; it opens again when it is needed."""
        await self._runs.close()
        loop = asyncio.get_running_loop()
        # Those of a loop that has ended go on no more.
        if later := [task for task in self._later if task.get_loop() is loop]:
            for task in later:
                task.cancel()
            await asyncio.wait(later)
        await self._lifetime.close(self)

    def _end_later(self, opened: OpenLedger, finish: Finish) -> None:
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
