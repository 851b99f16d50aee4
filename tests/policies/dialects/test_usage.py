"""Token counts in one shape."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.dialects.base import Special, Usage
from steer_policies.dialects.usage import anthropic_usage, gemini_usage, openai_usage


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param([], None, id="no object"),
        pytest.param({"prompt_tokens": "3", "completion_tokens": -1}, None, id="no counts"),
        pytest.param({"prompt_tokens": True}, None, id="true is no count"),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(10, 4, 5, 3),
            id="chat",
        ),
        pytest.param(
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "total_tokens": 15,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
            Usage(10, 0, 5, 0),
            id="responses",
        ),
        pytest.param(
            {"type": "tokens", "input_tokens": 9, "output_tokens": 2, "input_token_details": {}},
            Usage(9, None, 2),
            id="transcription",
        ),
        pytest.param({"type": "duration", "seconds": 3}, None, id="by duration"),
        pytest.param({"prompt_tokens": 4, "total_tokens": 4}, Usage(4), id="embeddings"),
        pytest.param(
            {"prompt_tokens": 4, "completion_tokens": 1, "prompt_cache_hit_tokens": 3},
            Usage(4, 3, 1),
            id="DeepSeek",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 18,
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(10, None, 8, 3),
            id="xAI counts reasoning apart",
        ),
    ],
)
def test_openai(value: Any, expected: Usage | None) -> None:
    """All of its operations, and where compatible servers differ."""
    assert openai_usage(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param({"input_tokens": None}, None, id="null"),
        pytest.param({"input_tokens": 3, "output_tokens": 4}, Usage(3, None, 4), id="plain"),
        pytest.param(
            {
                "input_tokens": 3,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 100,
                "output_tokens": 4,
                "output_tokens_details": {"thinking_tokens": 2},
            },
            Usage(123, 20, 4, 2, Special((("cache_write_tokens", 100),))),
            id="cache and thinking",
        ),
        pytest.param({"output_tokens": 4}, Usage(None, None, 4), id="output only"),
    ],
)
def test_anthropic(value: Any, expected: Usage | None) -> None:
    """Its input is a sum of three."""
    assert anthropic_usage(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param({"promptTokenCount": 3}, Usage(3), id="input only"),
        pytest.param({"thoughtsTokenCount": 3}, Usage(None, None, 3, 3), id="thoughts only"),
        pytest.param(
            {"promptTokenCount": 3, "candidatesTokenCount": 2, "thoughtsTokenCount": 7},
            Usage(3, None, 9, 7),
            id="thoughts are output",
        ),
    ],
)
def test_gemini(value: Any, expected: Usage | None) -> None:
    """Its output is a sum of two."""
    assert gemini_usage(value) == expected


CHAT = {"prompt_tokens": 10, "completion_tokens": 5}


@pytest.mark.parametrize(
    ("usage", "document", "expected"),
    [
        pytest.param(
            {}, {"service_tier": "default", "output": [{"type": "message"}]}, None, id="plain"
        ),
        pytest.param(
            {
                "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
                "completion_tokens_details": {"audio_tokens": 0},
            },
            {"service_tier": None, "output": "no list"},
            None,
            id="nothing of it",
        ),
        pytest.param(
            {
                "prompt_tokens_details": {
                    "audio_tokens": 9,
                    "cached_tokens": 4,
                    "cached_tokens_details": {"audio_tokens": 3},
                },
                "completion_tokens_details": {"audio_tokens": 2},
            },
            {},
            Special(
                (
                    ("input_audio_tokens", 9),
                    ("cache_audio_read_tokens", 3),
                    ("output_audio_tokens", 2),
                )
            ),
            id="audio",
        ),
        pytest.param(
            {"input_tokens_details": {"text_tokens": 1, "image_tokens": 9}},
            {},
            Special((("input_image_tokens", 9),)),
            id="images",
        ),
        pytest.param(
            {}, {"service_tier": "flex"}, Special((), (("service_tier", "flex"),)), id="tier"
        ),
        pytest.param({}, {"service_tier": 3}, None, id="no tier"),
        pytest.param(
            {},
            {
                "output": [
                    3,
                    {"type": []},
                    {"type": "web_search_call"},
                    {"type": "web_search_call", "action": {"type": "search"}},
                    {"type": "web_search_call", "action": {"type": "open_page"}},
                ]
            },
            Special((("web_searches", 2),)),
            id="searches",
        ),
        pytest.param(
            {}, {"output": [{"type": "file_search_call"}]}, Special(unpriced=True), id="tools"
        ),
        pytest.param({"num_sources_used": 3}, {}, Special(unpriced=True), id="sources"),
        pytest.param({"cost": 0.25}, {}, Special(usd=0.25), id="charged"),
        pytest.param({"cost": 0}, {}, Special(usd=0), id="charged nothing"),
        pytest.param({"cost": -1}, {}, None, id="not charged"),
        pytest.param({"cost": {"total_cost": 1}}, {}, None, id="charged otherwise"),
        pytest.param({"cost": True}, {}, None, id="true is no cost"),
    ],
)
def test_what_openai_bills_apart(usage: Any, document: Any, expected: Special | None) -> None:
    """Audio, images, tiers and tools have prices of their own."""
    found = openai_usage({**CHAT, **usage}, document)
    assert found is not None
    assert found.special == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            {
                "cache_creation_input_tokens": 0,
                "cache_creation": {"ephemeral_1h_input_tokens": 0},
                "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 4},
                "service_tier": "standard",
                "inference_geo": "global",
            },
            None,
            id="plain",
        ),
        pytest.param(
            {"cache_creation_input_tokens": 9},
            Special((("cache_write_tokens", 9),)),
            id="written to the cache",
        ),
        pytest.param(
            {
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_1h_input_tokens": 4, "ephemeral_5m_input_tokens": 5},
            },
            Special(
                (
                    ("cache_write_tokens", 9),
                    ("cache_write_1h_tokens", 4),
                    ("cache_write_5m_tokens", 5),
                )
            ),
            id="for an hour",
        ),
        pytest.param(
            {"server_tool_use": {"web_search_requests": 3}},
            Special((("web_searches", 3),)),
            id="searches",
        ),
        pytest.param(
            {"server_tool_use": {"new_requests": 1}}, Special(unpriced=True), id="unheard of"
        ),
        pytest.param({"inference_geo": "us"}, Special(unpriced=True), id="place"),
        pytest.param(
            {"service_tier": "priority", "speed": "fast"},
            Special((), (("service_tier", "priority"), ("speed", "fast"))),
            id="tier",
        ),
    ],
)
def test_what_anthropic_bills_apart(usage: Any, expected: Special | None) -> None:
    """Writing to the cache, by how long it lasts, and what its own tools do."""
    found = anthropic_usage({"input_tokens": 1, "output_tokens": 1, **usage})
    assert found is not None
    assert found.special == expected


def _of(**modalities: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": number} for name, number in modalities.items()]


@pytest.mark.parametrize(
    ("usage", "grounded", "expected"),
    [
        pytest.param({"promptTokensDetails": _of(TEXT=9)}, False, None, id="plain"),
        pytest.param(
            {"promptTokensDetails": [3, {}, *_of(NEW=1, AUDIO=0)], "serviceTier": 3},
            False,
            None,
            id="noise",
        ),
        pytest.param({}, True, Special(unpriced=True), id="searches"),
        pytest.param({"trafficType": "ON_DEMAND"}, False, None, id="traffic"),
        pytest.param(
            {"trafficType": "PROVISIONED_THROUGHPUT"},
            False,
            Special(unpriced=True),
            id="paid before",
        ),
        pytest.param(
            {"serviceTier": "FLEX"}, False, Special((), (("service_tier", "flex"),)), id="tier"
        ),
        pytest.param(
            {
                "promptTokensDetails": _of(TEXT=1, AUDIO=9, IMAGE=2, DOCUMENT=3),
                "toolUsePromptTokensDetails": _of(AUDIO=1),
                "cacheTokensDetails": _of(TEXT=1, AUDIO=4),
                "candidatesTokensDetails": _of(IMAGE=7),
            },
            False,
            Special(
                (
                    ("input_audio_tokens", 10),
                    ("input_image_tokens", 5),
                    ("cache_audio_read_tokens", 4),
                    ("cache_image_read_tokens", 0),
                    ("output_image_tokens", 7),
                )
            ),
            id="modalities",
        ),
    ],
)
def test_what_gemini_bills_apart(usage: Any, grounded: bool, expected: Special | None) -> None:
    """Other modalities than text, searches, and other tiers."""
    found = gemini_usage({"promptTokenCount": 1, **usage}, grounded=grounded)
    assert found is not None
    assert found.special == expected
