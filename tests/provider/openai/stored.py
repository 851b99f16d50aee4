"""OpenAI's stored objects, kept in the provider's memory: files, batches; and the models."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.provider.answers import bytes_answer, json_answer
from tests.provider.attempt import Attempt
from tests.provider.dialects import Endpoint
from tests.provider.openai.headers import openai_headers
from tests.provider.steps import Answer
from tests.provider.world import CREATED, StoredFile, World

MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small")
DAY = 24 * 60 * 60


def files(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """`/v1/files`: upload (multipart) and list; `/v1/files/{id}`: get, content, delete."""
    headers = openai_headers(attempt, world)
    if endpoint.name == "files":
        if attempt.method == "POST":
            return json_answer(200, _upload(attempt, world), headers)
        records = [file.record for file in world.files.values()]
        return json_answer(200, _list(records), headers) if attempt.reads else None
    identifier = endpoint.arguments[0]
    file = world.files.get(identifier)
    if file is None:
        return None
    if endpoint.name == "file_content":
        return bytes_answer(200, file.data, headers)
    if attempt.method == "DELETE":
        del world.files[identifier]
        gone = {"id": identifier, "object": "file", "deleted": True}
        return json_answer(200, gone, headers)
    return json_answer(200, file.record, headers) if attempt.reads else None


def _upload(attempt: Attempt, world: World) -> dict[str, Any]:
    part = next((part for part in attempt.form if part.name == "file"), None)
    data = b"" if part is None else part.data
    number = len(world.files)
    identifier = f"file-{hashlib.sha256(data + number.to_bytes(4, 'big')).hexdigest()[:22]}"
    record = {
        "id": identifier,
        "object": "file",
        "bytes": len(data),
        "created_at": CREATED,
        "expires_at": None,
        "filename": (part and part.filename) or "file",
        "purpose": attempt.field("purpose", "user_data"),
        "status": "processed",
        "status_details": None,
    }
    world.files[identifier] = StoredFile(record, data)
    return record


def _list(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": records,
        "has_more": False,
        "first_id": records[0]["id"] if records else None,
        "last_id": records[-1]["id"] if records else None,
    }


def batches(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """`/v1/batches`: create, list, get (completed whenever it is looked at), cancel."""
    headers = openai_headers(attempt, world)
    if endpoint.name == "batches":
        if attempt.reads:
            return json_answer(200, _list(list(world.batches.values())), headers)
        created = _batch(f"batch_{world.digest(attempt, 32)}", attempt.object)
        world.batches[created["id"]] = created
        return json_answer(200, created, headers)
    batch = world.batches.get(endpoint.arguments[0])
    if batch is None:
        return None
    if endpoint.name == "batch_cancel":
        batch |= {"status": "cancelling", "cancelling_at": CREATED + 60}
    elif batch["status"] == "validating":
        batch |= {
            "status": "completed",
            "completed_at": CREATED + 60,
            "output_file_id": "file-output",
            "request_counts": {"total": 1, "completed": 1, "failed": 0},
        }
    return json_answer(200, batch, headers)


def _batch(identifier: str, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": identifier,
        "object": "batch",
        "endpoint": asked.get("endpoint", ""),
        "errors": None,
        "input_file_id": asked.get("input_file_id", ""),
        "completion_window": asked.get("completion_window", "24h"),
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": CREATED,
        "in_progress_at": None,
        "expires_at": CREATED + DAY,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": asked.get("metadata"),
    }


def models(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """`GET /v1/models` and `/v1/models/{id}`."""
    headers = openai_headers(attempt, world)
    if not attempt.reads:
        return None
    if endpoint.name == "models":
        listed = {"object": "list", "data": [_model(name) for name in MODELS]}
        return json_answer(200, listed, headers)
    return json_answer(200, _model(endpoint.arguments[0]), headers)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "system"}
