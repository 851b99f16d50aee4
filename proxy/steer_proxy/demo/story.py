"""What happens in a scenario, told line by line as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Tone(StrEnum):
    """How a line is meant."""

    GOOD = "good"
    BAD = "bad"
    WAIT = "wait"
    NOTE = "note"
    OPEN = "open"
    """Something is under way: the line will be completed."""


@dataclass(slots=True)
class Line:
    """One thing that happened: when (seconds since the scenario began), who did it, what it was.

    `span` is how long a wait takes, in seconds.
    """

    at: float
    who: str
    text: str
    tone: Tone
    span: float = 0.0


@dataclass(slots=True)
class Story:
    """The lines of one scenario."""

    lines: list[Line] = field(default_factory=list)
    heard: str = ""
    """What a streaming caller has been given so far."""
    _time: Callable[[], float] = lambda: 0.0
    _began: float = 0.0

    def begin(self) -> None:
        """Let the time count from now, on the loop's clock."""
        self._time = asyncio.get_running_loop().time
        self._began = self._time()

    def now(self) -> float:
        """Seconds since the beginning; may be asked from another thread."""
        return self._time() - self._began

    def tell(self, who: str, text: str, tone: Tone, span: float = 0.0) -> Line:
        """Add a line; who told it may complete it later."""
        line = Line(self.now(), who, text, tone, span)
        self.lines.append(line)
        return line

    def hear(self, text: str) -> None:
        """A streaming caller was given more text."""
        self.heard += text
