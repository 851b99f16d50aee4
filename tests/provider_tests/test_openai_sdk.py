"""The official OpenAI client understands every healthy answer, and meets errors as errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pydantic
import pytest

from tests.provider import Provider, faults

TEXT = "The wall answers every call with the same few plain words."
USER: Any = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}


@asynccontextmanager
async def openai_client(provider: Provider) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = f"{provider.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-x", max_retries=0) as client:
        yield client


async def test_chat() -> None:
    """Plain: text, usage, choices, headers; and the same from the synchronous client."""
    async with Provider() as provider, openai_client(provider) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=USER, n=2
        )
        answer = raw.parse()
        assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 22
        assert raw.request_id is not None
        assert len(raw.headers.get_list("set-cookie")) == 2
        with openai.OpenAI(base_url=f"{provider.base_url}/v1", api_key="sk-x") as synchronous:
            again = await asyncio.to_thread(
                synchronous.chat.completions.create, model="gpt-4o", messages=USER, n=2
            )
        assert again == answer


async def test_chat_stream() -> None:
    """Role first, words, finish reason, usage when asked for."""
    async with Provider() as provider, openai_client(provider) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == TEXT
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert provider.attempts[0].finished.is_set()


async def test_chat_tools_and_structure() -> None:
    """Tool calls plain and streamed, the text once the result is there, JSON by schema, refusal."""

    class Verdict(pydantic.BaseModel):
        answer: str
        sure: bool

    tools: Any = [{"type": "function", "function": {**TOOL, "strict": True}}]
    async with Provider() as provider, openai_client(provider) as client:
        answer = await client.chat.completions.create(model="m", messages=USER, tools=tools)
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "value", "days": 1}
        async with client.chat.completions.stream(model="m", messages=USER, tools=tools) as stream:
            final = await stream.get_final_completion()
        (streamed,) = final.choices[0].message.tool_calls or []
        assert streamed.function.arguments == call.function.arguments
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        asked = [*USER, answer.choices[0].message, result]
        answer = await client.chat.completions.create(model="m", messages=asked, tools=tools)
        assert answer.choices[0].message.content == TEXT
        parsed = await client.chat.completions.parse(
            model="m", messages=USER, response_format=Verdict
        )
        assert parsed.choices[0].message.parsed == Verdict(answer="value", sure=True)
        provider.refusal = "I will not."
        answer = await client.chat.completions.create(model="m", messages=USER)
        assert answer.choices[0].message.refusal == "I will not."


async def test_legacy_completions() -> None:
    """Plain and streamed."""
    async with Provider() as provider, openai_client(provider) as client:
        answer = await client.completions.create(model="m", prompt="Hello")
        assert answer.choices[0].text == TEXT
        stream = await client.completions.create(model="m", prompt="Hello", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_responses() -> None:
    """Plain; the whole stream of events in order; tools; refusal; stored objects."""
    async with Provider() as provider, openai_client(provider) as client:
        answer = await client.responses.create(model="m", input="Hello")
        assert answer.output_text == TEXT
        async with client.responses.stream(
            model="m", input="Hello", reasoning={"summary": "auto"}
        ) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        kinds = [event.type for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        assert "response.reasoning_summary_text.delta" in kinds
        numbers = [event.sequence_number for event in events]
        assert numbers == list(range(len(events)))
        assert final.output_text == TEXT
        tools: Any = [{"type": "function", **TOOL}]
        async with client.responses.stream(model="m", input="Hello", tools=tools) as stream:
            final = await stream.get_final_response()
        assert final.output[0].type == "function_call"
        assert json.loads(final.output[0].arguments) == {"city": "value", "days": 1}
        queued = await client.responses.create(model="m", input="Later", background=True)
        assert queued.status == "queued"
        assert (await client.responses.retrieve(queued.id)).status == "completed"
        await client.responses.delete(queued.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(queued.id)
        provider.refusal = "I will not."
        refused = await client.responses.create(model="m", input="Hello", stream=True)
        assert "response.refusal.delta" in [event.type async for event in refused]


async def test_embeddings() -> None:
    """Base64 (the client's own choice) and floats are the same numbers."""
    async with Provider() as provider, openai_client(provider) as client:
        packed = await client.embeddings.create(model="m", input=["a", "b"], dimensions=5)
        plain = await client.embeddings.create(
            model="m", input=["a", "b"], dimensions=5, encoding_format="float"
        )
        assert packed == plain
        assert [len(item.embedding) for item in plain.data] == [5, 5]
        assert plain.data[0].embedding != plain.data[1].embedding
        assert provider.attempts[0].json["encoding_format"] == "base64"


async def test_audio() -> None:
    """Speech as bytes, transcription of an upload, its stream, its text form."""
    async with Provider() as provider, openai_client(provider) as client:
        speech = await client.audio.speech.create(model="tts-1", voice="alloy", input="Hello you")
        assert speech.content.startswith(b"\xff\xfb")
        assert speech.response.headers["content-type"] == "audio/mpeg"
        sound = ("hello.mp3", speech.content)
        heard = await client.audio.transcriptions.create(model="whisper-1", file=sound)
        assert heard.text == TEXT
        upload = next(part for part in provider.attempts[1].form if part.name == "file")
        assert (upload.filename, upload.data) == ("hello.mp3", speech.content)
        text = await client.audio.transcriptions.create(
            model="whisper-1", file=sound, response_format="text"
        )
        assert text.strip() == TEXT
        verbose = await client.audio.transcriptions.create(
            model="whisper-1", file=sound, response_format="verbose_json"
        )
        assert verbose.duration == 3.0
        stream = await client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=sound, stream=True
        )
        events = [event async for event in stream]
        assert events[-1].type == "transcript.text.done"


async def test_images_and_moderations() -> None:
    """Generation plain and streamed, an edit by upload, a moderation."""
    async with Provider() as provider, openai_client(provider) as client:
        made = await client.images.generate(model="gpt-image-1", prompt="A wall", n=2)
        assert made.data is not None
        assert len(made.data) == 2
        assert made.data[0].b64_json is not None
        stream = await client.images.generate(model="m", prompt="A wall", stream=True)
        kinds = [event.type async for event in stream]
        assert kinds == ["image_generation.partial_image", "image_generation.completed"]
        edited = await client.images.edit(
            model="gpt-image-1", prompt="Taller", image=("a.png", b"png")
        )
        assert edited.usage is not None
        verdict = await client.moderations.create(input=["a", "b"])
        assert [result.flagged for result in verdict.results] == [False, False]


async def test_stored_objects_and_models() -> None:
    """Files live in the provider's memory; batches complete; models are listed."""
    async with Provider() as provider, openai_client(provider) as client:
        file = await client.files.create(file=("in.jsonl", b'{"a": 1}\n'), purpose="batch")
        assert (file.filename, file.bytes, file.purpose) == ("in.jsonl", 9, "batch")
        assert [item.id async for item in client.files.list()] == [file.id]
        assert (await client.files.content(file.id)).content == b'{"a": 1}\n'
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert batch.status == "validating"
        assert (await client.batches.retrieve(batch.id)).status == "completed"
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
        models = [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(models[0])).id == models[0]


async def test_realtime() -> None:
    """The session of the official client: created, asked, answered, closed."""
    pytest.importorskip("websockets")
    async with Provider() as provider, openai_client(provider) as client:
        async with client.realtime.connect(model="gpt-realtime") as session:
            assert (await session.recv()).type == "session.created"
            await session.session.update(session={"type": "realtime", "instructions": "Plain."})
            assert (await session.recv()).type == "session.updated"
            await session.response.create()
            words, kind = [], ""
            while kind != "response.done":
                event = await session.recv()
                kind = event.type
                if event.type == "response.output_text.delta":
                    words.append(event.delta)
        assert "".join(words) == TEXT
        attempt = provider.attempts[0]
        assert attempt.query_parameters["model"] == ["gpt-realtime"]
        assert [json.loads(message)["type"] for message in attempt.messages] == [
            "session.update",
            "response.create",
        ]


async def test_errors_raise_their_class() -> None:
    """The errors of the wall are the client's own exceptions; a cut stream is one, too."""
    async with Provider() as provider, openai_client(provider) as client:
        provider.then(faults.rate_limit(), faults.authentication_failed(), faults.billing())
        provider.then(faults.context_length_exceeded(), faults.overloaded())
        for kind in (
            openai.RateLimitError,
            openai.AuthenticationError,
            openai.RateLimitError,
            openai.BadRequestError,
            openai.InternalServerError,
        ):
            with pytest.raises(kind):
                await client.chat.completions.create(model="m", messages=USER)
        provider.then(faults.cut_after(events=3), faults.in_band_error(at=3))
        for failure in (openai.APIConnectionError, openai.APIError):
            stream = await client.chat.completions.create(model="m", messages=USER, stream=True)
            with pytest.raises(failure):
                [chunk async for chunk in stream]
