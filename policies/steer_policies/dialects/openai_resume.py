"""Going on with a broken chat completion: another stream's text in the first one's envelope."""

from __future__ import annotations

from typing import Any, Final

from steer_policies.dialects.base import RequestFacts
from steer_policies.dialects.rewriting import dump
from steer_policies.dialects.sse import fields, first_document
from steer_policies.foreign import load

# What is the same in every chunk of a stream, and what the caller's SDK puts into its result.
_ENVELOPE: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier")


def resumed(facts: RequestFacts, first: bytes, text: str) -> bytes | None:
    """One chunk with `text`."""
    envelope = _envelope(facts, first)
    if envelope is None:
        return None
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + dump({**envelope, "choices": [choice]}) + b"\n\n"


def adopted(facts: RequestFacts, first: bytes, event: bytes) -> bytes | None:
    """A chunk of the second stream; what is no chunk (a comment, `[DONE]`) stays as it is."""
    envelope = _envelope(facts, first)
    if envelope is None:
        return None
    data = fields(event)[1]
    if not data or data[:6] == b"[DONE]":
        return event
    document = load(data)
    if not isinstance(document, dict):
        return None
    return b"data: " + dump({**document, **envelope}) + b"\n\n"


def _envelope(facts: RequestFacts, first: bytes) -> dict[str, Any] | None:
    if not facts.resumable:
        return None
    document = first_document(first, b'"choices"')
    if document is None or not isinstance(document.get("id"), str):
        return None
    return {name: document[name] for name in _ENVELOPE if name in document}
