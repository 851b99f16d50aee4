"""Whose key it is, and whether it is the same request."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.fingerprint import (
    MEANINGFUL_HEADERS,
    RequestIdentity,
    caller_mark,
    fingerprint,
    principal,
    scope_of,
)
from steer_policies.headers import Field

SECRET = b"s" * 32
OTHER = b"t" * 32

BEARER = (b"Authorization", b"Bearer sk-1")


def fields(*lines: str) -> list[Field]:
    """Header lines as they stand on the wire."""
    pairs = (line.partition(":") for line in lines)
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, _, value in pairs]


def request(body: bytes = b"{}", *lines: str, **changes: Any) -> RequestIdentity:
    """A chat completion."""
    lines = lines or ("Content-Type: application/json",)
    chat = RequestIdentity("POST", "chat/v1/chat/completions", "", fields(*lines), body)
    return replace(chat, **changes)


def same(one: RequestIdentity, other: RequestIdentity) -> bool:
    return fingerprint(SECRET, one) == fingerprint(SECRET, other)


# --- Principals -----------------------------------------------------------------------------------


def test_what_a_caller_presents() -> None:
    """Every form of a credential, each its own; nothing else matters."""
    seen = [
        principal([], ""),
        principal([BEARER], ""),
        principal([(b"Authorization", b"Bearer sk-2")], ""),
        principal([(b"X-Api-Key", b"Bearer sk-1")], ""),
        principal([BEARER, (b"OpenAI-Organization", b"org")], ""),
        principal([BEARER, (b"Cookie", b"session=1")], ""),
        principal([BEARER, BEARER], ""),
        principal([], "key=1"),
        principal([], "key=2"),
        principal([], "key=1&key=2"),
        principal([BEARER], "key=1"),
        principal([(b"X-Token", b"1")], ""),
        principal([(b"X-Token", b"2")], ""),
        principal([(b"X-Corp-Id", b"1")], "", also=frozenset({"x-corp-id"})),
        principal([(b"X-Corp-Id", b"2")], "", also=frozenset({"x-corp-id"})),
    ]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    "lines",
    [
        [(b"authorization", b"Bearer sk-1")],
        [(b"AUTHORIZATION", b" Bearer sk-1\t")],
        [(b"Accept", b"*/*"), BEARER, (b"x-stainless-retry-count", b"1")],
    ],
)
def test_the_same_caller(lines: list[Field]) -> None:
    """However the header is spelled, and whatever else there is."""
    assert principal(lines, "alt=sse") == principal([BEARER], "")


def test_the_order_of_credentials() -> None:
    """That of the headers does not matter, that of one header's lines does."""
    key, one, two = (b"x-api-key", b"1"), (b"Cookie", b"1"), (b"cookie", b"2")
    assert principal([key, one, two], "") == principal([one, key, two], "")
    assert principal([one, two], "") != principal([two, one], "")


def test_a_websocket_says_it_in_a_subprotocol() -> None:
    """What browsers have instead of headers counts where there is an upgrade."""
    offered = fields("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-1")
    assert principal(offered, "", upgrade=True) != principal([], "", upgrade=True)
    assert principal(offered, "") == principal([], "")


def test_a_header_by_name() -> None:
    """Only that header counts; its absence is no value."""
    scope = "header:X-Tenant"
    seen = [
        principal([], "", scope),
        principal(fields("X-Tenant:"), "", scope),
        principal(fields("X-Tenant: a"), "", scope),
        principal(fields("X-Tenant: b"), "", scope),
        principal(fields("X-Tenant: a", "X-Tenant: b"), "", scope),
        principal(fields("X-Tenant: a"), "", "header:X-Team"),
        principal(fields("X-Tenant: a"), "", "caller"),
    ]
    assert len(set(seen)) == len(seen)
    lines = [*fields("x-tenant:a  "), BEARER]
    assert principal(lines, "key=1", scope) == principal(fields("X-Tenant: a"), "", scope)


def test_everybody_on_a_route() -> None:
    """One principal, unlike any other."""
    everybody = principal([BEARER], "key=1", "route")
    assert everybody == principal([], "", "route")
    assert everybody not in {principal([], ""), principal([], "", "header:route")}


NAMES = st.sampled_from([b"Authorization", b"api-key", b"X-API-Key", b"Cookie", b"Accept"])
LINES = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"a", b"b", b"ab", b"1:a"])), max_size=4)


@given(LINES, LINES, st.text(max_size=8), st.text(max_size=8))
def test_principals_are_unambiguous(
    one: list[Field], other: list[Field], query: str, another: str
) -> None:
    """Equal exactly where the credentials are."""

    def presented(lines: list[Field]) -> list[Field]:
        found = [(name.lower(), value) for name, value in lines if name != b"Accept"]
        return sorted(found, key=lambda field: field[0])

    equal = principal(one, "key=" + query) == principal(other, "key=" + query)
    assert equal == (presented(one) == presented(other))
    for scope in ("caller", "route", "header:api-key"):
        assert principal(one, query, scope) == principal(list(one), query, scope)
        principal(one, another, scope, upgrade=True)


# --- Scopes and marks -----------------------------------------------------------------------------


def test_a_scope_is_all_of_it() -> None:
    """Another secret, caller, method, path or key is another scope; no two run together."""
    seen = [
        scope_of(SECRET, b"me", "POST", "chat/v1", "key"),
        scope_of(OTHER, b"me", "POST", "chat/v1", "key"),
        scope_of(SECRET, b"you", "POST", "chat/v1", "key"),
        scope_of(SECRET, b"me", "PUT", "chat/v1", "key"),
        scope_of(SECRET, b"me", "POST", "chat/v2", "key"),
        scope_of(SECRET, b"me", "POST", "chat/v1", "Key"),
        scope_of(SECRET, b"me", "POST", "chat/v1k", "ey"),
        scope_of(SECRET, b"mePOST", "", "chat/v1", "key"),
    ]
    assert len(set(seen)) == len(seen)
    assert all(len(scope) == 64 and int(scope, 16) for scope in seen)


def test_a_caller_is_marked() -> None:
    """By caller and secret; a mark is no part of a scope."""
    mark = caller_mark(SECRET, b"me")
    assert mark not in {caller_mark(OTHER, b"me"), caller_mark(SECRET, b"you")}
    assert mark not in scope_of(SECRET, b"me", "", "", "")
    assert len(mark) == 32
    assert int(mark, 16)


# --- Fingerprints ---------------------------------------------------------------------------------


BODY = b'{"model": "gpt-4o", "messages": [], "temperature": 1.0}'


@pytest.mark.parametrize(
    "other",
    [
        request(b'{"temperature":1,"messages":[ ],"model":"gpt\\u002d4o"}\n'),
        request(BODY, "content-type:  application/json\t"),
        request(BODY, "Content-Type: Application/JSON"),
        request(BODY, "Content-Type: application/json", "x-stainless-retry-count: 1"),
        request(BODY, "Authorization: Bearer 2", "Content-Type: application/json", "Via: 1.1 x"),
        request(BODY, "Content-Type: application/json", "X-Steer-Timeout: 5", "X-Request-ID: 2"),
        request(BODY, query="key=1"),
        request(BODY, query="key"),
        request(BODY, query="&api_key=2&"),
    ],
)
def test_the_same_request(other: RequestIdentity) -> None:
    """Spelled otherwise, tried again, with another credential: that is not what it asks for."""
    assert same(request(BODY), other)


@pytest.mark.parametrize(
    "other",
    [
        request(BODY, method="PUT"),
        request(BODY, path="chat/v1/completions"),
        request(BODY, query="alt=sse"),
        request(BODY.replace(b"gpt", b"GPT")),
        request(BODY.replace(b"1.0", b"true")),
        request(b""),
        request(BODY, "Content-Type: application/json; charset=utf-8"),
        request(BODY, "Content-Type:"),
        request(BODY, "Accept: */*"),
        *(
            request(BODY, "Content-Type: application/json", f"{name.decode()}: x")
            for name in sorted(MEANINGFUL_HEADERS)
        ),
    ],
)
def test_another_request(other: RequestIdentity) -> None:
    """What changes what a call means, or by whom it is answered."""
    assert not same(request(BODY), other)
    assert fingerprint(SECRET, other) != fingerprint(OTHER, other)


def test_no_header_stands_for_another() -> None:
    """The same value in each of them: all different."""
    names = sorted(MEANINGFUL_HEADERS)
    seen = {fingerprint(SECRET, request(BODY, f"{name.decode()}: x")) for name in names}
    assert len(seen) == len(names)
    assert not same(request(BODY, "Accept: x"), request(BODY, "Accept:"))
    assert not same(request(BODY, "Accept:"), request(BODY, "User-Agent: x"))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (["Accept: a", "OpenAI-Beta: b"], ["openai-beta:b", "accept:a"], True),
        (["OpenAI-Beta: a", "OpenAI-Beta: b"], ["OpenAI-Beta: a, b"], True),
        (
            ["OpenAI-Beta: a", "Accept: x", "openai-beta: b"],
            ["OpenAI-Beta: a, b", "Accept:x"],
            True,
        ),
        (["OpenAI-Beta: a", "OpenAI-Beta: b"], ["OpenAI-Beta: b", "OpenAI-Beta: a"], False),
        (["OpenAI-Beta: a", "OpenAI-Beta: a"], ["OpenAI-Beta: a"], False),
        (["Content-Type: a/b; C=d;e=f"], ["Content-Type: A/B;e=f ; c = d;"], True),
        (["Content-Type: a/b; c=d"], ["Content-Type: a/b; c=D"], False),
        (["Content-Type: a/b; charset=UTF-8"], ['Content-Type: a/b;charset="utf-8"'], True),
        (["Content-Type: a/b; charset=utf-8"], ["Content-Type: a/b"], False),
        (["Content-Type: a/b;"], ["Content-Type: a/b"], True),
        (["Content-Type: a/b; boundary=x"], ["Content-Type: a/b; boundary=y"], False),
        (["Content-Type: a/b; \xe9"], ["Content-Type: a/b; e"], False),
        (["Content-Type: \xe9"], ["Content-Type: e"], False),
    ],
)
def test_headers_by_meaning(one: list[str], other: list[str], equal: bool) -> None:
    """Order of headers and ways to write a list or a parameter do not matter; values do."""
    assert same(request(BODY, *one), request(BODY, *other)) == equal


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (["Content-Type: a/b"], ["Content-Type: a/b", "Connection: content-type"], False),
        (["Accept: x"], ["Accept: x", "Connection: keep-alive"], True),
        (["User-Agent: x"], ["Accept: x", "connection: close , ACCEPT"], True),
        (["Accept: x", "Connection: accept"], ["Accept: y", "Connection: accept"], True),
        (
            ["X-Steer-Upstream: a", "Connection: x-steer-upstream"],
            ["X-Steer-Upstream: b", "Connection: x-steer-upstream"],
            False,
        ),
    ],
)
def test_what_goes_no_further(one: list[str], other: list[str], equal: bool) -> None:
    """A header that `Connection` lists does not reach the provider; what Steer reads counts."""
    assert same(request(BODY, *one), request(BODY, *other)) == equal


@pytest.mark.parametrize(
    "name",
    [
        "Content-Encoding",
        "SOAPAction",
        "X-Amz-Target",
        "X-HTTP-Method",
        "X-HTTP-Method-Override",
        "X-Method-Override",
    ],
)
def test_headers_that_say_what_the_call_is(name: str) -> None:
    """Where method, path and body leave it open, as tools' do."""
    assert not same(request(BODY, f"{name}: DELETE"), request(BODY, f"{name}: GET"))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("a=1&b=2", "b=2&a=1", True),
        ("a=1&key=secret&b=2", "a=1&b=2&api_key=other", True),
        ("a=1&&b=2", "a=1&b=2", True),
        ("a=1&a=2", "a=2&a=1", False),
        ("a=1", "a=2", False),
        ("a", "a=", False),
        ("a=1&b=2", "a=1%26b=2", False),
        ("\udcff", "\udcfe", False),
    ],
)
def test_queries(one: str, other: str, equal: bool) -> None:
    """Names in any order, the values of a name in theirs, without credentials."""
    assert same(request(query=one), request(query=other)) == equal


@pytest.mark.parametrize(
    ("content_type", "by_value"),
    [
        ("application/json", True),
        ("APPLICATION/JSON ; charset=utf-8", True),
        ("text/json", True),
        ("application/vnd.api+json", True),
        ("", True),
        ("text/plain", False),
        ("application/x-ndjson", False),
        ("multipart/form-data", False),
        ("application/jsonx", False),
    ],
)
def test_what_is_json(content_type: str, by_value: bool) -> None:
    """By the content type, which some clients leave out."""
    line = f"Content-Type: {content_type}"
    assert same(request(b'{"a":1}', line), request(b'{ "a": 1 }', line)) == by_value
    assert same(request(b'{"a":1}', "Accept: x"), request(b'{"a": 1}', "Accept: x"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1, "a": 2}', b'{"a":1,"a":2}'),
        (b"[18446744073709551616]", b"[18446744073709551616 ]"),
        (b"{", b"{ "),
        (b"\xff", b"\xfe"),
        (b"[" * 100_000 + b"]" * 100_000, b" " + b"[" * 100_000 + b"]" * 100_000),
    ],
    ids=["repeated", "large", "cut", "bytes", "deep"],
)
def test_what_cannot_be_compared_by_value(one: bytes, other: bytes) -> None:
    """Byte for byte: the same again is the same."""
    assert same(request(one), request(one))
    assert not same(request(one), request(other))


def form(boundary: str, *contents: str, end: str = "--\r\n") -> bytes:
    parts = (f'--{boundary}\r\nContent-Disposition: form-data; name="a"\r\n\r\n{content}\r\n'
             for content in contents)  # fmt: skip
    return ("".join(parts) + f"--{boundary}{end}").encode()


def upload(boundary: str, body: bytes, kind: str = "form-data") -> RequestIdentity:
    return request(body, f"Content-Type: multipart/{kind}; boundary={boundary}")


def test_forms() -> None:
    """By their parts in order, under a new boundary at every try."""
    first = upload("1234", form("1234", "a", "b"))
    assert same(first, upload("5678", form("5678", "a", "b")))
    assert same(first, upload('"5678"', form("5678", "a", "b")))
    assert not same(first, upload("5678", form("5678", "b", "a")))
    assert not same(first, upload("5678", form("5678", "a")))
    assert not same(first, upload("5678", form("5678", "a", "b", "")))


def test_what_is_no_clean_form() -> None:
    """Byte for byte, and then the boundary says what the bytes mean."""
    cut = form("1234", "a", "b", end="")
    assert same(upload("1234", cut), upload("1234", cut))
    assert not same(upload("1234", cut), upload("5678", form("5678", "a", "b", end="")))
    assert not same(upload("1234", cut), upload("5678", cut))
    mixed = form("1234", "a")
    assert not same(upload("1234", mixed, "mixed"), upload("5678", form("5678", "a"), "mixed"))


def test_no_way_of_comparing_is_taken_for_another() -> None:
    """A body that is, byte for byte, what another one is hashed as, is still another."""
    value, text = b'{"a":1}', "Content-Type: "
    kinds = {fingerprint(SECRET, request(value, text + kind)) for kind in ("", "text/plain")}
    assert len(kinds) == 2
    # The same content type, once as a form by its parts and once as those very bytes.
    line = "Content-Type: multipart/form-data; boundary=x"
    whole = form("x", "a")
    part = whole[len("--x") : -len("\r\n--x--\r\n")]
    hashed = b"%d:%b" % (len(part), part)
    assert sha256(hashed).digest() != sha256(whole).digest()
    assert not same(request(whole, line), request(hashed, line))
    assert not same(request(whole, line), request(hashed, "Content-Type: multipart/form-data"))


BODIES = st.dictionaries(st.text("ab", max_size=2), st.integers(0, 2) | st.lists(st.booleans()))


@given(BODIES, BODIES, st.integers(0, 3))
def test_bodies_by_value(one: dict[str, Any], other: dict[str, Any], indent: int) -> None:
    """Equal exactly where the JSON values are."""
    texts = [json.dumps(each, indent=indent).encode() for each in (one, other)]
    again = json.dumps(dict(reversed(one.items()))).encode()
    assert same(request(texts[0]), request(again))
    assert same(request(texts[0]), request(texts[1])) == (one == other)


@given(
    st.text(max_size=6),
    st.text(max_size=6),
    st.text(max_size=12),
    st.lists(
        st.tuples(
            # As they stand on the wire: a line's end is in none of them.
            st.sampled_from([*sorted(MEANINGFUL_HEADERS), b"Connection"])
            | st.binary(max_size=4).filter(lambda name: b"\n" not in name),
            st.binary(max_size=12) | st.just(b"multipart/form-data; boundary=x"),
        ),
        max_size=4,
    ),
    st.binary(max_size=20),
)
def test_every_request_has_one(
    method: str, path: str, query: str, lines: list[Field], body: bytes
) -> None:
    """Total: 64 hexadecimal digits for whatever comes."""
    digits = fingerprint(SECRET, RequestIdentity(method, path, query, lines, body))
    assert len(digits) == 64
    assert int(digits, 16) >= 0


# --- Everywhere and always the same ---------------------------------------------------------------

GOLDEN = """
import sys
from steer_policies.fingerprint import *
secret, lines = b"s" * 32, [(b"Authorization", b"Bearer sk-1"), (b"Accept", b"*/*"),
                            (b"Content-Type", b"application/json; charset=utf-8")]
me = principal(lines, "key=1&alt=sse")
request = RequestIdentity("POST", "chat/v1", "key=1&alt=sse", lines, b'{"b": [1.0, 0.5], "a": "x"}')
sys.stdout.write(" ".join((scope_of(secret, me, "POST", "chat/v1", "key"), caller_mark(secret, me),
                           fingerprint(secret, request))))
"""


def test_another_process_and_another_version_agree() -> None:
    """Replicas share a ledger: whoever changes these values makes every running key unknown, and
    every call that is tried again across the update a second one."""
    found = subprocess.run(
        [sys.executable, "-c", GOLDEN],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.split() == [
        "6ee7bfb64216b96a66c285a9c0b50f337653b2065b9392ad864a038b580b1cec",
        "933b8c9bcd70cfabc22e7b11ca756ad5",
        "ffbf4b29ddda392a67090738040d723e2476a9fcb6183d808d1bdf9c8f872c27",
    ]
