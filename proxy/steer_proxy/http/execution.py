"""Making a keyed call, once its key is taken, and finishing its record.

The order is what protects: it is on disk that the call is sent before its first byte goes upstream,
and on disk what it brought before its caller has all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from aiohttp.web_request import BaseRequest

from steer_policies.idempotency import OnLedgerDown, Save, State, Status
from steer_policies.outcome import Executed, Outcome, Verdict
from steer_policies.plan import Plan
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.claims import ClaimLost, Claims, Finished, Owned
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.engine.exchange import Exchange
from steer_proxy.http import keyed_problems as problems
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.aftermath import may_have_run, state_after
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.delivery import Delivery
from steer_proxy.http.delivery import Services as DeliveryServices
from steer_proxy.http.journal import Journal
from steer_proxy.http.keyed_problems import KeyedProblem
from steer_proxy.http.live import LiveStream, LiveStreams
from steer_proxy.http.outlet import ToRecording
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.recorded import RecordedResponse
from steer_proxy.http.recording import RecordedHead
from steer_proxy.http.run import Run
from steer_proxy.http.stored import Chunker, Whole, head_text
from steer_proxy.http.terms import deadline_of
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import (
    MICROSECONDS,
    AttemptRow,
    CallRow,
    Finish,
    told_apart,
)


class Ended(NamedTuple):
    """How an execution came out."""

    state: State
    settled: Settled[HttpAnswer]
    verdict: Verdict | None
    response: RecordedResponse


class Ending(NamedTuple):
    """A call's end, and what is told of its attempts: what the record's row does not say."""

    finish: Finish
    row: CallRow
    attempts: list[AttemptRow]


@dataclass(frozen=True, slots=True)
class Means:
    """What the executions of a process share."""

    services: DeliveryServices
    books: Bookkeeper
    journal: Journal
    claims: Claims
    live: LiveStreams
    now_us: Callable[[], int]
    """Unix time in microseconds."""


class Execution:
    """One keyed call, from its key to its record."""

    def __init__(
        self,
        means: Means,
        run: Run,
        made: Plan,
        request: BaseRequest,
        addresses: Addresses,
    ) -> None:
        self._services, self._books, self._journal = means.services, means.books, means.journal
        self._claims, self._live, self._now_us = means.claims, means.live, means.now_us
        self._run = run
        self._made = made
        self._request = request
        self._addresses = addresses
        self._owned: Owned | None = None
        self._stream: LiveStream | None = None
        self._ending: Ending | None = None
        call = run.call
        deadline = deadline_of(call, made.timeouts.total)
        # The caller's patience ends its waiting, not the call.
        call.silence = None
        call.until = call.accepted_at + made.timeouts.total
        call.announcement = self
        self._spent = Spent()
        self._exchange: Exchange[HttpAnswer] = self._services.exchange(
            call, made, addresses, deadline, self._spent
        )
        self.row = self._claim_row()
        run.sent = self.row.idem_state == State.SENT

    def close(self) -> None:
        """Let go of what refers back to this, the call's announcement and the exchange's terms: all
        that a call held would wait for the collector otherwise."""
        self._run.call.announcement = None
        del self._exchange

    def _claim_row(self) -> CallRow:
        run, books = self._run, self._books
        at_once = self._exchange.clear
        opening = self._journal.opening(run.call, self._made.candidates[0].upstream)
        now_us = max(self._now_us(), opening.started_us)
        return books.redacted(opening)._replace(
            idem_scope=run.identity.scope,
            idem_fp=run.identity.fingerprint,
            idem_role="owner",
            idem_state=(State.SENT if at_once else State.CLAIMED).value,
            idem_live=1,
            idem_epoch=1,
            owner_id=books.owner,
            sent_us=now_us if at_once else None,
            expires_us=self._expires_us(now_us),
        )

    def _expires_us(self, from_us: int) -> int:
        return from_us + int(self._run.policy.retention * MICROSECONDS)

    def _timed(self, row: CallRow) -> CallRow:
        """The row of the call's end, which comes after its beginning: since the claim was written,
        the clock may have been set back."""
        ended_us = max(row.ended_us or 0, self.row.started_us + (row.duration_us or 0))
        expires_us = self._expires_us(max(ended_us, self._now_us()))
        return row._replace(ended_us=ended_us, expires_us=expires_us)

    @property
    def announced(self) -> bool:
        """Whether an attempt may be made: that it is sent is on disk, and the key is still ours."""
        run, owned = self._run, self._owned
        if run.unowned:
            return False
        return owned is None or not owned.recorded or (run.sent and self._books.leased)

    async def announce(self) -> None:
        """Have it on disk that the call is about to be sent."""
        run, owned = self._run, self._owned
        if run.unowned:
            raise ClaimLost
        if owned is None or not owned.recorded:
            return
        try:
            if not self._books.leased:
                # Asleep, perhaps, for longer than the lease: what was lost meanwhile is told first.
                await self._books.ensure_lease()
                if run.unowned:
                    raise ClaimLost
            if not run.sent:
                await self._claims.announce(owned)
        except LedgerUnavailable:
            if run.policy.on_ledger_down is not OnLedgerDown.OPEN:
                raise
            self._owned, run.status = replace(owned, recorded=False), Status.NOT_STORED
        run.sent = True

    async def make(self, owned: Owned) -> None:
        """Make the call, and finish its record whatever happens."""
        run = self._run
        self._owned = owned
        if owned.rerun:
            run.status = Status.RERUN
        if not owned.recorded:
            run.status = Status.NOT_STORED
        try:
            await self._conclude(owned, await self._execute())
        except ClaimLost:
            await self._lost()
        except LedgerUnavailable:
            state = State.UNCERTAIN if self._doubtful() else State.RELEASED
            await self._abort(
                owned, state, problems.no_ledger("it went away before the call was sent")
            )
        except asyncio.CancelledError:
            if not run.lost:
                state = State.UNCERTAIN if run.sent else State.RELEASED
                problem = problems.CALLED_OFF if run.called_off else problems.DRAINING
                await self._abort(owned, state, problem)
                raise
            # Ours, from `Run.lose`: turned into the answer that tells of it.
            await self._lost()
            if run.task is not None and run.task.uncancel() > 0:
                raise
        except Exception:
            # A bug: no duplicate may wait for the lease's end, nor make the call once more.
            if run.sent:
                await self._abort(owned, State.UNCERTAIN, problems.BROKEN_OFF_LATE)
            else:
                await self._abort(owned, State.RELEASED, problems.BROKEN_OFF)
            raise
        finally:
            if self._stream is not None:
                self._live.drop(self._stream)

    def _doubtful(self) -> bool:
        return any(may_have_run(record, self._run.call) for record in self._spent.records)

    async def _lost(self) -> None:
        """Somebody else has the key: the row is theirs to judge, what was spent is told."""
        row, attempts = await self._journal.broken_off(
            self._run.call, self._made, self._spent, problems.TAKEN_OVER.problem, 0
        )
        self._books.log_attempts(_unserved(row, attempts))
        # Last: whoever hears it and asks again is not to join this run.
        self._run.say(problems.TAKEN_OVER)

    async def _execute(self) -> Ended:
        run = self._run
        settled = await self._exchange.run()
        if settled.hold is None and self._doubtful() and run.status in (Status.NEW, Status.RERUN):
            # Nothing changes that any more, and the head of a large answer goes out before its end.
            run.status = Status.UNCERTAIN
        delivery = Delivery(
            self._services,
            self._request,
            CallProgress(),
            run.call,
            self._made,
            self._addresses,
            ToRecording(run.recording, self._began),
        )
        response = await delivery.deliver(settled)
        if not response.whole and not response.abandoned:
            await response.write_eof()
        state = state_after(settled, delivery.verdict, run.call, run.policy.save)
        return Ended(state, settled, delivery.verdict, response)

    def _began(self, response: RecordedResponse) -> None:
        """The answer goes out, not whole or not to be stored: let other processes follow it."""
        owned = self._owned
        if owned is None or not owned.recorded or not self._books.ledger.shared:
            return
        if self._run.policy.save is Save.NOTHING:
            return
        reader, head = self._run.recording.read(), self._sealed(owned, response.head)
        self._stream = LiveStream(self._books, owned.ref, response.status, head, reader)
        self._live.add(self._stream)

    async def _conclude(self, owned: Owned, ended: Ended) -> None:
        """The call has come to its end: first the record, then the rest of the answer."""
        run, response, recording = self._run, ended.response, self._run.recording
        owned, owing = await self._caught_up(owned)
        row, attempts = await self._journal.closing(
            run.call, self._made, ended.settled, ended.verdict, response.status, recording.size
        )
        if not owned.recorded:
            # Another row may be there in its place; and no record has the key.
            row, attempts = told_apart(row._replace(idem_key=run.call.key), attempts)
        run.row = row
        finish = await self._finish(owned, ended, row)
        if not owned.recorded:
            self._books.log(row, attempts)
            if owing:
                self._claims.owe(finish)
            result = Finished.DONE
        else:
            self._ending = Ending(finish, row, attempts)
            result = await self._told(self._ending)
        if result is Finished.LOST:
            self._run.say(problems.TAKEN_OVER)
            return
        if run.status in (Status.NEW, Status.RERUN):
            if ended.state is State.UNCERTAIN:
                run.status = Status.UNCERTAIN
            elif ended.state is State.COMPLETED and (
                result is not Finished.DONE or finish.row.resp_chunks is None
            ):
                run.status = Status.NOT_STORED
        if not response.prepared:
            recording.begin(response.head)
        recording.end(broken=response.abandoned)
        if result is Finished.LATER:
            run.answered = True
            await self._finish_later(finish, row, attempts)

    async def _finish_later(
        self, finish: Finish, row: CallRow, attempts: Sequence[AttemptRow]
    ) -> None:
        """The answer is given; its record is still to be finished."""
        match await self._claims.finish_later(finish):
            case Finished.LOST:
                self._books.log_attempts(told_apart(row, attempts)[1])
            case Finished.UNRECORDED:
                self._log_apart(row, attempts)
            case Finished.LATER:
                self._claims.owe(finish)
            case Finished.DONE:
                pass

    async def _told(self, ending: Ending) -> Finished:
        """Finish the record, and tell what its row does not: of all attempts, where the row is not
        ours any more."""
        result = await self._claims.finish(ending.finish)
        if result is Finished.UNRECORDED:
            self._log_apart(ending.row, ending.attempts)
            return result
        lost = result is Finished.LOST
        self._books.log_attempts(
            _unserved(ending.row, ending.attempts) if lost else ending.attempts
        )
        return result

    def _log_apart(self, row: CallRow, attempts: Sequence[AttemptRow]) -> None:
        """Tell of a call whose record is not there to tell it: its row may be."""
        self._books.log(*told_apart(row._replace(idem_key=self._run.call.key), attempts))

    async def _caught_up(self, owned: Owned) -> tuple[Owned, bool]:
        """What was sent although that could not be written: it may be written now. Else, whether
        its end is owed to a record that may be there."""
        now = self._owned or owned
        if now.recorded:
            return now, False
        there = replace(now, recorded=True)
        try:
            await self._claims.announce(there)
        except ClaimLost:
            return now, False
        except LedgerUnavailable:
            return now, True
        return there, False

    async def _finish(self, owned: Owned, ended: Ended, row: CallRow) -> Finish:
        """The record's end, with the answer where it is to be kept."""
        run, recording, sealer = self._run, self._run.recording, self._books.sealer
        row = self._books.redacted(row)
        keep = (
            ended.state is State.COMPLETED
            and recording.kept
            and not ended.response.abandoned
            and run.policy.save is not Save.NOTHING
        )
        if not keep or not owned.recorded:
            return await self._unkept(owned, ended, row)
        if self._stream is not None:
            chunker = self._stream.chunker
            chunks = await self._live.finish(self._stream, self._now_us())
        else:
            chunker = Chunker(sealer, owned.ref.id)
            chunks = await chunker.cut(recording.pieces(), self._now_us())
        whole = Whole(ended.response.status, chunker.size, chunker.count, chunker.sha256)
        row = self._timed(row)._replace(
            id=owned.ref.id,
            keyring_id=sealer.key_id,
            resp_headers=self._sealed(owned, ended.response.head, whole),
            resp_bytes=whole.bytes,
            resp_chunks=whole.chunks,
            resp_sha256=whole.sha256,
        )
        return Finish(owned.ref, ended.state, row, tuple(chunks))

    async def _unkept(self, owned: Owned, ended: Ended, row: CallRow) -> Finish:
        """The record's end without an answer; who follows it elsewhere gets what it lacks."""
        row = self._timed(row)._replace(id=owned.ref.id)
        followed = ended.state is State.COMPLETED and owned.recorded
        if followed and not ended.response.prepared:
            self._began(ended.response)  # it came all at once: nobody elsewhere has any of it
        stream, now_us = self._stream, self._now_us()
        if stream is None or not followed or not self._live.passes_on(stream):
            return Finish(owned.ref, ended.state, row)
        rest = await self._live.finish(stream, now_us)
        head = self._sealed(owned, ended.response.head)
        row = row._replace(keyring_id=self._books.sealer.key_id, resp_headers=head)
        return Finish(owned.ref, ended.state, row, (*rest, stream.chunker.end(now_us)))

    def _sealed(self, owned: Owned, head: RecordedHead, whole: Whole | None = None) -> str:
        """An answer's head as it is stored."""
        sealer, whose = self._books.sealer, self._run.identity
        text = head_text(head) if sealer.key_id is None else head_text(head, whose, whole)
        return sealer.seal_head(owned.ref.id, text)

    async def _abort(self, owned: Owned, state: State, problem: KeyedProblem) -> None:
        """End a call in a hurry; its record keeps the answer if that has come."""
        run = self._run
        begun = run.recording.head
        run.say(problem)
        ending = self._ending
        if ending is None:
            owned, owing = await self._caught_up(owned)
            row, attempts = await self._journal.broken_off(
                run.call, self._made, self._spent, problem.problem, run.recording.size
            )
            if run.called_off:
                gone = Outcome.CANCELLED.value
                row = row._replace(status=None, outcome=gone, error_class=gone, bytes_out=0)
            if begun is not None:  # and was broken off
                row = row._replace(status=begun.status, outcome=Outcome.BROKEN.value)
            redacted = self._timed(self._books.redacted(row))
            ending = Ending(Finish(owned.ref, state, redacted), row, attempts)
            if not owned.recorded:
                self._books.log(row, attempts)
                if owing:
                    self._claims.owe(ending.finish)
                return
        if await self._told(ending) is Finished.LATER:
            self._claims.owe(ending.finish)


def _unserved(row: CallRow, attempts: Sequence[AttemptRow]) -> list[AttemptRow]:
    """Rows of all attempts of a call whose answer nobody gets."""
    return [
        each._replace(wasted=int(each.executed != Executed.NO))
        for each in told_apart(row, attempts)[1]
    ]
