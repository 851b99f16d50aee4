"""Going on with a broken message: another stream's text in the first one's open block."""

from __future__ import annotations

from typing import Any, Final

from steer_policies.dialects.base import RequestFacts
from steer_policies.dialects.rewriting import dump
from steer_policies.dialects.sse import SseSplitter, fields, first_document
from steer_policies.foreign import load, mapping

_STARTS: Final = frozenset({"message_start", "content_block_start"})
_STOP: Final = b"content_block_stop"
_TAIL: Final = 4 * 1024
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
    """The index of the stream's block, if it is of text and still open.

    This is asked for each event, and `first` may be long: the block starts near its beginning, and
    of what follows its stop only little comes before the message's.
    """
    if not facts.resumable or _is_closed(first[-_TAIL:]):
        return None
    start = mapping(first_document(first, b"content_block_start"))
    index = start.get("index")
    is_text = mapping(start.get("content_block")).get("type") == "text"
    return index if is_text and isinstance(index, int) else None


def _is_closed(tail: bytes) -> bool:
    """Whether a block's stop is among the last events. Text may contain its name, too."""
    if _STOP not in tail:
        return False
    documents = [load(fields(event)[1]) for event in SseSplitter().feed(tail) if _STOP in event]
    return any(mapping(document).get("type") == _STOP.decode() for document in documents)
