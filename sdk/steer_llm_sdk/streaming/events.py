"""Events of a run, and their redaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

#: What stands where a redactor failed: text it could not look at is not shown.
REDACTED: Final = "[redacted]"

#: How deep a value is redacted; what lies deeper is not shown.
MAX_DEPTH: Final = 32


class EventType(StrEnum):
    """Which of a manager's callbacks an event is for."""

    START = "start"
    DELTA = "delta"
    USAGE = "usage"
    COMPLETE = "complete"
    ERROR = "error"


class Told(StrEnum):
    """What a delta of the run itself is about: its `metadata["event_type"]`."""

    PLAN_SELECTED = "plan_selected"
    RETRY_ATTEMPT = "retry_attempt"
    THROTTLED = "throttled"
    FALLBACK = "fallback"
    CIRCUIT_BREAKER_STATE = "circuit_breaker_state"
    IDEMPOTENT_REPLAY = "idempotent_replay"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in a run.

    `type` is start, delta, usage, complete or error; `provider` and `model` are those it is about,
    where it is about any; `timestamp` is Unix time in seconds. `metadata["event_type"]` says what a
    delta of the run itself is about; a tool's own deltas hold what the tool put there.
    """

    type: EventType
    request_id: str
    trace_id: str
    timestamp: float
    provider: str | None = None
    model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Redactor:
    """Applies a user's function to every text in a value; without one, values stay as they are.

    Names of members are not redacted. What the function does not return text for, and what it fails
    at, is not shown at all.
    """

    __slots__ = ("_redact",)

    def __init__(self, redact: Callable[[str], str] | None) -> None:
        self._redact = redact

    def text(self, value: str) -> str:
        """A text, redacted."""
        if self._redact is None:
            return value
        try:
            redacted: object = self._redact(value)
        except Exception:  # noqa: BLE001 - a user's function; its failure must not reveal the text
            return REDACTED
        return redacted if isinstance(redacted, str) else REDACTED

    def value(self, value: Any, depth: int = MAX_DEPTH) -> Any:
        """A JSON value with every text in it redacted; what is no JSON by its representation."""
        if self._redact is None or value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return self.text(value)
        if not depth:
            return REDACTED
        if isinstance(value, Mapping):
            return {name: self.value(each, depth - 1) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each, depth - 1) for each in value]
        return self.text(str(value))


#: Of runs that redact nothing.
PLAIN: Final = Redactor(None)
