"""Which request targets are let in, and which route owns a path.

A path that Steer and an upstream could read differently is refused: routes, pins and credentials
hang on it. What is let in is forwarded as it came, percent-encoding included.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

MAX_ROUTE_SEGMENTS: Final = 16
"""Most segments a route's path prefix may have."""

_VISIBLE_ASCII: Final = re.compile(r"[!-~]*")
# The usual path: nothing encoded, no dot segment, no doubtful character. Passed at a glance.
_PLAIN_PATH: Final = re.compile(r"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9_:@!$&'()*+,=~.-]*)+")
_BAD_ENCODING: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODED_SEPARATOR: Final = re.compile(r"%(?:2[fF]|5[cC])")
_ENCODED_CONTROL: Final = re.compile(r"%(?:[01][0-9A-Fa-f]|7[fF])")
# `.` and `..`, encoded or not, and with parameters, which some servers cut off first.
_DOT_SEGMENT: Final = re.compile(r"/(?:\.|%2[eE]){1,2}(?=[/;]|%3[bB]|$)")
_SLASHES: Final = re.compile(r"/{2,}")


@dataclass(frozen=True, slots=True)
class Target:
    """A path, beginning with a slash (or `*` of an OPTIONS), and a query without its `?`."""

    path: str
    query: str


@dataclass(frozen=True, slots=True)
class BadTarget:
    """A request target that is refused with 400, and why, in words for its sender."""

    reason: str


def admit(method: str, target: str) -> Target | BadTarget:
    """Let a request target in, or refuse it.

    Only the origin form (RFC 9112, section 3.2.1) and the `*` of OPTIONS (3.2.4) are taken: Steer
    is no forward proxy. Refused are: dot segments and separators in disguise (RFC 3986, section
    3.3, lets servers read them as they like), control characters, anything but visible ASCII, a
    fragment. Slashes before the first segment are taken as one, since some clients join a base URL
    and a path that way; empty segments after it stay, as they mean something to some HTTP APIs, and
    an LLM dialect drops them (`canonical_path`).
    """
    path, mark, query = target.partition("?")
    if not _PLAIN_PATH.fullmatch(path) and (reason := _path_fault(method, path)) is not None:
        return BadTarget(reason)
    if mark and (not _VISIBLE_ASCII.fullmatch(query) or "#" in query):
        return BadTarget("the query has a character that must be percent-encoded")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")
    return Target(path, query)


def _path_fault(method: str, path: str) -> str | None:
    """Why a path that is not of the usual kind is refused; None when it is not."""
    if path == "*":
        return None if method == "OPTIONS" else "only OPTIONS may ask for *"
    if not path.startswith("/"):
        return "the request target must be a path: this is no forward proxy"
    if not _VISIBLE_ASCII.fullmatch(path) or "#" in path:
        return "the path has a character that must be percent-encoded"
    if "\\" in path:
        return "the path has a backslash"
    if _ENCODED_SEPARATOR.search(path):
        return "the path has an encoded slash or backslash"
    if _ENCODED_CONTROL.search(path):
        return "the path has an encoded control character"
    if _BAD_ENCODING.search(path):
        return "the path has a percent sign that encodes nothing"
    if _DOT_SEGMENT.search(path):
        return "the path has a dot segment"
    return None


def match_route(prefixes: Container[str], path: str) -> str | None:
    """The longest of the prefixes that owns the path, cut only where a segment ends.

    `/v1` owns `/v1` and `/v1/chat`, not `/v1beta`. The prefix `/` owns everything. Give a set or a
    mapping: each segment costs one look-up.
    """
    best = "/" if "/" in prefixes else None
    end = 0
    for _ in range(MAX_ROUTE_SEGMENTS):
        end = path.find("/", end + 1)
        prefix = path if end < 0 else path[:end]
        if prefix in prefixes:
            best = prefix
        if end < 0:
            break
    return best


def after_route(prefix: str, path: str) -> str:
    """What follows a route's prefix: "" or a path that begins with a slash."""
    return path if prefix == "/" else path[len(prefix) :]


def collapse_slashes(path: str) -> str:
    """The path without empty segments (but for one at the end)."""
    return _SLASHES.sub("/", path) if "//" in path else path
