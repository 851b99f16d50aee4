"""Prices as they are shipped."""

from __future__ import annotations

import subprocess
import sys

import pytest

from steer_policies.dialects.base import Usage
from steer_proxy.catalogue import PROVIDERS
from steer_proxy.engine.prices import MAX_MODEL, MAX_REMEMBERED, GenaiPrices

PRICES = GenaiPrices({name: provider.base_url for name, provider in PROVIDERS.items()})


def test_a_known_model_has_a_price() -> None:
    """In dollars, growing with the tokens."""
    one = PRICES.cost_usd("openai", "gpt-4o", 1000, 100)
    assert one is not None
    assert one > 0
    assert PRICES.cost_usd("openai", "gpt-4o", 2000, 200) == pytest.approx(2 * one)
    assert PRICES.cost_usd("anthropic", "claude-sonnet-4-5", 1000, 100)
    assert PRICES.cost_usd("gemini", "gemini-2.5-pro", 1000, 100)


def test_a_flat_price_is_what_the_package_says() -> None:
    """The short cut and the long way agree."""
    assert PRICES.cost_usd("openai", "gpt-4o", 1000, 100) == pytest.approx(
        PRICES.cost_of("openai", "gpt-4o", Usage(input=1000, output=100))
    )


def test_cached_tokens_are_cheaper() -> None:
    """What a provider counted is priced as it bills it."""
    plain = PRICES.cost_of("openai", "gpt-4o", Usage(input=1000, output=10))
    cached = PRICES.cost_of("openai", "gpt-4o", Usage(input=1000, cached=900, output=10))
    assert plain is not None
    assert cached is not None
    assert cached < plain


@pytest.mark.parametrize(
    ("upstream", "model"),
    [
        ("openai", "nothing-of-the-kind"),
        ("openai", ""),
        ("openai", "x" * (MAX_MODEL + 1)),
        ("ollama", "gpt-4o"),
        ("unheard-of", "gpt-4o"),
    ],
)
def test_no_price_is_known(upstream: str, model: str) -> None:
    """None, never zero: the same name elsewhere is not the same price."""
    assert PRICES.cost_usd(upstream, model, 1000, 100) is None
    assert PRICES.cost_of(upstream, model, Usage(input=1)) is None


def test_counts_that_cannot_be_priced() -> None:
    """Nothing counted, or more cached than there was."""
    assert PRICES.cost_of("openai", "gpt-4o", Usage()) is None
    assert PRICES.cost_of("openai", "gpt-4o", Usage(input=10, cached=20)) is None


def test_memory_is_bounded() -> None:
    """Model names are foreign input."""
    prices = GenaiPrices({"openai": PROVIDERS["openai"].base_url})
    for number in range(MAX_REMEMBERED + 10):
        prices.cost_usd("openai", f"model-{number}", 1, 1)
    assert len(prices._found) <= MAX_REMEMBERED


def test_the_price_list_is_loaded_only_when_asked_for() -> None:
    """Importing everything a configuration needs does not load it; `load` does."""
    script = (
        "import sys\n"
        "from steer_proxy.settings import load\n"
        "config = load(None, {})\n"
        "heavy = {'genai_prices', 're2', 'rich', 'aiohttp'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "config.routes[0].policy.prices.load()\n"
        "assert 'genai_prices' in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
