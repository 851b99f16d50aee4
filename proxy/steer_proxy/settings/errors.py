"""What is wrong with a configuration, in words that lead to the place and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

#: Problems shown at once; the rest is counted.
MAX_SHOWN: Final = 20

Key = tuple[str | int, ...]
"""A key path: names of mappings and indexes of lists."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what was expected.

    `key` is a key path such as `routes[0].retry.max_attempts`, empty for the file as a whole.
    `source` says where the value came from: `steer.yaml:12`, an environment variable, a flag.
    """

    key: str
    message: str
    source: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.message) if part)


class ConfigurationError(Exception):
    """A configuration that cannot be used; its text lists every problem, one per line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if len(self.problems) > MAX_SHOWN:
            shown.append(f"and {len(self.problems) - MAX_SHOWN} more")
        super().__init__("\n".join(shown))


def key_text(key: Key) -> str:
    """A key path as people write it: `routes[0].retry.max_attempts`."""
    text = ""
    for step in key:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else str(step)
    return text


def did_you_mean(found: str, known: Sequence[str]) -> str:
    """A hint to the nearest known name, else the known ones when they are few, else nothing."""
    close = get_close_matches(found.lower(), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    if 0 < len(known) <= MAX_SHOWN:
        return f"; known: {', '.join(known)}"
    return ""
