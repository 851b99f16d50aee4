"""Errors inside an answer whose status said 200: the hardest ones for a proxy to see."""

from __future__ import annotations

from typing import Any, Literal

from tests.provider.answers import sse_event
from tests.provider.attempt import Attempt
from tests.provider.choosing import Fault
from tests.provider.dialects import endpoint_of, is_json_array
from tests.provider.errors import ErrorKind, error_shape, error_value
from tests.provider.faults.rewriting import position_of
from tests.provider.steps import Answer, Event, Finish, Step


def in_band_error(
    at: int = 0,
    kind: ErrorKind | Literal["failed"] = "overloaded",
    *,
    message: str | None = None,
    terminal: bool = False,
) -> Fault:
    """An error event in place of the event of that index, then a clean end of the framing.

    `kind="failed"` is `response.failed` of OpenAI's responses; everything else is the dialect's
    own error event. With `terminal` the terminal marker still follows, as OpenAI's `[DONE]` may.
    """

    def apply(attempt: Attempt, answer: Answer) -> Answer:
        position = position_of(answer, at)
        last: tuple[Step, ...] = ()
        if terminal:
            last = tuple(event for event in answer.events if event.role == "terminal")
        event = _event(attempt, kind, at, message, answer.head.header("request-id"))
        return Answer((*answer.steps[:position], event, *last, Finish()))

    return Fault(f"in-band {kind} at {at}", apply)


def _event(
    attempt: Attempt, kind: str, at: int, message: str | None, request_id: str | None
) -> Event:
    dialect, name, _ = endpoint_of(attempt)
    error_kind: Any = "server_error" if kind == "failed" else kind
    shape = error_shape(dialect, error_kind)
    if message is not None:
        shape = shape._replace(message=message)
    if name == "responses":
        code = shape.code or shape.kind
        error = {"code": code, "message": shape.message}
        if kind == "failed":
            return sse_event(_failed(attempt, error, at), "response.failed", "terminal")
        value = {"type": "error", **error, "param": None, "sequence_number": at}
        return sse_event(value, "error")
    value = error_value(dialect, shape, request_id=request_id)
    if dialect == "gemini":
        plain = sse_event(value)
        if is_json_array(attempt):
            return Event((b"[" if at == 0 else b",\r\n") + plain.data[6:].rstrip() + b"]")
        return Event(plain.data.replace(b"\n", b"\r\n"))
    return sse_event(value, None if dialect == "openai" else "error")


def _failed(attempt: Attempt, error: dict[str, Any], at: int) -> dict[str, Any]:
    response = {
        "id": "resp_failed",
        "object": "response",
        "created_at": 1767614400,
        "status": "failed",
        "error": error,
        "incomplete_details": None,
        "model": attempt.object.get("model", ""),
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }
    return {"type": "response.failed", "response": response, "sequence_number": at}
