"""Checks of values at construction: each names the field and what was expected."""

from __future__ import annotations

import math
from typing import Any, Final

from steer_llm_sdk.errors import InvalidValue

_INFINITE: Final = math.inf


def number(
    field: str, value: Any, *, least: float = 0.0, most: float = _INFINITE, above: bool = False
) -> None:
    """A finite number from `least` (or above it) to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidValue(field, f"must be a finite number, not {value!r:.64}")
    if value < least or value > most or (above and value == least):
        raise InvalidValue(field, f"must be {_range(least, most, above=above)}, not {value:g}")


def whole(field: str, value: Any, *, least: int, most: int | None = None) -> None:
    """A whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValue(field, f"must be a whole number, not {value!r:.64}")
    if value < least or (most is not None and value > most):
        top = _INFINITE if most is None else most
        raise InvalidValue(field, f"must be {_range(least, top, above=False)}, not {value}")


def flag(field: str, value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidValue(field, f"must be True or False, not {value!r:.64}")


def text(field: str, value: Any) -> None:
    """Text with at least one visible character."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidValue(field, f"must be text that is not empty, not {value!r:.64}")


def function(field: str, value: Any) -> None:
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        raise InvalidValue(field, f"must be a function, not {value!r:.64}")


def _range(least: float, most: float, *, above: bool) -> str:
    start = f"above {least:g}" if above else f"at least {least:g}"
    if most == _INFINITE:
        return start
    return f"{start} and at most {most:g}" if above else f"from {least:g} to {most:g}"
