"""OpenAI's realtime WebSocket: a session that answers `response.create` with a few events.

Shapes from https://platform.openai.com/docs/api-reference/realtime-server-events.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

from tests.provider.answers import websocket_answer
from tests.provider.attempt import Attempt
from tests.provider.openai.headers import openai_headers
from tests.provider.steps import Answer
from tests.provider.websocket import WebSocket, WebSocketClosed
from tests.provider.world import World, count_tokens

Ending = Literal["reset", "close"] | int
"""How a session breaks: under the WebSocket, or by a close frame with this code."""


class Broken(Exception):
    """The session came to its scripted end."""


def realtime(attempt: Attempt, world: World) -> Answer | None:
    """`GET /v1/realtime?model=` with an upgrade; the first subprotocol offered is chosen."""
    return realtime_answer(attempt, world, RealtimeSession(world))


def realtime_answer(
    attempt: Attempt, world: World, session: Callable[[WebSocket], Awaitable[None]]
) -> Answer | None:
    """The handshake for any session; None when no WebSocket was asked for."""
    if not attempt.is_websocket:
        return None
    offered = attempt.header("sec-websocket-protocol", "") or ""
    chosen = offered.split(",")[0].strip() or None
    headers = tuple(
        pair
        for pair in openai_headers(attempt, world)
        if pair[0].lower() in ("date", "x-request-id", "set-cookie", "server", "cf-ray")
    )
    key = attempt.header("sec-websocket-key", "") or ""
    return websocket_answer(key, session, subprotocol=chosen, headers=headers)


class RealtimeSession:
    """Serves one connection; `after_events` server events it may break as `ending` says."""

    def __init__(
        self, world: World, after_events: int | None = None, ending: Ending = "reset"
    ) -> None:
        self._world = world
        self._left = after_events
        self._ending = ending

    def breaking(self, after_events: int, ending: Ending) -> RealtimeSession:
        """The same session with a scripted end."""
        return RealtimeSession(self._world, after_events, ending)

    async def __call__(self, socket: WebSocket) -> None:
        """Send `session.created`, then react to what the client sends, until it closes."""
        model = (socket.attempt.query_parameters.get("model") or ["gpt-realtime"])[0]
        numbers = itertools.count(1)
        left = self._left

        async def send(event: dict[str, Any]) -> None:
            nonlocal left
            await socket.send_json({**event, "event_id": f"event_{next(numbers):04}"})
            if left is not None:
                left -= 1
                if left <= 0:
                    await self._end(socket)
                    raise Broken

        try:
            await send({"type": "session.created", "session": _session(model, {})})
            while True:
                for event in self._react(model, json.loads(await socket.receive())):
                    if event["type"].endswith(".delta"):
                        await asyncio.sleep(self._world.pace)
                    await send(event)
        except (WebSocketClosed, Broken):
            pass

    async def _end(self, socket: WebSocket) -> None:
        if isinstance(self._ending, int):
            await socket.close(self._ending, "scripted")
        else:
            await socket.end(self._ending)

    def _react(self, model: str, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        match event.get("type"):
            case "session.update":
                session = _session(model, event.get("session") or {})
                yield {"type": "session.updated", "session": session}
            case "conversation.item.create":
                item = {"id": "item_user", "object": "realtime.item", **event["item"]}
                added = {"previous_item_id": None, "item": {**item, "status": "completed"}}
                yield {"type": "conversation.item.added", **added}
                yield {"type": "conversation.item.done", **added}
            case "response.create":
                yield from self._response(model)
            case kind:
                message = f"Invalid value: '{kind}'."
                error = {"type": "invalid_request_error", "code": "invalid_value"}
                detail = {**error, "message": message, "param": "type", "event_id": None}
                yield {"type": "error", "error": detail}

    def _response(self, model: str) -> Iterator[dict[str, Any]]:
        words = self._world.words(model)
        text = "".join(words)
        response: dict[str, Any] = {
            "object": "realtime.response",
            "id": "resp_0001",
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": "conv_0001",
            "output_modalities": ["text"],
            "usage": None,
        }
        item: dict[str, Any] = {
            "id": "item_0001",
            "object": "realtime.item",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        where = {"response_id": "resp_0001", "output_index": 0}
        within = {**where, "item_id": "item_0001", "content_index": 0}
        part = {"type": "text", "text": ""}
        yield {"type": "response.created", "response": response}
        yield {"type": "response.output_item.added", **where, "item": item}
        yield {"type": "response.content_part.added", **within, "part": part}
        for word in words:
            yield {"type": "response.output_text.delta", **within, "delta": word}
        yield {"type": "response.output_text.done", **within, "text": text}
        yield {"type": "response.content_part.done", **within, "part": {**part, "text": text}}
        content = [{"type": "output_text", "text": text}]
        whole = {**item, "status": "completed", "content": content}
        yield {"type": "response.output_item.done", **where, "item": whole}
        usage = {"total_tokens": 20, "input_tokens": 9, "output_tokens": count_tokens(text)}
        done = {**response, "status": "completed", "output": [whole], "usage": usage}
        yield {"type": "response.done", "response": done}


def _session(model: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": "sess_0001",
        "model": model,
        "output_modalities": ["text"],
        "instructions": "Answer plainly.",
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        **settings,
    }
