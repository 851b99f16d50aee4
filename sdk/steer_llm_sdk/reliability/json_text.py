"""JSON as it is kept: strict, and refused with the place of what is none.

`json.dumps` by itself writes NaN, turns keys that are not text into text and cannot say where it
failed. What comes back from a store must equal what was put in.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, TypeAlias

#: The deepest nesting; a value that contains itself is deeper. As `steer_policies.canonical`.
MAX_DEPTH: Final = 254

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_SHOWN: Final = 64
#: Python refuses to write longer integers than this many bits (4,300 digits).
_MAX_BITS: Final = 14_000


class NotJSON(Exception):
    """A value that is not JSON: `path` says where, `what` what is there."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path or 'it'} {what}")
        self.path = path
        self.what = what


def json_text(value: Any) -> str:
    """A value as JSON text: the same text for equal values, but for members' order.

    Tuples are written as lists, members of enumerations of text or numbers as these.

    Raises:
        NotJSON: for anything else that JSON has no word for.
    """
    _check(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


#: Where a value is: what it is in, and its key or index there; None for the whole.
_Place: TypeAlias = "tuple[_Place, str | int] | None"


def _check(value: Any) -> None:
    pending: list[tuple[Any, _Place, int]] = [(value, None, 0)]
    while pending:
        each, place, depth = pending.pop()
        if isinstance(each, (dict, list, tuple)):
            if depth >= MAX_DEPTH:
                what = f"is nested deeper than {MAX_DEPTH} levels, or in itself"
                raise NotJSON(_shortened(_path(place)), what)
            names = each if isinstance(each, dict) else range(len(each))
            if isinstance(each, dict):
                _check_names(each, place)
            # In their order: the first fault is told.
            pending.extend((each[name], (place, name), depth + 1) for name in reversed(names))
        elif (what_else := _fault(each)) is not None:
            raise NotJSON(_path(place), what_else)


def _check_names(members: dict[Any, Any], place: _Place) -> None:
    for name in members:
        if not isinstance(name, str):
            what = f"has the key {_shortened(repr(name))}, a {type(name).__name__}: keys are text"
            raise NotJSON(_path(place), what)
        if not _encodable(name):
            raise NotJSON(_path(place), "has a key with half a surrogate pair")


def _path(place: _Place) -> str:
    """Such as `content.items[3].when`."""
    steps: list[str] = []
    while place is not None:
        place, name = place
        if isinstance(name, int):
            steps.append(f"[{name}]")
        elif not _PLAIN.fullmatch(name):
            steps.append(f"[{json.dumps(name)}]")
        else:
            steps.append(name if place is None else f".{name}")
    return "".join(reversed(steps))


def _fault(value: Any) -> str | None:
    """Why a value without members is not JSON."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return None if _encodable(value) else "is text with half a surrogate pair"
    if isinstance(value, int):
        return None if value.bit_length() <= _MAX_BITS else "is an integer of absurd length"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}, which is not a JSON number"
    return f"is a {type(value).__name__}, which is not JSON"


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
