"""Token counts in one shape."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.dialects.base import Usage
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
            Usage(123, 20, 4, 2),
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
