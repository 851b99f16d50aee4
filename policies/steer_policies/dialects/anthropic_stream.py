"""Reading Anthropic's message streams.

Flow: https://docs.anthropic.com/en/docs/build-with-claude/streaming: `message_start`; for each
block `content_block_start`, deltas, `content_block_stop`; then `message_delta` with the reason to
stop, and `message_stop`. Pings stand anywhere, `error` instead of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_policies.classify import classify_event
from steer_policies.dialects.anthropic_errors import RULES
from steer_policies.dialects.base import Progress, Usage
from steer_policies.dialects.reader import EventReader
from steer_policies.dialects.sse import fields
from steer_policies.dialects.usage import anthropic_usage
from steer_policies.foreign import label, load, mapping

# Blocks that start empty and are filled by deltas. All others say something by starting: a tool's
# name, the result of a search, redacted thinking.
_EMPTY_AT_START: Final = frozenset({"text", "thinking"})


# What an event is made of that brings more text, but for the text.
_FRAME: Final = len(
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":""}}\n\n'
)

_BYTES_PER_TOKEN: Final = 4


class MessageReader(EventReader):
    """Messages: COMPLETE at `message_stop`, FINISHED at a `message_delta` with a stop reason.

    The output is counted in `message_delta` alone: what `message_start` has in its place is there
    before there is any. Of a stream that never comes so far, the size of what came is known.
    """

    __slots__ = ("_came", "_counts", "_ran")

    def __init__(self, *, keep_text: bool = False) -> None:
        super().__init__(keep_text=keep_text)
        self._counts: dict[str, Any] = {}
        # A block is over, or tokens were counted: thinking may be left out of the stream.
        self._ran = False
        self._came = 0

    @property
    def usage(self) -> Usage | None:
        """The counts so far."""
        usage = self._usage
        if usage is None or usage.output is not None or self.progress is Progress.PRELUDE:
            return usage
        return usage._replace(streamed=max(0, self._came) // _BYTES_PER_TOKEN)

    def _inspect(self, event: bytes) -> None:
        # The event's name is its first line: a delta after the first one brings no news.
        if (
            event[:27] == b"event: content_block_delta\n"
            and self.progress is not Progress.PRELUDE
            and not self._keep_text
        ):
            self._came += len(event) - _FRAME
            return
        name, data = fields(event)
        document = mapping(load(data)) if data else {}
        kind = document.get("type")
        if name == b"error" or kind == "error":
            content_seen = self._ran or self.progress is not Progress.PRELUDE
            self.error = classify_event(RULES, document, content_seen=content_seen)
        elif kind == "content_block_delta":
            self._came += len(event) - _FRAME
            self._delta(mapping(document.get("delta")))
        elif kind == "content_block_start":
            self._block(document)
        elif kind == "content_block_stop":
            self._ran = True
        elif kind == "message_start":
            message = mapping(document.get("message"))
            self.model = label(message.get("model")) or self.model
            counted = mapping(message.get("usage"))
            self._count({**counted, "output_tokens": None})
        elif kind == "message_delta":
            # Not before: the token that `message_start` counts is none yet.
            self._ran |= bool(mapping(document.get("usage")).get("output_tokens"))
            self._count(document.get("usage"))
            if mapping(document.get("delta")).get("stop_reason"):
                self._reach(Progress.FINISHED)
        elif kind == "message_stop":
            self._reach(Progress.COMPLETE)

    def _delta(self, delta: Mapping[str, Any]) -> None:
        if any(value for name, value in delta.items() if name != "type"):
            self._reach(Progress.CONTENT)
            self._add_text(delta.get("text") if delta.get("type") == "text_delta" else None)

    def _block(self, document: Mapping[str, Any]) -> None:
        block = mapping(document.get("content_block"))
        kind = block.get("type")
        if kind not in _EMPTY_AT_START:
            self._reach(Progress.CONTENT)
        # One block of text can be resumed; a second one has no place in the first one's envelope.
        if kind != "text" or document.get("index") != 0:
            self._add_text(None)
        elif text := block.get("text"):
            self._reach(Progress.CONTENT)
            self._add_text(text)

    def _count(self, usage: Any) -> None:
        """A later count is cumulative and may name fewer members: the others stay."""
        named = mapping(usage).items()
        self._counts.update((name, value) for name, value in named if value is not None)
        self._usage = anthropic_usage(self._counts)
