"""The caller's own steering: `X-Steer-*` request headers, parsed and bounded.

Strict on purpose: a header that cannot be read as it was meant is refused with its name and the
position of the fault, because a budget that is silently ignored costs money.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeVar

from steer_policies.budget import Budget, parse_budget
from steer_policies.config import parse_duration
from steer_policies.quality import Quality, parse_quality

_T = TypeVar("_T")

#: Largest JSON header accepted, in bytes, and its deepest nesting.
MAX_BYTES: Final = 8 * 1024
MAX_DEPTH: Final = 8

# Strings, so that brackets in them do not count, and brackets. An unfinished string goes to the
# end, which keeps this linear.
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|[\[\]{}]', re.DOTALL)
_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


class SteeringError(ValueError):
    """A steering header that cannot be obeyed; the message names the header and the place."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What the caller asked of Steer.

    `timeout` is seconds to commit for the whole call, all attempts and waits included.
    """

    upstream: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    budget: Budget | None = None
    quality: Quality | None = None
    timeout: float | None = None


NONE: Final = Steering()


def read_steering(headers: Mapping[str, str]) -> Steering:
    """Read the steering headers of a request; `headers` is case-insensitive.

    A mapping that can hold a name twice, and says so by a method `getall`, must not.

    Raises:
        SteeringError: for a header that cannot be obeyed.
    """
    upstream = _only(headers, "X-Steer-Upstream")
    metadata = _only(headers, "X-Steer-Metadata")
    budget = _only(headers, "X-Steer-Budget")
    quality = _only(headers, "X-Steer-Quality")
    timeout = _only(headers, "X-Steer-Timeout")
    if upstream is metadata is budget is quality is timeout is None:
        return NONE
    return Steering(
        upstream=None if upstream is None else upstream.strip(),
        metadata=_EMPTY if metadata is None else _object("X-Steer-Metadata", metadata),
        budget=None if budget is None else _read("X-Steer-Budget", budget, parse_budget),
        quality=None if quality is None else _read("X-Steer-Quality", quality, parse_quality),
        timeout=None if timeout is None else _timeout(timeout),
    )


def _only(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and (getall := getattr(headers, "getall", None)) is not None:
        count = len(getall(name))
        if count > 1:
            raise SteeringError(f"{name} is given {count} times; once is clear.")
    return value


def _object(header: str, text: str) -> Mapping[str, Any]:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise SteeringError(f"{header} is not UTF-8 at position {error.start}.") from None
    if size > MAX_BYTES:
        raise SteeringError(f"{header} is longer than {MAX_BYTES} bytes.")
    _check_depth(header, text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise SteeringError(
            f"{header} is not valid JSON: {error.msg} at position {error.pos}."
        ) from None
    except UnicodeEncodeError:
        raise SteeringError(f"{header} is not accepted: half a surrogate pair.") from None
    except ValueError as error:
        raise SteeringError(f"{header} is not accepted: {error}.") from None
    if not isinstance(value, dict):
        raise SteeringError(f"{header} must be a JSON object at position 0.")
    return MappingProxyType(value)


def _check_depth(header: str, text: str) -> None:
    """Refuse what is nested too deeply, before the parser's stack has to bear it."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > MAX_DEPTH:
            raise SteeringError(
                f"{header} is nested deeper than {MAX_DEPTH} levels at position {match.start()}."
            )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, member in pairs:
        if name in value:
            raise ValueError(f"the member {name[:64]!r} appears twice")
        value[name] = member
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:32]} is beyond all numbers")
    return value


def _read(header: str, text: str, parse: Callable[[object], _T]) -> _T:
    value = _object(header, text)
    try:
        return parse(value)
    except ValueError as error:
        raise SteeringError(f"{header}: {error}.") from None


def _timeout(text: str) -> float:
    """Seconds, or a duration as configuration writes it."""
    number = text.strip()
    try:
        seconds = float(number) if _NUMBER.fullmatch(number) else parse_duration(number)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise SteeringError(
            "X-Steer-Timeout must be a number of seconds greater than 0, or text such as 250ms."
        )
    return seconds
