"""Keyed calls as the ledger knows them: taking a key, saying that it is sent, and how it ended.

What follows from a record is decided in `steer_policies.idempotency`; the ledger carries it out.
This module joins the two, keeps count of the records that this process runs, and gives every
question to the ledger a bound.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from steer_policies.idempotency import (
    Decision,
    IdempotencyPolicy,
    OnLedgerDown,
    Standing,
    State,
    TakeOver,
    decide,
)
from steer_policies.outcome import Outcome
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.held import Held, HeldRecords, Whose
from steer_proxy.engine.trouble import Tally
from steer_proxy.ledger.protocol import LedgerRefused, LedgerUnavailable
from steer_proxy.ledger.statements import ANSWER_COLUMNS
from steer_proxy.ledger.values import MICROSECONDS, CallRow, Claim, Finish, Record, Ref

LOGGER: Final = logging.getLogger("steer.ledger")

#: How often a key may change hands while one request asks for it.
MAX_TURNS: Final = 8

#: How long an answer may wait for its record to be completed, in seconds.
COMMIT_TIME: Final = 2.0

#: How soon that is tried again meanwhile, in seconds.
AT_ONCE_AGAIN: Final = 0.1

#: How often, and for how long in all, a record that could not be finished is tried again, in
#: seconds.
AGAIN_EVERY: Final = 2.0
AGAIN_FOR: Final = 600.0

#: Claims that may stand although nobody was told: remembered at most, and how often each is freed,
#: since a statement given up on may be carried out a little later.
MOST_STRAYS: Final = 10_000

#: Ends that are owed with their answers; more are owed without.
MOST_OWED: Final = 64
FREED: Final = 3

#: What of a row follows from a provider's counts.
_COUNTED: Final = (
    "tokens_in",
    "tokens_cached",
    "tokens_out",
    "tokens_reasoning",
    "cost_nusd",
    "wasted_nusd",
)

#: What a caller is told whose key the ledger could not be asked for.
NO_LEDGER: Final = "steer_ledger_unavailable"


class ClaimLost(Exception):
    """Somebody else has taken this call's key over: nothing more is to be done for it."""


@dataclass(frozen=True, slots=True)
class Owned:
    """The key is ours: make the call.

    `rerun` says that it may have been made before. Not `recorded`: the ledger is down, and the
    policy prefers an unprotected call to none.
    """

    ref: Ref
    rerun: bool = False
    recorded: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """The key's live record is someone else's, or is finished."""

    record: Record

    def decision(self, fingerprint: str, policy: IdempotencyPolicy) -> Decision:
        """What a request with this fingerprint gets."""
        return decide(standing(self.record), fingerprint, policy.on_uncertain)


class Finished(Enum):
    """What became of the wish to finish a record."""

    DONE = auto()
    LOST = auto()
    """Somebody else has the key."""
    UNRECORDED = auto()
    """Nobody else has it, but its record is gone, or was settled by hand."""
    LATER = auto()
    """The ledger cannot be written now."""


class Claims:
    """The keys that this process has taken."""

    def __init__(
        self,
        books: Bookkeeper,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wall` tells Unix time, `now` monotonic time, both in seconds."""
        self._books = books
        self._wall = wall
        self._late = Tally(now)
        self._held = HeldRecords(books.ledger)
        self._strays: dict[Ref, Finish] = {}
        self._freed: Counter[Ref] = Counter()
        self._owed: dict[Ref, Finish] = {}
        self._tidying: asyncio.Task[None] | None = None
        books.held = self._held.ids
        books.on_lost = self._held.tell_lost

    def let_go(self, ref: Ref) -> None:
        """This process has nothing more to do for a record."""
        self._held.let_go(ref)

    async def take(
        self,
        row: CallRow,
        policy: IdempotencyPolicy,
        lost: Callable[[], None],
        adrift: Callable[[], None] | None = None,
    ) -> Owned | Found:
        """Take the key that `row` names, or tell whose it is. What is owned is held.

        `lost` is called when somebody else has taken it over, `adrift` (or else `lost`) when nobody
        has it any more: its record is gone, or was settled by hand.

        Raises:
            LedgerUnavailable: when the ledger cannot tell and the policy is to fail.
        """
        asked: list[Ref] = []
        taken: Owned | Found | None = None
        try:
            # The renewal after a lapse takes what is held and not written for lost.
            await self._books.ensure_lease()
            if row.owner_id != self._books.owner:
                row = row._replace(owner_id=self._books.owner)
            secret = self._books.ledger.secret
            held = Held(row, Ref(row.id, 1), secret, lost, adrift or lost)
            self._held.hold(held)  # before it is asked for: a duplicate may come first
            taken = await self._take(row, policy, asked)
            if isinstance(taken, Owned):
                held.ref, held.written = taken.ref, True
        except LedgerUnavailable:
            if policy.on_ledger_down is not OnLedgerDown.OPEN:
                raise
            # The call will be made, and a claim may stand: who makes it looks again at its end.
            ref = asked[-1] if asked else Ref(row.id, 1)
            asked.clear()
            return Owned(ref, recorded=False)
        else:
            return taken
        finally:
            if not isinstance(taken, Owned):
                self.let_go(Ref(row.id, 1))
            if taken is None:
                self._stray(row, asked)

    async def _take(
        self, row: CallRow, policy: IdempotencyPolicy, asked: list[Ref]
    ) -> Owned | Found:
        """`asked` collects the records that were asked for: one of them may stand."""
        books = self._books
        fingerprint = row.idem_fp or ""
        claim = Claim(row)
        asked.append(Ref(row.id, 1))
        found = await books.ledger.claim(claim)
        for _ in range(MAX_TURNS):
            if found is None:
                return Owned(Ref(row.id, 1))
            found = books.judged(await self._own_remains(found, policy))
            if found.state is State.RELEASED:
                found = await books.ledger.claim(claim)
                continue
            decision = Found(found).decision(fingerprint, policy)
            if not isinstance(decision, TakeOver):
                return Found(found)
            mine = Ref(row.id, found.epoch + 1)
            asked.append(mine)
            found = await books.ledger.take_over(claim, found)
            if found is None:
                return Owned(mine, rerun=decision.rerun)
        raise LedgerUnavailable("the key changes hands too often")

    async def _own_remains(self, found: Record, policy: IdempotencyPolicy) -> Record:
        """What this process left unfinished, finished: nobody runs the call any more."""
        if found.owner_id != self._books.owner or found.id in self._held:
            return found
        if found.state not in (State.CLAIMED, State.SENT):
            return found
        ref = Ref(found.id, found.epoch)
        finish = self._owed.get(ref) or self._strays.get(ref)
        if finish is None:
            now_us = int(self._wall() * MICROSECONDS)
            row = CallRow(
                id=found.id,
                request_id=found.id,
                ended_us=now_us,
                expires_us=now_us + int(policy.retention * MICROSECONDS),
            )
            unsent = found.state is State.CLAIMED
            finish = Finish(ref, State.RELEASED if unsent else State.UNCERTAIN, row)
        await self._books.ledger.finish(finish)
        return Record(
            found.id,
            found.epoch,
            finish.state,
            found.fingerprint,
            found.owner_id,
            lapsed=True,
            expired=found.expired,
            stored=finish.row.resp_chunks is not None,
            cost_nusd=finish.row.cost_nusd,
            status=finish.row.status,
            outcome=finish.row.outcome,
            model_answered=finish.row.model_answered,
            upstream=finish.row.upstream,
        )

    def owe(self, finish: Finish) -> None:
        """A record could not be finished, and nobody runs its call any more: it is finished as soon
        as that can be written, or when somebody asks for it."""
        if len(self._owed) >= MOST_OWED:
            finish = _without_answer(finish)
        if len(self._owed) < MOST_STRAYS:
            self._owed[finish.ref] = finish
        self._tidy_up()

    def _stray(self, row: CallRow, asked: Sequence[Ref]) -> None:
        """Claims whose reply never came may stand all the same. Nothing was sent: free them, with
        what their caller was told."""
        ended_us = max(row.started_us, int(self._wall() * MICROSECONDS))
        unmade = CallRow(
            id=row.id,
            request_id=row.id,
            ended_us=ended_us,
            duration_us=ended_us - row.started_us,
            status=503,
            outcome=Outcome.THROTTLED.value,
            error_class=NO_LEDGER,
            attempts=0,
            ambiguous=0,
            cost_nusd=0,
            wasted_nusd=0,
        )
        for ref in asked:
            if len(self._strays) < MOST_STRAYS:
                self._strays[ref] = Finish(ref, State.RELEASED, unmade)
        self._tidy_up()

    def _tidy_up(self) -> None:
        if (self._strays or self._owed) and (self._tidying is None or self._tidying.done()):
            self._tidying = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        while self._strays or self._owed:
            await asyncio.sleep(AGAIN_EVERY)
            try:
                await self._free_strays()
                await self._pay()
            except LedgerUnavailable:
                continue
            except LedgerRefused:
                # Only what is owed holds foreign values: without them it can be written.
                self._owed = {ref: _less(finish) for ref, finish in self._owed.items()}

    async def _free_strays(self) -> None:
        for ref, finish in tuple(self._strays.items()):
            await self._books.ledger.finish(finish)
            self._freed[ref] += 1
            if self._freed[ref] >= FREED:
                del self._strays[ref], self._freed[ref]

    async def _pay(self) -> None:
        for ref, finish in tuple(self._owed.items()):
            if finish.state is not State.RELEASED:
                await self._books.ledger.mark_sent(ref)  # it was, whatever could be written
            await self._books.ledger.finish(finish)
            self._owed.pop(ref, None)

    async def close(self) -> None:
        """Stop tidying up; what is left lapses with the lease."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait([self._tidying])

    async def announce(self, owned: Owned) -> None:
        """Have it on disk that the call is about to be sent.

        Raises:
            ClaimLost: when the key was taken over.
            LedgerUnavailable: when that cannot be written.
        """
        if not owned.recorded:
            return
        if not await self._books.ledger.mark_sent(owned.ref):
            raise ClaimLost
        if (held := self._held.find(owned.ref)) is not None:
            now_us = int(self._wall() * MICROSECONDS)
            held.row = held.row._replace(idem_state=State.SENT.value, sent_us=now_us)

    async def finish(self, finish: Finish) -> Finished:
        """Finish a record, in bounded time."""
        # A value it cannot hold: the answer matters more than its cost, and the record's state more
        # than what is told of it.
        try:
            return await self._finish(finish)
        except LedgerRefused as error:
            LOGGER.error("the record %s ends without its cost: %s", finish.ref.id, error)  # noqa: TRY400
        try:
            return await self._finish(_unpriced(finish))
        except LedgerRefused as error:
            LOGGER.error("the record %s ends without its details: %s", finish.ref.id, error)  # noqa: TRY400
            return await self._finish(_bare(finish))

    async def _finish(self, finish: Finish) -> Finished:
        why: Exception | None = None
        try:
            async with asyncio.timeout(COMMIT_TIME):
                while True:
                    try:
                        done = await self._end(finish)
                    except LedgerUnavailable as error:
                        why = error  # a database that restarts refuses at once
                        await asyncio.sleep(AT_ONCE_AGAIN)
                    else:
                        return done
        except TimeoutError:
            if (more := self._late.due(finish.ref.id)) is not None:
                reason = why or f"it did not answer within {COMMIT_TIME:g} s"
                LOGGER.warning(
                    "the record %s cannot be finished now: %s%s", finish.ref.id, reason, more
                )
            return Finished.LATER

    async def _end(self, finish: Finish) -> Finished:
        ledger, held = self._books.ledger, self._held.find(finish.ref)
        if await ledger.finish(finish):
            return Finished.DONE
        if held is None:
            return Finished.LOST
        match await self._held.whose(held):
            case Whose.THEIRS:
                return Finished.LOST
            case Whose.OURS if await ledger.finish(finish):
                return Finished.DONE
            case _:
                return Finished.UNRECORDED

    async def finish_later(self, finish: Finish) -> Finished:
        """Go on trying to finish a record, for a while."""
        for _ in range(int(AGAIN_FOR / AGAIN_EVERY)):
            await asyncio.sleep(AGAIN_EVERY)
            if (result := await self.finish(finish)) is not Finished.LATER:
                return result
        return Finished.LATER


def standing(record: Record) -> Standing:
    """A record as the policies see it."""
    return Standing(
        record.state,
        record.fingerprint,
        lapsed=record.lapsed,
        expired=record.expired,
        stored=record.stored,
    )


def _without_answer(finish: Finish) -> Finish:
    """The same end, of which only the answer is missing."""
    nothing: dict[str, Any] = dict.fromkeys(ANSWER_COLUMNS)
    return Finish(finish.ref, finish.state, finish.row._replace(**nothing))


def _unpriced(finish: Finish) -> Finish:
    """The same end with its answer, without the numbers that a provider's own word decides."""
    row = finish.row
    source = None if row.cost_source is None else "unknown"
    nothing: dict[str, Any] = dict.fromkeys(_COUNTED)
    return Finish(
        finish.ref, finish.state, row._replace(cost_source=source, **nothing), finish.chunks
    )


def _less(finish: Finish) -> Finish:
    """The same end after it was refused: first without its cost, then bare."""
    unpriced = _unpriced(finish)
    return _bare(finish) if unpriced == finish else unpriced


def _bare(finish: Finish) -> Finish:
    """The same end without anything foreign in it."""
    old = finish.row
    row = CallRow(
        id=old.id,
        request_id=old.id,
        ended_us=old.ended_us,
        status=old.status,
        expires_us=old.expires_us,
    )
    return Finish(finish.ref, finish.state, row)
