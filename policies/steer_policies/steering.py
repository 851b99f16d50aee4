"""The caller's own steering: `X-Steer-*` request headers, parsed and bounded.

Strict on purpose: a header that cannot be read as it was meant is refused with its name and the
position of the fault, because a budget that is silently ignored costs money.
"""

from __future__ import annotations

import json
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

    Raises:
        SteeringError: for a header that cannot be obeyed.
    """
    upstream = headers.get("X-Steer-Upstream")
    metadata = headers.get("X-Steer-Metadata")
    budget = headers.get("X-Steer-Budget")
    quality = headers.get("X-Steer-Quality")
    timeout = headers.get("X-Steer-Timeout")
    if upstream is metadata is budget is quality is timeout is None:
        return NONE
    return Steering(
        upstream=None if upstream is None else upstream.strip(),
        metadata=_EMPTY if metadata is None else _object("X-Steer-Metadata", metadata),
        budget=None if budget is None else _read("X-Steer-Budget", budget, parse_budget),
        quality=None if quality is None else _read("X-Steer-Quality", quality, parse_quality),
        timeout=None if timeout is None else _timeout(timeout),
    )


def _object(header: str, text: str) -> Mapping[str, Any]:
    if len(text.encode("utf-8", "surrogateescape")) > MAX_BYTES:
        raise SteeringError(f"{header} is longer than {MAX_BYTES} bytes.")
    depth = deepest = 0
    for character in text:
        # Brackets inside strings count too: a generous bound that is checked before parsing, so
        # that nesting cannot exhaust the parser's stack.
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise SteeringError(f"{header} is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise SteeringError(
            f"{header} is not valid JSON: {error.msg} at position {error.pos}."
        ) from None
    except ValueError as error:
        raise SteeringError(f"{header} is not accepted: {error}.") from None
    if not isinstance(value, dict):
        raise SteeringError(f"{header} must be a JSON object at position 0.")
    return MappingProxyType(value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the member {twice[:64]!r} appears twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _read(header: str, text: str, parse: Callable[[object], _T]) -> _T:
    value = _object(header, text)
    try:
        return parse(value)
    except ValueError as error:
        raise SteeringError(f"{header}: {error}.") from None


def _timeout(text: str) -> float:
    try:
        try:
            seconds = parse_duration(float(text))
        except ValueError:
            seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise SteeringError("X-Steer-Timeout must be a number of seconds greater than 0.")
    return seconds
