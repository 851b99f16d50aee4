"""The dialect of everything that is not an LLM provider: tools, MCP servers, any HTTP API.

Nothing is known of bodies and paths here, so nothing of them is read or changed but what a plan's
options ask for.
"""

# ruff: noqa: ARG002 - a dialect is handed all that any dialect needs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_policies.classify import Rules, classify_answer
from steer_policies.config import DialectName
from steer_policies.dialects.base import (
    ErrorAnswer,
    RequestFacts,
    Rewritten,
    StreamReader,
    Usage,
    Where,
)
from steer_policies.dialects.openai_errors import read_error
from steer_policies.dialects.rewriting import dump, patch_body
from steer_policies.outcome import Verdict

# Most APIs put their errors into much the same object. Only a name like `insufficient_quota` is
# taken at its word; no phrase is.
RULES: Final = Rules(DialectName.HTTP, read_error, {}, (), {})


class Http:
    """Stateless; see `Dialect`."""

    name = DialectName.HTTP

    def canonical_path(self, path: str) -> str:
        """The path as it is: empty segments mean something to some APIs."""
        return path

    def describe(
        self, method: str, path: str, query: str, content_type: str, body: Any
    ) -> RequestFacts:
        """One operation for all. What an API does is not known: see `retry.ambiguous`."""
        return RequestFacts(
            "http", True, None, Where.BODY if isinstance(body, dict) else Where.NOWHERE
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
        """Apply a plan's options to a JSON body."""
        return Rewritten(path, query, patch_body(raw, body, options))

    def classify(
        self, facts: RequestFacts, status: int, headers: Mapping[str, str], body: bytes, wall: float
    ) -> Verdict:
        """What a finished answer means."""
        return classify_answer(RULES, status, headers, body, wall)

    def usage_options(self, facts: RequestFacts, body: Any) -> Mapping[str, Any]:
        """None are known."""
        return {}

    def read_stream(
        self,
        facts: RequestFacts,
        content_type: str,
        *,
        keep_text: bool = False,
        strip_usage: bool = False,
    ) -> StreamReader | None:
        """None: an event stream of an unknown API has no marker that could tell its end."""
        return None

    def read_answer(self, facts: RequestFacts, body: bytes) -> tuple[str | None, Usage | None]:
        """Nothing is known of tokens."""
        return None, None

    def error(self, status: int, code: str, message: str) -> ErrorAnswer:
        """`{"error": {"code", "message", "type"}}`."""
        error = {"code": code, "message": message, "type": "steer_error"}
        return ErrorAnswer(dump({"error": error}))

    def error_event(self, facts: RequestFacts, content_type: str, code: str, message: str) -> bytes:
        """None: an event nobody expects could pass for data."""
        return b""

    def resumed(self, facts: RequestFacts, first: bytes, text: str) -> bytes | None:
        """Never."""
        return None

    def adopted(self, facts: RequestFacts, first: bytes, event: bytes) -> bytes | None:
        """Never."""
        return None
