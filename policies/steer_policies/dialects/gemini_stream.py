"""Reading Gemini's streams: `GenerateContentResponse` after `GenerateContentResponse`.

They come as an event stream (`alt=sse`) or as a JSON array; neither has a terminal event. The shape
is https://ai.google.dev/api/generate-content#generatecontentresponse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steer_policies.classify import classify_event
from steer_policies.dialects.base import Progress, Usage
from steer_policies.dialects.gemini_errors import RULES
from steer_policies.dialects.json_array import JsonArraySplitter
from steer_policies.dialects.reader import EventReader
from steer_policies.dialects.special import is_grounded
from steer_policies.dialects.sse import fields
from steer_policies.dialects.usage import gemini_usage
from steer_policies.foreign import items, label, load, mapping


class GeminiReader(EventReader):
    """The event stream: FINISHED at the finish reasons, COMPLETE when the body then ends."""

    __slots__ = ("_choices", "_finished", "_grounded", "_unread")

    marked = False

    def __init__(self, choices: int = 1) -> None:
        super().__init__()
        self._choices = choices
        self._finished: set[int] = set()
        self._grounded = False
        self._unread = b""

    @property
    def usage(self) -> Usage | None:
        """The token counts so far, which nearly every event repeats: the last one's are read."""
        if self._unread:
            self._read(self._unread)
        return self._usage

    def _inspect(self, event: bytes) -> None:
        # After the first content an event without these brings more of it, and counts that matter
        # only when somebody asks.
        if (
            self.progress is Progress.CONTENT
            and b'"finishReason"' not in event
            and b'"error"' not in event
            and b'"promptFeedback"' not in event
        ):
            self._unread = event
        else:
            self._read(event)

    def _read(self, event: bytes) -> None:
        self._unread = b""
        data = fields(event)[1]
        if not data:
            # An error may stand in the stream as bare JSON, without `data:`; the official SDK
            # gathers such lines, too.
            data = event.strip()
        if data[:1] in (b"{", b"["):
            self._see(load(data))

    def _see(self, document: Any) -> None:
        response = mapping(items(document)[0] if items(document) else document)
        if response.get("error"):
            has_run = self._has_run(gemini_usage(response.get("usageMetadata")) or self._usage)
            self.error = classify_event(RULES, response, content_seen=has_run)
            return
        self.model = label(response.get("modelVersion")) or self.model
        self._grounded = self._grounded or is_grounded(response)
        counted = gemini_usage(response.get("usageMetadata"), grounded=self._grounded)
        self._usage = counted or self._usage
        if mapping(response.get("promptFeedback")).get("blockReason"):
            # The prompt was refused: this is the whole answer.
            self._reach(Progress.FINISHED)
        for candidate in items(response.get("candidates")):
            self._candidate(mapping(candidate))

    def _candidate(self, candidate: Mapping[str, Any]) -> None:
        for part in items(mapping(candidate.get("content")).get("parts")):
            if any(value for name, value in mapping(part).items() if name != "thought"):
                self._reach(Progress.CONTENT)
        if candidate.get("finishReason"):
            index = candidate.get("index", 0)
            if len(self._finished) < self._choices:
                self._finished.add(index if isinstance(index, int) else 0)
            finished = len(self._finished) >= self._choices
            self._reach(Progress.FINISHED if finished else Progress.CONTENT)


class GeminiArrayReader(GeminiReader):
    """The JSON array: its closing bracket is the terminal marker."""

    __slots__ = ("_array",)

    marked = True

    def __init__(self, choices: int = 1) -> None:
        super().__init__(choices)
        self._array = JsonArraySplitter()
        self._splitter = self._array

    def _inspect(self, event: bytes) -> None:
        if self._array.closed:
            self._read(event)
        else:
            super()._inspect(event)

    def _read(self, event: bytes) -> None:
        self._unread = b""
        element = event.strip(b"[], \t\r\n")
        if element:
            self._see(load(element))
        elif self._array.closed and self.progress is not Progress.PRELUDE:
            self._reach(Progress.COMPLETE)
