"""What calls cost, put on their rows: off the hot path, where prices may be looked up at leisure.

A row comes with the provider's own counts, its upstream and its model. A cost is *reported* when it
follows from such counts and a known price. It is *estimated* when the attempt failed and may have
been billed all the same: from what was counted until then, else as budgets estimate, from the size
of the request. Everything else is *unknown*, and its cost NULL, never zero.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from steer_policies.budget import BYTES_PER_TOKEN, COMPLETES_NOTHING
from steer_policies.config import ModelFacts
from steer_policies.dialects.base import Usage
from steer_policies.outcome import Executed
from steer_proxy.engine.config import Config
from steer_proxy.engine.prices import GenaiPrices
from steer_proxy.ledger.values import NANO_USD, AttemptRow, Batch, CallRow

#: Configuration revisions whose prices are remembered: rows are priced about a second after their
#: call, so the one before the newest is as far back as they usually reach.
MAX_REVISIONS: Final = 4

#: Operations that are sold by seconds or images: their size says nothing of their cost.
_NOT_BY_SIZE: Final = ("audio", "http", "images", "realtime")


class CostSource(StrEnum):
    """Where a cost comes from; the ledger's `cost_source`."""

    REPORTED = "reported"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"


class Costing:
    """Prices rows by the configuration their calls began with. Safe to use from a thread."""

    def __init__(self, config: Config) -> None:
        self._tables: dict[str, _Table] = {}
        self._newest: _Table
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Let rows of new calls be priced by another configuration."""
        self._newest = _Table(config)
        tables = {**self._tables, config.revision: self._newest}
        while len(tables) > MAX_REVISIONS:
            del tables[next(iter(tables))]
        self._tables = tables

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
        """A call's rows with their costs, for who writes them now: quick but for the first."""
        prices = self._table(call).prices
        if not prices.loaded and any(attempt.executed != Executed.NO for attempt in attempts):
            await asyncio.to_thread(prices.load)
        return self._price(call, attempts)

    def _table(self, call: CallRow) -> _Table:
        return self._tables.get(call.config_rev or "", self._newest)

    def _price(
        self, call: CallRow, attempts: Sequence[AttemptRow]
    ) -> tuple[CallRow, list[AttemptRow]]:
        if call.wasted_nusd is not None or call.cost_source is not None:
            return call, list(attempts)
        table = self._table(call)
        priced = [table.attempt(attempt, call) for attempt in attempts]
        answered = [attempt for attempt in priced if not attempt.wasted]
        wasted = [attempt for attempt in priced if attempt.wasted]
        call = call._replace(
            cost_nusd=_sum(answered),
            cost_source=_worst(answered),
            wasted_nusd=_sum(wasted),
        )
        return call, priced


def _sum(attempts: Iterable[AttemptRow]) -> int | None:
    """The sum of costs; unknown when one of them is."""
    total = 0
    for attempt in attempts:
        if attempt.cost_nusd is None:
            return None
        total += attempt.cost_nusd
    return total


def _worst(attempts: Iterable[AttemptRow]) -> CostSource | None:
    """The least certain source among those of several costs; None where nothing was sold."""
    sources = {attempt.cost_source for attempt in attempts}
    order = (CostSource.UNKNOWN, CostSource.ESTIMATED, CostSource.REPORTED)
    return next((source for source in order if source in sources), None)


class _Table:
    """Prices, and what is assumed where nothing was counted, by one configuration."""

    def __init__(self, config: Config) -> None:
        self.prices = GenaiPrices({each.name: each.base_url for each in config.upstreams.values()})
        self._declared: Mapping[str, Mapping[str, ModelFacts]] = {
            each.name: each.policy.models for each in config.upstreams.values()
        }
        self._assumed = {
            route.name: route.policy.budget.completion_tokens for route in config.routes
        }

    def attempt(self, attempt: AttemptRow, call: CallRow) -> AttemptRow:
        """An attempt with its cost."""
        if attempt.cost_source is not None:
            return attempt
        if attempt.executed == Executed.NO:
            # Provably never run: it has cost nothing, whatever the price.
            return attempt._replace(cost_nusd=0)
        usage, source = _usage(attempt), CostSource.REPORTED
        if attempt.wasted:
            # The last count came before the end, if any came at all.
            source = CostSource.ESTIMATED
            usage = usage or self._expected(attempt, call)
        elif usage is None and call.operation in COMPLETES_NOTHING:
            # The prompt is all there is to pay for.
            source, usage = CostSource.ESTIMATED, self._expected(attempt, call)
        if usage is None and attempt.model is None:
            return attempt  # nothing that is sold by tokens
        answered = None if attempt.wasted else call.model_answered
        cost = None if usage is None else self._cost(attempt, answered, usage)
        if cost is None:
            return attempt._replace(cost_source=CostSource.UNKNOWN)
        return attempt._replace(cost_nusd=cost, cost_source=source)

    def _cost(self, attempt: AttemptRow, answered: str | None, usage: Usage) -> int | None:
        """Nano-dollars, by the operator's own prices first; None when no price is known."""
        upstream = attempt.upstream
        for model in (attempt.model, answered):
            facts = None if model is None else self._declared.get(upstream, {}).get(model)
            if facts is not None and (declared := _declared(facts, usage)) is not None:
                return round(declared * NANO_USD)
        # A deployment or an alias is priced as the model that answered for it.
        for model in (answered, attempt.model):
            cost = None if model is None else self.prices.cost_of(upstream, model, usage)
            if cost is not None:
                return round(cost * NANO_USD)
        return None

    def _expected(self, attempt: AttemptRow, call: CallRow) -> Usage | None:
        """The tokens an attempt may have been billed for, by the size of its request."""
        operation = call.operation or ""
        if attempt.model is None or not call.bytes_in or operation.startswith(_NOT_BY_SIZE):
            return None
        prompt = -(-call.bytes_in // BYTES_PER_TOKEN)
        if operation in COMPLETES_NOTHING:
            return Usage(input=prompt)
        return Usage(input=prompt, output=self._assumed.get(call.route or "", 0))


def _usage(attempt: AttemptRow) -> Usage | None:
    if attempt.tokens_in is None and attempt.tokens_out is None:
        return None
    return Usage(
        attempt.tokens_in, attempt.tokens_cached, attempt.tokens_out, attempt.tokens_reasoning
    )


def _declared(facts: ModelFacts, usage: Usage) -> float | None:
    """US dollars by prices the configuration declares; they know no cached tokens."""
    prompt, completion = facts.input_usd_per_mtok, facts.output_usd_per_mtok
    if prompt is None or (completion is None and usage.output):
        return None
    return ((usage.input or 0) * prompt + (usage.output or 0) * (completion or 0.0)) / 1e6
