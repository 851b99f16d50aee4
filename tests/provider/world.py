"""What healthy answers are made of: adjustable, and otherwise a function of the request alone."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from tests.provider.attempt import Attempt
from tests.provider.dialects import endpoint_of

CREATED = 1767614400
"""The moment every healthy answer was made at: 2026-01-05 12:00 UTC."""

_MEANING = ("messages", "input", "prompt", "contents", "system", "instructions", "requests")


@dataclass(slots=True)
class StoredFile:
    """A file uploaded to the provider."""

    record: dict[str, Any]
    data: bytes


@dataclass
class World:
    """The settings and the memory of one provider."""

    name: str = "wall"
    text: str = "The wall answers every call with the same few plain words."
    """The answer; `{name}` and `{model}` are replaced. Split into words it makes the deltas."""
    refusal: str | None = None
    """When set, the model refuses with these words (a 200, as all three dialects have it)."""
    pace: float = 0.0
    """Seconds before each token of a healthy stream."""
    tokens: int | None = None
    """How many deltas a stream has; the words are repeated or cut to it."""
    date: datetime | None = field(default_factory=lambda: datetime.fromtimestamp(CREATED, UTC))
    """The Date header; fixed, so that answers compare byte for byte. None means the real one."""
    distinct: bool = False
    """When set, identical requests get different identifiers, so that a replay can be told from a
    second run."""
    files: dict[str, StoredFile] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    message_batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)

    def words(self, model: str = "") -> list[str]:
        """The answer's text in pieces as a tokenizer would cut it: the space goes first."""
        text = self.text.replace("{name}", self.name).replace("{model}", model)
        words = self.words_of(text)
        if self.tokens is None or not words:
            return words
        repeated = words * (self.tokens // len(words) + 1)
        return repeated[: self.tokens]

    def words_of(self, text: str) -> list[str]:
        """Any text in such pieces."""
        return re.findall(r"\s*\S+|\s+", text)

    def answer_text(self, attempt: Attempt, model: str = "") -> str:
        """The whole text; noted on the attempt for faults that enlarge it."""
        attempt.text = "".join(self.words(model))
        return attempt.text

    def http_date(self) -> str:
        """The value of the Date header."""
        return format_datetime(self.now(), usegmt=True)

    def now(self) -> datetime:
        """The moment the Date header names."""
        return self.date or datetime.now(UTC)

    def digest(self, attempt: Attempt, size: int = 24) -> str:
        """Letters and digits that identify what was asked, for identifiers in answers.

        Made from the meaning (endpoint, model, prompt), not from the bytes: a proxy that adds
        `stream_options`, or a client that draws a new multipart boundary, changes nothing.
        """
        asked = attempt.object
        meaning: Any = {key: asked[key] for key in ("model", *_MEANING) if key in asked}
        form = [(part.name, part.filename, part.data.hex()) for part in attempt.form]
        salt = attempt.number if self.distinct else 0
        source = [*endpoint_of(attempt), meaning, form, salt]
        return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:size]


def count_tokens(value: Any) -> int:
    """A plausible token count: the words of every text in a JSON value, at least 1."""
    if isinstance(value, str):
        return max(1, len(value.split()))
    if isinstance(value, list):
        return max(1, sum(count_tokens(item) for item in value))
    if isinstance(value, dict):
        return max(1, sum(count_tokens(item) for item in value.values()))
    return 1


def sample(schema: Any) -> Any:
    """A value that fits a JSON Schema well enough: what a model would give a tool."""
    if not isinstance(schema, dict):
        return "value"
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    match str(kind).lower():
        case "object":
            properties = schema.get("properties") or {}
            return {name: sample(inner) for name, inner in properties.items()}
        case "array":
            return [sample(schema.get("items", {}))]
        case "integer":
            return 1
        case "number":
            return 1.5
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "value"
