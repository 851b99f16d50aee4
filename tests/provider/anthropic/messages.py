"""Anthropic's messages: plain, streamed, counted.

Shapes from https://docs.anthropic.com/en/api/messages, .../messages-streaming and the types of
anthropic-python.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.provider.answers import compact, json_answer, sse_answer, sse_event
from tests.provider.anthropic.headers import anthropic_headers
from tests.provider.attempt import Attempt
from tests.provider.steps import Answer, Event, Role
from tests.provider.world import World, count_tokens, sample

SIGNATURE = "EqQBCkYIARgCKkB0aGUgd2FsbCBzaWduZWQgdGhpcw=="
THOUGHTS = ("The caller wants", " a plain answer,", " so give one.")


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
