"""JSON merge patch (RFC 7396) that says when nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_patch(target: Any, patch: Any) -> Any:
    """The patched value; `target` itself, by identity, when the patch changes nothing.

    As in RFC 7396, section 2: objects merge member by member, null removes a member, anything else
    replaces. Neither argument is altered. Members keep their order; new ones come last.
    """
    if not isinstance(patch, Mapping):
        return target if same_json(target, patch) else patch
    if not isinstance(target, Mapping):
        return {name: merge_patch(None, part) for name, part in patch.items() if part is not None}
    merged: dict[str, Any] | None = None
    for name, value in patch.items():
        if value is None:
            if name in target:
                merged = dict(target) if merged is None else merged
                del merged[name]
            continue
        before = target.get(name)
        after = merge_patch(before, value)
        if after is not before or name not in target:
            merged = dict(target) if merged is None else merged
            merged[name] = after
    return target if merged is None else merged


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON, where 1, 1.0 and true are three different ones."""
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping)
            and one.keys() == other.keys()
            and all(same_json(value, other[name]) for name, value in one.items())
        )
    if isinstance(one, (list, tuple)):
        return (
            isinstance(other, (list, tuple))
            and len(one) == len(other)
            and all(map(same_json, one, other))
        )
    return type(one) is type(other) and bool(one == other)
