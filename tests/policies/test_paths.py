"""Request targets and routes."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.paths import (
    MAX_ROUTE_SEGMENTS,
    BadTarget,
    Target,
    admit,
    after_route,
    collapse_slashes,
    match_route,
)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/v1/chat/completions", "/v1/chat/completions", ""),
        ("/v1beta/models/gemini-2.5-flash:generateContent?alt=sse", None, "alt=sse"),
        ("/v1/files/a..b/.hidden/..c/c..", None, ""),
        ("/a%20b/%C3%A4", None, ""),
        ("/a;b=c/x", None, ""),
        ("/a?b=c?d&e=%zz&f=/../x", "/a", "b=c?d&e=%zz&f=/../x"),
        ("/a?", "/a", ""),
        ("//v1/models", "/v1/models", ""),
        ("///v1", "/v1", ""),
        ("//", "/", ""),
        ("/v1//models/", "/v1//models/", ""),
        ("/%25%32%65", "/%25%32%65", ""),
    ],
)
def test_what_is_let_in(target: str, path: str | None, query: str) -> None:
    """As it came, but for slashes in front."""
    admitted = admit("POST", target)
    assert admitted == Target(target.partition("?")[0] if path is None else path, query)


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        ("GET", "", "must be a path"),
        ("GET", "http://api.openai.com/v1", "must be a path"),
        ("GET", "api.openai.com:443", "must be a path"),
        ("GET", "v1/models", "must be a path"),
        ("GET", "?a=b", "must be a path"),
        ("GET", "*", "only OPTIONS"),
        ("GET", "/a/../b", "dot segment"),
        ("GET", "/..", "dot segment"),
        ("GET", "/.", "dot segment"),
        ("GET", "/a/.", "dot segment"),
        ("GET", "/a/./b", "dot segment"),
        ("GET", "/a/%2e%2e/b", "dot segment"),
        ("GET", "/a/.%2E/b", "dot segment"),
        ("GET", "/a/%2e", "dot segment"),
        ("GET", "/a/..;/b", "dot segment"),
        ("GET", "/a/..;x=y", "dot segment"),
        ("GET", "/a/..%3B/b", "dot segment"),
        ("GET", "/../?x", "dot segment"),
        ("GET", "/a%2fb", "encoded slash"),
        ("GET", "/a%2Fb", "encoded slash"),
        ("GET", "/a%5cb", "encoded slash"),
        ("GET", "/a\\b", "backslash"),
        ("GET", "/a%00", "control character"),
        ("GET", "/a%0d%0aX", "control character"),
        ("GET", "/a%7f", "control character"),
        ("GET", "/a\x00", "must be percent-encoded"),
        ("GET", "/a b", "must be percent-encoded"),
        ("GET", "/ä", "must be percent-encoded"),
        ("GET", "/a#b", "must be percent-encoded"),
        ("GET", "/a\n", "must be percent-encoded"),
        ("GET", "/a%zz", "encodes nothing"),
        ("GET", "/a%2", "encodes nothing"),
        ("GET", "/a%", "encodes nothing"),
        ("GET", "/a?b c", "the query has a character"),
        ("GET", "/a?b#c", "the query has a character"),
        ("GET", "/a?ä", "the query has a character"),
        ("GET", "/a?\r\n", "the query has a character"),
    ],
)
def test_what_is_refused(method: str, target: str, reason: str) -> None:
    """And the reason says why, in words for its sender."""
    refused = admit(method, target)
    assert isinstance(refused, BadTarget)
    assert reason in refused.reason


def test_options_may_ask_for_the_server() -> None:
    """RFC 9112, section 3.2.4."""
    assert admit("OPTIONS", "*") == Target("*", "")


@given(st.text(st.sampled_from("/.%2eE25cCfF;a\\?#*: \x00é")) | st.text())
def test_what_is_let_in_reads_the_same_to_everybody(target: str) -> None:
    """Decoding an admitted path once brings no new segments, dots or controls."""
    admitted = admit("GET", target)
    if isinstance(admitted, BadTarget):
        return
    assert admitted.path.startswith("/")
    assert not admitted.path.startswith("//")
    decoded = unquote(admitted.path, errors="strict" if "%" not in admitted.path else "replace")
    assert decoded.count("/") == admitted.path.count("/")
    assert not {".", ".."} & set(re.split(r"[/;]", decoded))
    assert not re.search(r"[\x00-\x1f\x7f\\]", decoded)


ROUTES = {"/openai/v1", "/v1", "/anthropic", "/v1/special"}


@pytest.mark.parametrize(
    ("path", "prefix", "rest"),
    [
        ("/v1", "/v1", ""),
        ("/v1/", "/v1", "/"),
        ("/v1/chat/completions", "/v1", "/chat/completions"),
        ("/v1/special", "/v1/special", ""),
        ("/v1/special/x", "/v1/special", "/x"),
        ("/v1/specialist", "/v1", "/specialist"),
        ("/openai/v1/models", "/openai/v1", "/models"),
        ("/v1//x", "/v1", "//x"),
        ("/v1/x" + "/y" * 100, "/v1", "/x" + "/y" * 100),
    ],
)
def test_the_longest_prefix_owns_a_path(path: str, prefix: str, rest: str) -> None:
    """Cut only where a segment ends."""
    assert match_route(ROUTES, path) == prefix
    assert after_route(prefix, path) == rest


@pytest.mark.parametrize("path", ["/v1beta", "/openai", "/openai/v10", "/", "/x/v1", "/V1"])
def test_no_route(path: str) -> None:
    """Nothing owns these but a route for everything."""
    assert match_route(ROUTES, path) is None
    assert match_route(ROUTES | {"/"}, path) == "/"
    assert after_route("/", path) == path


def test_a_route_has_a_bounded_number_of_segments() -> None:
    """The search ends there, whatever a path looks like."""
    deep = "/a" * MAX_ROUTE_SEGMENTS
    assert match_route({deep}, deep + "/b") == deep
    assert match_route({deep + "/a"}, deep + "/a") is None


@pytest.mark.parametrize(
    ("path", "collapsed"), [("/a/b", "/a/b"), ("//a///b//", "/a/b/"), ("", ""), ("/", "/")]
)
def test_collapse_slashes(path: str, collapsed: str) -> None:
    """Empty segments go, a trailing slash stays."""
    assert collapse_slashes(path) == collapsed
