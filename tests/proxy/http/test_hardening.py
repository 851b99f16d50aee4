"""Callers that mean harm: by complexity, by spelling, by what one parser reads and another not."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from steer_policies.fingerprint import RequestIdentity, fingerprint
from steer_proxy.engine.config import Listen
from steer_proxy.http import identity
from steer_proxy.http.guard import Guard
from steer_proxy.http.intake import credential_number
from steer_proxy.http.payload import MAX_STRUCTURE, TooComplex, check_complexity
from steer_proxy.http.problems import Refusal
from tests.support.raw import Reply, Stage, ask, chat, get, post, stage
from tests.support.world import world

TOKEN = "s3cret-token"
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
CHAT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}).encode()
JSON = "Content-Type: application/json"


# --- bodies that cost more than they weigh


def nested(count: int) -> bytes:
    """JSON with about so many structural characters."""
    return b'{"messages":[' + b"[]," * (count // 2) + b"[]]}"


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/files"])
async def test_a_json_bomb(target: str, tmp_path: Path) -> None:
    """It is counted before it is parsed, and refused in the dialect's shape."""
    async with stage(tmp_path) as one:
        reply = await ask(one.port, post(nested(MAX_STRUCTURE * 3), target, JSON), "POST")
        assert (reply.status, reply.code) == (413, "steer_body_too_complex")
        assert reply.json["error"]["type"] == "steer_error"
        assert one.forwarded == []
        assert (await ask(one.port, chat())).status == 200


async def test_a_tool_may_take_what_a_parser_may_not(tmp_path: Path) -> None:
    """Without rules nothing hangs on its body, which passes unread."""
    async with stage(tmp_path) as one:
        body = nested(MAX_STRUCTURE * 2)
        assert (await ask(one.port, post(body, "/tool/x", JSON), "POST")).status == 200
        assert one.provider.attempts[0].body == body


def test_the_bound_of_complexity() -> None:
    """Exact beyond the size from which it is counted at all; text is no structure."""
    check_complexity(b"," * MAX_STRUCTURE)
    check_complexity(b"," * MAX_STRUCTURE + b"x" * 3_000_000)
    for mark in (b"[", b"{", b","):
        with pytest.raises(TooComplex):
            check_complexity(b"x" * 2_000_000 + mark * (MAX_STRUCTURE + 1))


@pytest.mark.parametrize(
    ("content", "aside"),
    [
        ([0] * identity.ELEMENTS_AT_ONCE, True),
        ("x" * identity.AT_ONCE, True),
        ("word " * 20_000, False),
        ([0] * (identity.ELEMENTS_AT_ONCE - 100), False),
    ],
    ids=["many numbers", "long", "less long", "fewer numbers"],
)
async def test_what_takes_long_is_digested_aside(
    content: Any, aside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keyed body that costs more than its size tells must not hold up all other calls."""
    places: list[bool] = []

    def noted(secret: bytes, request: RequestIdentity) -> str:
        places.append(threading.current_thread() is not threading.main_thread())
        return fingerprint(secret, request)

    monkeypatch.setattr(identity, "fingerprint", noted)
    async with world(tmp_path) as parties:
        assert (await parties.ask(headers={"Idempotency-Key": "k"}, x=content)).status == 200
    assert places == [aside]


# --- bodies that one parser reads and another does not

FORM = "Content-Type: multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
UNREADABLE = [
    ((JSON,), b"\xef\xbb\xbf" + CHAT, "valid JSON"),
    ((JSON,), CHAT.decode().encode("utf-16"), "valid JSON"),
    ((JSON,), CHAT[:-1] + b', "temperature": NaN}', "valid JSON"),
    ((JSON,), b"[" + CHAT + b"]", "not a JSON object"),
    (("Content-Type: text/plain",), CHAT, "Content-Type is 'text/plain'"),
    ((JSON, "Content-Encoding: gzip"), gzip.compress(CHAT), "Content-Encoding 'gzip'"),
    ((FORM,), b"preamble\r\n" + PART, "its boundary"),
]
ROUTES: dict[str, dict[str, Any]] = {
    "rules": {"rules": [{"name": "cheap", "use": "llm"}]},
    "budget": {"budget": {"cost_usd": 1.0}},
    "options": {"candidates": [{"upstream": "llm", "options": {"model": "gpt-4o-mini"}}]},
}


def steering(how: str) -> dict[str, Any]:
    """The LLM's route of `stage`, refined."""
    tool = {"name": "tool", "path": "/tool", "candidates": ["tool"]}
    llm = {"name": "llm", "path": "/v1", "candidates": ["llm"], **ROUTES.get(how, {})}
    return {"routes": [tool, llm]}


async def send(one: Stage, body: bytes, *fields: str) -> Reply:
    """A chat completion, or what claims to be one."""
    return await ask(one.port, post(body, "/v1/chat/completions", *fields), "POST")


@pytest.mark.parametrize("how", ROUTES)
async def test_a_body_that_a_route_cannot_read(how: str, tmp_path: Path) -> None:
    """Rules, a budget and options are for bodies that Steer reads: the rest is refused."""
    async with stage(tmp_path, **steering(how)) as one:
        for fields, body, fault in UNREADABLE:
            reply = await send(one, body, *fields)
            assert (reply.status, reply.code) == (400, "steer_bad_body"), (fields, body)
            assert fault in reply.message
        assert one.forwarded == []
        assert (await send(one, CHAT, JSON)).status == 200
        assert (await ask(one.port, post(b"\xff", "/v1/files", JSON), "POST")).status == 200


async def test_a_plain_route_passes_what_it_cannot_read(tmp_path: Path) -> None:
    """Nothing is decided on it, and the provider says what it thinks of it."""
    async with stage(tmp_path) as one:
        for fields, body, _ in UNREADABLE:
            await send(one, body, *fields)
            assert one.provider.attempts[-1].body == body


async def test_a_boundary_that_forbids_the_options_model(tmp_path: Path) -> None:
    """A caller who knows the model's name cannot keep it from being written into a form."""
    model = {"upstream": "llm", "options": {"model": "whisper--large"}}
    routes = [{"name": "llm", "path": "/v1", "candidates": [model]}]
    async with stage(tmp_path, routes=routes) as one:
        for boundary, status in (("large", 400), ("other", 200)):
            form = PART.replace(b"--b", b"--" + boundary.encode())
            kind = f"Content-Type: multipart/form-data; boundary={boundary}"
            reply = await ask(one.port, post(form, "/v1/audio/transcriptions", kind), "POST")
            assert reply.status == status, reply
            assert status == 200 or reply.code == "steer_bad_body"
        (attempt,) = one.provider.attempts
        assert b"whisper--large" in attempt.body


# --- who a caller is


def number(*pairs: tuple[str, str], query: str = "", upgrade: bool = False) -> int:
    """The number of a caller who sends these fields."""
    fields = [(name.encode(), value.encode()) for name, value in pairs]
    also = frozenset({"x-corp-id"})
    return credential_number(fields, query, upgrade=upgrade, also=also)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "X-Api-Key",
        "x_api_key",
        "X-Portkey-Api-Key",
        "Cookie",
        "OpenAI-Project",
        "X-Token",
        "X-Corp-Id",
    ],
)
def test_callers_are_told_apart_by_every_form_of_credential(name: str) -> None:
    """By all that stripping takes for one, each of its lines."""
    one = number((name, "a"), ("Accept", "x"))
    assert one == number(("Accept", "y"), (name.upper(), "a"))
    assert len({one, number((name, "b")), number((name, "a"), (name, "b")), number()}) == 4


def test_callers_are_told_apart_by_query_and_subprotocol() -> None:
    """And by nothing else in either."""
    assert number(query="k%65y=a&x=1") == number(query="x=2;k%65y=a")
    assert len({number(query=f"{name}=a") for name in ("key", "token", "x", "y")}) == 3
    protocol = "Sec-WebSocket-Protocol"
    offers = ("realtime, openai-insecure-api-key.a", "openai-insecure-api-key.b", "realtime", "")
    assert len({number((protocol, offer), upgrade=True) for offer in offers}) == 3
    assert len({number((protocol, offer)) for offer in offers}) == 1


# --- bytes that a header line of ours could not hold


@pytest.mark.parametrize(
    "value", ["gzip;a\tb", "gzip;q=\xe9", "\xff", "gzip;q=1\t;\tq=0", "identity;q=\x80"]
)
async def test_any_accept_encoding_is_survived(value: str, tmp_path: Path) -> None:
    """What is no weight is left out."""
    async with stage(tmp_path) as one:
        reply = await ask(one.port, chat(f"Accept-Encoding: {value}"))
        assert reply.status == 200
        assert one.provider.attempts[0].header("accept-encoding") in {"gzip", "identity"}


@pytest.mark.parametrize("name", ["Protocol", "Extensions", "Key"])
@pytest.mark.parametrize("value", ["a\tb", "\xff", "a, \xe9\tb"])
async def test_any_handshake_is_survived(name: str, value: str, tmp_path: Path) -> None:
    """It is relayed as it came, and the upstream judges it."""
    async with stage(tmp_path) as one:
        own = [line for line in UPGRADE if not line.startswith(f"Sec-WebSocket-{name}")]
        reply = await ask(one.port, get("/tool/x", *own, f"Sec-WebSocket-{name}: {value}"), "HEAD")
        assert reply.status < 500
        attempt = one.provider.attempts[0]
        assert attempt.header(f"sec-websocket-{name}".lower()) == value


# --- spellings


async def test_credentials_by_any_spelling_stay_here(tmp_path: Path) -> None:
    """Where the credential is Steer's own, the caller's is taken off."""
    async with world(tmp_path, route={"candidates": ["fallback", "fallback"]}) as one:
        names = ("X_Api_Key", "Api_Key", "X_Auth-Token", "X_Steer_Token", "X-Steer_Token")
        path, body = one.request()
        query = "k%65y=mark;a=1&+key=mark&$httpHeaders[authorization]=mark&api_key=mark"
        reply = await one.send(
            "POST", f"{path}?{query}", json=body, headers=dict.fromkeys(names, "mark")
        )
        assert reply.status == 200
        (attempt,) = one.fallback.attempts
        assert "mark" not in f"{attempt.target} {attempt.headers}"
        assert "a=1" in attempt.target


async def test_steers_own_fields_do_not_come_back(tmp_path: Path) -> None:
    """Nor go on, even where the caller's credential does."""
    async with stage(tmp_path) as one:
        await ask(one.port, get("/tool/x", "X_Steer_Token: mark", "X-Steer_Anything: mark"))
        assert "mark" not in str(one.provider.attempts[0].headers)


# --- the port's token


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/tool/x", ("X-Api-Key: own", f"X-Api-Key: {TOKEN}")),
        ("/tool/x", (f"X-Portkey-Api-Key: {TOKEN}",)),
        ("/tool/x", (f"X_Api_Key: {TOKEN}",)),
        (f"/tool/x?k%65y={TOKEN}", ()),
        (f"/tool/x?a=1;KEY={TOKEN}", ()),
        (f"/tool/x?access_token={TOKEN}", ()),
        ("/tool/x", (*UPGRADE, f"Sec-WebSocket-Protocol: openai-insecure-api-key.{TOKEN}")),
    ],
)
async def test_the_token_is_never_forwarded(
    target: str, fields: tuple[str, ...], tmp_path: Path
) -> None:
    """Wherever it stands, and though it is presented in its own header, too."""
    (tmp_path / "token").write_text(TOKEN)
    listen = {"port": 0, "token": {"file": str(tmp_path / "token")}}
    async with stage(tmp_path, listen=listen) as one:
        for more in ((), (f"X-Steer-Token: {TOKEN}",)):
            reply = await ask(one.port, get(target, *fields, *more), "HEAD")
            assert reply.status in {101, 200}
            attempt = one.provider.attempts[-1]
            assert TOKEN not in f"{attempt.target} {attempt.headers}"


# --- calls that stay at home


async def test_no_header_unpins_a_call(tmp_path: Path) -> None:
    """What is stored at home is not asked for elsewhere, with another's credential."""
    async with world(tmp_path) as one:
        elsewhere = {"X-Steer-Upstream": "fallback"}
        reply = await one.send("GET", "/files", headers=elsewhere)
        assert (reply.status, reply.json["error"]["code"]) == (400, "steer_pinned")
        assert (one.primary.attempts, one.fallback.attempts) == ([], [])
        assert (await one.ask(headers=elsewhere)).headers["X-Steer-Upstream"] == "fallback"
        home = {"X-Steer-Upstream": "primary"}
        assert (await one.send("GET", "/files", headers=home)).status == 200


# --- pages


@pytest.mark.parametrize(
    ("listen", "origin", "known"),
    [
        (Listen(allowed_hosts=("*",)), "https://evil.example", False),
        (Listen(allowed_hosts=("*", "good.example")), "https://good.example", True),
        (Listen(allowed_hosts=("*",)), "http://localhost:3000", True),
        (Listen(host="0.0.0.0"), "http://203.0.113.5", False),
        (Listen(host="10.1.2.3"), "http://10.1.2.3:8080", True),
    ],
)
def test_any_host_is_not_any_origin(listen: Listen, origin: str, known: bool) -> None:
    """`*` says by which names Steer may be called, not whose pages may call it."""
    guard = Guard.of_data(listen)
    headers = {"Host": "localhost", "Origin": origin}
    if known:
        assert guard.check(headers) is False
    else:
        with pytest.raises(Refusal) as refused:
            guard.check(headers)
        assert refused.value.problem.code == "steer_foreign_origin"
