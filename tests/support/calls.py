"""A call as the intake would make it, without a connection."""

from __future__ import annotations

import json
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from steer_policies.dialects import dialect
from steer_policies.dialects.multipart import form_fields
from steer_policies.steering import read_steering
from steer_policies.trace_context import TraceContext
from steer_proxy.engine.config import Config
from steer_proxy.http.body import ReplayBody
from steer_proxy.http.call import Call

TRACE = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", 1, "a=b")


def make_call(
    config: Config,
    route: str,
    path: str,
    *,
    method: str = "POST",
    query: str = "",
    fields: tuple[tuple[str, str], ...] = (),
    body: bytes = b"",
    content_type: str = "application/json",
    **more: Any,
) -> Call:
    """A call on a named route; its body's fields are read as the intake reads them."""
    found = next(each for each in config.routes if each.name == route)
    speaks = dialect(found.policy.dialect)
    parsed: Any = None
    if content_type.startswith("multipart/"):
        parsed = form_fields(content_type, body)
    elif body:
        parsed = json.loads(body)
    headers = CIMultiDictProxy(CIMultiDict(fields))
    values = {
        "config": config,
        "route": found,
        "dialect": speaks,
        "facts": speaks.describe(method, path, query, content_type, parsed),
        "method": method,
        "path": path,
        "query": query,
        "headers": headers,
        "fields": [
            (name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in fields
        ],
        "content_type": content_type,
        "body": ReplayBody(body, len(body)),
        "json": parsed,
        "steering": read_steering(headers),
        "request_id": "request-1",
        "trace": TRACE,
        "via_line": b"Via: 1.1 steer-test\r\n",
        "accepted_at": 0.0,
        "size": len(body),
        **more,
    }
    return Call(**values)
