"""Where each value came from: a line of the file, an environment variable, or a flag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from steer_proxy.settings.document import Document
from steer_proxy.settings.errors import Key, Problem, key_text


@dataclass(frozen=True, slots=True)
class Origins:
    """Puts a source on problems: flags are over variables, variables over the file."""

    document: Document
    variables: Mapping[Key, str]
    overrides: Mapping[str, Any]

    def placed(self, problem: Problem, key: Key) -> Problem:
        """A problem with the source of the value at a key path."""
        return Problem(problem.key, problem.message, self._source(key))

    def problem(self, key: Key, message: str) -> Problem:
        """A new problem at a key path, whose last step may be a path of its own."""
        text = key_text(key)
        return Problem(text, message, self._source(_key_of(text)))

    def in_order(self, problems: Iterable[Problem]) -> list[Problem]:
        """The environment's and the command line's first, then the file's from top to bottom."""

        def line(problem: Problem) -> int:
            name, _, number = (problem.source or "").rpartition(":")
            return int(number) if name == self.document.name and number.isdigit() else 0

        return sorted(problems, key=line)

    def _source(self, key: Key) -> str | None:
        if self._flagged(key):
            return "command line"
        for length in range(len(key), 0, -1):
            if (variable := self.variables.get(key[:length])) is not None:
                return variable
        if len(key) > 1 and key[:2] not in self.document.lines:
            # An entry the environment alone made: any of its variables leads there.
            made = (name for path, name in self.variables.items() if path[:2] == key[:2])
            return next(made, None) or self.document.source(key)
        return self.document.source(key)

    def _flagged(self, key: Key) -> bool:
        here: Any = self.overrides
        for step in key:
            if not isinstance(here, Mapping) or step not in here:
                return False
            here = here[step]
        return bool(key)


def _key_of(text: str) -> Key:
    """A key path from its text; a name with dots of its own only loses some precision."""
    return tuple(
        int(step[1:-1]) if step.startswith("[") and step[1:-1].isdigit() else step
        for step in text.replace("[", ".[").split(".")
    )
