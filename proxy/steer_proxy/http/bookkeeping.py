"""From a finished call to its rows in the ledger's log: what was asked, what came of it, and when.

Every call pays for this, and it is most of what its log costs. So rows are made by position, in
half the time that names take (the tests name each column); members of enumerations become plain
text, of which SQLite's module makes a parameter four times as fast; and costs are put on when
their prices are known, else later (`engine.costing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from steer_policies.config import DialectName
from steer_policies.deadline import retry_count
from steer_policies.dialects.base import Usage
from steer_policies.outcome import Executed, Verdict
from steer_policies.plan import Plan
from steer_proxy.engine.attempt import AttemptRecord, Problem
from steer_proxy.engine.clock import Clock, new_id
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.engine.costing import Costing, total
from steer_proxy.engine.prices import TakesTime
from steer_proxy.engine.tariff import Sale, Tariff
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call
from steer_proxy.http.counting import count
from steer_proxy.http.endings import (
    OK,
    all_waited_us,
    any_ambiguous,
    ending,
    only_good,
    refused,
    served_by,
)
from steer_proxy.http.marks import Marks
from steer_proxy.http.texts import labels, name_of, path_of, storable
from steer_proxy.ledger.values import MICROSECONDS, AttemptRow, CallRow

_TOOLS: Final = DialectName.HTTP
_NOT_COUNTED: Final = Usage()
_KEY, _ATTEMPT = CallRow._fields.index("idem_key"), CallRow._fields.index("attempt_model")
_NO_KEY: Final = (None,) * (_ATTEMPT - _KEY)
_WAIT_SOURCE: Final = CallRow._fields.index("attempt_wait_source") - _ATTEMPT
_NO_ATTEMPT: Final[tuple[Any, ...]] = (None,) * (len(CallRow._fields) - _ATTEMPT)
_row: Final = tuple.__new__  # what `_make` is, but for a call and a check of the length
_NO_PRICE: Final = (None, None, None)
_NO_COST: Final = (0, None, 0)

Moment = tuple[float, float]
"""A moment as loop time, and as Unix time, in seconds."""

_Asked = tuple[Any, ...]
"""The columns of a call's row up to `model_requested`."""


class CallLog:
    """Makes the rows of calls. `secret` is the ledger's own, None while it is not known.

    Without `costing`, no row has its costs.
    """

    def __init__(
        self,
        instance: str,
        clock: Clock,
        secret: Callable[[], bytes | None],
        costing: Costing | None = None,
    ) -> None:
        self._instance = instance
        self._clock = clock
        self._marks = Marks(secret)
        self._costing = costing

    def moment(self) -> Moment:
        """Now."""
        return self._clock.now(), self._clock.wall()

    def opening(self, call: Call, upstream: str | None = None) -> CallRow:
        """The row of a call before anything has come of it, and where it goes first."""
        elapsed = self._clock.now() - call.accepted_at
        started_us = int((self._clock.wall() - elapsed) * MICROSECONDS)
        return CallRow(
            *self._asked(call, self._marks.caller(call)),  # type: ignore[misc] # of unknown length
            upstream=upstream,
            started_us=started_us,
            sdk_retry=retry_count(call.headers),
            bytes_in=call.size,
            idem_key=call.key,
        )

    def rows(  # noqa: PLR0913 - what is known of an end, each by name
        self,
        call: Call,
        *,
        status: int | None,
        bytes_out: int,
        made: Plan | None = None,
        spent: Spent | None = None,
        settled: Settled[HttpAnswer] | None = None,
        verdict: Verdict | None = None,
        problem: Problem | None = None,
        at: Moment | None = None,
    ) -> tuple[CallRow, Sequence[AttemptRow]]:
        """The rows of a call that is over, however it ended, `at` a moment or now.

        `status` is what its caller was told, None when it was gone before. `settled` is how its
        exchange ended, if it did; else `spent` has the attempts until then. `verdict` is that of
        the whole answer, None when it was left in the middle; `problem` is Steer's own answer, if
        not that of `settled`. The answer must have been given to its end, or given up.
        """
        now, wall = at or self.moment()
        elapsed = now - call.accepted_at
        started_us = int((wall - elapsed) * MICROSECONDS)
        answer = upstream = None
        if settled is not None:
            spent, answer = settled.spent, settled.answer
            problem = problem or settled.problem
            if settled.candidate is not None:
                upstream = settled.candidate.upstream
        records: Sequence[AttemptRecord] = () if spent is None else spent.records
        if answer is not None:
            answer.end(verdict, now)
            count(call, answer)
        only = only_good(spent, verdict, problem, status)
        served = only or served_by(records, answer)
        model, usage, first_token = None, _NOT_COUNTED, None
        if served is not None:
            trace = served.trace
            model, usage = name_of(trace.model), trace.usage or _NOT_COUNTED
            if trace.first_token is not None:
                # The caller could not have it before the commit.
                first_token = max(trace.first_token, served.started + served.seconds)
        mark = self._marks.caller(call)
        asked = self._asked(call, mark)
        attempts: Sequence[AttemptRow] = ()
        if only is not None:  # as nearly always
            outcome, error_class, ambiguous = OK, None, 0
            waited_us = int(only.waited * MICROSECONDS)
            told = self._told(call, only, (started_us, mark))
            cost, source, wasted = self._price(asked[0], call, only, model, usage)
        else:
            last = records[-1] if records else None
            if upstream is None and last is not None:
                upstream = last.upstream
            outcome, error_class = ending(verdict, problem, answer, last, status)
            ambiguous, waited_us, told = any_ambiguous(records), all_waited_us(spent), _NO_ATTEMPT
            of = (asked[0], started_us, mark)
            attempts, cost, source, wasted = self._attempts(call, records, of, model)
        duration_us = int(elapsed * MICROSECONDS)
        row = _row(
            CallRow,
            (
                *asked,
                model,
                upstream,
                None if made is None else made.rule,
                started_us,
                started_us + duration_us,
                duration_us,
                waited_us,
                None if first_token is None else _since(call.accepted_at, first_token),
                status,
                outcome,
                error_class,
                len(records),
                ambiguous,
                retry_count(call.headers),
                call.size,
                bytes_out,
                *usage[:4],
                cost,
                wasted,
                None,  # nothing was avoided
                source,
                *_NO_KEY,
                *told,
            ),
        )
        return row, attempts

    def refusal(
        self,
        problem: Problem,
        *,
        method: str,
        path: str,
        began: float,
        bytes_out: int,
        request_id: str | None = None,
        route: str | None = None,
        dialect: str | None = None,
    ) -> CallRow:
        """The row of a request that was refused before there was a call; `began` is loop time."""
        wall = self._clock.wall()
        elapsed = self._clock.now() - began
        started_us = int((wall - elapsed) * MICROSECONDS)
        row_id = new_id(wall)
        return CallRow(
            id=row_id,
            request_id=request_id or row_id,
            instance=self._instance,
            route=route,
            dialect=dialect,
            method=storable(method, 32),
            path=path_of("/", path.partition("?")[0], dialect == _TOOLS),
            started_us=started_us,
            ended_us=started_us + int(elapsed * MICROSECONDS),
            duration_us=int(elapsed * MICROSECONDS),
            status=problem.status,
            outcome=refused(problem.status),
            error_class=problem.code,
            attempts=0,
            ambiguous=0,
            bytes_out=bytes_out,
            cost_nusd=None if self._costing is None else 0,
            wasted_nusd=None if self._costing is None else 0,
        )

    def _asked(self, call: Call, mark: str | None) -> _Asked:
        """What a call is before it is made."""
        facts, trace, config = call.facts, call.trace, call.config
        return (
            call.id or new_id(self._clock.wall()),
            call.request_id,
            trace.trace_id,
            trace.parent_id,
            self._instance,
            config.revision,
            mark,
            labels(call.steering.metadata, config.ledger.labels),
            call.route.name,
            call.dialect.name._value_,
            facts.operation,
            call.method,
            path_of(call.route.path, call.path, call.dialect.name is _TOOLS),
            int(facts.stream),
            name_of(facts.model),
        )

    def _price(
        self, row: str, call: Call, only: AttemptRecord, answered: str | None, usage: Usage
    ) -> tuple[int | None, str | None, int | None]:
        """A call's cost, its source and what was wasted, by its only attempt, which was good; all
        None when finding out would take its time."""
        if self._costing is None:
            return _NO_PRICE
        revision = call.config.revision
        try:
            quote = self._costing.at_once(revision, only.upstream, only.model, answered, usage)
            if quote is None:
                sale = Sale(call.route.name, call.facts.operation, call.size, answered)
                quote = self._costing.tariff(revision).quote(
                    sale, only.upstream, only.model, usage, at_once=True
                )
        except TakesTime:
            self._costing.remember(row, None, {only.number: usage})
            return _NO_PRICE
        cost, source = quote
        return cost, source, 0

    def _attempts(
        self,
        call: Call,
        records: Sequence[AttemptRecord],
        of: tuple[str, int, str | None],
        answered: str | None,
    ) -> tuple[list[AttemptRow], int | None, str | None, int | None]:
        """A row for each attempt `of` a call, and what they cost together, as `_price` has it."""
        if not records:  # it was served by another call, or never made
            return [], *(_NO_PRICE if self._costing is None else _NO_COST)
        facts = call.facts
        sale = Sale(call.route.name, facts.operation, call.size, answered, facts.max_tokens)
        if self._costing is not None:
            tariff = self._costing.tariff(call.config.revision)
            try:
                attempts = [self._attempt(call, each, of, tariff, sale) for each in records]
                return attempts, *total(attempts)
            except TakesTime:
                counted = {each.number: each.trace.usage for each in records}
                self._costing.remember(of[0], facts.max_tokens, counted)
        return [self._attempt(call, each, of, None, sale) for each in records], *_NO_PRICE

    def _told(
        self, call: Call, record: AttemptRecord, of: tuple[int, str | None]
    ) -> tuple[Any, ...]:
        """What the log has of an attempt `of` a call (its start, and its caller's mark), in the
        order of a call's own columns for it."""
        started_us, mark = of
        trace = record.trace
        started, ended, reused = record.started, trace.ended, trace.reused
        connected, headed, first_token = trace.connected, trace.headed, trace.first_token
        return (
            name_of(record.model),
            self._marks.used(call, record.upstream, mark),
            trace.request_id,
            started_us + int((started - call.accepted_at) * MICROSECONDS),
            int((record.seconds if ended is None else ended - started) * MICROSECONDS),
            None if reused or connected is None else _since(started, connected),
            None if headed is None else _since(started, headed),
            None if first_token is None else _since(started, first_token),
            record.wait_source._value_,  # `value` is a call of two functions
            reused if reused is None else int(reused),
            trace.sent,
            trace.received,
        )

    def _attempt(
        self,
        call: Call,
        record: AttemptRecord,
        of: tuple[str, int, str | None],
        tariff: Tariff | None,
        sale: Sale,
    ) -> AttemptRow:
        """The row of an attempt `of` a call: its id, its start, and its caller's mark."""
        id_, started_us, mark = of
        told = self._told(call, record, (started_us, mark))
        trace = record.trace
        verdict, usage = record.final, trace.usage or _NOT_COUNTED
        executed, failure = verdict.executed, verdict.failure
        wasted = failure is not None and executed is not Executed.NO
        cost = source = None
        if tariff is not None:
            cost, source = tariff.quote(
                sale,
                record.upstream,
                record.model,
                usage,
                never_run=executed is Executed.NO,
                wasted=wasted,
                at_once=True,
            )
        return AttemptRow._make(
            (
                id_,
                record.number,
                record.upstream,
                *told[:_WAIT_SOURCE],
                int(record.waited * MICROSECONDS),
                told[_WAIT_SOURCE],
                record.status or trace.status,  # the answer may have broken, or been left, early
                verdict.outcome.value,
                None if failure is None else failure.value,
                executed.value,
                *told[_WAIT_SOURCE + 1 :],
                usage.input,
                usage.cached,
                usage.output,
                usage.reasoning,
                cost,
                source,
                int(wasted),
            )
        )


def _since(start: float, moment: float) -> int:
    return max(0, int((moment - start) * MICROSECONDS))
