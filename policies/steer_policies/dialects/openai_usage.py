"""Asking for token counts that the caller did not ask for, and taking them out again.

A stream with `choices` counts tokens when `stream_options.include_usage` says so: in a chunk of its
own before `[DONE]`, which has no choices, while every other chunk has `"usage":null`
(https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options). Without
either, the stream is, byte for byte, the one nobody asked to count.

A count that stands beside choices stays: DeepSeek puts it into the last chunk whether asked or not
(https://api-docs.deepseek.com/api/create-chat-completion).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from steer_policies.dialects.base import RequestFacts
from steer_policies.dialects.openai_requests import CHOICES
from steer_policies.dialects.openai_stream import is_error
from steer_policies.dialects.pieces import Fragment
from steer_policies.dialects.sse import SseSplitter, fields
from steer_policies.foreign import load, mapping

_NOTHING: Final = MappingProxyType[str, Any]({})
_ASK: Final = MappingProxyType[str, Any]({"stream_options": {"include_usage": True}})

_BLANKS: Final = b" \t"
_NULL: Final = re.compile(rb'"usage"[ \t]*:[ \t]*null')

_MAX_TRIES: Final = 8
"""Members of that name, at any depth, among which a chunk's own is looked for; OpenAI's has one."""


def usage_options(facts: RequestFacts, body: Any) -> Mapping[str, Any]:
    """The patch that asks for a count; empty when the caller asked, or the request has no such
    option, or has something there that only the provider should answer."""
    request = mapping(body)
    if facts.operation not in CHOICES or request.get("stream") is not True:
        return _NOTHING
    options = request.get("stream_options")
    if options is not None and not isinstance(options, dict):
        return _NOTHING
    return _ASK if mapping(options).get("include_usage", False) is False else _NOTHING


class WithoutUsage:
    """Splits an event stream as `SseSplitter` does, less what `usage_options` brought into it.

    A chunk that only counts becomes an empty piece, which a reader inspects all the same. An event
    too large to hold passes as it is.
    """

    __slots__ = ("_dropped", "_splitter")

    def __init__(self) -> None:
        self._splitter = SseSplitter()
        self._dropped = False

    @property
    def held(self) -> int:
        """How many bytes of an incomplete event are held."""
        return self._splitter.held

    @property
    def torn(self) -> bool:
        """Whether the beginning of an event was returned, and its end has not come."""
        return self._splitter.torn

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces that `data` completed, in order; joined, they are what may be relayed."""
        return [self._less(piece) for piece in self._splitter.feed(data)]

    def finish(self) -> bytes:
        """The stream ended: what is still held."""
        return self._less(self._splitter.finish())

    def _less(self, piece: bytes) -> bytes:
        dropped, self._dropped = self._dropped, False
        if dropped and piece == b"\n":
            return b""  # of a CRLF whose CR went with its event
        if b'"usage"' not in piece or isinstance(piece, Fragment):
            return piece
        name, data = fields(piece)
        chunk = mapping(load(data))
        usage = chunk.get("usage", False)
        if usage is None:
            return _without_null(piece, chunk)
        if isinstance(usage, dict) and chunk.get("choices") == [] and not is_error(name, chunk):
            self._dropped = True
            return Fragment(b"", piece)
        return piece


def _without_null(event: bytes, chunk: Mapping[str, Any]) -> bytes:
    """The event without the chunk's own `usage`; one further inside is the server's affair."""
    rest = {name: value for name, value in chunk.items() if name != "usage"}
    for match in islice(_NULL.finditer(event), _MAX_TRIES):
        before = event[: match.start()].rstrip(_BLANKS)
        after = event[match.end() :]
        if before[-1:] == b",":
            before = before[:-1].rstrip(_BLANKS)
        elif before[-1:] == b"{":
            after = after.lstrip(_BLANKS).removeprefix(b",").lstrip(_BLANKS)
        left = before + after
        # Whatever else looks like the member leaves another meaning behind, or none.
        if load(fields(left)[1]) == rest:
            return left
    return event
