"""What the demo's models say, in the words of two APIs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

#: What every model of the demo says.
ANSWER: Final = "A steady hand on the tiller keeps the ship on course when the wind turns."

_CREATED: Final = 1_767_225_600
_TOKENS: Final = (9, 17)


def plain(dialect: str, model: str) -> dict[str, Any]:
    """The whole answer as one document."""
    return _message(model) if dialect == "anthropic" else _completion(model)


def beginning(dialect: str, model: str, words: Sequence[str]) -> Iterator[bytes]:
    """The events of a stream up to these words; without words, only its prelude."""
    texts = [word if index == 0 else f" {word}" for index, word in enumerate(words)]
    if dialect == "anthropic":
        message = _message(model) | {"content": [], "stop_reason": None}
        yield named("message_start", message=message)
        yield named("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for text in texts:
            yield named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    else:
        yield _chunk(model, {"role": "assistant", "content": ""})
        for text in texts:
            yield _chunk(model, {"content": text})


def ending(dialect: str, model: str) -> Iterator[bytes]:
    """The events that end a stream, the terminal marker last."""
    if dialect == "anthropic":
        yield named("content_block_stop", index=0)
        usage = {"output_tokens": _TOKENS[1]}
        yield named("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        yield named("message_stop")
    else:
        yield _chunk(model, {}, "stop")
        yield b"data: [DONE]\n\n"


def error(dialect: str, code: str, message: str) -> dict[str, Any]:
    """An error's document."""
    if dialect == "anthropic":
        return {"type": "error", "error": {"type": code, "message": message}}
    return {"error": {"message": message, "type": code, "param": None, "code": code}}


def named(kind: str, **members: Any) -> bytes:
    """One of Anthropic's events."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def _completion(model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": ANSWER}
    prompt, completion = _TOKENS
    return {
        "id": "chatcmpl-demo",
        "object": "chat.completion",
        "created": _CREATED,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _chunk(model: str, delta: dict[str, str], finish: str | None = None) -> bytes:
    document = {
        "id": "chatcmpl-demo",
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _message(model: str) -> dict[str, Any]:
    prompt, completion = _TOKENS
    return {
        "id": "msg_demo",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": prompt, "output_tokens": completion},
    }
