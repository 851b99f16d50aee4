"""Going on with a broken message: another stream's text in the first one's open block."""

from __future__ import annotations

from typing import Any, Final

from steer_policies.dialects.base import RequestFacts
from steer_policies.dialects.rewriting import dump
from steer_policies.dialects.sse import SseSplitter, fields
from steer_policies.foreign import load, mapping

_STARTS: Final = frozenset({"message_start", "content_block_start"})
_OF_A_BLOCK: Final = frozenset({"content_block_delta", "content_block_stop"})


def resumed(facts: RequestFacts, first: bytes, text: str) -> bytes | None:
    """One text delta; None unless the first stream's text block is still open."""
    index = _open_block(facts, first)
    if index is None:
        return None
    delta = {"type": "text_delta", "text": text}
    return _event({"type": "content_block_delta", "index": index, "delta": delta})


def adopted(facts: RequestFacts, first: bytes, event: bytes) -> bytes | None:
    """An event of the second stream; b"" for those that start what the first stream has begun."""
    index = _open_block(facts, first)
    if index is None:
        return None
    data = fields(event)[1]
    if not data:
        return event
    document = load(data)
    if not isinstance(document, dict):
        return None
    kind = document.get("type")
    if kind in _STARTS:
        return b""
    if kind in _OF_A_BLOCK and document.get("index") != index:
        return _event({**document, "index": index})
    return event


def _event(document: dict[str, Any]) -> bytes:
    return b"event: " + str(document["type"]).encode() + b"\ndata: " + dump(document) + b"\n\n"


def _open_block(facts: RequestFacts, first: bytes) -> int | None:
    """The index of the text block that is open at the end of `first`."""
    if not facts.resumable:
        return None
    index: int | None = None
    for event in SseSplitter().feed(first):
        # Nearly all events are deltas; only these two open and close a block.
        if b"content_block_st" not in event:
            continue
        document = mapping(load(fields(event)[1]))
        if document.get("type") == "content_block_start":
            is_text = mapping(document.get("content_block")).get("type") == "text"
            number = document.get("index")
            index = number if is_text and isinstance(number, int) else None
        elif document.get("type") == "content_block_stop":
            index = None
    return index
