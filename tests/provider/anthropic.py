"""Anthropic's endpoints, healthy.

Shapes from https://docs.anthropic.com/en/api/messages, .../messages-streaming and the types of
anthropic-python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from tests.provider.answers import compact, json_answer, sse_answer, sse_event
from tests.provider.attempt import Attempt
from tests.provider.dialects import Endpoint
from tests.provider.steps import Answer, Event, Headers, Role
from tests.provider.world import World, count_tokens, sample

SIGNATURE = "EqQBCkYIARgCKkB0aGUgd2FsbCBzaWduZWQgdGhpcw=="
THOUGHTS = ("The caller wants", " a plain answer,", " so give one.")


def anthropic_headers(attempt: Attempt, world: World) -> Headers:
    """Every header of a healthy answer but those about its body."""
    digest = world.digest(attempt, 24)
    reset = (world.now() + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    limits: list[tuple[str, str]] = []
    for kind, limit in (
        ("requests", 4000),
        ("tokens", 480000),
        ("input-tokens", 400000),
        ("output-tokens", 80000),
    ):
        name = f"anthropic-ratelimit-{kind}"
        limits.append((f"{name}-limit", str(limit)))
        limits.append((f"{name}-remaining", str(limit - 1)))
        limits.append((f"{name}-reset", reset))
    return (
        ("Date", world.http_date()),
        *limits,
        ("request-id", f"req_011{digest}"),
        ("anthropic-organization-id", f"{world.name}-organization"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
        ("via", "1.1 google"),
        ("Set-Cookie", f"_cfuvid={digest}; HttpOnly; SameSite=None; Secure; Path=/"),
        ("Set-Cookie", f"__cf_bm={digest[::-1]}; HttpOnly; Secure; Path=/"),
        ("X-Robots-Tag", "none"),
        ("cf-cache-status", "DYNAMIC"),
        ("Server", "cloudflare"),
        ("CF-RAY", f"{digest[:16]}-FRA"),
    )


def messages(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/messages`, plain or streamed."""
    headers = anthropic_headers(attempt, world)
    if attempt.object.get("stream"):
        return sse_answer(_events(attempt, world), headers, pace=world.pace)
    return json_answer(200, message(attempt.object, attempt, world), headers)


def _content(asked: dict[str, Any], attempt: Attempt, world: World) -> list[dict[str, Any]]:
    """The blocks of the answer: thinking when asked for, then a tool call or the text."""
    blocks: list[dict[str, Any]] = []
    if (asked.get("thinking") or {}).get("type") in ("enabled", "adaptive"):
        thinking = "".join(THOUGHTS)
        blocks.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
    tools = [tool for tool in asked.get("tools") or [] if "input_schema" in tool]
    if tools and not _has_result(asked) and asked.get("tool_choice") != {"type": "none"}:
        call = {
            "type": "tool_use",
            "id": f"toolu_01{world.digest(attempt)}",
            "name": tools[0]["name"],
            "input": sample(tools[0]["input_schema"]),
        }
        return [*blocks, call]
    text = world.refusal or world.answer_text(attempt, str(asked.get("model", "")))
    return [*blocks, {"type": "text", "text": text}]


def _has_result(asked: dict[str, Any]) -> bool:
    contents = [item.get("content") for item in asked.get("messages") or []]
    return any(
        isinstance(block, dict) and block.get("type") == "tool_result"
        for content in contents
        if isinstance(content, list)
        for block in content
    )


def _stop_reason(content: list[dict[str, Any]], world: World) -> str:
    if world.refusal is not None:
        return "refusal"
    return "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"


def message(asked: dict[str, Any], attempt: Attempt, world: World) -> dict[str, Any]:
    """A whole message."""
    content = _content(asked, attempt, world)
    envelope = _envelope(asked, attempt, world)
    envelope["usage"]["output_tokens"] = count_tokens(content)
    return {**envelope, "content": content, "stop_reason": _stop_reason(content, world)}


def _envelope(asked: dict[str, Any], attempt: Attempt, world: World) -> dict[str, Any]:
    return {
        "model": asked.get("model", ""),
        "id": f"msg_01{world.digest(attempt, 22)}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": count_tokens([asked.get("system", ""), asked.get("messages", [])]),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 1,
            "service_tier": "standard",
        },
    }


def _events(attempt: Attempt, world: World) -> Iterator[Event]:
    asked = attempt.object
    content = _content(asked, attempt, world)
    envelope = _envelope(asked, attempt, world)

    def event(kind: str, role: Role, **fields: Any) -> Event:
        return sse_event({"type": kind, **fields}, kind, role)

    yield event("message_start", "prelude", message=envelope)
    for index, block in enumerate(content):
        opening, deltas = _block(block, world)
        yield event("content_block_start", "prelude", index=index, content_block=opening)
        if index == 0:
            yield event("ping", "prelude")
        for delta in deltas:
            yield event("content_block_delta", "token", index=index, delta=delta)
        yield event("content_block_stop", "closing", index=index)
    delta = {"stop_reason": _stop_reason(content, world), "stop_sequence": None}
    usage = {
        "input_tokens": envelope["usage"]["input_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": count_tokens(content),
    }
    yield event("message_delta", "closing", delta=delta, usage=usage)
    yield event("message_stop", "terminal")


def _block(block: dict[str, Any], world: World) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it opens, and the deltas that fill it."""
    if block["type"] == "thinking":
        thoughts = [{"type": "thinking_delta", "thinking": thought} for thought in THOUGHTS]
        signature = {"type": "signature_delta", "signature": SIGNATURE}
        return {**block, "thinking": "", "signature": ""}, [*thoughts, signature]
    if block["type"] == "tool_use":
        text = compact(block["input"]).decode()
        pieces = ["", *(text[start : start + 6] for start in range(0, len(text), 6))]
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        return {**block, "input": {}}, deltas
    words = [world.refusal] if world.refusal else world.words_of(block["text"])
    return {**block, "text": ""}, [{"type": "text_delta", "text": word} for word in words]


def count(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/messages/count_tokens`."""
    total = count_tokens([attempt.object.get("system", ""), attempt.object.get("messages", [])])
    return json_answer(200, {"input_tokens": total}, anthropic_headers(attempt, world))


MODELS = ("claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5")


def _model(name: str) -> dict[str, Any]:
    words = name.replace("-", " ").title()
    created = "2026-01-05T00:00:00Z"
    return {
        "type": "model",
        "id": name,
        "display_name": words,
        "created_at": created,
        "lifecycle": "active",
    }


def models(attempt: Attempt, world: World) -> Answer:
    """`GET /v1/models`."""
    listed = {
        "data": [_model(name) for name in MODELS],
        "has_more": False,
        "first_id": MODELS[0],
        "last_id": MODELS[-1],
    }
    return json_answer(200, listed, anthropic_headers(attempt, world))


def _batch(identifier: str, asked: dict[str, Any], base: str, *, ended: bool) -> dict[str, Any]:
    total = len(asked.get("requests", []))
    return {
        "id": identifier,
        "type": "message_batch",
        "processing_status": "ended" if ended else "in_progress",
        "request_counts": {
            "processing": 0 if ended else total,
            "succeeded": total if ended else 0,
            "errored": 0,
            "canceled": 0,
            "expired": 0,
        },
        "ended_at": "2026-01-05T12:05:00Z" if ended else None,
        "created_at": "2026-01-05T12:00:00Z",
        "expires_at": "2026-01-06T12:00:00Z",
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": f"{base}/v1/messages/batches/{identifier}/results" if ended else None,
    }


def create_batch(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/messages/batches`: in progress now, ended whenever it is looked at."""
    identifier = f"msgbatch_01{world.digest(attempt)}"
    world.batches[identifier] = attempt.object
    created = _batch(identifier, attempt.object, _base(attempt), ended=False)
    return json_answer(200, created, anthropic_headers(attempt, world))


def _base(attempt: Attempt) -> str:
    """Where the caller reached us: a batch names the address of its results."""
    return f"http://{attempt.header('host', 'localhost')}"


def _with_batch(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    asked = world.batches.get(endpoint.arguments[0])
    if asked is None:
        return None
    headers = anthropic_headers(attempt, world)
    if endpoint.name == "message_batch":
        batch = _batch(endpoint.arguments[0], asked, _base(attempt), ended=True)
        return json_answer(200, batch, headers)
    lines = []
    for request in asked["requests"]:
        result = {"type": "succeeded", "message": message(request["params"], attempt, world)}
        lines.append(Event(compact({"custom_id": request["custom_id"], "result": result}) + b"\n"))
    return sse_answer(lines, headers).with_content_type("application/x-jsonl")


_BUILDERS: dict[tuple[str, str], Callable[[Attempt, World], Answer]] = {
    ("POST", "messages"): messages,
    ("POST", "count_tokens"): count,
    ("POST", "message_batches"): create_batch,
    ("GET", "models"): models,
}


def anthropic_answer(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """The healthy answer, or None when there is nothing at this path or no such method."""
    if attempt.reads and endpoint.name in ("message_batch", "message_batch_results"):
        return _with_batch(attempt, endpoint, world)
    if attempt.reads and endpoint.name == "model":
        headers = anthropic_headers(attempt, world)
        return json_answer(200, _model(endpoint.arguments[0]), headers)
    method = "GET" if attempt.reads else attempt.method
    builder = _BUILDERS.get((method, endpoint.name))
    return None if builder is None else builder(attempt, world)
