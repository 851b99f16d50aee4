"""Header hygiene."""

from __future__ import annotations

from urllib.parse import unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies import headers
from steer_policies.headers import (
    CREDENTIAL_HEADERS,
    accept_encoding,
    credential_fields,
    is_credential,
    is_loop,
    query_credentials,
    request_fields,
    response_fields,
    strip_query_credentials,
    strip_subprotocol_credentials,
    subprotocol_credentials,
    via,
)

Pairs = list[tuple[str, str]]

NAMES = st.sampled_from(
    "Accept X-A x-a Connection Keep-Alive TE Cookie Authorization X-Steer-Upstream Via Host "
    "Idempotency-Key Content-Length Set-Cookie".split()
)
PAIRS = st.lists(st.tuples(NAMES, st.sampled_from(["a", "X-A, te", "close", "1.1 steer", ""])))


def raw(pairs: Pairs) -> list[tuple[bytes, bytes]]:
    """As they stand on the wire."""
    return [(name.encode(), value.encode()) for name, value in pairs]


def text(fields: list[tuple[bytes, bytes]]) -> Pairs:
    """As they are read."""
    return [(name.decode(), value.decode()) for name, value in fields]


def sent(pairs: Pairs, *, strip: bool = False, replaced: frozenset[str] = frozenset()) -> Pairs:
    """What of a request goes on."""
    return text(request_fields(raw(pairs), replaced=replaced, strip_credentials=strip))


def answered(
    pairs: Pairs, *, strip_cookies: bool = False, kept: frozenset[str] = frozenset()
) -> Pairs:
    """What of an answer comes back."""
    return text(response_fields(raw(pairs), strip_cookies=strip_cookies, kept=kept))


def test_order_case_and_repetition_stay() -> None:
    """What passes is not touched."""
    pairs = [("accept", "a"), ("X-One", "1"), ("Accept", "b"), ("x-ONE", "2"), ("X-Empty", "")]
    assert sent(pairs) == pairs
    assert answered(pairs) == pairs


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Proxy-Authorization",
        "Content-Length",
        "HTTP2-Settings",
        "X-Steer-Anything",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Protocol",
    ],
)
def test_what_belongs_to_a_hop_stays_there(name: str) -> None:
    """Both ways; and Steer's own headers."""
    pairs = [("A", "b"), (name, "x"), (name.lower(), "y")]
    assert sent(pairs) == [("A", "b")]
    assert answered(pairs) == [("A", "b")]


@pytest.mark.parametrize("name", ["Host", "Expect"])
def test_what_is_said_to_a_server_only(name: str) -> None:
    """A request loses it, an answer does not have it."""
    assert sent([(name, "x")]) == []
    assert answered([(name, "x")]) == [(name, "x")]


def test_what_connection_lists_stays_there() -> None:
    """On any of its lines, in any case."""
    pairs = [
        ("connection", "close, X-Private"),
        ("X-private", "1"),
        ("X-Kept", "2"),
        ("CONNECTION", " x-other ,"),
        ("X-Other", "3"),
    ]
    assert sent(pairs) == [("X-Kept", "2")]
    assert answered(pairs) == [("X-Kept", "2")]


CREDENTIALS: Pairs = [
    ("Authorization", "Bearer x"),
    ("Proxy-Authorization", "Basic x"),
    ("api-key", "x"),
    ("X-Api-Key", "x"),
    ("x-goog-api-key", "x"),
    ("X-Goog-User-Project", "x"),
    ("Ocp-Apim-Subscription-Key", "x"),
    ("X-Amz-Security-Token", "x"),
    ("OpenAI-Organization", "x"),
    ("OpenAI-Project", "x"),
    ("Anthropic-Workspace-Id", "x"),
    ("Cookie", "x"),
    ("x-portkey-api-key", "x"),
    ("X-Auth-Token", "x"),
]


def test_credentials() -> None:
    """All forms go when Steer brings its own; else they pass, but for the one meant for a proxy."""
    kept = [("Anthropic-Version", "1"), ("OpenAI-Beta", "x"), ("X-Cache-Key", "y")]
    assert sent([*CREDENTIALS, *kept], strip=True) == kept
    passed = [pair for pair in CREDENTIALS if pair[0] != "Proxy-Authorization"]
    assert sent([*CREDENTIALS, *kept]) == [*passed, *kept]


def test_credential_names() -> None:
    """The set, and the forms that gateways give theirs."""
    assert all(map(is_credential, CREDENTIAL_HEADERS))
    assert all(is_credential(name.replace("-", "_")) for name in CREDENTIAL_HEADERS)


@pytest.mark.parametrize(
    ("name", "credential"),
    [
        ("x-token", True),
        ("token", True),
        ("x-corp-token", True),
        ("x_corp_token", True),
        ("x-user-key", True),
        ("key", True),
        ("x-client-secret", True),
        ("x-password", True),
        ("cf-access-jwt-assertion", True),
        ("helicone-auth", True),
        ("auth", True),
        ("x-api-key-id", True),
        ("x_apikey_v2", True),
        ("x-passwd-hash", True),
        ("session", True),
        ("x-metabase-session", True),
        ("x-authenticated-userid", True),
        ("x-authentication", True),
        ("x-goog-authenticated-user-email", True),
        ("x-amzn-oidc-identity", True),
        ("x-jwt-payload", True),
        ("x-ms-client-principal-id", True),
        ("x-signature", True),
        ("x-hub-signature-256", True),
        ("x-access-code", True),
        ("x-access-key-id", True),
        ("x-auth-user", True),
        ("x-auth-request-email", True),
        ("x-auth-page-token", False),
        ("x-author", False),
        ("mcp-session-id", False),
        ("mcp-protocol-version", False),
        ("helicone-session-id", False),
        ("x-claude-code-session-id", False),
        ("x-session-affinity", False),
        ("session_id", False),
        ("anthropic-dangerous-direct-browser-access", False),
        ("openai-beta", False),
        ("x-goog-request-params", False),
        ("x-amz-date", False),
        ("x-amz-content-sha256", False),
        ("x-forwarded-user", False),
        ("idempotency-key", False),
        ("x-idempotency-key", False),
        ("idempotency_key", False),
        ("sec-websocket-key", False),
        ("x-ms-documentdb-partition-key", False),
        ("x-page-token", False),
        ("x-ms-continuation-token", False),
        ("x-cache-key", False),
        ("monkey", False),
        ("x-max-tokens", False),
        ("x-steer-upstream", False),
        ("x-steer-token", False),
        ("x-stainless-retry-count", False),
        ("x-stainless-read-timeout", False),
        ("x-request-id", False),
        ("x-goog-api-client", False),
        ("traceparent", False),
        ("user-agent", False),
    ],
)
def test_names_of_their_own(name: str, credential: bool) -> None:
    """What reads like a key, a token or an account is one; a session's id, or what SDKs change from
    try to try, is none."""
    assert is_credential(name) is credential


def test_headers_that_are_named_as_credentials() -> None:
    """In any case, in the order they stand."""
    pairs = raw([("X-Corp-Id", "a"), ("Authorization", "b"), ("Accept", "c")])
    assert credential_fields(pairs) == pairs[1:2]
    assert credential_fields(pairs, frozenset({"x-corp-id"})) == pairs[:2]


def test_what_the_sender_says_in_its_own_words() -> None:
    """By name, in any case, however often."""
    pairs = [("x-request-id", "old"), ("via", "1.0 fred"), ("A", "b"), ("X-REQUEST-ID", "older")]
    assert sent(pairs, replaced=frozenset({"x-request-id"})) == [("via", "1.0 fred"), ("A", "b")]


def test_cookies_of_our_own_session_stay_with_us() -> None:
    """With an injected credential."""
    pairs = [("Set-Cookie", "a"), ("set-cookie2", "b"), ("X-Request-Id", "r")]
    assert answered(pairs) == pairs
    assert answered(pairs, strip_cookies=True) == [("X-Request-Id", "r")]


def test_some_may_be_kept() -> None:
    """The length of a body that passes unchanged, even when `Connection` lists it."""
    pairs = [("Connection", "Content-Length"), ("Content-Length", "5"), ("TE", "x")]
    assert answered(pairs, kept=frozenset({"content-length"})) == [("Content-Length", "5")]


@given(PAIRS, st.booleans())
def test_what_passes_is_part_of_what_came(pairs: Pairs, strip: bool) -> None:
    """In order; and passing again changes nothing."""
    passed = sent(pairs, strip=strip)
    rest = iter(pairs)
    assert all(pair in rest for pair in passed)
    assert sent(passed, strip=strip) == passed
    back = answered(pairs, strip_cookies=strip)
    assert answered(back, strip_cookies=strip) == back


@pytest.mark.parametrize(
    ("pairs", "loop"),
    [
        ([], False),
        ([("Via", "1.1 steer")], True),
        ([("via", "1.0 fred, 1.1 steer (a comment)")], True),
        ([("Via", "HTTP/1.1 steer")], True),
        ([("VIA", "1.1 a"), ("Via", "2\tsteer")], True),
        ([("Via", "1.1 steer-2")], False),
        ([("Via", "1.1 proxy (steer)")], False),
        ([("Via", "1.1 p.steer")], False),
        ([("Via", "steer")], False),
        ([("X-Via", "1.1 steer")], False),
    ],
)
def test_loops(pairs: Pairs, loop: bool) -> None:
    """Our own name as a receiver in `Via`."""
    assert is_loop(pairs) is loop


def test_an_instance_may_have_a_name_of_its_own() -> None:
    """So that one Steer may stand before another."""
    assert via("2", "steer-a") == ("Via", "2 steer-a")
    assert is_loop([("Via", "2 steer-a")], "steer-a")
    assert not is_loop([("Via", "2 steer-a")], "steer-b")


@pytest.mark.parametrize(
    ("asked", "identity", "answer"),
    [
        (None, False, "identity"),
        ("gzip", True, "identity"),
        ("gzip, deflate, br, zstd", False, "gzip, deflate"),
        ("br", False, "identity"),
        ("", False, "identity"),
        ("GZIP;q=0.5, identity;q=0.1", False, "gzip;q=0.5, identity;q=0.1"),
        ("gzip ; q=0", False, "gzip;q=0"),
        ("*", False, "gzip, deflate, identity"),
        ("br, *;q=0.1", False, "gzip, deflate, identity"),
        ("gzip, *;q=0", False, "gzip"),
        ("br," * 100 + "gzip", False, "identity"),
        ("gzip;a\tb, identity;\u00e9", False, "gzip, identity"),
        (
            "gzip;Q=1.000, deflate;q=1.5, identity;q=0.1234",
            False,
            "gzip;Q=1.000, deflate, identity",
        ),
        ("gzip, *;Q=0.00", False, "gzip"),
        ("gzip;q=\udce9, deflate;\tq=0.5, identity;x\ty", False, "gzip, deflate;q=0.5, identity"),
    ],
)
def test_accept_encoding(asked: str | None, identity: bool, answer: str) -> None:
    """What Steer can decode of what the caller can, and nothing coded where it must look inside."""
    assert accept_encoding(asked, identity=identity) == answer


@pytest.mark.parametrize(
    ("query", "stripped"),
    [
        ("", ""),
        ("alt=sse", "alt=sse"),
        ("key=secret", ""),
        ("alt=sse&key=secret&x=%20y", "alt=sse&x=%20y"),
        ("KEY=secret&k%65y=secret&access_token=s&api-key=s", ""),
        ("%24httpHeaders=Authorization:x&monkey=1&key", "monkey=1"),
        ("a&&b=", "a&&b="),
        ("a=1;b=2;key=s", "a=1;b=2"),
        ("key=s;a=1&b;c", "a=1&b;c"),
        ("+key=s&key+=s&%20key%09=s&api%2Dkey=s&a", "a"),
        ("$httpHeaders[authorization]=s&%24httpHeaders%5Bx%5D=s&b[key]=1", "b[key]=1"),
        ("page_token=1&pageToken=2&sort_key=3", "page_token=1&pageToken=2&sort_key=3"),
        ("Ocp-Apim-Subscription-Key=s&subscription_key=s&x_goog_api_key=s&c=1", "c=1"),
        ("auth=s&jwt=s&secret=s&client_secret=s&password=s&sig=s&Signature=s&c=1", "c=1"),
        ("author=1&session=2&sign=3", "author=1&session=2&sign=3"),
    ],
)
def test_credentials_in_a_query(query: str, stripped: str) -> None:
    """They go; all else stays as it is written."""
    assert strip_query_credentials(query) == stripped


def test_a_query_of_many_parameters_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name once, however often it is there, and whoever asks: it is foreign input."""
    looked: list[str] = []

    def noted(name: str) -> str:
        looked.append(name)
        return unquote_plus(name)

    monkeypatch.setattr(headers, "unquote_plus", noted)
    query = "&" * 10_000 + "k%65y=s;" + "".join(f"id={n}&" for n in range(1_000)) + "%69d&k%65y"
    for _ in range(3):
        assert query_credentials(query) == ["k%65y=s", "k%65y"]
        assert "k%65y" not in strip_query_credentials(query)
    assert sorted(set(looked)) == ["%69d", "k%65y"]
    assert len(looked) <= 4  # what is stripped is another query


def test_underscores_are_read_as_hyphens() -> None:
    """As a server does that makes variables of names; what Steer's own are, too, both ways."""
    spelled = [("X_Api_Key", "s"), ("Api_Key", "s"), ("x-api_key", "s"), ("X_Auth_Token", "s")]
    own = [("X_Steer_Token", "s"), ("X-Steer_Token", "s")]
    kept = [("X_Custom", "1")]
    assert sent([*spelled, *own, *kept], strip=True) == kept
    assert sent([*spelled, *own, *kept]) == [*spelled, *kept]
    assert answered([*own, *kept]) == kept


@given(st.lists(st.sampled_from([*CREDENTIALS, ("X_Api_Key", "x"), ("Accept", "a")])))
def test_what_is_taken_off_is_what_is_presented(pairs: Pairs) -> None:
    """One definition: of the fields, duplicates included, and of the query."""
    presented = text(credential_fields(raw(pairs)))
    kept = sent(pairs, strip=True)
    assert sorted(presented + kept) == sorted(pairs)


@given(
    st.lists(st.sampled_from(["key=1", "k%65y=2", "a=1", "", "+token", "x_api_key=3"])), st.text()
)
def test_the_querys_credentials_are_what_is_stripped(pairs: list[str], end: str) -> None:
    """And stripping again finds none."""
    query = ";".join(pairs) + "&" + end
    left = strip_query_credentials(query)
    assert query_credentials(left) == []
    assert len(query_credentials(query)) >= sum(pair not in {"a=1", ""} for pair in pairs)


def test_subprotocols_that_are_credentials() -> None:
    """Of a line as it was offered."""
    offered = "realtime, OpenAI-Insecure-Api-Key.s,openai-project.p"
    assert subprotocol_credentials(offered) == ["OpenAI-Insecure-Api-Key.s", "openai-project.p"]


def test_credentials_in_subprotocols() -> None:
    """What a browser says to OpenAI's realtime API."""
    offered = [
        "realtime",
        "openai-insecure-api-key.sk-1",
        "OpenAI-Organization.org",
        "openai-project.p",
        "openai-beta.realtime-v1",
    ]
    assert strip_subprotocol_credentials(offered) == ["realtime", "openai-beta.realtime-v1"]
