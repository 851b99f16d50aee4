"""What a call may cost, and what it is estimated to cost.

Estimates are rough on purpose: a prompt token is taken as four bytes of the request's body
(OpenAI's rule of thumb for English text is four characters), a completion as long as the request
allows, or as long as the route assumes. They decide which candidates are considered; what a call
really cost is counted from the provider's own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final, Protocol, TypeVar

from steer_policies.config import ModelFacts
from steer_policies.dialects.base import RequestFacts, Where

#: Bytes of a request's body taken as one prompt token.
BYTES_PER_TOKEN: Final = 4

#: Options that bound a completion, in the dialects' own words.
_MAX_TOKENS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")

#: Operations whose answers hold no completion, in the dialects' own words.
COMPLETES_NOTHING: Final = frozenset(
    {
        "batchEmbedContents",
        "embedContent",
        "embeddings",
        "moderations",
    }
)

#: Operations that only count a prompt's tokens, which no provider takes money for:
#: https://docs.anthropic.com/en/docs/build-with-claude/token-counting,
#: https://ai.google.dev/gemini-api/docs/tokens.
FREE: Final = frozenset({"countTokens", "messages.count_tokens"})

#: Operations sold by seconds, images or calls rather than by tokens.
_NOT_TOKENS: Final = frozenset({"audio.speech", "http", "images.generations"})

#: Where a request that is one prompt keeps its model; forms, realtime and tools are not such.
_PROMPTS: Final = frozenset({Where.BODY, Where.PATH})

_KINDS: Final = ("ms", "tokens", "cost_usd")


class PriceTable(Protocol):
    """Prices of models, known at load and never changed under a call."""

    def cost_usd(
        self, upstream: str, model: str, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """US dollars for so many tokens of a model at an upstream; None when no price is known."""


class UnknownPrice(StrEnum):
    """What becomes of a candidate without a known price when a call has a cost budget."""

    ALLOW = "allow"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds of one call: milliseconds, tokens (prompt and completion), US dollars; all above 0."""

    ms: float | None = None
    tokens: int | None = None
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        for kind in _KINDS:
            limit = getattr(self, kind)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise ValueError(f"{kind} must be a finite number greater than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPolicy:
    """A route's own view of budgets.

    `ms`, `tokens` and `cost_usd` are ceilings of each call, which a caller can only lower.
    `completion_tokens` is the length assumed of a completion whose request sets no bound.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    ms: float | None = None
    tokens: int | None = None
    cost_usd: float | None = None
    unknown_price: UnknownPrice = UnknownPrice.ALLOW
    completion_tokens: int = 1024

    def __post_init__(self) -> None:
        self.ceiling()
        if self.completion_tokens < 0:
            raise ValueError("completion_tokens must not be negative")

    def ceiling(self) -> Budget | None:
        """The route's ceilings as a budget; None when it sets none."""
        if self.ms is None and self.tokens is None and self.cost_usd is None:
            return None
        return Budget(ms=self.ms, tokens=self.tokens, cost_usd=self.cost_usd)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens a call is expected to take; of a `free` one nobody is billed for them."""

    prompt_tokens: int
    completion_tokens: int
    free: bool = False

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


def parse_budget(value: object) -> Budget:
    """A budget from what a caller sent, such as `{"ms": 2000, "tokens": 5000, "cost_usd": 0.05}`.

    Raises:
        ValueError: naming the key and what was expected.
    """
    if not isinstance(value, Mapping):
        raise ValueError("a budget is an object with ms, tokens or cost_usd")  # noqa: TRY004 - foreign input
    for key, limit in value.items():
        if key not in _KINDS:
            raise ValueError(f"unknown budget {str(key)[:64]!r}; known: {', '.join(_KINDS)}")
        if isinstance(limit, bool) or not isinstance(limit, (int, float)):
            raise ValueError(f"{key} must be a number")  # noqa: TRY004 - foreign input
        if key == "tokens" and limit != limit // 1:
            raise ValueError("tokens must be a whole number")
    try:
        return Budget(
            ms=_float(value.get("ms")),
            tokens=None if (tokens := value.get("tokens")) is None else int(tokens),
            cost_usd=_float(value.get("cost_usd")),
        )
    except OverflowError:
        raise ValueError("a budget is a finite number") from None


def tightest(one: Budget | None, other: Budget | None) -> Budget | None:
    """The budget that keeps both."""
    if one is None or other is None:
        return one or other
    return Budget(
        ms=_lower(one.ms, other.ms),
        tokens=_lower(one.tokens, other.tokens),
        cost_usd=_lower(one.cost_usd, other.cost_usd),
    )


def estimate(
    request: RequestFacts, body_size: int, options: Mapping[str, Any], assumed_completion: int
) -> Estimate | None:
    """The tokens a call is expected to take; None where bytes say nothing of them (audio, images,
    realtime, tools)."""
    if request.model_in not in _PROMPTS or request.operation in _NOT_TOKENS:
        return None
    prompt = -(-body_size // BYTES_PER_TOKEN)
    if request.operation in FREE:
        return Estimate(prompt, 0, free=True)
    if request.operation in COMPLETES_NOTHING:
        return Estimate(prompt, 0)
    bound = _bound_in(options)
    if bound is None:
        bound = request.max_tokens
    return Estimate(prompt, assumed_completion if bound is None else bound)


def estimate_usd(
    tokens: Estimate | None,
    upstream: str,
    model: str | None,
    declared: ModelFacts | None,
    prices: PriceTable | None,
) -> float | None:
    """US dollars a call is expected to cost; declared prices override the table, one by one.

    None when nothing is known of the price.
    """
    if tokens is None:
        return None
    if tokens.free:
        return 0.0
    prompt = completion = None
    if declared is not None:
        prompt, completion = declared.input_usd_per_mtok, declared.output_usd_per_mtok
    if completion is None and tokens.completion_tokens == 0:
        completion = 0.0
    known = tokens.prompt_tokens * (prompt or 0.0) + tokens.completion_tokens * (completion or 0.0)
    known /= 1e6
    if prompt is not None and completion is not None:
        return known
    if prices is None or model is None:
        return None
    # The table has what is not declared: the whole less the part that is, or that part alone.
    sold = tokens.completion_tokens if completion is None else 0
    listed = prices.cost_usd(upstream, model, tokens.prompt_tokens, sold)
    if listed is None or prompt is None:
        return None if listed is None else known + listed
    without = prices.cost_usd(upstream, model, tokens.prompt_tokens, 0)
    return None if without is None else known + listed - without


def _bound_in(options: Mapping[str, Any]) -> int | None:
    """The completion's bound that options set, whichever dialect's word they use."""
    for name in _MAX_TOKENS:
        if name in options:
            return _count(options[name])
    generation = options.get("generationConfig")
    return _count(generation.get("maxOutputTokens")) if isinstance(generation, Mapping) else None


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


_N = TypeVar("_N", int, float)


def _lower(one: _N | None, other: _N | None) -> _N | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
