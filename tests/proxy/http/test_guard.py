"""Browsers, other containers, strangers: who may speak to the ports at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steer_proxy.engine.config import Listen
from steer_proxy.http.guard import Guard
from steer_proxy.http.problems import Refusal
from tests.support.raw import Stage, ask, chat, get, post, request, stage

TOKEN = "s3cret-token"
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:4100",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:4100",
        "localhost:",
    ],
)
async def test_hosts_that_are_ours(host: str, tmp_path: Path) -> None:
    """Loopback by name or address, with any port: a port may be mapped."""
    async with stage(tmp_path) as world:
        assert (await ask(world.port, get("/tool/x", host=host))).status == 200
        assert (await ask(world.admin_port, get("/healthz", host=host))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:4100",
        "localhost.evil.example",
        "evil.example:localhost",
        "localhost:80@evil.example",
        "localhost:4100:4100",
        "localhost/evil",
        "10.0.0.1",
        "[fe80::1]",
        "[evil]",
        "127.0.0.1.evil.example",
        "",
        "localhost evil",
        "\xe9vil",
    ],
)
async def test_hosts_that_are_not(host: str, tmp_path: Path) -> None:
    """A name that a page could have had rebound to this machine, on both ports."""
    async with stage(tmp_path) as world:
        reply = await ask(world.port, get("/tool/x", host=host))
        assert (reply.status, reply.code) == (403, "steer_foreign_host")
        assert "listen.allowed_hosts" in reply.message
        reply = await ask(world.admin_port, get("/healthz", host=host))
        assert reply.status == 403
        assert b"admin.allowed_hosts" in reply.body
        assert world.forwarded == []


async def test_a_request_without_a_host(tmp_path: Path) -> None:
    """HTTP/1.0's; no browser sends it."""
    async with stage(tmp_path) as world:
        old = get("/tool/x", version="HTTP/1.0", host=None)
        assert (await ask(world.port, old)).status == 200


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        (["steer.svc"], "steer.svc:4100", 200),
        (["steer.svc"], "STEER.svc", 200),
        (["steer.svc"], "other.svc", 403),
        (["10.1.2.3"], "10.1.2.3", 200),
        (["*"], "anything.example", 200),
        (["*"], "not a host", 403),
    ],
)
async def test_allowed_hosts(allowed: list[str], host: str, status: int, tmp_path: Path) -> None:
    """Names by which callers in other containers know Steer."""
    listen = {"port": 0, "allowed_hosts": allowed}
    async with stage(tmp_path, listen=listen, admin=listen) as world:
        assert (await ask(world.port, get("/tool/x", host=host))).status == status
        assert (await ask(world.admin_port, get("/readyz", host=host))).status == status


@pytest.mark.parametrize(
    ("listening", "host", "known"),
    [
        ("0.0.0.0", "10.1.2.3:4100", True),  # a kubelet probes by the pod's address
        ("0.0.0.0", "[fd00::1]", True),
        ("::", "10.1.2.3", True),
        ("0.0.0.0", "evil.example", False),
        ("10.1.2.3", "10.1.2.3:80", True),
        ("10.1.2.3", "10.1.2.4", False),
        ("127.0.0.1", "10.1.2.3", False),
    ],
)
def test_addresses_we_may_have(listening: str, host: str, known: bool) -> None:
    """Bound to all addresses, any is ours: only names can be rebound."""
    guard = Guard.of_data(Listen(host=listening))
    for _ in range(2):
        if known:
            assert guard.check({"Host": host}) is False
        else:
            with pytest.raises(Refusal):
                guard.check({"Host": host})


def test_the_memory_of_good_hosts_is_bounded() -> None:
    """`Host` is foreign input."""
    guard = Guard.of_data(Listen(allowed_hosts=("*",)))
    for index in range(1000):
        guard.check({"Host": f"host-{index}"})
    assert len(guard._good) <= 64


BROWSERS = [
    ("Origin: http://evil.example", 403),
    ("Origin: https://localhost.evil.example", 403),
    ("Origin: null", 403),
    ("Origin: http://[", 403),
    ("Origin: file://", 403),
    ("Origin: http://localhost:3000", 200),
    ("Origin: http://127.0.0.1:8080", 200),
    ("Origin: http://[::1]:8080", 200),
    ("Sec-Fetch-Site: cross-site", 403),
    ("Sec-Fetch-Site: Cross-Site", 403),
    ("Sec-Fetch-Site: something-new", 403),
    ("Sec-Fetch-Site: same-origin", 200),
    ("Sec-Fetch-Site: none", 200),
]


@pytest.mark.parametrize(("field", "status"), BROWSERS)
async def test_browsers(field: str, status: int, tmp_path: Path) -> None:
    """A page of another origin is no caller, whatever it sends, on either port."""
    async with stage(tmp_path) as world:
        for data in (get("/tool/x", field), post(b"{}", "/v1/embeddings", field)):
            reply = await ask(world.port, data)
            assert (reply.status == 403) == (status == 403)
            if status == 403:
                assert reply.code == "steer_foreign_origin"
        assert (await ask(world.admin_port, get("/healthz", field))).status == status
        assert (world.forwarded == []) == (status == 403)


@pytest.mark.parametrize(("field", "status"), BROWSERS)
async def test_browsers_with_websockets(field: str, status: int, tmp_path: Path) -> None:
    """WebSockets are not held back by the same-origin policy, so we do."""
    async with stage(tmp_path) as world:
        reply = await ask(world.port, get("/tool/x", field, *UPGRADE), method="HEAD")
        assert reply.status == (101 if status == 200 else 403)
        assert (world.forwarded == []) == (status == 403)


# --- the token


def guarded(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return {"listen": {"port": 0, "token": {"file": str(tmp_path / "token")}}}


def presented(world: Stage) -> str:
    """Everything the provider saw of the last request, in one text."""
    attempt = world.provider.attempts[-1]
    return f"{attempt.target} {attempt.headers} {attempt.body!r}"


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("X-Steer-Token: wrong",),
        (f"X-Steer-Token: {TOKEN}x",),
        (f"X-Steer-Token: {TOKEN[:-1]}",),
        ("X-Steer-Token: ",),
        ("X-Steer-Token: \xe9\xff",),
        ("Authorization: Bearer wrong",),
        ("Authorization: Bearer",),
        (f"Authorization: Basic {TOKEN}",),
        (f"Cookie: token={TOKEN}",),
    ],
)
async def test_without_the_token(fields: tuple[str, ...], tmp_path: Path) -> None:
    """401 in our shape; nothing is forwarded, and the token is not told."""
    async with stage(tmp_path, **guarded(tmp_path)) as world:
        for data in (get("/tool/x", *fields), chat(*fields), get("/tool/x", *fields, *UPGRADE)):
            reply = await ask(world.port, data)
            assert (reply.status, reply.code) == (401, "steer_token_required")
            assert TOKEN.encode() not in reply.body
        assert world.forwarded == []


@pytest.mark.parametrize(
    ("target", "fields", "kept"),
    [
        ("/tool/x", (f"X-Steer-Token: {TOKEN}",), ()),
        ("/tool/x", (f"X-Steer-Token: {TOKEN}", "Authorization: Bearer own"), ("Bearer own",)),
        ("/tool/x?key=own", (f"X-Steer-Token: {TOKEN}",), ("key=own",)),
        ("/tool/x", (f"Authorization: Bearer {TOKEN}",), ()),
        ("/tool/x", (f"authorization: bearer {TOKEN}",), ()),
        ("/tool/x", (f"Authorization: {TOKEN}",), ()),
        ("/tool/x", (f"X-Api-Key: {TOKEN}",), ()),
        ("/tool/x", (f"Api-Key: {TOKEN}",), ()),
        ("/tool/x", (f"X-Goog-Api-Key: {TOKEN}",), ()),
        (f"/tool/x?a=b&key={TOKEN}", (), ("a=b",)),
        ("/tool/x", (f"Authorization: Bearer {TOKEN}", "X-Api-Key: own"), ()),
        ("/tool/x", (f"X-Steer-Token: {TOKEN}", f"Authorization: Bearer {TOKEN}"), ()),
    ],
)
async def test_with_the_token(
    target: str, fields: tuple[str, ...], kept: tuple[str, ...], tmp_path: Path
) -> None:
    """In its own header, or where an SDK puts its API key; it never leaves Steer."""
    async with stage(tmp_path, **guarded(tmp_path)) as world:
        assert (await ask(world.port, get(target, *fields))).status == 200
        seen = presented(world)
        assert TOKEN not in seen
        assert "X-Steer-Token" not in seen
        assert all(text in seen for text in kept)
        assert ("own" in seen) == bool([text for text in kept if "own" in text])


async def test_the_admin_port_does_not_know_the_token(tmp_path: Path) -> None:
    """Probes of an orchestrator carry none."""
    async with stage(tmp_path, **guarded(tmp_path)) as world:
        assert (await ask(world.admin_port, get("/readyz"))).status == 200


async def test_a_token_that_is_rotated(tmp_path: Path) -> None:
    """The file is read again; the old token is refused then."""
    async with stage(tmp_path, **guarded(tmp_path)) as world:
        secret = world.steer.gateway._guard._token
        assert secret is not None
        (tmp_path / "token").write_text("another-token")
        secret._checked = -1e9
        assert (await ask(world.port, get("/tool/x", f"X-Steer-Token: {TOKEN}"))).status == 401
        assert (await ask(world.port, get("/tool/x", "X-Steer-Token: another-token"))).status == 200


async def test_a_token_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is let in, everybody is told, and the log names the reference, not a value."""
    async with stage(tmp_path, **guarded(tmp_path)) as world:
        secret = world.steer.gateway._guard._token
        assert secret is not None
        secret._value = secret._stamp = None
        secret._checked = -1e9
        (tmp_path / "token").unlink()
        for data in (get("/tool/x"), get("/tool/x", f"X-Steer-Token: {TOKEN}")):
            reply = await ask(world.port, data)
            assert (reply.status, reply.code) == (503, "steer_token_unavailable")
            assert str(tmp_path).encode() not in reply.body
        assert world.forwarded == []
    said = [record.getMessage() for record in caplog.records if record.name == "steer.http"]
    assert said
    assert all(str(tmp_path / "token") in line for line in said)


async def test_the_guard_comes_first(tmp_path: Path) -> None:
    """Who may not speak learns nothing: not even which routes there are."""
    async with stage(tmp_path, **guarded(tmp_path)) as world:
        for target in ("/nowhere", "/tool/../x"):
            reply = await ask(world.port, request("GET", target))
            assert (reply.status, reply.code) == (401, "steer_token_required")
