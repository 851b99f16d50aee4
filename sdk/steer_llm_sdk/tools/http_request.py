"""What a tool sends to a sidecar: the run's ids, bounds and key, as its headers say them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.reliability.json_text import NotJSON, json_text
from steer_policies.canonical import pack
from steer_policies.trace_context import read_trace_context, safe_request_id


def derived_key(tool: str, key: str) -> str:
    """The key a tool's call has at the sidecar: the same for each try of a run, another for each
    tool, so that a fallback is not taken for its predecessor."""
    parts = (b"steer sdk key", tool.encode(), key.encode("utf-8", "surrogatepass"))
    return f"sdk-{hashlib.sha256(pack(parts)).hexdigest()}"


def steering(tool: str, options: Mapping[str, Any], timeout: float) -> dict[str, str]:
    """The headers for what a run puts into a tool's options: `request_id`, `trace_id`,
    `idempotency_key`, `budget`, `quality_requirements`, and `timeout_ms`, which lowers the tool's
    own `timeout` (in seconds).

    Raises:
        InvalidValue: for a budget or quality that is not JSON.
    """
    headers: dict[str, str] = {}
    request_id, trace_id = _text(options, "request_id"), _text(options, "trace_id")
    if request_id is not None and (safe := safe_request_id(request_id)) is not None:
        headers["X-Request-ID"] = safe
    if trace_id is not None:
        if read_trace_context(trace_id) is not None:
            headers["traceparent"] = trace_id
        elif (safe := safe_request_id(trace_id)) is not None:
            headers["X-Trace-ID"] = safe
    if (key := _text(options, "idempotency_key")) is not None:
        headers["Idempotency-Key"] = derived_key(tool, key)
    for header, name in (
        ("X-Steer-Budget", "budget"),
        ("X-Steer-Quality", "quality_requirements"),
    ):
        if value := options.get(name):
            plain = dict(value) if isinstance(value, Mapping) else value
            # JSON's own escapes stand for what is not ASCII.
            headers[header] = json.dumps(json.loads(_json(name, plain)), separators=(",", ":"))
    left = options.get("timeout_ms")
    if isinstance(left, (int, float)) and not isinstance(left, bool):
        timeout = min(timeout, left / 1000.0)
    # As the sidecar reads it: digits, without an exponent.
    headers["X-Steer-Timeout"] = f"{max(timeout, 0.001):.3f}"
    return headers


def body_text(value: Any) -> str:
    """A request's body as JSON.

    Raises:
        InvalidValue: for what is not JSON, naming the place.
    """
    return _json("request", value)


def _json(name: str, value: Any) -> str:
    try:
        return json_text(value)
    except NotJSON as error:
        raise InvalidValue(name, f"must be JSON: {error}") from None


def _text(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    return value if isinstance(value, str) and value else None
