"""What an attempt cost, by the prices of one configuration.

A cost is *reported* when it follows from the provider's own counts and a known price. It is
*estimated* when the attempt failed and may have been billed all the same: from what was counted
until then, else as budgets estimate, from the size of the request; or when it went well, but its
completion was streamed and not counted. Everything else is *unknown*, and its cost NULL, never
zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from steer_policies.attributes import declared_of
from steer_policies.budget import BYTES_PER_TOKEN, COMPLETES_NOTHING, FREE
from steer_policies.config import ModelFacts
from steer_policies.dialects.base import Usage
from steer_policies.outcome import Executed
from steer_proxy.engine.config import Config
from steer_proxy.engine.prices import MAX_REMEMBERED, GenaiPrices, Rate, TakesTime
from steer_proxy.ledger.values import NANO_USD, AttemptRow

#: The largest cost that is believed, in nano-dollars: nine million dollars. An absurd count must
#: not cost a row, as no column holds more than 2^63, nor make sums of columns overflow.
MAX_COST: Final = 2**53

#: Operations that are sold by seconds or images: their size says nothing of their cost.
_NOT_BY_SIZE: Final = ("audio", "http", "images", "realtime")


class CostSource(StrEnum):
    """Where a cost comes from; the ledger's `cost_source`."""

    REPORTED = "reported"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"


class Sale(NamedTuple):
    """What of a call decides what its attempts cost."""

    route: str | None
    operation: str | None
    bytes_in: int | None
    answered: str | None
    """The model that answered."""
    bound: int | None = None
    """The most tokens of completion that the caller wanted."""


Quote = tuple[int | None, str | None]
"""What an attempt cost, in nano-dollars, and where that comes from."""


#: As plain text: SQLite's module takes a member of an enumeration apart at a cost.
_REPORTED, _ESTIMATED, _UNKNOWN = (
    CostSource.REPORTED.value,
    CostSource.ESTIMATED.value,
    CostSource.UNKNOWN.value,
)

#: The sources, the least certain first.
CERTAINTY: Final = (_UNKNOWN, _ESTIMATED, _REPORTED)

_NO_PRICE: Final[Quote] = (None, _UNKNOWN)


class Tariff:
    """Prices, and what is assumed where nothing was counted, by one configuration.

    Attributes:
        rates: what may price an attempt, the best first, by its upstream, its model and the one
            that answered, as far as it was looked for.
    """

    def __init__(self, config: Config) -> None:
        self.prices = GenaiPrices({each.name: each.base_url for each in config.upstreams.values()})
        self._declared: Mapping[str, Mapping[str, ModelFacts]] = {
            each.name: each.policy.models for each in config.upstreams.values()
        }
        self.rates: Final[dict[tuple[str, str | None, str | None], tuple[Rate, ...]]] = {}
        self._assumed = {
            route.name: route.policy.budget.completion_tokens for route in config.routes
        }

    def knows(self, upstream: str, model: str | None, answered: str | None) -> bool:
        """Whether an attempt can be priced without a first look at the list of prices."""
        if (upstream, model, answered) in self.rates:
            return True
        facts = declared_of(self._declared.get(upstream, {}), model)
        if facts is not None and _is_complete(facts):
            return True
        knows = self.prices.knows
        return (model is None or knows(upstream, model)) and (
            answered is None or answered == model or knows(upstream, answered)
        )

    def priced(self, attempt: AttemptRow, sale: Sale, usage: Usage | None = None) -> AttemptRow:
        """An attempt with its cost, by what was counted or else by its row."""
        usage = usage or Usage(
            attempt.tokens_in, attempt.tokens_cached, attempt.tokens_out, attempt.tokens_reasoning
        )
        cost, source = self.quote(
            sale,
            attempt.upstream,
            attempt.model,
            usage,
            never_run=attempt.executed == Executed.NO,
            wasted=bool(attempt.wasted),
        )
        return attempt._replace(cost_nusd=cost, cost_source=source)

    def quote(
        self,
        sale: Sale,
        upstream: str,
        model: str | None,
        counted: Usage,
        *,
        never_run: bool = False,
        wasted: bool = False,
        at_once: bool = False,
    ) -> Quote:
        """What an attempt cost that asked an upstream for a model.

        Raises:
            TakesTime: only when it is to be told `at_once`, which it cannot.
        """
        if never_run or sale.operation in FREE:
            # It has provably cost nothing, whatever the price.
            return 0, None
        # A completion alone is no measure of the whole.
        usage = None if counted.input is None else counted
        source = _REPORTED
        if wasted:
            source, usage = _ESTIMATED, self._so_far(counted, sale, model)
        elif usage is None and sale.operation in COMPLETES_NOTHING:
            # The prompt is all there is to pay for.
            source, usage = _ESTIMATED, self._expected(sale, model)
        if usage is None:
            # Without a model, it is nothing that is sold by tokens.
            return None, None if model is None else _UNKNOWN
        answered = None if wasted else sale.answered
        if at_once and not self.knows(upstream, model, answered):
            raise TakesTime
        rates = self._rates(upstream, model, answered)
        return _quote(rates, usage, source, at_once=at_once)

    def quote_again(
        self, upstream: str, model: str | None, answered: str | None, counted: Usage
    ) -> Quote | None:
        """The quote of an attempt that went well, where its like was priced before; else None.

        Raises:
            TakesTime: when it is to be told off the loop.
        """
        rates = self.rates.get((upstream, model, answered))
        if rates is None or counted.input is None:
            return None
        return _quote(rates, counted, _REPORTED, at_once=True)

    def _rates(self, upstream: str, model: str | None, answered: str | None) -> tuple[Rate, ...]:
        """What may price an attempt, remembered."""
        key = (upstream, model, answered)
        rates = self.rates.get(key)
        if rates is None:
            rates = tuple(self._found(upstream, model, answered))
            if len(self.rates) >= MAX_REMEMBERED:
                self.rates.clear()
            self.rates[key] = rates
        return rates

    def _found(self, upstream: str, model: str | None, answered: str | None) -> Sequence[Rate]:
        """What may price an attempt, the best first: the operator's own prices come first."""
        declared = self._declared.get(upstream, {})
        names = (model,) if answered is None or answered == model else (model, answered)
        known = [facts for name in names if (facts := declared_of(declared, name)) is not None]
        if known and _is_complete(known[0]):
            return [partial(_declared, known[0])]
        # A deployment or an alias is priced as the model that answered for it.
        found = [
            rate
            for name in reversed(names)
            if name is not None and (rate := self.prices.rate(upstream, name)) is not None
        ]
        for facts in reversed(known):
            if _is_complete(facts):
                found = [partial(_declared, facts)]
            elif facts.input_usd_per_mtok is not None or facts.output_usd_per_mtok is not None:
                found = [partial(_half_declared, facts, found)]
        return found

    def _expected(self, sale: Sale, model: str | None) -> Usage | None:
        """The tokens an attempt may have been billed for, by the size of its request."""
        operation = sale.operation or ""
        if model is None or not sale.bytes_in or operation.startswith(_NOT_BY_SIZE):
            return None
        prompt = -(-sale.bytes_in // BYTES_PER_TOKEN)
        if operation in COMPLETES_NOTHING:
            return Usage(input=prompt)
        completion = self._assumed.get(sale.route or "", 0)
        if sale.bound is not None:
            # Not the bound itself: many callers set one that no answer comes near.
            completion = min(completion, sale.bound)
        return Usage(input=prompt, output=completion)

    def _so_far(self, counted: Usage, sale: Sale, model: str | None) -> Usage | None:
        """The tokens an attempt that was lost may have been billed for: what was counted before its
        end, the rest by what came of it, or by the size of its request."""
        expected = self._expected(sale, model)
        if counted.input is None:
            if expected is None:
                return None
            counted = counted._replace(input=expected.input)
        if counted.output is None:
            output = counted.streamed
            if output is None and expected is not None:
                output = expected.output
            counted = counted._replace(output=output)
        return counted


def _quote(rates: Iterable[Rate], usage: Usage, source: str, *, at_once: bool = False) -> Quote:
    """What it cost. Where the price of something special in it is not known, it is estimated:
    without that, else without its tier, else as if there were only plain tokens. So it is where a
    completion came that nobody counted."""
    if usage.output is None and usage.streamed:
        usage, source = usage._replace(output=usage.streamed), _ESTIMATED
    cost, special = _cost(rates, usage, at_once=at_once), usage.special
    if cost is None and special is not None:
        source = _ESTIMATED
        priced = special._replace(unpriced=False)
        for less in (priced, priced._replace(context=()), None):
            cost = _cost(rates, usage._replace(special=less), at_once=at_once)
            if cost is not None:
                break
    return _NO_PRICE if cost is None else (cost, source)


def _cost(rates: Iterable[Rate], usage: Usage, *, at_once: bool) -> int | None:
    """Nano-dollars by the first rate that has a price for all of it; None for an absurd sum."""
    for rate in rates:
        cost = rate(usage, at_once=at_once)
        if cost is not None:
            cost *= NANO_USD
            return round(cost) if cost <= MAX_COST else None
    return None


def _is_complete(facts: ModelFacts) -> bool:
    """Whether the configuration declares all there is to pay for."""
    return None not in (facts.input_usd_per_mtok, facts.output_usd_per_mtok)


def _declared(facts: ModelFacts, usage: Usage, *, at_once: bool = False) -> float | None:  # noqa: ARG001 - a Rate
    """US dollars by prices the configuration declares; they know plain tokens alone."""
    return None if _is_special(usage) else _as_far_as_declared(facts, usage)


def _half_declared(
    facts: ModelFacts, others: Sequence[Rate], usage: Usage, *, at_once: bool = False
) -> float | None:
    """US dollars by the only price that is declared, and by another's for the rest."""
    if _is_special(usage):
        return None
    usage = usage._replace(special=None)
    known = _as_far_as_declared(facts, usage)
    by_prompt = facts.input_usd_per_mtok is not None
    if by_prompt and not usage.output:
        return known
    for other in others:
        prompt = other(usage._replace(output=0), at_once=at_once)
        if prompt is not None and not by_prompt:
            return known + prompt
        # A completion may cost the more, the longer its prompt is.
        if prompt is not None and (whole := other(usage, at_once=at_once)) is not None:
            return known + whole - prompt
    return None


def _as_far_as_declared(facts: ModelFacts, usage: Usage) -> float:
    prompt, completion = facts.input_usd_per_mtok or 0.0, facts.output_usd_per_mtok or 0.0
    return ((usage.input or 0) * prompt + (usage.output or 0) * completion) / 1e6


def _is_special(usage: Usage) -> bool:
    """Whether it has what other prices hold for than those of plain tokens."""
    special = usage.special
    return special is not None and bool(special.counts or special.context or special.unpriced)
