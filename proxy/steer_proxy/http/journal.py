"""Writing down what became of every call: its rows, made here, are written by the bookkeeper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from aiohttp.web_request import BaseRequest

from steer_policies.deadline import retry_count
from steer_policies.idempotency import Role
from steer_policies.outcome import Executed, Outcome, Verdict
from steer_policies.plan import Plan
from steer_policies.trace_context import safe_request_id
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.engine.costing import Costing
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.bookkeeping import CallLog, Moment
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.counting import count, is_encoded
from steer_proxy.http.endings import OK, refused
from steer_proxy.http.identity import Identity
from steer_proxy.http.keyed_problems import DRAINING
from steer_proxy.http.problems import Refusal, problem_lines
from steer_proxy.http.progress import CallProgress
from steer_proxy.ledger.values import MICROSECONDS, AttemptRow, CallRow, Record

#: A call that was larger than this, request and answer, in bytes, is told when it ends. Others wait
#: for that until there are some, and are kept meanwhile.
LIGHT: Final = 32 * 1024


class Journal:
    """The log of a process's calls. Nothing here waits, but for the costs of a keyed call."""

    def __init__(self, books: Bookkeeper, costing: Costing, clock: Clock) -> None:
        self._books = books
        self._costing = costing
        self._log = CallLog(books.instance, clock, lambda: books.ledger.secret, costing)

    # --- Keyed calls, whose rows their records are ------------------------------------------------

    def opening(self, call: Call, upstream: str) -> CallRow:
        """A call's row as far as it is known before anything happened, and where it goes first."""
        return self._log.opening(call, upstream)

    async def closing(
        self,
        call: Call,
        made: Plan,
        settled: Settled[HttpAnswer],
        verdict: Verdict | None,
        status: int,
        size: int,
    ) -> tuple[CallRow, list[AttemptRow]]:
        """The rows of a call that has ended, with its costs."""
        row, attempts = self._log.rows(
            call, status=status, bytes_out=size, made=made, settled=settled, verdict=verdict
        )
        return await self._costing.price_call(row, attempts)

    async def broken_off(
        self, call: Call, made: Plan, spent: Spent, problem: Problem, size: int
    ) -> tuple[CallRow, list[AttemptRow]]:
        """The rows of a call that ended with a problem of ours, in an answer of so many bytes, with
        its costs."""
        row, attempts = self._log.rows(
            call, status=problem.status, bytes_out=size, made=made, spent=spent, problem=problem
        )
        return await self._costing.price_call(row._replace(idem_key=call.key), attempts)

    # --- All others -------------------------------------------------------------------------------

    def answered(
        self,
        call: Call,
        made: Plan,
        settled: Settled[HttpAnswer],
        verdict: Verdict | None,
        response: CallerResponse | None,
        *,
        cut: bool = False,
    ) -> None:
        """A call is over; `response` is what its caller got, if anything, before it was `cut` off
        by a drain."""
        status, given = (None, 0) if response is None else (response.status, response.given)
        at = self._log.moment()
        make = partial(self._rows, call, made, settled, verdict, status, given, at, cut=cut)
        call.json = None  # many times as large as the body, and nobody asks for it any more
        if _is_light(call, settled):
            self._books.log_later(make)
        else:
            self._books.log(*make())

    def _rows(
        self,
        call: Call,
        made: Plan,
        settled: Settled[HttpAnswer],
        verdict: Verdict | None,
        status: int | None,
        given: int,
        at: Moment,
        *,
        cut: bool,
    ) -> tuple[CallRow, Sequence[AttemptRow]]:
        row, attempts = self._log.rows(
            call,
            status=status,
            bytes_out=given,
            made=made,
            settled=settled,
            verdict=verdict,
            at=at,
        )
        if call.served_from is not None:
            row = row._replace(idem_role=Role.ADOPTED, served_from=call.served_from)
        if cut and verdict is None:
            row = row._replace(outcome=Outcome.BROKEN.value, error_class=DRAINING.problem.code)
        return row, attempts

    def duplicate(  # noqa: PLR0913 - what is known of one, the rest by name
        self,
        call: Call,
        identity: Identity,
        role: Role,
        served_from: str,
        of: CallRow | Record | None,
        response: CallerResponse | None,
        *,
        of_since: float | None = None,
        left: bool = False,
        cut: bool = False,
    ) -> None:
        """A request was served by the call with this id, and so did not cost as much; or its caller
        has `left` before that, or was `cut` off by a drain. `of` is what is known of that call, and
        `of_since` the loop time at which it was accepted, where that was here."""
        status, given = (None, 0) if response is None else (response.status, response.given)
        known: dict[str, Any] = {
            "idem_key": call.key,
            "idem_scope": identity.scope,
            "idem_fp": identity.fingerprint,
            "idem_role": role.value,
            "served_from": served_from,
        }
        if cut:
            begun = response is not None and response.prepared
            status = status if begun else DRAINING.problem.status
            known["outcome"] = Outcome.BROKEN.value if begun else refused(DRAINING.problem.status)
            known["error_class"] = DRAINING.problem.code
        elif response is not None and not left:
            broken = response.prepared and not response.ended
            fine = status is not None and status < 400 and not broken
            known["error_class"] = None if fine else "joined_call_failed"
            if fine:
                known["outcome"] = OK
            elif broken:
                known["outcome"] = Outcome.BROKEN.value
            else:
                same = None if of is None or of.status != response.status else of.outcome
                known["outcome"] = same or refused(response.status)
            if of is not None:
                known |= {"model_answered": of.model_answered, "upstream": of.upstream}
                known["avoided_nusd"] = of.cost_nusd if fine else None
        if of is not None and response is not None:
            known["first_token_us"] = _first_token_us(call, of, response, of_since)
        make = partial(self._duplicate, call, status, given, self._log.moment(), known)
        call.json = None
        if call.size <= LIGHT:
            self._books.log_later(make)
        else:
            self._books.log(*make())

    def _duplicate(
        self, call: Call, status: int | None, given: int, at: Moment, known: Mapping[str, Any]
    ) -> tuple[CallRow, Sequence[AttemptRow]]:
        row, _ = self._log.rows(call, status=status, bytes_out=given, at=at)
        return row._replace(**known), ()

    def left(
        self,
        call: Call,
        made: Plan | None,
        spent: Spent,
        *,
        unused: Settled[HttpAnswer] | None = None,
        problem: Problem | None = None,
    ) -> None:
        """A caller has left before its answer began, or was told of a `problem` of ours. `unused`
        is what came all the same."""
        told, given = None, 0
        if problem is not None:
            told, given = problem.status, len(problem_lines(call.dialect, problem)[0])
        if unused is not None and unused.answer is not None:
            unused.answer.end(None, self._log.moment()[0])
            count(call, unused.answer)
        row, attempts = self._log.rows(
            call, status=told, bytes_out=given, made=made, spent=spent, problem=problem
        )
        if unused is not None:
            row, attempts = _unserved(row, attempts)
        self._books.log(_with_key(row, call), attempts)

    def refused(
        self, request: BaseRequest, progress: CallProgress, refusal: Refusal, given: int
    ) -> None:
        """A request was refused; one that no route owns is no call of anybody's."""
        problem, call = refusal.problem, progress.call
        if progress.told or progress.route is None:
            return
        if call is None:
            row = self._log.refusal(
                problem,
                method=request.method,
                path=request.raw_path,
                began=progress.began,
                bytes_out=given,
                request_id=safe_request_id(request.headers.get("X-Request-ID", "")),
                route=progress.route,
                dialect=progress.speaks.name,
            )
            self._books.log(row._replace(sdk_retry=retry_count(request.headers)))
            return
        row, attempts = self._log.rows(
            call,
            status=problem.status,
            bytes_out=given,
            made=progress.made,
            spent=progress.spent,
            problem=problem,
        )
        self._books.log(_with_key(row, call), attempts)


def _with_key(row: CallRow, call: Call) -> CallRow:
    """The row of a call for which its key, if it had one, did nothing."""
    if call.key is None:
        return row
    return row._replace(idem_key=call.key, idem_scope=call.scope, idem_fp=call.fingerprint)


def _unserved(row: CallRow, attempts: Sequence[AttemptRow]) -> tuple[CallRow, Sequence[AttemptRow]]:
    """Rows of a call whose answer nobody had, without the costs that it would have with that. What
    is known of an attempt's own cost stays: its row alone would tell less."""
    wasted = [
        each._replace(
            wasted=int(each.executed != Executed.NO),
            cost_source=None if each.cost_nusd is None else each.cost_source,
        )
        for each in attempts
    ]
    return row._replace(cost_nusd=None, cost_source=None, wasted_nusd=None), wasted


def _first_token_us(
    call: Call, of: CallRow | Record, response: CallerResponse, of_since: float | None
) -> int | None:
    """When a duplicate could have the first content of a stream, by its own beginning.

    That came with the first bytes, as a rule, and with the serving call's where that told more than
    content before (`commit: headers`), as far as this process made it.
    """
    began = response.began
    if began is None or response.status >= 300:
        return None
    if isinstance(of, CallRow):
        if of.first_token_us is None or of_since is None:
            return None
        began = max(began, of_since + of.first_token_us / MICROSECONDS)
    elif call.dialect.read_stream(call.facts, response.media_type) is None:
        return None
    return max(0, int((began - call.accepted_at) * MICROSECONDS))


def _is_light(call: Call, settled: Settled[HttpAnswer]) -> bool:
    """Whether a call that is over takes little to keep, and little to tell."""
    answer = settled.answer
    if answer is None:
        return call.size <= LIGHT
    return call.size + (answer.trace.received or 0) <= LIGHT and not is_encoded(answer)
