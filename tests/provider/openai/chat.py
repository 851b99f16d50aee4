"""OpenAI chat completions and legacy completions.

Shapes from https://platform.openai.com/docs/api-reference/chat and the types of openai-python.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.provider.answers import compact, json_answer, sse_answer, sse_event
from tests.provider.attempt import Attempt
from tests.provider.openai.headers import openai_headers
from tests.provider.steps import Answer, Event, Role
from tests.provider.world import CREATED, World, count_tokens, sample

DONE = sse_event("[DONE]", role="terminal")
FINGERPRINT = "fp_44709d6fcb"


def chat_completions(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/chat/completions`, plain or streamed."""
    headers = openai_headers(attempt, world)
    if attempt.object.get("stream"):
        return sse_answer(_chat_events(attempt, world), headers, pace=world.pace)
    return json_answer(200, _chat_completion(attempt, world), headers)


def usage(asked: dict[str, Any], completion_tokens: int) -> dict[str, Any]:
    """Token counts in the shape of chat completions."""
    prompt_tokens = count_tokens(asked.get("messages", asked.get("prompt", "")))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tool_call(attempt: Attempt, world: World) -> dict[str, Any] | None:
    """The call of the first function given, unless its result is already in the conversation."""
    asked = attempt.object
    messages = asked.get("messages") or []
    answered = any(isinstance(item, dict) and item.get("role") == "tool" for item in messages)
    functions = [tool["function"] for tool in asked.get("tools") or [] if "function" in tool]
    if not functions or answered or asked.get("tool_choice") == "none":
        return None
    arguments = compact(sample(functions[0].get("parameters"))).decode()
    return {
        "id": f"call_{world.digest(attempt)}",
        "type": "function",
        "function": {"name": functions[0]["name"], "arguments": arguments},
    }


def _structured(asked: dict[str, Any]) -> str | None:
    """JSON text when the request asks for JSON."""
    wanted = asked.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return compact(sample(wanted["json_schema"].get("schema"))).decode()
    return '{"answer":"plain"}' if wanted.get("type") == "json_object" else None


def _words(attempt: Attempt, world: World) -> list[str]:
    structured = _structured(attempt.object)
    if structured is not None:
        attempt.text = structured
        return [structured[index : index + 8] for index in range(0, len(structured), 8)]
    model = str(attempt.object.get("model", ""))
    world.answer_text(attempt, model)
    return world.words(model)


def _chat_completion(attempt: Attempt, world: World) -> dict[str, Any]:
    asked = attempt.object
    call = _tool_call(attempt, world)
    words = _words(attempt, world)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(words) if call is None and world.refusal is None else None,
        "refusal": world.refusal,
        "annotations": [],
    }
    if call is not None:
        message["tool_calls"] = [call]
    count = int(asked.get("n") or 1)
    finish = "stop" if call is None else "tool_calls"
    return {
        "id": f"chatcmpl-{world.digest(attempt)}",
        "object": "chat.completion",
        "created": CREATED,
        "model": asked.get("model", ""),
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
            for index in range(count)
        ],
        "usage": usage(asked, len(words) * count),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def _chat_events(attempt: Attempt, world: World) -> Iterator[Event]:
    asked = attempt.object
    count = int(asked.get("n") or 1)
    include_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
    call = _tool_call(attempt, world)
    words = _words(attempt, world)

    def chunk(choices: list[dict[str, Any]], role: Role, total: Any = None) -> Event:
        value = {
            "id": f"chatcmpl-{world.digest(attempt)}",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": asked.get("model", ""),
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }
        if include_usage:
            value["usage"] = total
        return sse_event(value, role=role)

    def delta(index: int, delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]

    for index in range(count):
        opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if call is not None:
            opening["content"] = None
        yield chunk(delta(index, opening), "prelude")
    for piece in _deltas(call, words, world.refusal):
        for index in range(count):
            yield chunk(delta(index, piece), "token")
    for index in range(count):
        yield chunk(delta(index, {}, "stop" if call is None else "tool_calls"), "closing")
    if include_usage:
        yield chunk([], "closing", usage(asked, len(words) * count))
    yield DONE


def _deltas(
    call: dict[str, Any] | None, words: list[str], refusal: str | None
) -> Iterator[dict[str, Any]]:
    if refusal is not None:
        yield {"refusal": refusal}
    elif call is None:
        for word in words:
            yield {"content": word}
    else:
        function = call["function"]
        opening = {**call, "index": 0, "function": {"name": function["name"], "arguments": ""}}
        yield {"tool_calls": [opening]}
        arguments = function["arguments"]
        for start in range(0, len(arguments), 6):
            piece = {"arguments": arguments[start : start + 6]}
            yield {"tool_calls": [{"index": 0, "function": piece}]}


def completions(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/completions`: the legacy endpoint, still used with compatible servers."""
    asked = attempt.object
    headers = openai_headers(attempt, world)
    words = _words(attempt, world)
    shared = {
        "id": f"cmpl-{world.digest(attempt)}",
        "object": "text_completion",
        "created": CREATED,
        "model": asked.get("model", ""),
    }

    def choice(text: str, finish: str | None) -> list[dict[str, Any]]:
        return [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish}]

    if not asked.get("stream"):
        whole = {**shared, "choices": choice("".join(words), "stop")}
        return json_answer(200, {**whole, "usage": usage(asked, len(words))}, headers)
    include_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
    uncounted = {"usage": None} if include_usage else {}
    events = [sse_event({**shared, "choices": choice(word, None), **uncounted}) for word in words]
    last = {**shared, "choices": choice("", "stop"), **uncounted}
    events.append(sse_event(last, role="closing"))
    if include_usage:
        total = {**shared, "choices": [], "usage": usage(asked, len(words))}
        events.append(sse_event(total, role="closing"))
    return sse_answer([*events, DONE], headers, pace=world.pace)
