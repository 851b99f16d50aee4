"""Foreign text as the ledger's rows take it: bounded, storable in every database, unbetraying."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from steer_policies.shown_path import shown_path

#: Bounds of what a row takes from a caller: its labels as JSON, and its path, in characters.
MAX_LABELS: Final = 4 * 1024
MAX_PATH: Final = 1024
MAX_NAME: Final = 256

#: Paths and names of models that are remembered as they are written: they are few, as a rule.
MAX_TEXTS: Final = 256

_EXPONENT: Final = re.compile(r"(e[+-])0")  # JSON has no need of a zero that Python writes there
_NUL: Final = "\\u0000"  # as JSON writes it; PostgreSQL's JSONB cannot hold it


@lru_cache(MAX_TEXTS)
def path_of(
    prefix: str,
    path: str,
    strict: bool,  # noqa: FBT001 - a key of the cache
) -> str:
    """The path that a call asked for, by its route's and the rest, without credentials."""
    whole = path if prefix == "/" else prefix + path
    return storable(shown_path(whole, strict=strict), MAX_PATH)


def storable(text: str, most: int) -> str:
    """Foreign text as every database takes it: no NUL, no halves of characters, bounded."""
    if text.isascii() and text.isprintable():
        return text[:most]
    return text[:most].encode("ascii", "backslashreplace").decode().replace("\0", "")[:most]


@lru_cache(MAX_TEXTS)
def name_of(text: str | None) -> str | None:
    """A model's name, as every database takes it."""
    return None if text is None else storable(text, MAX_NAME)


def labels(metadata: Mapping[str, Any], allowed: Sequence[str]) -> str | None:
    """The allowed keys of a call's metadata as JSON: plain values, as many as fit."""
    if not metadata or not allowed:
        return None
    found: dict[str, Any] = {}
    size = 2
    for name in allowed:
        value = metadata.get(name)
        if not isinstance(value, (str, int, float, bool)):
            continue
        if isinstance(value, (int, float)) and not _is_plain(value):
            value = _EXPONENT.sub(r"\1", json.dumps(value))
        member = json.dumps({name: value})
        if _NUL not in member and size + len(member) <= MAX_LABELS:
            found[name] = value
            size += len(member)
    return json.dumps(found) if found else None


def _is_plain(value: float) -> bool:
    """Whether both databases give a number back as JSON writes it. SQLite keeps 64 bits of a whole
    one and 15 digits of another, PostgreSQL writes all digits in place of an exponent: what they
    would tell differently is kept as text."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return "e" not in repr(value) and float(f"{value:.15g}") == value
