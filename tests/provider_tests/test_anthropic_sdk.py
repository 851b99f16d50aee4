"""The official Anthropic client understands every healthy answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest

from tests.provider import Provider, faults

TEXT = "The wall answers every call with the same few plain words."
USER: Any = [{"role": "user", "content": "Hello"}]
ASKED: Any = {"model": "claude-sonnet-5-5", "max_tokens": 2000, "messages": USER}
TOOLS: Any = [
    {
        "name": "weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


@asynccontextmanager
async def anthropic_client(provider: Provider) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=provider.base_url, api_key="sk-ant-x", max_retries=0
    ) as client:
        yield client


async def test_messages() -> None:
    """Plain, from both clients, with the request id in its header."""
    async with Provider() as provider, anthropic_client(provider) as client:
        message = await client.messages.create(**ASKED)
        assert message.content[0].type == "text"
        assert message.content[0].text == TEXT
        assert message.stop_reason == "end_turn"
        assert message._request_id is not None
        with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-ant-x") as synchronous:
            again = await asyncio.to_thread(lambda: synchronous.messages.create(**ASKED))
        assert again == message
        count = await client.messages.count_tokens(model="m", messages=USER)
        assert count.input_tokens == message.usage.input_tokens


async def test_stream() -> None:
    """Thinking, then text; events in the documented order, usage at the end."""
    thinking: Any = {"type": "adaptive"}
    async with Provider() as provider, anthropic_client(provider) as client:
        raw = await client.messages.create(**ASKED, stream=True)
        kinds = [event.type async for event in raw]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        async with client.messages.stream(**ASKED, thinking=thinking) as stream:
            assert "".join([text async for text in stream.text_stream]) == TEXT
            final = await stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text"]
        assert final.usage.output_tokens > 10
        plain = await client.messages.create(**ASKED, thinking=thinking)
        assert [block.model_dump() for block in plain.content] == [
            block.model_dump(exclude={"parsed_output"}) for block in final.content
        ]
        provider.refusal = "I will not."
        refused = await client.messages.create(**ASKED)
        assert refused.stop_reason == "refusal"


async def test_tools() -> None:
    """A call plain and streamed, and the text once its result is in the conversation."""
    async with Provider() as provider, anthropic_client(provider) as client:
        message = await client.messages.create(**ASKED, tools=TOOLS)
        assert message.stop_reason == "tool_use"
        call = message.content[0]
        assert call.type == "tool_use"
        assert call.input == {"city": "value"}
        async with client.messages.stream(**ASKED, tools=TOOLS) as stream:
            final = await stream.get_final_message()
        assert final.content[0] == call
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        conversation: Any = [
            *USER,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        answer = await client.messages.create(**{**ASKED, "messages": conversation}, tools=TOOLS)
        assert answer.content[0].type == "text"


async def test_batches_and_models() -> None:
    """A batch is made, ends, and gives its results; models are listed."""
    async with Provider() as provider, anthropic_client(provider) as client:
        batch = await client.messages.batches.create(
            requests=[{"custom_id": "one", "params": ASKED}, {"custom_id": "two", "params": ASKED}]
        )
        assert batch.processing_status == "in_progress"
        batch = await client.messages.batches.retrieve(batch.id)
        assert (batch.processing_status, batch.request_counts.succeeded) == ("ended", 2)
        results = [item async for item in await client.messages.batches.results(batch.id)]
        assert [item.custom_id for item in results] == ["one", "two"]
        assert {item.result.type for item in results} == {"succeeded"}
        assert [item.id async for item in client.messages.batches.list()] == [batch.id]
        assert (await client.messages.batches.cancel(batch.id)).processing_status == "canceling"
        models = [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(models[0])).id == models[0]


async def test_errors_raise_their_class() -> None:
    """429, 529, an error inside a stream of status 200."""
    async with Provider() as provider, anthropic_client(provider) as client:
        provider.then(faults.rate_limit(), faults.overloaded(), faults.insufficient_quota())
        for status in (429, 529, 429):
            with pytest.raises(anthropic.APIStatusError) as caught:
                await client.messages.create(**ASKED)
            assert caught.value.status_code == status
        provider.then(faults.in_band_error(at=4))
        stream = await client.messages.create(**ASKED, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            [event async for event in stream]
