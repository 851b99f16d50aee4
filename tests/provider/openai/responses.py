"""OpenAI's responses endpoint: the plain object and its full stream of events.

Shapes and order from https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tests.provider.answers import compact, empty_answer, json_answer, sse_answer, sse_event
from tests.provider.attempt import Attempt
from tests.provider.dialects import Endpoint
from tests.provider.openai.headers import openai_headers
from tests.provider.steps import Answer, Event, Role
from tests.provider.world import CREATED, World, count_tokens, sample

THOUGHTS = ("**Answering**", " plainly, as", " asked.")

# What happens within one item of the output: name of the event, role, fields.
Happening = tuple[str, Role, dict[str, Any]]


def responses(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/responses`: plain, streamed, or in the background (remembered as queued)."""
    headers = openai_headers(attempt, world)
    asked = attempt.object
    output = _output(attempt, world)
    whole = _response(attempt, world, "completed", output)
    if asked.get("store", True):
        world.responses[whole["id"]] = whole
    if asked.get("background"):
        return json_answer(200, _response(attempt, world, "queued", []), headers)
    if asked.get("stream"):
        return sse_answer(_events(attempt, world, output), headers, pace=world.pace)
    return json_answer(200, whole, headers)


def stored_response(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """`GET` and `DELETE /v1/responses/{id}`."""
    identifier = endpoint.arguments[0]
    headers = openai_headers(attempt, world)
    if identifier not in world.responses:
        return None
    if attempt.method == "DELETE":
        del world.responses[identifier]
        return empty_answer(204, headers)
    return json_answer(200, world.responses[identifier], headers)


def _response(
    attempt: Attempt, world: World, status: str, output: list[dict[str, Any]]
) -> dict[str, Any]:
    asked = attempt.object
    usage = None
    if status == "completed":
        input_tokens, output_tokens = count_tokens(asked.get("input", "")), count_tokens(output)
        usage = {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + output_tokens,
        }
    return {
        "id": f"resp_{world.digest(attempt, 48)}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": bool(asked.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "model": asked.get("model", ""),
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": asked.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": asked.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
        "metadata": asked.get("metadata") or {},
    }


def _output(attempt: Attempt, world: World) -> list[dict[str, Any]]:
    """The items: reasoning when a summary was asked for, then a function call or a message."""
    asked = attempt.object
    digest = world.digest(attempt, 40)
    items: list[dict[str, Any]] = []
    if (asked.get("reasoning") or {}).get("summary"):
        summary = [{"type": "summary_text", "text": "".join(THOUGHTS)}]
        items.append({"id": f"rs_{digest}", "type": "reasoning", "summary": summary})
    functions = [tool for tool in asked.get("tools") or [] if tool.get("type") == "function"]
    given = asked.get("input")
    results = [
        item
        for item in (given if isinstance(given, list) else [])
        if item.get("type") == "function_call_output"
    ]
    if functions and not results and asked.get("tool_choice") != "none":
        call = {
            "id": f"fc_{digest}",
            "type": "function_call",
            "status": "completed",
            "arguments": compact(sample(functions[0].get("parameters"))).decode(),
            "call_id": f"call_{digest[:24]}",
            "name": functions[0]["name"],
        }
        return [*items, call]
    message = {
        "id": f"msg_{digest}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [_content(attempt, world)],
    }
    return [*items, message]


def _content(attempt: Attempt, world: World) -> dict[str, Any]:
    if world.refusal is not None:
        return {"type": "refusal", "refusal": world.refusal}
    wanted = (attempt.object.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_schema":
        text = compact(sample(wanted.get("schema"))).decode()
        attempt.text = text
    else:
        text = world.answer_text(attempt, str(attempt.object.get("model", "")))
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _events(attempt: Attempt, world: World, output: list[dict[str, Any]]) -> Iterator[Event]:
    number = itertools.count()

    def event(name: str, role: Role, /, **fields: Any) -> Event:
        value = {"type": name, "sequence_number": next(number), **fields}
        return sse_event(value, name, role)

    began = _response(attempt, world, "in_progress", [])
    yield event("response.created", "prelude", response=began)
    yield event("response.in_progress", "prelude", response=began)
    for index, item in enumerate(output):
        opening = {key: value for key, value in item.items() if key != "status"}
        for emptied in ("content", "summary"):
            if emptied in opening:
                opening[emptied] = []
        if "arguments" in opening:
            opening["arguments"] = ""
        opening["status"] = "in_progress"
        yield event("response.output_item.added", "prelude", output_index=index, item=opening)
        for name, role, fields in _happenings(item, world):
            yield event(name, role, item_id=item["id"], output_index=index, **fields)
        yield event("response.output_item.done", "closing", output_index=index, item=item)
    whole = _response(attempt, world, "completed", output)
    yield event("response.completed", "terminal", response=whole)


def _happenings(item: dict[str, Any], world: World) -> Iterator[Happening]:
    match item["type"]:
        case "reasoning":
            yield from _summary(item["summary"][0])
        case "function_call":
            arguments = item["arguments"]
            for start in range(0, len(arguments), 6):
                delta = {"delta": arguments[start : start + 6]}
                yield "response.function_call_arguments.delta", "token", delta
            done = {"arguments": arguments, "name": item["name"]}
            yield "response.function_call_arguments.done", "closing", done
        case _:
            yield from _message(item["content"][0], world)


def _summary(part: dict[str, Any]) -> Iterator[Happening]:
    name, where = "response.reasoning_summary", {"summary_index": 0}
    empty = {**part, "text": ""}
    yield f"{name}_part.added", "prelude", {**where, "part": empty}
    for thought in THOUGHTS:
        yield f"{name}_text.delta", "token", {**where, "delta": thought}
    yield f"{name}_text.done", "closing", {**where, "text": part["text"]}
    yield f"{name}_part.done", "closing", {**where, "part": part}


def _message(part: dict[str, Any], world: World) -> Iterator[Happening]:
    where: dict[str, Any] = {"content_index": 0}
    if part["type"] == "refusal":
        refusal = part["refusal"]
        empty = {**part, "refusal": ""}
        yield "response.content_part.added", "prelude", {**where, "part": empty}
        yield "response.refusal.delta", "token", {**where, "delta": refusal}
        yield "response.refusal.done", "closing", {**where, "refusal": refusal}
    else:
        name, plain = "response.output_text", {**where, "logprobs": []}
        yield "response.content_part.added", "prelude", {**where, "part": {**part, "text": ""}}
        for word in world.words_of(part["text"]):
            yield f"{name}.delta", "token", {**plain, "delta": word}
        yield f"{name}.done", "closing", {**plain, "text": part["text"]}
    yield "response.content_part.done", "closing", {**where, "part": part}
