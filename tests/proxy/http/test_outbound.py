"""What goes to a candidate: its head line by line, and whose body it carries."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from steer_policies.plan import Candidate
from steer_proxy.engine.config import Config
from steer_proxy.engine.secret import SecretUnavailable
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.call import Call
from steer_proxy.http.outbound import REWRITE_IN_THREAD, Outbound, OutboundRequest, presents_caller
from steer_proxy.http.wire import Wire
from tests.support.calls import TRACE, make_call
from tests.support.sidecar import configure

CHAT = b'{"model": "gpt-4o",  "messages": []}'
BEARER = ("Authorization", "Bearer sk-caller")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    other = {
        "dialect": "openai",
        "base_url": "http://other.example:8080/base/v1/",
        "credential": {"env": "KEY", "header": "api-key", "prefix": "Key "},
        "headers": {"X-Tenant": "mine", "user-agent": "steered"},
        "idempotency_key": "forward",
    }
    tools = {"dialect": "http", "base_url": "http://tools.example/", "credential": "none"}
    settings = {
        "upstreams": {
            "home": {"dialect": "openai", "base_url": "https://home.example/v1"},
            "other": other,
            "tools": tools,
            "google": {"dialect": "gemini", "base_url": "http://google.example"},
        },
        "routes": [
            {"name": "chat", "path": "/chat", "candidates": ["home", "other"]},
            {"name": "elsewhere", "path": "/elsewhere", "candidates": ["other"]},
            {"name": "tools", "path": "/tools", "candidates": ["tools"]},
            {"name": "google", "path": "/google", "candidates": ["google"]},
        ],
    }
    return configure(settings, tmp_path, {"KEY": "own-secret"})


@contextlib.asynccontextmanager
async def outbound(call: Call) -> AsyncIterator[Outbound]:
    wire = Wire()
    try:
        yield Outbound(call, Addresses(call.config, wire))
    finally:
        await wire.close()


async def sent(call: Call, upstream: str, **options: Any) -> OutboundRequest:
    candidate = Candidate(upstream, options.get("model", call.facts.model), options)
    async with outbound(call) as made:
        return await made.request(candidate)


def lines(request: OutboundRequest) -> list[str]:
    head = request.head.decode("utf-8", "surrogateescape")
    assert head.endswith("\r\n\r\n")
    return head.removesuffix("\r\n\r\n").split("\r\n")


def values(request: OutboundRequest, name: str) -> list[str]:
    """The values of a field in the head."""
    pairs = [line.partition(": ") for line in lines(request)[1:]]
    return [value for field, _, value in pairs if field.lower() == name.lower()]


async def test_a_whole_head(config: Config) -> None:
    """The caller's fields as they are, then Steer's own lines; nothing else, nothing twice."""
    fields = (
        ("host", "localhost:4100"),
        ("X-First", "1"),
        BEARER,
        ("content-length", str(len(CHAT))),
        ("Connection", "keep-alive, X-Private"),
        ("X-Private", "x"),
        ("Accept-Encoding", "br, gzip"),
        ("X-Request-ID", "theirs"),
        ("Traceparent", "theirs"),
        ("tracestate", "theirs=1"),
        ("Via", "1.0 before"),
        ("Idempotency-Key", "k"),
        ("X-Steer-Timeout", "5"),
        ("x-last", "caf\udce9"),
    )
    call = make_call(config, "chat", "/chat/completions", query="a=1&a=", fields=fields, body=CHAT)
    request = await sent(call, "home")
    assert request.body is call.body
    found = lines(request)
    parent = found.pop(7)
    assert parent.startswith(f"traceparent: 00-{TRACE.trace_id}-")
    assert parent.endswith("-01")
    assert str(TRACE.parent_id) not in parent
    assert found == [
        "POST /v1/chat/completions?a=1&a= HTTP/1.1",
        "X-First: 1",
        "Authorization: Bearer sk-caller",
        "Via: 1.0 before",
        "x-last: caf\udce9",
        "Host: home.example",
        "X-Request-ID: request-1",
        "tracestate: a=b",
        "Via: 1.1 steer-test",
        f"Content-Length: {len(CHAT)}",
        "Accept-Encoding: gzip",
    ]


async def test_another_candidates_head(config: Config) -> None:
    """Its own credential, headers and address in place of the caller's."""
    fields = (BEARER, ("User-Agent", "theirs"), ("Api-Key", "x"), ("Idempotency-Key", "k"))
    call = make_call(
        config, "chat", "/embeddings", query="key=x&b=2", fields=fields, body=b'{"model": "e"}'
    )
    request = await sent(call, "other")
    assert lines(request)[0] == "POST /base/v1/embeddings?b=2 HTTP/1.1"
    assert values(request, "host") == ["other.example:8080"]
    assert values(request, "authorization") == []
    assert values(request, "api-key") == ["Key own-secret"]
    assert values(request, "user-agent") == ["steered"]
    assert values(request, "x-tenant") == ["mine"]


@pytest.mark.parametrize(
    ("upstream", "scope", "given"),
    [
        ("other", "5" * 64, ["5" * 64]),
        ("other", None, []),
        ("mine", "5" * 64, ["k"]),
        ("home", "5" * 64, []),
        ("nobody", "5" * 64, ["5" * 64]),
    ],
)
async def test_whose_key_goes_on(
    tmp_path: Path, upstream: str, scope: str | None, given: list[str]
) -> None:
    """To Steer's own account one that no other caller has; to the caller's own the caller's."""
    forward = {"dialect": "openai", "idempotency_key": "forward"}
    config = configure(
        {
            "upstreams": {
                "home": {"dialect": "openai", "base_url": "http://home.example"},
                "mine": {"base_url": "http://mine.example", **forward},
                "other": {
                    "base_url": "http://other.example",
                    "credential": {"env": "KEY"},
                    **forward,
                },
                "nobody": {"base_url": "http://nobody.example", "credential": "none", **forward},
            },
            "routes": [{"name": upstream, "path": "/chat", "candidates": [upstream]}],
        },
        tmp_path,
        {"KEY": "own-secret"},
    )
    fields = (BEARER, ("idempotency-Key", "k"))
    call = make_call(config, upstream, "/x", fields=fields, body=CHAT, key="k", scope=scope)
    assert values(await sent(call, upstream), "idempotency-key") == given


@pytest.mark.parametrize(
    ("route", "upstream", "token_is_key", "own_name"),
    [
        ("chat", "home", False, True),
        ("chat", "home", True, False),
        ("chat", "other", False, False),
        ("elsewhere", "other", False, False),
        ("elsewhere", "home", False, False),  # no plan leads here; if one did, it gets nothing
        ("tools", "tools", False, False),
    ],
)
async def test_in_whose_name(
    config: Config, route: str, upstream: str, token_is_key: bool, own_name: bool
) -> None:
    """The caller's only at the home upstream that passes it through."""
    call = make_call(config, route, "/x", fields=(BEARER,), token_is_key=token_is_key)
    assert presents_caller(call, config.upstreams[upstream]) is own_name
    request = await sent(call, upstream)
    assert ("Bearer sk-caller" in values(request, "authorization")) is own_name


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        ("GET", b"", []),
        ("HEAD", b"", []),
        ("DELETE", b"", []),
        ("DELETE", b"{}", ["2"]),
        ("GET", b"{}", ["2"]),
        ("POST", b"", ["0"]),
        ("PUT", b"", ["0"]),
        ("PATCH", b"", ["0"]),
    ],
)
async def test_lengths(config: Config, method: str, body: bytes, length: list[str]) -> None:
    """Announced where there is a body, and where one is expected (RFC 9110 section 8.6)."""
    request = await sent(make_call(config, "tools", "/x", method=method, body=body), "tools")
    assert values(request, "content-length") == length
    assert lines(request)[0] == f"{method} /x HTTP/1.1"


@pytest.mark.parametrize(
    ("route", "asked", "stream", "answer"),
    [
        ("chat", "gzip, br", False, ["gzip"]),
        ("chat", None, False, ["identity"]),
        ("chat", "gzip", True, ["identity"]),
        ("tools", "br;q=0.5, zstd", False, ["br;q=0.5, zstd"]),
        ("tools", None, False, []),
    ],
)
async def test_codings(
    config: Config, route: str, asked: str | None, stream: bool, answer: list[str]
) -> None:
    """LLM answers only in codings Steer can look into; of other APIs whatever was asked for."""
    body = b'{"model": "m", "stream": true}' if stream else CHAT
    fields = () if asked is None else (("accept-encoding", asked),)
    call = make_call(config, route, "/chat/completions", fields=fields, body=body)
    request = await sent(call, {"chat": "home", "tools": "tools"}[route])
    assert values(request, "accept-encoding") == answer


async def test_spans_differ(config: Config) -> None:
    """Every attempt is a span of its own in one trace."""
    call = make_call(config, "chat", "/chat/completions", body=CHAT)
    async with outbound(call) as made:
        parents = [
            values(await made.request(Candidate("home", "gpt-4o")), "traceparent") for _ in range(5)
        ]
    assert len({parent for (parent,) in parents}) == 5


async def test_options_are_applied_once(config: Config) -> None:
    """A candidate's own body, made once for all its attempts; other candidates keep theirs."""
    call = make_call(config, "chat", "/chat/completions", body=CHAT)
    changed = Candidate("other", "x", {"model": "x"})
    async with outbound(call) as made:
        first, second = await made.request(changed), await made.request(changed)
        same = await made.request(Candidate("home", "gpt-4o", {"model": "gpt-4o"}))
    assert first.body is second.body
    assert first.body.memory == CHAT.replace(b"gpt-4o", b"x")
    assert values(first, "content-length") == [str(len(CHAT) - 5)]
    assert same.body is call.body


async def test_large_bodies_are_rewritten_off_the_loop(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewriting a megabyte takes milliseconds in which nothing else would happen."""
    threads: list[Any] = []
    real = __import__("asyncio").to_thread

    async def to_thread(function: Any, /, *arguments: Any) -> Any:
        threads.append(function)
        return await real(function, *arguments)

    monkeypatch.setattr("steer_proxy.http.outbound.asyncio.to_thread", to_thread)
    for size, rewritten in ((10, 0), (REWRITE_IN_THREAD, 1)):
        body = b'{"model": "m", "input": "%b"}' % (b"x" * size)
        call = make_call(config, "chat", "/embeddings", body=body)
        request = await sent(call, "other", model="other")
        assert request.body.memory == body.replace(b'"m"', b'"other"')
        assert len(threads) == rewritten


async def test_the_model_in_a_path(config: Config) -> None:
    """The target changes, the body does not."""
    path = "/v1beta/models/pro:generateContent"
    call = make_call(config, "google", path, query="alt=sse", body=b'{"contents": []}')
    request = await sent(call, "google", model="flash")
    assert lines(request)[0] == "POST /v1beta/models/flash:generateContent?alt=sse HTTP/1.1"
    assert request.body is call.body


HANDSHAKE = (
    ("connection", "keep-alive, Upgrade"),
    ("upgrade", "WebSocket"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Extensions", "permessage-deflate;\tx"),
    ("Sec-WebSocket-Extensions", "second"),
    ("Sec-WebSocket-Protocol", "realtime , openai-insecure-api-key.sk"),
    ("sec-websocket-protocol", "openai-organization.org"),
    ("Accept-Encoding", "br"),
)


@pytest.mark.parametrize(
    ("upstream", "protocols"),
    [
        ("home", ["realtime , openai-insecure-api-key.sk", "openai-organization.org"]),
        ("other", ["realtime"]),
    ],
)
async def test_handshakes(config: Config, upstream: str, protocols: list[str]) -> None:
    """Passed line by line, for they are end to end, but for credentials among the subprotocols."""
    call = make_call(
        config,
        "chat",
        "/realtime",
        method="GET",
        query="model=m",
        fields=HANDSHAKE,
        content_type="",
        upgrade=True,
    )
    request = await sent(call, upstream)
    assert values(request, "connection") == ["Upgrade"]
    assert values(request, "upgrade") == ["websocket"]
    assert values(request, "sec-websocket-key") == ["dGhlIHNhbXBsZSBub25jZQ=="]
    assert values(request, "sec-websocket-extensions") == ["permessage-deflate;\tx", "second"]
    assert values(request, "sec-websocket-protocol") == protocols
    assert values(request, "accept-encoding") == ["br"]


async def test_without_an_upgrade_there_is_no_handshake(config: Config) -> None:
    """Its fields belong to the caller's connection."""
    call = make_call(config, "tools", "/x", method="GET", fields=HANDSHAKE, content_type="")
    request = await sent(call, "tools")
    assert not [line for line in lines(request) if "websocket" in line.lower()]
    assert values(request, "connection") == []


async def test_an_unreadable_secret(tmp_path: Path) -> None:
    """The request is not made at all: it would go without a credential, or with the caller's."""
    secret = tmp_path / "key"
    secret.write_text("own")
    upstream = {
        "dialect": "openai",
        "base_url": "http://x.example",
        "credential": {"file": str(secret)},
    }
    settings = {
        "upstreams": {"other": upstream},
        "routes": [{"name": "chat", "path": "/chat", "candidates": ["other"]}],
    }
    broken = configure(settings, tmp_path)
    credential = broken.upstreams["other"].credential
    assert credential is not None
    object.__setattr__(credential.secret, "_value", None)
    object.__setattr__(credential.secret, "_stamp", None)
    secret.unlink()
    with pytest.raises(SecretUnavailable):
        await sent(make_call(broken, "chat", "/chat/completions", body=CHAT), "other")


@pytest.mark.parametrize(
    ("base_url", "path", "target"),
    [
        ("http://x.example", "", "/"),
        ("http://x.example/", "/", "/"),
        ("http://x.example/v1/", "", "/v1"),
        ("http://x.example/v1", "/a%20b/", "/v1/a%20b/"),
        ("http://x.example/a%2Fb", "/c", "/a%2Fb/c"),
    ],
)
async def test_targets(tmp_path: Path, base_url: str, path: str, target: str) -> None:
    """The base URL's path and the call's, put together as they are spelled."""
    upstream = {"dialect": "http", "base_url": base_url}
    settings = {
        "upstreams": {"tools": upstream},
        "routes": [{"name": "tools", "path": "/tools", "candidates": ["tools"]}],
    }
    call = make_call(configure(settings, tmp_path), "tools", path, method="GET", content_type="")
    assert lines(await sent(call, "tools"))[0] == f"GET {target} HTTP/1.1"
