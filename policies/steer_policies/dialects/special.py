"""What a provider's usage names beside plain tokens: it has prices of its own, or none known.

Counts go by the names that the list of prices has for them (`genai_prices.Usage`). Most answers
have nothing of this kind, and are told by a few look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_policies.dialects.base import Special
from steer_policies.foreign import count, items, label, mapping

#: The tiers that prices are listed for, in the words of OpenAI, Anthropic, Groq and Gemini.
_LISTED: Final = frozenset({"default", "standard", "auto", "on_demand"})

#: Of OpenAI's details, with what each is a part of.
_PROMPT: Final = {
    "audio_tokens": "input_audio_tokens",
    "image_tokens": "input_image_tokens",
    "video_tokens": "input_video_tokens",
    "cache_write_tokens": "cache_write_tokens",
}
_CACHED: Final = {
    "audio_tokens": "cache_audio_read_tokens",
    "image_tokens": "cache_image_read_tokens",
}
_COMPLETION: Final = {"audio_tokens": "output_audio_tokens", "image_tokens": "output_image_tokens"}

#: Searches and tools that compatible providers (xAI, Perplexity) bill apart.
_APART: Final = ("num_sources_used", "num_server_side_tools_used", "num_search_queries")

#: Items of OpenAI's responses that are billed apart, by the call or by the tokens of another model.
_TOOLS: Final = frozenset({"file_search_call", "code_interpreter_call", "image_generation_call"})

_NOTHING: Final[Mapping[str, Any]] = {}

#: Gemini's modalities, in the words of the list; documents are billed as images are.
_MODALITIES: Final = {"AUDIO": "audio", "IMAGE": "image", "DOCUMENT": "image", "VIDEO": "video"}


def openai_special(
    usage: dict[str, Any], prompt: Any, completion: Any, document: Mapping[str, Any]
) -> Special | None:
    """Of OpenAI's `usage` and its details, in the document that has them.

    OpenRouter says what it charges, in US dollars
    (https://openrouter.ai/docs/use-cases/usage-accounting).
    """
    get = usage.get
    tier, output, cost = document.get("service_tier"), document.get("output"), get("cost")
    if (
        (tier is None or tier == "default")
        and not output
        and cost is None
        and not (get("num_sources_used") or get("num_server_side_tools_used"))
        and not get("num_search_queries")
        and (not prompt or _is_plain(prompt))
        and (not completion or _is_plain(completion))
    ):
        return None  # as nearly always
    counts: dict[str, int] = {}
    if isinstance(prompt, dict):
        _take(counts, prompt, _PROMPT)
        if counts:
            _take(counts, mapping(prompt.get("cached_tokens_details")), _CACHED)
    if isinstance(completion, dict):
        _take(counts, completion, _COMPLETION)
    unpriced = any(get(name) for name in _APART)
    for item in items(output):
        kind = mapping(item).get("type")
        if kind == "web_search_call":
            # To open a page, or to find something in it, is no search.
            if mapping(item.get("action")).get("type", "search") == "search":
                counts["web_searches"] = counts.get("web_searches", 0) + 1
        elif isinstance(kind, str) and kind in _TOOLS:
            unpriced = True
    usd = cost if isinstance(cost, (int, float)) and cost >= 0 and cost is not True else None
    return _special(counts, _tier(tier), unpriced, usd)


def anthropic_special(usage: Mapping[str, Any]) -> Special | None:
    """Of Anthropic's `usage`: writing to the cache is dearer than reading, the longer the more."""
    counts: dict[str, int] = {}
    context = _tier(usage.get("service_tier"))
    if written := count(usage.get("cache_creation_input_tokens")):
        counts["cache_write_tokens"] = written
        lasting = mapping(usage.get("cache_creation"))
        if long := count(lasting.get("ephemeral_1h_input_tokens")):
            counts["cache_write_1h_tokens"] = long
            counts["cache_write_5m_tokens"] = max(0, written - long)
    unpriced = usage.get("inference_geo") == "us"  # a tenth dearer
    if usage.get("speed") == "fast":
        context = (*context, ("speed", "fast"))
    if tools := usage.get("server_tool_use"):
        for name, value in mapping(tools).items():
            if name == "web_search_requests":
                if searches := count(value):
                    counts["web_searches"] = searches
            elif name != "web_fetch_requests":  # those are free
                unpriced = unpriced or bool(value)
    return _special(counts, context, unpriced)


def gemini_special(usage: Mapping[str, Any], *, grounded: bool) -> Special | None:
    """Of Gemini's `usageMetadata`; `grounded` by searches, which some models bill by the prompt."""
    counts: dict[str, int] = {}
    _modalities(counts, usage.get("promptTokensDetails"), "input_{}_tokens")
    _modalities(counts, usage.get("toolUsePromptTokensDetails"), "input_{}_tokens")
    cached = usage.get("cacheTokensDetails")
    if counts and cached:
        # What is not named among the cached is not cached.
        counts |= dict.fromkeys((f"cache_{name[6:-7]}_read_tokens" for name in counts), 0)
        _modalities(counts, cached, "cache_{}_read_tokens")
    _modalities(counts, usage.get("candidatesTokensDetails"), "output_{}_tokens")
    tier = usage.get("serviceTier")
    context = _tier(tier.lower()) if isinstance(tier, str) else ()
    unpriced = grounded or usage.get("trafficType") not in (None, "ON_DEMAND")
    return _special(counts, context, unpriced)


def is_grounded(response: Mapping[str, Any]) -> bool:
    """Whether an answer of Gemini's is made of searches, too."""
    for each in items(response.get("candidates")):
        grounding = mapping(each).get("groundingMetadata")
        if grounding and mapping(grounding).get("webSearchQueries"):
            return True
    return False


def _is_plain(details: Mapping[str, Any]) -> bool:
    """Whether details of OpenAI's name nothing special."""
    get = details.get if isinstance(details, dict) else _NOTHING.get
    return not (
        get("audio_tokens")
        or get("image_tokens")
        or get("video_tokens")
        or get("cache_write_tokens")
    )


def _take(counts: dict[str, int], details: Mapping[str, Any], names: Mapping[str, str]) -> None:
    for name, known_as in names.items():
        if number := count(details.get(name)):
            counts[known_as] = number


def _modalities(counts: dict[str, int], details: Any, form: str) -> None:
    if not isinstance(details, list):
        return
    for each in details:
        detail = mapping(each)
        kind = detail.get("modality")
        if kind == "TEXT" or not isinstance(kind, str):
            continue
        modality = _MODALITIES.get(kind)
        if modality is not None and (number := count(detail.get("tokenCount"))):
            name = form.format(modality)
            counts[name] = counts.get(name, 0) + number


def _tier(tier: Any) -> tuple[tuple[str, str], ...]:
    if tier is None or label(tier) is None or tier in _LISTED:
        return ()
    return (("service_tier", tier),)


def _special(
    counts: dict[str, int],
    context: tuple[tuple[str, str], ...],
    unpriced: bool,  # noqa: FBT001 - private
    usd: float | None = None,
) -> Special | None:
    if not counts and not context and not unpriced and usd is None:
        return None
    return Special(tuple(counts.items()), context, unpriced, usd)
