"""Reading JSON that somebody else wrote: every function is total and its result bounded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

MAX_LABEL: Final = 256
"""Longest name (a model's, say) taken from foreign input, in characters."""

#: More than any counter here comes to, and little enough that sums of many stay below 2^63.
_MAX_COUNT: Final = 2**40
_CODE: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_NOTHING: Final[Mapping[str, Any]] = {}


def load(data: bytes) -> Any:
    """The JSON value, or None when there is none."""
    try:
        return orjson.loads(data)
    except ValueError:
        return None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else _NOTHING


def items(value: Any) -> list[Any]:
    """The value if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def label(value: Any) -> str | None:
    """A short printable name, else None."""
    if isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable():
        return value
    return None


def code(value: Any) -> str | None:
    """A machine-readable reason of at most 64 safe characters, else None."""
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def count(value: Any) -> int | None:
    """A whole number from 0 to 2^40, else None."""
    # The exact type: a bool is an int, too.
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else None
