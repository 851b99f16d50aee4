"""What a tool sends to a sidecar: the run's ids, bounds and key, as its headers say them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from steer_llm_sdk.current import CURRENT, RunTerms
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
    """The headers for a call: the ids are in a tool's options, the rest the current run's terms.

    `timeout` is the tool's own, in seconds; the run's deadline lowers it. What the options hold by
    the name of one of the terms wins.

    Raises:
        InvalidValue: for a budget or quality that is not JSON.
    """
    terms = CURRENT.get() or RunTerms()
    headers: dict[str, str] = {}
    request_id, trace_id = _text(options, "request_id"), _text(options, "trace_id")
    if request_id is not None and (safe := safe_request_id(request_id)) is not None:
        headers["X-Request-ID"] = safe
    if trace_id is not None:
        if read_trace_context(trace_id) is not None:
            headers["traceparent"] = trace_id
        elif (safe := safe_request_id(trace_id)) is not None:
            headers["X-Trace-ID"] = safe
    if (key := _text(options, "idempotency_key") or terms.idempotency_key) is not None:
        headers["Idempotency-Key"] = derived_key(tool, key)
    for header, name, own in (
        ("X-Steer-Budget", "budget", terms.budget),
        ("X-Steer-Quality", "quality_requirements", terms.quality_requirements),
    ):
        if value := options.get(name, own):
            plain = dict(value) if isinstance(value, Mapping) else value
            # JSON's own escapes stand for what is not ASCII.
            headers[header] = json.dumps(json.loads(_json(name, plain)), separators=(",", ":"))
    left = terms.deadline - asyncio.get_running_loop().time()
    # As the sidecar reads it: digits, without an exponent.
    headers["X-Steer-Timeout"] = f"{max(min(timeout, left), 0.001):.3f}"
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
