"""What a large plain answer says of its model and its usage, from its beginning and its end.

Embeddings and images are answers of many megabytes, and nearly all of them numbers: parsing one to
find four counts would hold up every other call. A provider writes what is wanted here near one of
the ends, as a member of the outermost object. Whether it is one is told by counting brackets
outside of strings, so that text that looks like it is not taken for it.
"""

from __future__ import annotations

import contextlib
import re
from itertools import islice
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final

from steer_policies.dialects.rewriting import dump

GLIMPSE: Final = 16 * 1024
"""Bytes looked at, at either end: nine thousand of metadata may stand behind a response's usage."""

MAX_TRIES: Final = 16
"""Members of those names, at any depth, looked at in either end."""

_WANTED: Final = re.compile(r'"(model|modelVersion|service_tier|usage|usageMetadata)"\s*:\s*')

# A string, or at the end of the text the beginning of one.
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_DEPTH: Final = {"{": 1, "[": 1, "}": -1, "]": -1}

_decode: Final = JSONDecoder().raw_decode


def glimpse(head: bytes, tail: bytes) -> bytes:
    """A small JSON object with those of the wanted members that are found; `{}` without any.

    `head` is the beginning of an answer, `tail` its end; they must not overlap.
    """
    found: dict[str, Any] = {}
    text = head[:GLIMPSE].decode("utf-8", "replace")
    for match in islice(_WANTED.finditer(text), MAX_TRIES):
        if _depth(text[: match.start()]) == 1:
            _take(found, match[1], text, match.end())
    text = tail[-GLIMPSE:].decode("utf-8", "replace")
    for match in list(_WANTED.finditer(text))[-MAX_TRIES:]:
        # Read as if it began outside of a string: if it did not, the brackets do not come out even.
        if _depth(text[match.start() :]) == -1:
            _take(found, match[1], text, match.end())
    return dump(found)


def _take(found: dict[str, Any], name: str, text: str, position: int) -> None:
    # It may be cut off, or no JSON at all.
    with contextlib.suppress(JSONDecodeError, RecursionError):
        found[name] = _decode(text, position)[0]


def _depth(text: str) -> int:
    """How many more brackets are opened in a text than closed."""
    bare = _STRING.sub("", text)
    return sum(bare.count(bracket) * step for bracket, step in _DEPTH.items())
