"""Streams as the providers send them, for the readers' tests."""

from __future__ import annotations

from typing import Any

import orjson

from steer_policies.dialects.base import StreamReader


def data(value: Any) -> bytes:
    """An event without a name."""
    return b"data: " + (value if isinstance(value, bytes) else orjson.dumps(value)) + b"\n\n"


def named(name: str, value: Any) -> bytes:
    """An event with a name."""
    return f"event: {name}\n".encode() + data(value)


def typed(kind: str, **members: Any) -> bytes:
    """An event named after its type."""
    return named(kind, {"type": kind, **members})


def chunk(
    delta: dict[str, Any] | None = None,
    finish: str | None = None,
    *,
    index: int = 0,
    **members: Any,
) -> bytes:
    """A chunk of a chat completion."""
    choices = [{"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}]
    envelope = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
    return data({**envelope, "choices": choices, **members})


DONE = data(b"[DONE]")

CHAT = [
    chunk({"role": "assistant", "content": "", "refusal": None}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    data({"id": "chatcmpl-1", "model": "gpt", "choices": [], "usage": {"prompt_tokens": 3}}),
    DONE,
]

MESSAGE = [
    typed(
        "message_start",
        message={
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "output_tokens": 1},
        },
    ),
    typed("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    typed("ping"),
    typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hel"}),
    typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "lo"}),
    typed("content_block_stop", index=0),
    typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
    typed("message_stop"),
]

RESPONSE = [
    typed("response.created", response={"id": "resp_1", "model": "gpt", "status": "in_progress"}),
    typed("response.in_progress", response={"id": "resp_1"}),
    typed("response.output_item.added", item={"type": "message"}),
    typed("response.content_part.added", part={"type": "output_text"}),
    typed("response.output_text.delta", delta="Hello"),
    typed("response.output_text.delta", delta=" there"),
    typed("response.output_text.done", text="Hello there"),
    typed(
        "response.completed",
        response={"id": "resp_1", "model": "gpt", "usage": {"input_tokens": 3, "output_tokens": 2}},
    ),
]


def candidate(text: str | None = None, finish: str | None = None, **members: Any) -> dict[str, Any]:
    """A `GenerateContentResponse`."""
    said: dict[str, Any] = {"index": 0}
    if text is not None:
        said["content"] = {"parts": [{"text": text}], "role": "model"}
    if finish is not None:
        said["finishReason"] = finish
    usage = {"promptTokenCount": 4, "candidatesTokenCount": len(text or "")}
    return {"candidates": [said], "usageMetadata": usage, "modelVersion": "gemini", **members}


GEMINI = [
    b"data: " + orjson.dumps(value) + b"\r\n\r\n"
    for value in (candidate("Hel"), candidate("lo "), candidate("there", "STOP"))
]

GEMINI_ARRAY = [
    b"[" + orjson.dumps(candidate("Hel"), option=orjson.OPT_INDENT_2) + b"\n",
    b",\r\n" + orjson.dumps(candidate("lo "), option=orjson.OPT_INDENT_2) + b"\n",
    b",\r\n" + orjson.dumps(candidate("there", "STOP"), option=orjson.OPT_INDENT_2) + b"\n",
    b"]\n",
]


def read(reader: StreamReader | None, *chunks: bytes) -> StreamReader:
    """The reader after these chunks, which it must have passed on unchanged."""
    assert reader is not None
    for piece in chunks:
        assert reader.feed(piece) == piece
    return reader
