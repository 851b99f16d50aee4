"""Calling users' functions that may take fewer arguments than there are to give."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def accepted(function: Callable[..., Any], most: int) -> int:
    """How many positional arguments, of at most so many, a function can be given."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in ones have none
        return most
    for count in range(most, 0, -1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return 0
