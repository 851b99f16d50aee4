"""Token counts as each provider reports them, in one shape."""

from __future__ import annotations

from typing import Any

from steer_policies.dialects.base import Usage
from steer_policies.foreign import count, mapping


def openai_usage(value: Any) -> Usage | None:
    """OpenAI's `usage`: chat and completions, responses, embeddings, images, transcriptions.

    Compatible providers differ in two points. DeepSeek reports the cached part as
    `prompt_cache_hit_tokens`. xAI leaves the reasoning part out of `completion_tokens`, which shows
    in `total_tokens`.
    """
    if not isinstance(value, dict):
        return None
    get = value.get
    received, output = count(get("prompt_tokens")), count(get("completion_tokens"))
    if received is None:
        received = count(get("input_tokens"))
    if output is None:
        output = count(get("output_tokens"))
    cached = reasoning = None
    details = (
        get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details")
    )
    if isinstance(details, dict):
        cached = count(details.get("cached_tokens"))
    if cached is None:
        cached = count(get("prompt_cache_hit_tokens"))
    details = get("completion_tokens_details") or get("output_tokens_details")
    if isinstance(details, dict):
        reasoning = count(details.get("reasoning_tokens"))
    if (
        reasoning
        and received is not None
        and output is not None
        and count(get("total_tokens")) == received + output + reasoning
    ):
        output += reasoning
    return _usage(received, cached, output, reasoning)


def anthropic_usage(value: Any) -> Usage | None:
    """Anthropic's `usage`.

    `input_tokens` leaves out what was read from or written to the cache, so the three are added
    (https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching).
    """
    usage = mapping(value)
    received = count(usage.get("input_tokens"))
    cached = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    if received is not None:
        received += (cached or 0) + (written or 0)
    reasoning = count(mapping(usage.get("output_tokens_details")).get("thinking_tokens"))
    return _usage(received, cached, count(usage.get("output_tokens")), reasoning)


def gemini_usage(value: Any) -> Usage | None:
    """Gemini's `usageMetadata` (https://ai.google.dev/api/generate-content#UsageMetadata).

    The prompt includes its cached part; what tools added to it is counted apart, and billed as
    input. The candidates leave out thoughts, which are billed as output.
    """
    usage = mapping(value)
    received = count(usage.get("promptTokenCount"))
    tools = count(usage.get("toolUsePromptTokenCount"))
    output = count(usage.get("candidatesTokenCount"))
    thoughts = count(usage.get("thoughtsTokenCount"))
    if received is not None:
        received += tools or 0
    if thoughts is not None:
        output = thoughts + (output or 0)
    return _usage(received, count(usage.get("cachedContentTokenCount")), output, thoughts)


def _usage(
    received: int | None, cached: int | None, output: int | None, reasoning: int | None
) -> Usage | None:
    if received is cached is output is reasoning is None:
        return None
    return Usage(received, cached, output, reasoning)
