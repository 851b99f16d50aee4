"""Copies of what belongs to others: requests, options, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steer_llm_sdk.errors import InvalidValue

#: How deep requests and options may nest.
MAX_DEPTH: Final = 200

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def own_copy(field: str, value: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dictionary that its giver cannot change any more.

    Raises:
        InvalidValue: it nests too deep.
    """
    try:
        return {
            key: each if type(each) in _SCALARS else copied(each) for key, each in value.items()
        }
    except RecursionError:
        raise InvalidValue(field, "nests too deep, or holds itself") from None


def copied(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A value with its dictionaries and lists made anew; anything else is shared.

    Raises:
        RecursionError: it nests deeper than `depth`.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if not depth:
        raise RecursionError
    if kind is dict:
        # Asked here already, for most of what there is: a call costs more.
        return {
            key: each if type(each) in _SCALARS else copied(each, depth - 1)
            for key, each in value.items()
        }
    if kind is list:
        return [each if type(each) in _SCALARS else copied(each, depth - 1) for each in value]
    if kind is tuple:
        return tuple([copied(each, depth - 1) for each in value])
    return value
