"""Anthropic's batches of messages, kept in the provider's memory; and its models."""

from __future__ import annotations

from typing import Any

from tests.provider.answers import compact, json_answer, stream_answer
from tests.provider.anthropic.headers import anthropic_headers
from tests.provider.anthropic.messages import message
from tests.provider.attempt import Attempt
from tests.provider.dialects import Endpoint
from tests.provider.steps import Answer, Event
from tests.provider.world import World

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


def models(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """`GET /v1/models` and `/v1/models/{id}`."""
    headers = anthropic_headers(attempt, world)
    if not attempt.reads:
        return None
    if endpoint.name == "model":
        return json_answer(200, _model(endpoint.arguments[0]), headers)
    listed = {
        "data": [_model(name) for name in MODELS],
        "has_more": False,
        "first_id": MODELS[0],
        "last_id": MODELS[-1],
    }
    return json_answer(200, listed, headers)


def batches(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """`/v1/messages/batches`: create (in progress), list, get (ended by then), cancel, results."""
    headers = anthropic_headers(attempt, world)
    base = f"http://{attempt.header('host', 'localhost')}"  # where the caller reached us
    stored = world.message_batches
    if endpoint.name == "message_batches":
        if attempt.reads:
            listed = [_batch(key, stored[key], base, "ended") for key in stored]
            page = {"data": listed, "has_more": False, "first_id": None, "last_id": None}
            return json_answer(200, page, headers)
        identifier = f"msgbatch_01{world.digest(attempt)}"
        stored[identifier] = attempt.object
        return json_answer(200, _batch(identifier, attempt.object, base, "in_progress"), headers)
    identifier = endpoint.arguments[0]
    if identifier not in stored:
        return None
    if endpoint.name == "message_batch_results":
        return _results(attempt, stored[identifier], world)
    state = "canceling" if endpoint.name == "message_batch_cancel" else "ended"
    return json_answer(200, _batch(identifier, stored[identifier], base, state), headers)


def _results(attempt: Attempt, asked: dict[str, Any], world: World) -> Answer:
    """One line of JSON for each request, streamed."""
    lines = []
    for request in asked["requests"]:
        result = {"type": "succeeded", "message": message(request["params"], attempt, world)}
        lines.append(Event(compact({"custom_id": request["custom_id"], "result": result}) + b"\n"))
    headers = anthropic_headers(attempt, world)
    return stream_answer(lines, headers, content_type="application/x-jsonl")


def _batch(identifier: str, asked: dict[str, Any], base: str, state: str) -> dict[str, Any]:
    total, ended = len(asked.get("requests", [])), state == "ended"
    return {
        "id": identifier,
        "type": "message_batch",
        "processing_status": state,
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
