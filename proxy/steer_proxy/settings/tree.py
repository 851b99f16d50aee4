"""Merging of configuration before it is validated: plain mappings, lists and scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged at every depth; anything else in `over` replaces what is under it."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = refer(key, below, value) or merge(below, value)
        else:
            result[key] = value
    return result


def refer(key: str, below: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any] | None:
    """A reference to a secret is one thing: `{env: A}` over `{file: B}` leaves no `file` behind."""
    if key not in {"credential", "token", "url"} or not value.keys() & {"env", "file"}:
        return None
    kept = {name: each for name, each in below.items() if name not in {"env", "file"}}
    return kept | dict(value)
