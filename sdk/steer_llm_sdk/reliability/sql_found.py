"""A key's record in the ledger that is not this run's: what it gives, and waiting for it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from steer_llm_sdk.reliability import answers
from steer_llm_sdk.reliability.idempotency_errors import (
    JoinedRunFailedError,
    KeyInProgressError,
    ResultNotStoredError,
    conflict,
    not_stored,
    unavailable,
    uncertain,
)
from steer_llm_sdk.reliability.once import Tell, Terms, tell_of_store
from steer_llm_sdk.reliability.under_way import Done, Run
from steer_policies.idempotency import (
    IdempotencyPolicy,
    Join,
    Mismatch,
    NotStored,
    Replay,
    State,
    Uncertain,
)
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.claims import Found
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import Record

#: How often a run of another process is looked at, in seconds, even when nothing was heard.
EVERY: Final = 0.25


class FoundRecord:
    """What one run finds under its key: a run of another process, or one of before."""

    def __init__(
        self,
        books: Bookkeeper,
        terms: Terms,
        policy: IdempotencyPolicy,
        run: Run,
        key: str,
        tell: Tell | None,
    ) -> None:
        self._books = books
        self._terms = terms
        self._policy = policy
        self._run = run
        self._key = key
        self._tell = tell

    async def gives(self, found: Found) -> Done | None:
        """What the key's record gives; None when the key is to be asked for again."""
        match found.decision(self._run.print, self._policy):
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
                over = now.state in (State.COMPLETED, State.UNCERTAIN)
                if over or self._books.judged(now).lapsed:
                    return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await news.wait()

    async def _stored(self, record: Record, *, replayed: bool) -> Done:
        try:
            text = await answers.read(
                self._books.ledger, self._books.sealer, record.id, self._run.whose
            )
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
