"""Named parameters, `:name`, as PostgreSQL's numbered ones, `$1`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: What is left alone (texts, quoted names, comments, casts), then the parameter. SQL with
#: dollar-quoted text or array slices is not for this.
_TOKEN: Final = re.compile(
    r"""'(?:[^']|'')*' | "[^"]*" | --[^\n]* | /\*.*?\*/ | :: | :(?P<name>[a-z_][a-z0-9_]*)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with numbered parameters, and the names of these in their order.

    `label` is made of the text: the same everywhere for the same statement, and for no other.
    `once` says that its result tells of the change it has made: carried out again, since the first
    result was lost, it would tell something else. Others may be: they only read, make a row under
    an id of its maker's, which is found there, or set what they have set, within their fences.
    """

    sql: str
    names: tuple[str, ...]
    label: str
    once: bool = False

    def arguments(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters' values in their order.

        Raises:
            KeyError: naming one that is not given.
        """
        return tuple(values[name] for name in self.names)


def numbered(text: str, *, once: bool = False) -> Statement:
    """A statement written with `:name` parameters, numbered as each name first occurs."""
    places: dict[str, int] = {}

    def number(token: re.Match[str]) -> str:
        name = token["name"]
        return token[0] if name is None else f"${places.setdefault(name, len(places) + 1)}"

    sql = _TOKEN.sub(number, text)
    label = f"steer_{hashlib.sha256(sql.encode()).hexdigest()[:24]}"
    return Statement(sql, tuple(places), label, once)


def numbered_once(text: str) -> Statement:
    """The same, of a statement that is not to be carried out again."""
    return numbered(text, once=True)
