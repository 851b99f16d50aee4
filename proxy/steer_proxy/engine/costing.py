"""What calls cost, put on their rows.

A price that was looked up before is put on when a row is made: that takes a microsecond. A first
look-up takes its time, as does most of what is billed apart, and both happen off the hot path, when
rows are on their way to the ledger. What a cost is, and where it comes from: `engine.tariff`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from steer_policies.dialects.base import Usage
from steer_policies.outcome import Executed
from steer_proxy.engine.config import Config
from steer_proxy.engine.tariff import CERTAINTY, Quote, Sale, Tariff
from steer_proxy.ledger.values import AttemptRow, Batch, CallRow, only_attempt

#: Configuration revisions whose prices are remembered: rows are priced about a second after their
#: call, so the one before the newest is as far back as they usually reach.
MAX_REVISIONS: Final = 4

#: Calls of which more is remembered than their rows say, until those are written, beside as many as
#: the log's queue holds: those with a key, which are written by themselves.
MAX_UNTOLD: Final = 1024


class Untold(NamedTuple):
    """What the rows of a call do not say, although it decides what its attempts cost."""

    bound: int | None
    usages: Mapping[int, Usage]
    """By the attempt's number, where more was counted than its row says."""


class Total(NamedTuple):
    """What all attempts of a call cost together, as its row has it."""

    cost_nusd: int | None
    source: str | None
    wasted_nusd: int | None


_ALL_TOLD: Final = Untold(None, {})


class Costing:
    """Prices rows by the configuration their calls began with. Safe to use from a thread."""

    def __init__(self, config: Config) -> None:
        self._tables: dict[str, Tariff] = {}
        self._newest: Tariff
        # Of this kind, since a thread may look while the first is taken out: it takes no iterator.
        self._untold: OrderedDict[str, Untold] = OrderedDict()
        self._most_untold = MAX_UNTOLD + config.ledger.queue  # which a reload leaves as it is
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Let rows of new calls be priced by another configuration."""
        self._newest = Tariff(config)
        tables = {**self._tables, config.revision: self._newest}
        while len(tables) > MAX_REVISIONS:
            del tables[next(iter(tables))]
        self._tables = tables

    def remember(self, call: str, bound: int | None, usages: Mapping[int, Usage | None]) -> None:
        """Keep what the rows of a call that are priced later do not say."""
        more = {
            number: usage
            for number, usage in usages.items()
            if usage is not None and (usage.special is not None or usage.streamed is not None)
        }
        if bound is None and not more:
            return
        while len(self._untold) >= self._most_untold:
            self._untold.popitem(last=False)
        self._untold[call] = Untold(bound, more)

    def forget(self, calls: Iterable[CallRow]) -> None:
        """These rows are written, or never will be. Not before: they may be priced again."""
        if self._untold:
            for call in calls:
                self._untold.pop(call.id, None)

    def priced(self, batch: Batch) -> Batch:
        """The batch with its costs. For a thread: the first look at prices takes 140 ms.

        Rows that are priced already stay as they are, so pricing a batch again is harmless.
        """
        attempts: dict[str, list[AttemptRow]] = {}
        for attempt in batch.attempts:
            attempts.setdefault(attempt.request, []).append(attempt)
        calls = []
        for call in batch.calls:
            call, attempts[call.id] = self._price(call, attempts.get(call.id, ()))  # noqa: PLW2901
            calls.append(call)
        flat = [attempt for each in attempts.values() for attempt in each]
        return Batch(calls=calls, attempts=flat, events=batch.events)

    async def price_call(
        self, call: CallRow, attempts: Sequence[AttemptRow]
    ) -> tuple[CallRow, list[AttemptRow]]:
        """A call's rows with their costs, for who writes them now. Those that have none yet take
        their time."""
        if is_priced(call):
            return call, list(attempts)
        was_run = call.attempt_started_us is not None or any(
            attempt.executed != Executed.NO for attempt in attempts
        )
        if was_run:
            found = await asyncio.to_thread(self._price, call, attempts)
        else:
            found = self._price(call, attempts)
        self.forget([call])
        return found

    def tariff(self, revision: str | None) -> Tariff:
        """The prices of a configuration's revision, or of the newest one where it is forgotten."""
        return self._tables.get(revision or "", self._newest)

    def at_once(
        self,
        revision: str,
        upstream: str,
        model: str | None,
        answered: str | None,
        counted: Usage,
    ) -> Quote | None:
        """The quote of an attempt that went well, where its like was priced before; else None.

        Raises:
            TakesTime: when it is to be told off the loop.
        """
        tariff = self._tables.get(revision, self._newest)
        return tariff.quote_again(upstream, model, answered, counted)

    def _price(
        self, call: CallRow, attempts: Sequence[AttemptRow]
    ) -> tuple[CallRow, list[AttemptRow]]:
        if is_priced(call):
            return call, list(attempts)
        tariff = self.tariff(call.config_rev)
        bound, usages = self._untold.get(call.id, _ALL_TOLD)
        sale = Sale(call.route, call.operation, call.bytes_in, call.model_answered, bound)
        if (only := only_attempt(call)) is not None:
            attempts = (only, *attempts)
        priced = [
            attempt
            if attempt.cost_source is not None
            else tariff.priced(attempt, sale, usages.get(attempt.n))
            for attempt in attempts
        ]
        cost, source, wasted = total(priced)
        if only is not None:
            del priced[0]
        return call._replace(cost_nusd=cost, cost_source=source, wasted_nusd=wasted), priced


def is_priced(call: CallRow) -> bool:
    """Whether a row has its costs."""
    return call.wasted_nusd is not None or call.cost_source is not None


def all_priced(calls: Iterable[CallRow]) -> bool:
    """Whether all rows have their costs."""
    # As `is_priced` says, without a call for each.
    return all(call.wasted_nusd is not None or call.cost_source is not None for call in calls)


def total(attempts: Sequence[AttemptRow]) -> Total:
    """The costs of a call by those of its attempts."""
    if len(attempts) == 1 and not attempts[0].wasted:  # as nearly all are
        return Total(attempts[0].cost_nusd, attempts[0].cost_source, 0)
    answered = [attempt for attempt in attempts if not attempt.wasted]
    wasted = [attempt for attempt in attempts if attempt.wasted]
    return Total(_sum(answered), _worst(answered), _sum(wasted))


def _sum(attempts: Iterable[AttemptRow]) -> int | None:
    """The sum of costs; unknown when one of them is."""
    total = 0
    for attempt in attempts:
        if attempt.cost_nusd is None:
            return None
        total += attempt.cost_nusd
    return total


def _worst(attempts: Iterable[AttemptRow]) -> str | None:
    """The least certain source among those of several costs; None where nothing was sold."""
    sources = {attempt.cost_source for attempt in attempts}
    return next((source for source in CERTAINTY if source in sources), None)
