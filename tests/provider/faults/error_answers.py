"""Answers that are errors: any status, and the errors providers really send."""

from __future__ import annotations

from typing import Any, Unpack

from tests.provider.answers import bytes_answer, empty_answer, json_answer
from tests.provider.attempt import Attempt
from tests.provider.choosing import Fault
from tests.provider.dialects import dialect_of, endpoint_of
from tests.provider.errors import (
    ErrorKind,
    ErrorShape,
    error_answer,
    error_shape,
    shape_of_status,
)
from tests.provider.hints import Hints, hint_headers
from tests.provider.steps import Answer, Headers


def healthy() -> Fault:
    """No fault at all: a place in a queue of behaviours."""
    return Fault("healthy", lambda attempt, answer: answer)


def status(code: int, body: Any = None, headers: Headers = (), **hints: Unpack[Hints]) -> Fault:
    """Any status. The body is the dialect's usual error, or what is given: bytes, text, JSON."""

    def apply(attempt: Attempt, answer: Answer) -> Answer:
        if body is None and code not in (204, 205, 304):
            return _error(
                attempt, answer, shape_of_status(dialect_of(attempt), code), headers, hints
            )
        kept = (*_kept_headers(answer), *hint_headers(hints, _date_of(answer)), *headers)
        if body is None:
            return empty_answer(code, kept)
        if isinstance(body, bytes):
            return bytes_answer(code, body, kept)
        if isinstance(body, str):
            return bytes_answer(code, body.encode(), kept, "text/html; charset=utf-8")
        return json_answer(code, body, kept)

    return Fault(f"status {code}", apply)


def error(
    kind: ErrorKind, code: int | None = None, headers: Headers = (), **hints: Unpack[Hints]
) -> Fault:
    """One of the providers' errors by its kind, as the dialect of the request has it."""

    def apply(attempt: Attempt, answer: Answer) -> Answer:
        shape = error_shape(dialect_of(attempt), kind)
        shape = shape if code is None else shape._replace(status=code)
        return _error(attempt, answer, shape, headers, hints)

    return Fault(kind, apply)


def rate_limit(headers: Headers = (), **hints: Unpack[Hints]) -> Fault:
    """429, with whichever hints are given (see `Hints`), or with none."""
    return error("rate_limit", None, headers, **hints)


def insufficient_quota() -> Fault:
    """A 429 that no waiting cures: quota used up, spend limit reached, Gemini's `limit: 0`."""
    return error("insufficient_quota")


def overloaded(code: int | None = None, **hints: Unpack[Hints]) -> Fault:
    """503, or Anthropic's own 529; `code` forces one of them."""
    return error("overloaded", code, **hints)


def server_error(code: int | None = None) -> Fault:
    """500."""
    return error("server_error", code)


def context_length_exceeded() -> Fault:
    """400: the prompt does not fit the model."""
    return error("context_length")


def content_policy() -> Fault:
    """A refusal on grounds of content: 400, but for Gemini a 200 that names the block reason."""

    def apply(attempt: Attempt, answer: Answer) -> Answer:
        if dialect_of(attempt) != "gemini":
            return error("content_policy").apply(attempt, answer)
        blocked = {
            "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
            "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 7},
            "modelVersion": endpoint_of(attempt).arguments[0].partition("/")[2],
        }
        return json_answer(200, blocked, _kept_headers(answer))

    return Fault("content_policy", apply)


def authentication_failed() -> Fault:
    """401 (Gemini: 400 API_KEY_INVALID, as it really says)."""
    return error("authentication")


def permission_denied() -> Fault:
    """403."""
    return error("permission")


def billing() -> Fault:
    """The account is not paid for: OpenAI 429, Anthropic 400, Gemini 403."""
    return error("billing")


def _error(
    attempt: Attempt, answer: Answer, shape: ErrorShape, headers: Headers, hints: Hints
) -> Answer:
    """An error under the healthy answer's identifying headers, with hints, without its limits."""
    kept = tuple(pair for pair in _kept_headers(answer) if "ratelimit" not in pair[0].lower())
    if shape.kind == "overloaded_error":
        kept = (*kept, ("x-should-retry", "true"))  # Anthropic says so
    every = (*kept, *hint_headers(hints, _date_of(answer)), *headers)
    return error_answer(attempt, shape, every, retry_delay=hints.get("retry_info"))


def _kept_headers(answer: Answer) -> Headers:
    """The headers that say who answers; none about a body or an upgrade."""
    dropped = ("content-", "sec-websocket-", "upgrade", "connection")
    return tuple(pair for pair in answer.head.headers if not pair[0].lower().startswith(dropped))


def _date_of(answer: Answer) -> str:
    return answer.head.header("date") or ""
