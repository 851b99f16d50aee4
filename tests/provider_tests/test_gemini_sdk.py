"""The official Gemini client understands every healthy answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from tests.provider import Provider, faults
from tests.provider_tests.raw import connected, request

TEXT = "The wall answers every call with the same few plain words."
MODEL = "gemini-2.5-flash"

# The client subclasses aiohttp's session, which aiohttp discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")


@asynccontextmanager
async def gemini_client(provider: Provider) -> AsyncIterator[Any]:
    options = types.HttpOptions(base_url=provider.base_url)
    client = genai.Client(api_key="key", http_options=options)
    try:
        yield client.aio
    finally:
        await client.aio.aclose()
        client.close()


async def test_generate_content() -> None:
    """Plain and streamed, with usage and the reason to finish."""
    async with Provider() as provider, gemini_client(provider) as client:
        answer = await client.models.generate_content(model=MODEL, contents="Hello")
        assert (answer.text, answer.usage_metadata.candidates_token_count) == (TEXT, 11)
        chunks = [
            chunk
            async for chunk in await client.models.generate_content_stream(
                model=MODEL, contents="Hello"
            )
        ]
        assert "".join(chunk.text for chunk in chunks) == TEXT
        assert chunks[0].candidates[0].finish_reason is None
        assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP


async def test_the_array_form() -> None:
    """Without `alt=sse` a stream is one JSON array, sent element by element."""
    async with Provider() as provider, connected(provider) as client:
        asked = {"contents": [{"parts": [{"text": "Hello"}]}]}
        client.send(request(f"/v1beta/models/{MODEL}:streamGenerateContent", asked))
        await client.head()
        chunks = await client.chunks()
        values = json.loads(b"".join(chunks))
        assert len(values) == 11
        assert len(chunks) == 12
        text = "".join(value["candidates"][0]["content"]["parts"][0]["text"] for value in values)
        assert text == TEXT


async def test_tools() -> None:
    """The first function declared is called."""
    schema = types.Schema(
        type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)}
    )
    declared = types.FunctionDeclaration(name="weather", parameters=schema)
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declared])])
    async with Provider() as provider, gemini_client(provider) as client:
        answer = await client.models.generate_content(model=MODEL, contents="Hi", config=config)
        (call,) = answer.function_calls
        assert (call.name, call.args) == ("weather", {"city": "value"})


async def test_counting_embedding_listing() -> None:
    """The other endpoints of models."""
    async with Provider() as provider, gemini_client(provider) as client:
        assert (await client.models.count_tokens(model=MODEL, contents="Hello")).total_tokens > 0
        vectors = await client.models.embed_content(
            model="gemini-embedding-001", contents=["a", "b"]
        )
        assert [len(vector.values) for vector in vectors.embeddings] == [8, 8]
        names = [model.name async for model in await client.models.list()]
        assert f"models/{MODEL}" in names
        assert (await client.models.get(model=MODEL)).input_token_limit == 1048576


async def test_errors_and_blocked_prompts() -> None:
    """429 with its hint, 503 within a stream, and a block that is a 200."""
    async with Provider() as provider, gemini_client(provider) as client:
        provider.then(faults.rate_limit(retry_info="37s"), faults.content_policy())
        with pytest.raises(errors.ClientError) as caught:
            await client.models.generate_content(model=MODEL, contents="Hello")
        assert caught.value.details["error"]["details"][-1]["retryDelay"] == "37s"
        blocked = await client.models.generate_content(model=MODEL, contents="Hello")
        assert blocked.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
        provider.then(faults.in_band_error(at=2))
        stream = await client.models.generate_content_stream(model=MODEL, contents="Hello")
        with pytest.raises(errors.APIError, match="overloaded"):
            [chunk async for chunk in stream]
