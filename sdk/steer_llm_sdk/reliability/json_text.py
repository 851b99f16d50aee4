"""JSON as it is kept: strict, and refused with the place of what is none.

`json.dumps` by itself writes NaN, turns keys that are not text into text and cannot say where it
failed. What comes back from a store must equal what was put in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final

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


def _check(value: Any) -> None:
    pending: list[tuple[Any, str, int]] = [(value, "", 0)]
    while pending:
        each, path, depth = pending.pop()
        if isinstance(each, (dict, list, tuple)):
            if depth >= MAX_DEPTH:
                raise NotJSON(
                    _shortened(path), f"is nested deeper than {MAX_DEPTH} levels, or in itself"
                )
            inner = list(_members(each, path))
            # In their order: the first fault is told.
            pending.extend((member, place, depth + 1) for member, place in reversed(inner))
        elif (what := _fault(each)) is not None:
            raise NotJSON(path, what)


def _members(container: Any, path: str) -> Iterable[tuple[Any, str]]:
    if not isinstance(container, dict):
        for index, member in enumerate(container):
            yield member, f"{path}[{index}]"
        return
    for name, member in container.items():
        if not isinstance(name, str):
            raise NotJSON(
                path, f"has the key {_shown(name)}, a {type(name).__name__}: keys are text"
            )
        if not _encodable(name):
            raise NotJSON(path, "has a key with half a surrogate pair")
        if _PLAIN.fullmatch(name):
            yield member, f"{path}.{name}" if path else name
        else:
            yield member, f"{path}[{json.dumps(name)}]"


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


def _shown(value: object) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
