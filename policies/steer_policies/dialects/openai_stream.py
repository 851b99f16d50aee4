"""Reading OpenAI's event streams: choices (chat, completions) and typed events (everything else).

Shapes are those of the official SDK's `ChatCompletionChunk`, `Completion`, `ResponseStreamEvent`,
`ImageGenStreamEvent`, `ImageEditStreamEvent`, `TranscriptionStreamEvent`, and the speech API's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_policies.classify import classify_event
from steer_policies.dialects.base import Progress
from steer_policies.dialects.openai_errors import RULES
from steer_policies.dialects.reader import EventReader, Splitter
from steer_policies.dialects.sse import fields
from steer_policies.dialects.usage import openai_usage
from steer_policies.foreign import items, label, load, mapping


def is_error(name: bytes, document: Mapping[str, Any]) -> bool:
    """Whether to call an event an error; `error: {}` or null beside content is none, as in the SDK.

    They look the same in all of OpenAI's streams. vLLM sends `{"object": "error", ...}`.
    """
    return bool(document.get("error")) or name == b"error" or document.get("object") == "error"


class _OpenAIReader(EventReader):
    """Says what an error event means."""

    __slots__ = ()

    def _break(self, document: Mapping[str, Any]) -> None:
        has_run = self._has_run(openai_usage(document.get("usage")) or self._usage)
        self.error = classify_event(RULES, document, content_seen=has_run)


class ChoicesReader(_OpenAIReader):
    """Chat completions and legacy completions: chunks with `choices`, then `[DONE]`."""

    __slots__ = ("_choices", "_finished")

    def __init__(
        self, choices: int = 1, *, splitter: Splitter | None = None, keep_text: bool = False
    ) -> None:
        super().__init__(splitter, keep_text=keep_text)
        self._choices = choices
        self._finished: set[int] = set()

    def _inspect(self, event: bytes) -> None:
        # After the first content nearly every event is one more delta of one choice. The unescaped
        # member cannot stand inside a JSON string, so such an event finishes nothing; it is parsed
        # only if it may bring usage or an error.
        if (
            self.progress is Progress.CONTENT
            and (b'"finish_reason":null' in event or b'"finish_reason": null' in event)
            and (b'"usage":' not in event or b'"usage":null' in event or b'"usage": null' in event)
            and b'"error"' not in event
            and self._choices == 1
            and not self._keep_text
        ):
            return
        name, data = fields(event)
        if data[:6] == b"[DONE]":  # as the official SDK tells it
            self._reach(Progress.COMPLETE)
            return
        document = mapping(load(data)) if data else {}
        if is_error(name, document):
            self._break(document)
            return
        if self.model is None:
            self.model = label(document.get("model"))
        # Groq reports a stream's usage in a member of its own.
        usage = document.get("usage") or mapping(document.get("x_groq")).get("usage")
        if usage:
            self._usage = openai_usage(usage, document) or self._usage
        for choice in items(document.get("choices")):
            self._choice(mapping(choice))

    def _choice(self, choice: Mapping[str, Any]) -> None:
        delta = mapping(choice.get("delta"))
        for name, value in delta.items():
            if value and name != "role":
                self._reach(Progress.CONTENT)
                self._add_text(value if name == "content" else None)
        if choice.get("text"):
            self._reach(Progress.CONTENT)
            self._add_text(None)
        if choice.get("finish_reason"):
            index = choice.get("index", 0)
            if len(self._finished) < self._choices:
                self._finished.add(index if isinstance(index, int) else 0)
            finished = len(self._finished) >= self._choices
            self._reach(Progress.FINISHED if finished else Progress.CONTENT)


#: What begins a stream without bringing anything a caller would miss. Whatever is not known to be
#: of this kind counts as content: to commit early costs a chance to retry, to commit late would
#: hold back what the caller waits for.
_PRELUDE: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
        "keepalive",
        "ping",
    }
)

_TERMINAL: Final = frozenset(
    {
        "response.completed",
        "response.incomplete",
        "speech.audio.done",
        "transcript.text.done",
        "image_generation.completed",
        "image_edit.completed",
    }
)


class TypedReader(_OpenAIReader):
    """Responses, speech, transcriptions and images: every event names its type."""

    __slots__ = ("_awaited",)

    def __init__(self, choices: int = 1) -> None:
        super().__init__()
        self._awaited = choices

    def _inspect(self, event: bytes) -> None:
        if self.progress is Progress.CONTENT and event[:7] == b"event: ":
            end = event.find(b"\n")
            if event[end - 6 : end] == b".delta":
                return
        name, data = fields(event)
        if data[:6] == b"[DONE]":
            self._reach(Progress.COMPLETE)
            return
        document = mapping(load(data)) if data else {}
        kind = document.get("type")
        if not isinstance(kind, str):
            kind = name.decode("latin-1")
        response = mapping(document.get("response"))
        if kind == "response.failed":
            self._count(document, response)
            self._break(response)
        elif kind == "error" or is_error(name, document):
            self._break(document)
        elif kind:
            self._learn(kind, document, response)

    def _learn(self, kind: str, document: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        self._count(document, response)
        if kind in _TERMINAL and document:  # what was cut has its name, and no more
            # Several images end with one event each, all else with one.
            self._awaited -= 1
            done = self._awaited <= 0 or not kind.startswith("image")
            self._reach(Progress.COMPLETE if done else Progress.CONTENT)
        elif kind not in _PRELUDE and document.get("delta", True):
            self._reach(Progress.CONTENT)

    def _count(self, document: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        """A response that failed was paid for, too, and says so."""
        if self.model is None:
            self.model = label(response.get("model"))
        usage = response.get("usage") or document.get("usage")
        if usage:
            self._usage = openai_usage(usage, response or document) or self._usage
