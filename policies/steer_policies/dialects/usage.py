"""Token counts as each provider reports them, in one shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_policies.dialects.base import Special, Usage
from steer_policies.dialects.special import anthropic_special, gemini_special, openai_special
from steer_policies.foreign import count, mapping

_NOTHING: Final[Mapping[str, Any]] = {}


def openai_usage(value: Any, document: Mapping[str, Any] = _NOTHING) -> Usage | None:
    """OpenAI's `usage`: chat and completions, responses, embeddings, images, transcriptions.

    `document` is what stands around it, which names the tier and the tools.

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
    prompt = (
        get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details")
    )
    if isinstance(prompt, dict):
        cached = count(prompt.get("cached_tokens"))
    if cached is None:
        cached = count(get("prompt_cache_hit_tokens"))
    completion = (
        get("completion_tokens_details")
        or get("output_tokens_details")
        or get("output_token_details")
    )
    if isinstance(completion, dict):
        reasoning = count(completion.get("reasoning_tokens"))
    if (
        reasoning
        and received is not None
        and output is not None
        and count(get("total_tokens")) == received + output + reasoning
    ):
        output += reasoning
    special = openai_special(value, prompt, completion, document)
    return _usage(received, cached, output, reasoning, special)


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
    output = count(usage.get("output_tokens"))
    return _usage(received, cached, output, reasoning, anthropic_special(usage))


def gemini_usage(value: Any, *, grounded: bool = False) -> Usage | None:
    """Gemini's `usageMetadata` (https://ai.google.dev/api/generate-content#UsageMetadata).

    The prompt includes its cached part; what tools added to it is counted apart, and billed as
    input. The candidates leave out thoughts, which are billed as output. `grounded` says that the
    answer is made of searches, too.
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
    cached = count(usage.get("cachedContentTokenCount"))
    return _usage(received, cached, output, thoughts, gemini_special(usage, grounded=grounded))


def _usage(
    received: int | None,
    cached: int | None,
    output: int | None,
    reasoning: int | None,
    special: Special | None,
) -> Usage | None:
    if received is cached is output is reasoning is None:
        return None
    return Usage(received, cached, output, reasoning, special)
