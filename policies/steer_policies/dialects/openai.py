"""The OpenAI dialect, spoken by OpenAI, Azure OpenAI and many compatible servers.

Paths are relative to a base URL that ends with the version: `/chat/completions`.
"""

# ruff: noqa: ARG002 - a dialect is handed all that any dialect needs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_policies.classify import classify_answer
from steer_policies.config import DialectName
from steer_policies.dialects import openai_requests, openai_resume
from steer_policies.dialects.base import (
    ErrorAnswer,
    RequestFacts,
    Rewritten,
    StreamReader,
    Usage,
)
from steer_policies.dialects.openai_errors import RULES
from steer_policies.dialects.openai_stream import ChoicesReader, TypedReader
from steer_policies.dialects.openai_usage import WithoutUsage, usage_options
from steer_policies.dialects.rewriting import dump
from steer_policies.dialects.sse import is_event_stream
from steer_policies.dialects.usage import openai_usage
from steer_policies.foreign import label, load, mapping
from steer_policies.outcome import Verdict
from steer_policies.paths import collapse_slashes

ERROR_TYPE: Final = "steer_error"
"""The `error.type` of all of Steer's own errors; `error.code` says which."""


class OpenAI:
    """Stateless; see `Dialect`."""

    name = DialectName.OPENAI

    def canonical_path(self, path: str) -> str:
        """The path without empty segments."""
        return collapse_slashes(path)

    def describe(
        self, method: str, path: str, query: str, content_type: str, body: Any
    ) -> RequestFacts:
        """Read a request."""
        return openai_requests.describe(method, path, query, content_type, body)

    def rewrite(
        self,
        facts: RequestFacts,
        path: str,
        query: str,
        content_type: str,
        raw: bytes,
        body: Any,
        options: Mapping[str, Any],
    ) -> Rewritten:
        """Apply a plan's options."""
        return openai_requests.rewrite(facts, path, query, content_type, raw, body, options)

    def classify(
        self, facts: RequestFacts, status: int, headers: Mapping[str, str], body: bytes, wall: float
    ) -> Verdict:
        """What a finished answer means."""
        return classify_answer(RULES, status, headers, body, wall)

    def usage_options(self, facts: RequestFacts, body: Any) -> Mapping[str, Any]:
        """`stream_options` for a stream with choices."""
        return usage_options(facts, body)

    def read_stream(
        self,
        facts: RequestFacts,
        content_type: str,
        *,
        keep_text: bool = False,
        strip_usage: bool = False,
    ) -> StreamReader | None:
        """A reader for an event stream of a known operation."""
        if not is_event_stream(content_type):
            return None
        if facts.operation in openai_requests.CHOICES:
            splitter = WithoutUsage() if strip_usage else None
            return ChoicesReader(facts.choices, splitter=splitter, keep_text=keep_text)
        if facts.operation in openai_requests.TYPED:
            return TypedReader(facts.choices)
        return None

    def read_answer(self, facts: RequestFacts, body: bytes) -> tuple[str | None, Usage | None]:
        """The model and usage a plain answer reports."""
        document = mapping(load(body))
        return label(document.get("model")), openai_usage(document.get("usage"), document)

    def error(self, status: int, code: str, message: str) -> ErrorAnswer:
        """`{"error": {...}}`, of which the official SDK makes the class of `status`."""
        return ErrorAnswer(dump({"error": error_object(code, message)}))

    def error_event(self, facts: RequestFacts, content_type: str, code: str, message: str) -> bytes:
        """An event with an `error` member, which the official SDK raises as `APIError`.

        Typed streams name it `error` and repeat its members at the top, where `ResponseErrorEvent`
        has them.
        """
        if not is_event_stream(content_type):
            return b""
        error = error_object(code, message)
        if facts.operation not in openai_requests.TYPED:
            return b"data: " + dump({"error": error}) + b"\n\n"
        event = {"type": "error", "code": code, "message": message, "param": None, "error": error}
        return b"event: error\ndata: " + dump(event) + b"\n\n"

    def resumed(self, facts: RequestFacts, first: bytes, text: str) -> bytes | None:
        """A chunk of a chat completion in the first one's envelope."""
        return openai_resume.resumed(facts, first, text)

    def adopted(self, facts: RequestFacts, first: bytes, event: bytes) -> bytes | None:
        """A chunk of another chat completion in the first one's envelope."""
        return openai_resume.adopted(facts, first, event)


def error_object(code: str, message: str) -> dict[str, Any]:
    """The error object of OpenAI's API reference."""
    return {"message": message, "type": ERROR_TYPE, "param": None, "code": code}
