"""Prices from the genai-prices package, as shipped with it and never updated over the network.

The package is imported when a price is first asked for: it takes 140 ms and 25 MB. `load` does that
ahead of time, so that no call has to wait for it.

A provider is recognised by its upstream's address, so a model of the same name elsewhere (a local
server, a gateway of one's own) has no price unless the configuration declares one.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from steer_policies.dialects.base import Usage

if TYPE_CHECKING:
    from genai_prices import types

#: Prices remembered per upstream and model; model names are foreign input.
MAX_REMEMBERED: Final = 1024
MAX_MODEL: Final = 256


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

    def cost_usd(
        self, upstream: str, model: str, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """US dollars for so many tokens of a model at an upstream; None when no price is known."""
        price = self._price(upstream, model)
        if price is None:
            return None
        if price.flat is not None:
            prompt, completion = price.flat
            return (prompt_tokens * prompt + completion_tokens * completion) / 1e6
        return price.of(Usage(input=prompt_tokens, output=completion_tokens))

    def cost_of(self, upstream: str, model: str, usage: Usage) -> float | None:
        """US dollars for what a provider counted; None when no price or no count is known."""
        if usage.input is None and usage.output is None:
            return None
        price = self._price(upstream, model)
        return None if price is None else price.of(usage)

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
        return None if info is None else _Price(provider, info)


class _Price:
    """What one model costs. `flat` is dollars per million prompt and completion tokens where these
    do not depend on size or time: asking the package takes 75 us, multiplying nothing."""

    __slots__ = ("_info", "_provider", "flat")

    def __init__(self, provider: types.Provider, info: types.ModelInfo) -> None:
        self._provider = provider
        self._info = info
        self.flat = _flat(info)

    def of(self, usage: Usage) -> float | None:
        from genai_prices import Usage as Counted

        counted = Counted(
            input_tokens=usage.input, cache_read_tokens=usage.cached, output_tokens=usage.output
        )
        try:
            return float(self._info.calc_price(counted, self._provider).total_price)
        except (ValueError, ArithmeticError, LookupError):
            # Counts that contradict each other (more cached than input, say), or units this model
            # is not sold by: a provider's mistake must not fail a call.
            return None


def _flat(info: types.ModelInfo) -> tuple[float, float] | None:
    prompt = getattr(info.prices, "input_mtok", None)
    completion = getattr(info.prices, "output_mtok", None)
    if isinstance(prompt, Decimal) and isinstance(completion, Decimal):
        return float(prompt), float(completion)
    return None
