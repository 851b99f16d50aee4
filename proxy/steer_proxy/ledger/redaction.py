"""A function of the user's that sees every row's texts before they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

Redact = Callable[[dict[str, str]], Mapping[str, str | None]]
"""Takes a row's text columns by name, those that are set; returns what is to be written in place.

A column it leaves out or gives None for is written as NULL.
"""

_NAME: Final = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")


def find(name: str) -> Redact:
    """The function that `package.module:function` names.

    Raises:
        ValueError: saying what is missing.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError("expected package.module:function")
    try:
        found: Any = import_module(match[1])
    except Exception as error:  # noqa: BLE001 - whatever somebody else's module does when imported
        raise ValueError(
            f"{match[1]} cannot be imported: {type(error).__name__}: {str(error)[:200]}; "
            "its directory must be on PYTHONPATH"
        ) from None
    for step in match[2].split("."):
        found = getattr(found, step, None)
    if not callable(found):
        raise ValueError(f"{match[1]} has no function {match[2]}")  # noqa: TRY004 - foreign input
    redact: Redact = found
    return redact
