"""Builders of whole answers from content: JSON, bytes, event streams, handshakes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.provider.steps import (
    Answer,
    Data,
    Event,
    Finish,
    Framing,
    Head,
    Headers,
    Pause,
    Role,
    Step,
    Upgrade,
)
from tests.provider.websocket import accept_key, echo


def compact(value: Any) -> bytes:
    """JSON as providers stream it: no spaces, no escapes beyond the needed."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def bytes_answer(
    status: int, body: bytes, headers: Headers = (), content_type: str = "application/octet-stream"
) -> Answer:
    """A plain answer with a Content-Length."""
    head = Head(status, (("Content-Type", content_type), *headers), "length", len(body))
    return Answer((head, Data(body), Finish()))


def json_answer(status: int, value: Any, headers: Headers = ()) -> Answer:
    """A plain JSON answer, indented by two spaces as OpenAI's are."""
    body = json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    return bytes_answer(status, body, headers, "application/json")


def text_answer(status: int, text: str, headers: Headers = ()) -> Answer:
    """A plain text answer."""
    return bytes_answer(status, text.encode(), headers, "text/plain; charset=utf-8")


def empty_answer(status: int = 204, headers: Headers = ()) -> Answer:
    """An answer without a body."""
    return Answer((Head(status, headers, "none"), Finish()))


def sse_event(data: Any, name: str | None = None, role: Role = "token") -> Event:
    """One server-sent event: `data` as JSON, or verbatim when it is a string."""
    text = data.encode() if isinstance(data, str) else compact(data)
    prefix = b"" if name is None else b"event: %b\n" % name.encode()
    return Event(prefix + b"data: %b\n\n" % text, role)


def stream_answer(
    events: Iterable[Event],
    headers: Headers = (),
    *,
    content_type: str = "text/event-stream; charset=utf-8",
    chunked: bool = True,
    pace: float = 0.0,
    status: int = 200,
) -> Answer:
    """A streamed answer: one chunk for each event, `pace` seconds before each token.

    Without `chunked` the end of the connection is the end of the body.
    """
    framing: Framing = "chunked" if chunked else "close"
    steps: list[Step] = [Head(status, (("Content-Type", content_type), *headers), framing)]
    for event in events:
        if pace and event.role == "token":
            steps.append(Pause(pace))
        steps.append(event)
    steps.append(Finish())
    return Answer(tuple(steps))


def sse_answer(
    events: Iterable[Event],
    headers: Headers = (),
    *,
    chunked: bool = True,
    pace: float = 0.0,
    status: int = 200,
) -> Answer:
    """A stream of server-sent events (see `sse_event`)."""
    return stream_answer(events, headers, chunked=chunked, pace=pace, status=status)


def websocket_answer(
    key: str, session: Any = echo, *, subprotocol: str | None = None, headers: Headers = ()
) -> Answer:
    """The 101 that accepts a WebSocket, then its session."""
    lines = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    lines.append(("Sec-WebSocket-Accept", accept_key(key)))
    if subprotocol is not None:
        lines.append(("Sec-WebSocket-Protocol", subprotocol))
    return Answer((Head(101, (*lines, *headers), "none"), Upgrade(session)))
