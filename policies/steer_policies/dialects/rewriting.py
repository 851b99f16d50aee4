"""Applying a plan's options to a request with as little disturbance as can be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_plus

import orjson

from steer_policies.merge_patch import merge_patch

# Every member named model whose value is text matches, at any depth, unless its name is spelled
# with escapes. So may a few others (`x\"model`), and then there is more than one match.
_MODEL: Final = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*")')


def patch_body(raw: bytes, body: Any, patch: Mapping[str, Any]) -> bytes | None:
    """The JSON body after a merge patch; None when nothing changes or the body is no object.

    A new model alone is put in its place in the original bytes, so that everything else stays as it
    was written; else the body is written anew, in its own order.
    """
    if not isinstance(body, dict):
        return None
    merged = merge_patch(body, patch)
    if merged is body:
        return None
    spliced = _splice(raw, merged["model"]) if _only_model_differs(body, merged) else None
    return dump(merged) if spliced is None else spliced


def dump(value: Any) -> bytes:
    """The value as JSON bytes, also with what a lenient parser lets in (huge integers, say)."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    """Options from configuration may be read-only mappings."""
    return dict(value)


def _only_model_differs(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether both have a model's name, and share all else (a merge copies nothing it keeps)."""
    return (
        before.keys() == after.keys()
        and isinstance(before.get("model"), str)
        and isinstance(after.get("model"), str)
        and all(after[name] is value for name, value in before.items() if name != "model")
    )


def _splice(raw: bytes, model: str) -> bytes | None:
    """Replace the only model there is; None when there may be more than one."""
    matches = _MODEL.finditer(raw)
    match = next(matches, None)
    if match is None or next(matches, None) is not None or b"\\u" in raw:
        return None
    return raw[: match.start(1)] + dump(model) + raw[match.end(1) :]


def set_query_parameter(query: str, name: str, value: str) -> str:
    """The query with the parameter's value replaced wherever it stands, or added at the end."""
    pairs = query.split("&") if query else []
    found = False
    for index, pair in enumerate(pairs):
        key, _, _ = pair.partition("=")
        if unquote_plus(key) == name:
            pairs[index] = f"{key}={quote(value, safe='')}"
            found = True
    if not found:
        pairs.append(f"{name}={quote(value, safe='')}")
    return "&".join(pairs)


def query_parameter(query: str, name: str) -> str | None:
    """The first value of a parameter, decoded."""
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if unquote_plus(key) == name:
            return unquote_plus(value)
    return None
