"""The Anthropic dialect: messages and their token counts; all else is pinned.

Paths are relative to a base URL without a version: `/v1/messages`.
"""

# ruff: noqa: ARG002 - a dialect is handed all that any dialect needs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_policies.classify import classify_answer
from steer_policies.config import DialectName
from steer_policies.dialects import anthropic_resume
from steer_policies.dialects.anthropic_errors import RULES
from steer_policies.dialects.anthropic_stream import MessageReader
from steer_policies.dialects.base import (
    ErrorAnswer,
    RequestFacts,
    Rewritten,
    StreamReader,
    Usage,
    Where,
)
from steer_policies.dialects.rewriting import dump, patch_body
from steer_policies.dialects.sse import is_event_stream
from steer_policies.dialects.usage import anthropic_usage
from steer_policies.foreign import count, label, load, mapping
from steer_policies.outcome import Verdict
from steer_policies.paths import collapse_slashes

_GENERATION: Final = {
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages.count_tokens",
}

# The AI SDK's provider has the version in its base URL, and asks for these when given ours.
_ALIASES: Final = {path.removeprefix("/v1"): path for path in _GENERATION}

# Names for the ledger; whatever else a path begins with is foreign, and "other".
_STORED: Final = frozenset(
    "agents files memory_stores models organizations sessions skills vaults".split()
)

# Each makes an answer more than one text.
_NOT_PLAIN: Final = ("tools", "mcp_servers", "container")


class Anthropic:
    """Stateless; see `Dialect`."""

    name = DialectName.ANTHROPIC

    def canonical_path(self, path: str) -> str:
        """The path without empty segments, with its version."""
        path = collapse_slashes(path)
        return _ALIASES.get(path, path)

    def describe(
        self, method: str, path: str, query: str, content_type: str, body: Any
    ) -> RequestFacts:
        """Read a request. A `container` is kept by the provider, and pins."""
        operation = _GENERATION.get(path)
        fields = mapping(body)
        if operation is None or method != "POST":
            return RequestFacts(_stored(path), False, stream=fields.get("stream") is True)
        return RequestFacts(
            operation,
            not _names_container(fields.get("container")),
            label(fields.get("model")),
            Where.BODY if fields else Where.NOWHERE,
            stream=fields.get("stream") is True,
            max_tokens=count(fields.get("max_tokens")),
            resumable=operation == "messages" and _is_plain_text(fields),
        )

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
        return Rewritten(path, query, patch_body(raw, body, options))

    def classify(
        self, facts: RequestFacts, status: int, headers: Mapping[str, str], body: bytes, wall: float
    ) -> Verdict:
        """What a finished answer means."""
        return classify_answer(RULES, status, headers, body, wall)

    def usage_options(self, facts: RequestFacts, body: Any) -> Mapping[str, Any]:
        """None: every stream counts."""
        return {}

    def read_stream(
        self,
        facts: RequestFacts,
        content_type: str,
        *,
        keep_text: bool = False,
        strip_usage: bool = False,
    ) -> StreamReader | None:
        """A reader for a message's event stream."""
        if facts.operation == "messages" and is_event_stream(content_type):
            return MessageReader(keep_text=keep_text)
        return None

    def read_answer(self, facts: RequestFacts, body: bytes) -> tuple[str | None, Usage | None]:
        """The model and usage a plain answer reports; a token count is no usage."""
        document = mapping(load(body))
        return label(document.get("model")), anthropic_usage(document.get("usage"))

    def error(self, status: int, code: str, message: str) -> ErrorAnswer:
        """The API's error body, of which the official SDK makes the class of `status`."""
        return ErrorAnswer(dump(_error_body(code, message)))

    def error_event(self, facts: RequestFacts, content_type: str, code: str, message: str) -> bytes:
        """An `error` event, which the official SDK raises as `APIStatusError`."""
        if not is_event_stream(content_type):
            return b""
        return b"event: error\ndata: " + dump(_error_body(code, message)) + b"\n\n"

    def resumed(self, facts: RequestFacts, first: bytes, text: str) -> bytes | None:
        """A text delta in the first stream's open block."""
        return anthropic_resume.resumed(facts, first, text)

    def adopted(self, facts: RequestFacts, first: bytes, event: bytes) -> bytes | None:
        """An event of another message in the first one's open block."""
        return anthropic_resume.adopted(facts, first, event)


def _error_body(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": code, "message": message}}


def _stored(path: str) -> str:
    if path.startswith("/v1/messages/batches"):
        return "messages.batches"
    name = path.removeprefix("/v1")[1:].partition("/")[0]
    return name if name in _STORED else "other"


def _names_container(container: Any) -> bool:
    """Whether it is a kept container's id, bare or beside the skills to load into it."""
    return isinstance(container, str) or bool(mapping(container).get("id"))


def _is_plain_text(fields: Mapping[str, Any]) -> bool:
    """Whether the answer is one text and nothing else."""
    return (
        fields.get("stream") is True
        and mapping(fields.get("thinking")).get("type", "disabled") == "disabled"
        and not any(fields.get(name) for name in _NOT_PLAIN)
    )
