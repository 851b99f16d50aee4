"""Gemini's endpoints, healthy.

Shapes from https://ai.google.dev/api/generate-content and .../api/embeddings, and the converters of
google-genai. JSON is camelCase and indented by two spaces.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from tests.provider.answers import json_answer, sse_event, stream_answer
from tests.provider.attempt import Attempt
from tests.provider.dialects import Endpoint, is_json_array
from tests.provider.steps import Answer, Event, Headers, Role
from tests.provider.world import World, count_tokens, sample

DIMENSIONS = 8
MODELS = ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-embedding-001")


def gemini_headers(attempt: Attempt, world: World) -> Headers:
    """Every header of a healthy answer but those about its body."""
    return (
        ("Date", world.http_date()),
        ("Vary", "Origin"),
        ("Vary", "X-Origin"),
        ("Vary", "Referer"),
        ("Server", "scaffolding on HTTPServer2"),
        ("X-XSS-Protection", "0"),
        ("X-Frame-Options", "SAMEORIGIN"),
        ("X-Content-Type-Options", "nosniff"),
        ("Server-Timing", "gfet4t7; dur=431"),
        ("Alt-Svc", 'h3=":443"; ma=2592000,h3-29=":443"; ma=2592000'),
    )


def gemini_answer(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """The healthy answer, or None when there is nothing at this path or no such method."""
    headers = gemini_headers(attempt, world)
    if endpoint.name != "model_action":
        if not attempt.reads:
            return None
        if endpoint.name == "models":
            return json_answer(200, {"models": [_model(name) for name in MODELS]}, headers)
        return json_answer(200, _model(endpoint.arguments[0]), headers)
    if attempt.method != "POST":
        return None
    model, action = endpoint.arguments
    name = model.partition("/")[2]
    asked = attempt.object
    match action:
        case "generateContent":
            return json_answer(200, _whole(attempt, name, world), headers)
        case "streamGenerateContent":
            return _stream(attempt, name, world, headers)
        case "countTokens":
            prompt = asked.get("contents") or asked.get("generateContentRequest")
            total = count_tokens(prompt)
            details = [{"modality": "TEXT", "tokenCount": total}]
            return json_answer(200, {"totalTokens": total, "promptTokensDetails": details}, headers)
        case "embedContent":
            return json_answer(200, {"embedding": _embedding(asked)}, headers)
        case "batchEmbedContents":
            vectors = [_embedding(request) for request in asked.get("requests", [])]
            return json_answer(200, {"embeddings": vectors}, headers)
        case _:
            return None


def _whole(attempt: Attempt, model: str, world: World) -> dict[str, Any]:
    parts = _parts(attempt, model, world)
    text = "".join(part["text"] for part in parts if "text" in part)
    whole = [{"text": text}] if text else parts
    return _chunk(attempt, model, world, whole, tokens=len(parts), finish=_finish(world))


def _finish(world: World) -> str:
    return "STOP" if world.refusal is None else "SAFETY"


def _parts(attempt: Attempt, model: str, world: World) -> list[dict[str, Any]]:
    """The pieces of the answer, as a stream would bring them."""
    asked = attempt.object
    functions = [
        function
        for tool in asked.get("tools") or []
        for function in tool.get("functionDeclarations") or tool.get("function_declarations") or []
    ]
    contents = asked.get("contents") or []
    answered = any(
        "functionResponse" in part for item in contents for part in item.get("parts") or []
    )
    if functions and not answered:
        schema = functions[0].get("parameters") or functions[0].get("parametersJsonSchema")
        call = {"name": functions[0]["name"], "args": sample(schema) if schema else {}}
        return [{"functionCall": call}]
    world.answer_text(attempt, model)
    words = [world.refusal] if world.refusal else world.words(model)
    return [{"text": word} for word in words]


def _chunk(
    attempt: Attempt,
    model: str,
    world: World,
    parts: list[dict[str, Any]],
    *,
    tokens: int,
    finish: str | None = None,
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    candidate["index"] = 0
    prompt_tokens = count_tokens(attempt.object.get("contents", []))
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": prompt_tokens,
            "candidatesTokenCount": tokens,
            "totalTokenCount": prompt_tokens + tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt_tokens}],
        },
        "modelVersion": model,
        "responseId": world.digest(attempt, 22),
    }


def _stream(attempt: Attempt, model: str, world: World, headers: Headers) -> Answer:
    """Server-sent events with `alt=sse`; without it one JSON array, sent element by element."""
    chunks = list(_chunks(attempt, model, world))
    if not is_json_array(attempt):
        events = [_crlf(sse_event(value, role=role)) for value, role in chunks]
        return stream_answer(events, headers, content_type="text/event-stream", pace=world.pace)
    pieces = []
    for index, (value, role) in enumerate(chunks):
        plain = json_answer(200, value).body.rstrip()
        pieces.append(Event((b"[" if index == 0 else b",\r\n") + plain, role))
    pieces.append(Event(b"]\r\n", "terminal"))
    return stream_answer(
        pieces, headers, content_type="application/json; charset=UTF-8", pace=world.pace
    )


def _chunks(attempt: Attempt, model: str, world: World) -> Iterator[tuple[dict[str, Any], Role]]:
    """Every piece, the last one carrying the finish reason: Gemini has no other end."""
    parts = _parts(attempt, model, world)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        finish = _finish(world) if last else None
        value = _chunk(attempt, model, world, [part], tokens=index + 1, finish=finish)
        yield value, "terminal" if last else "token"


def _crlf(event: Event) -> Event:
    """Gemini ends the lines of its events with CR LF."""
    return Event(event.data.replace(b"\n", b"\r\n"), event.role)


def _embedding(asked: dict[str, Any]) -> dict[str, Any]:
    text = str(asked.get("content", ""))
    seed = base64.b64encode(text.encode())
    return {"values": [((len(seed) * (index + 3)) % 17 - 8) / 8 for index in range(DIMENSIONS)]}


def _model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name.replace("-", " ").title(),
        "description": "A model of the wall",
        "inputTokenLimit": 1048576,
        "outputTokenLimit": 65536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }
