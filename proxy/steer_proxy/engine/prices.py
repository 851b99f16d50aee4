"""Prices from the genai-prices package, as shipped with it and never updated over the network.

The package is imported when a price is first asked for: it takes 140 ms and 25 MB. `load` does that
ahead of time, so that no call has to wait for it.

A provider is recognised by its upstream's address, so a model of the same name elsewhere (a local
server, a gateway of one's own) has no price unless the configuration declares one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from steer_policies.dialects.base import Special, Usage

if TYPE_CHECKING:
    from genai_prices import Usage as Counts
    from genai_prices import types

#: Prices remembered per upstream and model; model names are foreign input.
MAX_REMEMBERED: Final = 1024
MAX_MODEL: Final = 256


#: Who says in its usage what it charged, in US dollars.
_CHARGES: Final = "openrouter"

#: Counts that need a price of their own. All others are parts of the tokens, and have their price
#: where the list names none: audio costs what text costs with some models.
_NEEDED: Final = {
    "web_searches": "web_searches_kcount",
    "cache_write_1h_tokens": "cache_write_1h_mtok",
}

#: What `_Flat` has prices for beside plain tokens.
_WRITES: Final = frozenset({"cache_write_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"})


class TakesTime(Exception):
    """Only the package can tell a price: its 75 to 330 us are too many for an event loop."""


class Rate(Protocol):
    """What a model costs, by what was counted."""

    def __call__(self, usage: Usage, *, at_once: bool = False) -> float | None:
        """US dollars for what a provider counted, of which either prompt or completion must be
        known; None when the price does not go with the count, or with something special in it.

        Raises:
            TakesTime: only when it is to be told `at_once`, which it cannot.
        """


class GenaiPrices:
    """The price table of a configuration; implements `steer_policies.budget.PriceTable`."""

    def __init__(self, base_urls: Mapping[str, str]) -> None:
        """Prices of upstreams by name, recognised by their base URLs."""
        self._base_urls = dict(base_urls)
        self._found: dict[tuple[str, str], _Price | None] = {}
        self.loaded = False

    def load(self) -> None:
        """Import the price list now."""
        from genai_prices.data_snapshot import get_snapshot

        get_snapshot()
        self.loaded = True

    def knows(self, upstream: str, model: str) -> bool:
        """Whether a model was looked up at an upstream, found or not."""
        return (upstream, model) in self._found

    def cost_usd(
        self, upstream: str, model: str, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """US dollars for so many tokens of a model at an upstream; None when no price is known."""
        price = self._price(upstream, model)
        if price is None:
            return None
        return price.of(Usage(input=prompt_tokens, output=completion_tokens))

    def cost_of(self, upstream: str, model: str, usage: Usage) -> float | None:
        """US dollars for what a provider counted; None when no price or no count is known."""
        if usage.input is None and usage.output is None:
            return None
        price = self._price(upstream, model)
        return None if price is None else price.of(usage)

    def rate(self, upstream: str, model: str) -> Rate | None:
        """What a model costs at an upstream, by what was counted; None when no price is known."""
        price = self._price(upstream, model)
        return None if price is None else price.of

    def _price(self, upstream: str, model: str) -> _Price | None:
        key = (upstream, model)
        if key in self._found:
            return self._found[key]
        price = self._find(upstream, model)
        if len(self._found) >= MAX_REMEMBERED:
            self._found.clear()
        if len(model) <= MAX_MODEL:
            self._found[key] = price
        return price

    def _find(self, upstream: str, model: str) -> _Price | None:
        base_url = self._base_urls.get(upstream)
        if base_url is None or not model or len(model) > MAX_MODEL:
            return None
        from genai_prices.data_snapshot import get_snapshot

        snapshot = get_snapshot()
        try:
            # By address alone: the package's own look-up by model remembers every name it is asked
            # for, and ours are foreign input.
            provider = snapshot.find_provider(None, None, base_url)
        except LookupError:
            return None
        info = provider.find_model(model, all_providers=snapshot.providers)
        if info is None and provider.id != _CHARGES:
            return None
        return _Price(provider, info)


class _Price:
    """What one model costs. `_flat` serves where prices do not depend on size or time: asking the
    package takes 75 us, and 330 where something is special; multiplying takes one."""

    __slots__ = ("_flat", "_info", "_provider")

    def __init__(self, provider: types.Provider, info: types.ModelInfo | None) -> None:
        self._provider = provider
        self._info = info
        self._flat = None if info is None else _flat(info)

    def of(self, usage: Usage, *, at_once: bool = False) -> float | None:
        """See `Rate`."""
        special = usage.special
        if special is not None:
            if special.usd is not None and self._provider.id == _CHARGES:
                return special.usd
            if special.unpriced:
                return None
        if self._flat is not None and (cost := self._flat.of(usage)) is not None:
            return cost
        if self._info is None:
            return None
        if at_once:
            raise TakesTime
        from genai_prices import Usage as Counted

        counts = {} if special is None else dict(special.counts)
        counted = Counted(
            input_tokens=usage.input,
            cache_read_tokens=usage.cached or None,
            output_tokens=usage.output,
            **counts,
        )
        try:
            if special is None:
                return float(self._info.calc_price(counted, self._provider).total_price)
            return self._special(self._info, special, counted)
        except (ValueError, ArithmeticError, LookupError):
            # Counts that contradict each other (more cached than input, say), or units this model
            # is not sold by: a provider's mistake must not fail a call.
            return None

    def _special(self, info: types.ModelInfo, special: Special, counted: Counts) -> float | None:
        """What the list has other prices for; None for what it has not."""
        price = info.calc_price(
            counted, self._provider, price_context=dict(special.context) or None
        )
        listed = price.model_price
        if special.context and (
            len(special.context) > 1 or listed == info.get_prices(datetime.now(UTC))
        ):
            return None  # it knows nothing of that tier
        if any(
            name in _NEEDED and getattr(listed, _NEEDED[name], None) is None
            for name, _ in special.counts
        ):
            return None
        return float(price.total_price)


class _Flat(NamedTuple):
    """Dollars per million tokens; None where the price list names no such price.

    They hold for prompts of up to `upto` tokens: longer ones are dearer with some models. `written`
    is for what goes into the cache, `lasting` for what stays there for an hour.
    """

    prompt: float
    cached: float | None
    completion: float | None
    written: float | None
    lasting: float | None
    upto: float

    def of(self, usage: Usage) -> float | None:
        """What so many tokens cost; None for what only the package knows how to take."""
        prompt, cached, output = usage.input, usage.cached or 0, usage.output or 0
        if prompt is None or cached > prompt or prompt > self.upto:
            return None
        if (cached and self.cached is None) or (output and self.completion is None):
            return None
        total = cached * (self.cached or 0.0) + output * (self.completion or 0.0)
        plain = prompt - cached
        if usage.special is not None:
            counts = dict(usage.special.counts)
            if usage.special.context or not counts.keys() <= _WRITES:
                return None
            written = counts.get("cache_write_tokens", 0)
            lasting = counts.get("cache_write_1h_tokens", 0)
            if written > plain or counts.get("cache_write_5m_tokens", 0) + lasting > written:
                return None
            if (written and self.written is None) or (lasting and self.lasting is None):
                return None
            total += (written - lasting) * (self.written or 0.0) + lasting * (self.lasting or 0.0)
            plain -= written
        return (total + plain * self.prompt) / 1e6


_FLAT: Final = (
    "input_mtok",
    "cache_read_mtok",
    "output_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
)


def _flat(info: types.ModelInfo) -> _Flat | None:
    listed = _lasting(info)
    if listed is None or getattr(listed, "requests_kcount", None) is not None:
        return None  # each request has a price of its own
    upto = math.inf
    found: list[float | None] = []
    for name in _FLAT:
        price: Any = getattr(listed, name, None)
        if price is not None and not isinstance(price, Decimal):
            upto = min([upto, *(tier.start for tier in price.tiers)])
            price = price.base
        found.append(None if price is None else float(price))
    prompt, cached, completion, written, lasting = found
    if getattr(listed, "cache_write_5m_mtok", None) is not None:
        written = lasting = None  # nobody has one yet
    return None if prompt is None else _Flat(prompt, cached, completion, written, lasting, upto)


def _lasting(info: types.ModelInfo) -> types.ModelPrice | None:
    """A model's prices, if the list knows of no hour and no coming day with others."""
    from genai_prices.types import ModelPrice, StartDateConstraint

    if isinstance(info.prices, ModelPrice):
        return info.prices
    now = datetime.now(UTC)
    for each in info.prices:
        since = each.constraint
        if since is not None and not (isinstance(since, StartDateConstraint) and since.active(now)):
            return None
    return info.get_prices(now)
