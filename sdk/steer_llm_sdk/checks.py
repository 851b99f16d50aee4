"""Checks of values at construction: each names the field and what was expected."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeVar

from steer_llm_sdk.errors import InvalidValue
from steer_policies.idempotency_key import MAX_KEY

_INFINITE: Final = math.inf

#: What will do for a list of names; the usual ones first, since asking for others takes its time.
_LISTS: Final = (list, tuple, Sequence, AbstractSet)

_Choice = TypeVar("_Choice", bound=StrEnum)


def number(
    field: str, value: Any, *, least: float = 0.0, most: float = _INFINITE, above: bool = False
) -> None:
    """A finite number from `least` (or above it) to `most`."""
    if not is_finite(value):
        raise InvalidValue(field, f"must be a finite number, not {shown(value)}")
    if value < least or value > most or (above and value == least):
        raise InvalidValue(field, f"must be {_range(least, most, above=above)}, not {value:g}")


def whole(field: str, value: Any, *, least: int, most: int | None = None) -> None:
    """A whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValue(field, f"must be a whole number, not {shown(value)}")
    if value < least or (most is not None and value > most):
        top = _INFINITE if most is None else most
        raise InvalidValue(field, f"must be {_range(least, top, above=False)}, not {shown(value)}")


def flag(field: str, value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidValue(field, f"must be True or False, not {shown(value)}")


def text(field: str, value: Any) -> None:
    """Text with at least one visible character, which can be written down."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidValue(field, f"must be text that is not empty, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(field, f"holds half a surrogate pair: {shown(value)}") from None


def key(field: str, value: Any) -> None:
    """Text that names a run, a trace or a piece of work."""
    text(field, value)
    if len(value) > MAX_KEY:
        raise InvalidValue(field, f"must have at most {MAX_KEY} characters")


def idempotency_key(value: Any) -> None:
    """Such a text of which one sees all that is in it: it is asked for and looked up by people."""
    key("idempotency_key", value)
    if not value.isprintable():
        raise InvalidValue("idempotency_key", "must not hold control characters")


def names(field: str, value: Any) -> None:
    """A list of texts, none of them empty."""
    if isinstance(value, (str, bytes)) or not isinstance(value, _LISTS):
        raise InvalidValue(field, f"must be a list of names, not {shown(value)}")
    for each in value:
        text(field, each)


def mapping(field: str, value: Any) -> None:
    """A dictionary."""
    kind = type(value)  # the usual ones first: asking an abstract class takes its time
    if kind is not dict and kind is not MappingProxyType and not isinstance(value, Mapping):
        raise InvalidValue(field, f"must be a dictionary, not {shown(value)}")


def function(field: str, value: Any) -> None:
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        raise InvalidValue(field, f"must be a function, not {shown(value)}")


def plain_function(field: str, value: Any) -> None:
    """A function that gives its result at once, or None: nobody would await a coroutine's."""
    function(field, value)
    if inspect.iscoroutinefunction(value):
        raise InvalidValue(field, f"must be a plain function, not a coroutine's: {shown(value)}")


def choice(name: str, kind: type[_Choice], value: str) -> _Choice:
    """A member of an enumeration by its text.

    Raises:
        InvalidValue: naming the field.
    """
    try:
        return kind(value)
    except ValueError:
        known = " or ".join(kind)
        raise InvalidValue(name, f"must be {known}, not {shown(value)}") from None


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def shown(value: Any) -> str:
    """A foreign value, for a message; bounded."""
    try:
        return f"{value!r:.64}"
    except Exception:  # noqa: BLE001 - a foreign method, or an integer too long to be written
        return f"a {type(value).__name__}"


def _range(least: float, most: float, *, above: bool) -> str:
    start = f"above {least:g}" if above else f"at least {least:g}"
    if most == _INFINITE:
        return start
    return f"{start} and at most {most:g}" if above else f"from {least:g} to {most:g}"
