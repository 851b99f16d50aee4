"""Any other path: an echo, a WebSocket echo, and an MCP server over streamable HTTP."""

from __future__ import annotations

from typing import Any

from tests.provider.answers import (
    empty_answer,
    json_answer,
    sse_answer,
    sse_event,
    websocket_answer,
)
from tests.provider.attempt import Attempt
from tests.provider.steps import Answer, Event, Head, Headers, WaitUntilClosed
from tests.provider.world import World


def plain_answer(attempt: Attempt, world: World) -> Answer:
    """The healthy answer of the http dialect."""
    headers: Headers = (("Date", world.http_date()), ("Server", world.name))
    if attempt.is_websocket:
        offered = attempt.header("sec-websocket-protocol")
        chosen = offered.split(",")[0].strip() if offered else None
        return websocket_answer(attempt.header("sec-websocket-key", "") or "", subprotocol=chosen)
    if attempt.path.rsplit("/", 1)[-1] == "mcp":
        return _mcp(attempt, world, headers)
    return json_answer(200, echo_value(attempt, world), (*headers, ("X-Echo", "yes")))


def echo_value(attempt: Attempt, world: World) -> dict[str, Any]:
    """What was received, as JSON."""
    return {
        "provider": world.name,
        "method": attempt.method,
        "target": attempt.target,
        "headers": [list(pair) for pair in attempt.headers],
        "body": attempt.body.decode("utf-8", "backslashreplace"),
    }


def _mcp(attempt: Attempt, world: World, headers: Headers) -> Answer:
    """Model Context Protocol, streamable HTTP transport (specification of 2025-06-18).

    POST answers a request with a stream whose last event is the result, and a notification with
    202; GET opens the stream for the server's own messages; DELETE ends the session.
    """
    if attempt.reads:
        opened = sse_answer([Event(b": open\n\n", "prelude")], headers)
        return Answer((*opened.steps[:-1], WaitUntilClosed()))
    if attempt.method == "DELETE":
        return empty_answer(204, headers)
    asked = attempt.object
    if "id" not in asked:
        return Answer((Head(202, headers, "length", 0),))
    if asked.get("method") == "initialize":
        result: dict[str, Any] = {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": world.name, "version": "1.0.0"},
        }
        headers = (*headers, ("Mcp-Session-Id", world.digest(attempt, 32)))
        return json_answer(200, _rpc(asked, result), headers)
    if asked.get("method") == "tools/list":
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        tool = {"name": "echo", "description": "Echo", "inputSchema": schema}
        return json_answer(200, _rpc(asked, {"tools": [tool]}), headers)
    words = world.words()
    events = [
        sse_event(
            {
                "jsonrpc": "2.0",
                "method": "notifications/progress",
                "params": {
                    "progressToken": asked["id"],
                    "progress": index + 1,
                    "total": len(words),
                },
            },
            "message",
        )
        for index in range(len(words))
    ]
    result = {"content": [{"type": "text", "text": "".join(words)}], "isError": False}
    events.append(sse_event(_rpc(asked, result), "message", "terminal"))
    return sse_answer(events, headers, pace=world.pace)


def _rpc(asked: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": asked["id"], "result": result}
