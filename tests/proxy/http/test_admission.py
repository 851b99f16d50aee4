"""Who is let in, and what is said to those who are not, before anything is asked of a provider."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.provider import Provider, faults, json_answer
from tests.support.raw import (
    Stage,
    ask,
    chat,
    chunked,
    dialled,
    get,
    post,
    request,
    stage,
)
from tests.support.sidecar import configure, running

EXPECT = "Expect: 100-continue"


# --- routes


@pytest.mark.parametrize("target", ["/", "/nowhere", "/toolx", "/TOOL/x", "/v1beta/x?a=/tool", "*"])
async def test_a_path_nobody_owns(target: str, tmp_path: Path) -> None:
    """404 in the neutral shape, naming the routes there are."""
    async with stage(tmp_path) as world:
        method = "OPTIONS" if target == "*" else "GET"
        reply = await ask(world.port, request(method, target))
        assert (reply.status, reply.code) == (404, "steer_no_route")
        assert reply.json["error"].keys() == {"code", "message", "type"}
        assert "/tool, /v1" in reply.message
        assert world.forwarded == []


@pytest.mark.parametrize(
    ("target", "forwarded"),
    [
        ("/tool", "/"),
        ("/tool/", "/"),
        ("/tool?", "/"),
        ("/tool/a//b/", "/a//b/"),
        ("//tool/a", "/a"),
        ("/tool/a%20b/%C3%A9?x=%2F..%2F&y", "/a%20b/%C3%A9?x=%2F..%2F&y"),
        ("/tool/a;b=c/...", "/a;b=c/..."),
        ("/tool/.well-known/x", "/.well-known/x"),
        ("/v1/models", "/v1/models"),
    ],
)
async def test_what_is_appended_to_the_base_url(
    target: str, forwarded: str, tmp_path: Path
) -> None:
    """All that follows the route's prefix, percent-encoding included."""
    async with stage(tmp_path) as world:
        await ask(world.port, get(target))
        assert world.forwarded == [("GET", forwarded)]


async def test_the_planes_do_not_mix(tmp_path: Path) -> None:
    """The data port has no admin pages, the admin port no routes."""
    async with stage(tmp_path) as world:
        for target in ("/healthz", "/readyz", "/metrics", "/api/status", "/events", "/"):
            assert (await ask(world.port, get(target))).status == 404
        for data in (get("/tool/x"), post(b"{}", "/v1/chat/completions"), get("//tool/x")):
            assert (await ask(world.admin_port, data)).status == 404
        assert world.forwarded == []


# --- nowhere else


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_the_callers_to_follow(code: int, tmp_path: Path) -> None:
    """Steer calls what its configuration names, and nothing else; the answer is passed on."""
    async with Provider() as elsewhere, stage(tmp_path) as world:
        location = ("Location", f"{elsewhere.base_url}/secret")
        world.provider.always(faults.status(code, {}, (location,)))
        reply = await ask(world.port, get())
        assert (reply.status, reply.value("Location")) == (code, location[1])
        assert elsewhere.attempts == []
        assert len(world.forwarded) == 1


@pytest.mark.parametrize(
    "field",
    [
        "X-Forwarded-Host: {}",
        "Forwarded: host={}",
        "X-Original-URL: http://{}/",
        "X-Steer-Upstream: http://{}",
        "Proxy-Connection: keep-alive",
        "Referer: http://{}/",
    ],
)
async def test_no_header_names_an_address(field: str, tmp_path: Path) -> None:
    """Whatever a caller says, the upstreams are those of the configuration."""
    async with Provider() as elsewhere, stage(tmp_path) as world:
        await ask(world.port, get("/tool/x", field.format(f"127.0.0.1:{elsewhere.port}")))
        assert elsewhere.attempts == []
        assert elsewhere.total_connections == 0


async def test_a_loop(tmp_path: Path) -> None:
    """A call that comes back to the Steer it left is refused with 508, after one round."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    config = configure(
        {
            "listen": {"port": port},
            "catalogue": False,
            "upstreams": {"self": {"dialect": "http", "base_url": f"http://127.0.0.1:{port}/me"}},
            "routes": [{"name": "me", "path": "/me", "candidates": ["self"]}],
        },
        tmp_path,
    )
    async with running(config):
        reply = await ask(port, get("/me/x"))
        assert (reply.status, reply.code) == (508, "steer_loop")


async def test_another_steer_is_no_loop(tmp_path: Path) -> None:
    """Two in a row is a chain: each adds its own name to `Via`."""
    async with stage(tmp_path) as second:
        config = configure(
            {
                "catalogue": False,
                "upstreams": {
                    "next": {"dialect": "http", "base_url": f"http://127.0.0.1:{second.port}/tool"}
                },
                "routes": [{"name": "first", "path": "/first", "candidates": ["next"]}],
            },
            tmp_path,
        )
        async with running(config) as first:
            reply = await ask(first.sidecar.port, get("/first/x", "Via: 1.0 fred, 1.1 p.example"))
        assert reply.status == 200
        (attempt,) = second.provider.attempts
        one, two, three = attempt.header_values("Via")
        assert one == "1.0 fred, 1.1 p.example"
        assert two.startswith("1.1 steer-")
        assert three.startswith("1.1 steer-")
        assert two != three


# --- what is asked of Steer


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('X-Steer-Metadata: {"a": }', "X-Steer-Metadata is not valid JSON"),
        ('X-Steer-Metadata: {"a": }', "position 6"),
        ("X-Steer-Metadata: [1]", "X-Steer-Metadata must be a JSON object"),
        ('X-Steer-Budget: {"ms": -1}', "X-Steer-Budget: ms must be"),
        ('X-Steer-Budget: {"euros": 1}', "unknown budget 'euros'; known: ms, tokens, cost_usd"),
        ('X-Steer-Quality: {"min_confidence": 2}', "X-Steer-Quality: min_confidence must be"),
        ("X-Steer-Timeout: soon", "X-Steer-Timeout must be"),
        ("X-Steer-Timeout: 0", "X-Steer-Timeout must be"),
        ("X-Steer-Upstream: nowhere", "no upstream 'nowhere'; it has: llm"),
    ],
)
async def test_steering_that_cannot_be_obeyed(field: str, said: str, tmp_path: Path) -> None:
    """400 that names the header and the place, in the dialect's shape: what is ignored costs."""
    async with stage(tmp_path) as world:
        reply = await ask(world.port, chat(field))
        assert reply.status == 400
        assert reply.code.startswith("steer_")
        assert said in reply.message
        assert world.forwarded == []


async def test_the_timeout_a_caller_sets(tmp_path: Path) -> None:
    """Bounds the whole call up to its commit, attempts and waits included."""
    async with stage(tmp_path) as world:
        now = asyncio.get_running_loop().time
        world.provider.always(faults.silence())
        began = now()
        reply = await ask(world.port, chat("X-Steer-Timeout: 2.5"))
        assert (reply.status, reply.code) == (504, "steer_deadline")
        assert now() - began == pytest.approx(2.5, abs=0.1)
        world.provider.always(faults.rate_limit(retry_after=2))
        began = now()
        reply = await ask(world.port, chat("X-Steer-Timeout: 1"))
        assert reply.status == 429
        assert now() - began < 1.0


# --- Expect: 100-continue


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_the_body_is_asked_for(framing: str, tmp_path: Path) -> None:
    """100 when nothing speaks against the call, once, and then the answer."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        if framing == "length":
            caller.send(request("POST", "/tool/x", "Content-Length: 5", EXPECT))
        else:
            caller.send(request("POST", "/tool/x", "Transfer-Encoding: chunked", EXPECT))
        assert (await caller.head()).first_line == "HTTP/1.1 100 Continue"
        assert world.forwarded == []
        caller.send(b"hello" if framing == "length" else chunked(b"hello"))
        reply = await caller.reply()
        assert (reply.status, reply.closes) == (200, False)
        (attempt,) = world.provider.attempts
        assert attempt.body == b"hello"
        assert attempt.header("Expect") is None


async def test_a_body_that_is_there_is_not_asked_for(tmp_path: Path) -> None:
    """Nor is one of HTTP/1.0, which knows no interim answers (RFC 9110 §10.1.1)."""
    async with stage(tmp_path) as world:
        reply = await ask(world.port, post(b"hello", "/tool/x", EXPECT))
        assert reply.status == 200
        old = request("POST", "/tool/x", "Content-Length: 5", EXPECT, version="HTTP/1.0")
        async with dialled(world.port) as caller:
            caller.send(old)
            await asyncio.sleep(1.0)
            caller.send(b"hello")
            assert (await caller.reply()).status == 200


async def _refused(world: Stage, data: bytes, status: int) -> None:
    """Refused without 100, and the connection ends: the body may still come, or not."""
    async with dialled(world.port) as caller:
        caller.send(data)
        reply = await caller.reply()
        assert (reply.status, reply.closes) == (status, True)
        caller.send(get("/tool/smuggled"))
        assert await caller.ended() == "close"
    assert world.forwarded == []


@pytest.mark.parametrize(
    ("target", "fields", "status"),
    [
        ("/nowhere", ("Content-Length: 26",), 404),
        ("/tool/../x", ("Content-Length: 26",), 400),
        ("/tool/x", ("Content-Length: 26", "X-Steer-Timeout: never"), 400),
        ("/tool/x", ("Content-Length: 100000000",), 413),
        ("/tool/x", ("Content-Length: 26", "Origin: http://evil.example"), 403),
    ],
)
async def test_a_refusal_before_the_body(
    target: str, fields: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    """Everything that can be said before the body is said before it."""
    async with stage(tmp_path) as world:
        await _refused(world, request("POST", target, *fields, EXPECT), status)


@pytest.mark.parametrize("readable", [True, False])
async def test_a_refusal_before_the_body_for_want_of_the_token(
    readable: bool, tmp_path: Path
) -> None:
    """401, or 503 when the token cannot be known."""
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    async with stage(tmp_path, listen={"port": 0, "token": {"file": str(secret)}}) as world:
        if not readable:
            world.steer.gateway._guard._token._value = None  # type: ignore[union-attr]
            world.steer.gateway._guard._token._stamp = None  # type: ignore[union-attr]
            secret.unlink()
        data = request("POST", "/tool/x", "Content-Length: 26", EXPECT)
        await _refused(world, data, 401 if readable else 503)


# --- bodies that are too large


async def test_a_declared_body_over_the_limit(tmp_path: Path) -> None:
    """413 before it is read; a caller that sends it all the same still gets the answer."""
    async with stage(tmp_path, limits={"max_body": 1000}) as world, dialled(world.port) as caller:
        caller.send(request("POST", "/v1/chat/completions", "Content-Length: 5000000"))
        sending = asyncio.create_task(caller.send_slowly(b"x" * 5_000_000, 65536))
        reply = await caller.reply()
        assert (reply.status, reply.code, reply.closes) == (413, "steer_body_too_large", True)
        assert "1000 bytes" in reply.message
        await sending
        assert await caller.ended() == "close"
        assert world.forwarded == []


async def test_a_chunked_body_over_the_limit(tmp_path: Path) -> None:
    """413 as soon as it is over, not at its end; exactly the limit passes."""
    async with stage(tmp_path, limits={"max_body": 1000}) as world, dialled(world.port) as caller:
        head = request("POST", "/tool/x", "Transfer-Encoding: chunked")
        caller.send(head + chunked(b"x" * 1000))
        assert (await caller.reply()).status == 200
        caller.send(head + b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        await asyncio.sleep(1.0)
        caller.send(b"1\r\nx\r\n")
        reply = await caller.reply()
        assert (reply.status, reply.code, reply.closes) == (413, "steer_body_too_large", True)
        assert len(world.forwarded) == 1
        assert world.steer.gateway._budget.used == 0


# --- the caller goes away


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_hangs_up(stream: bool, tmp_path: Path) -> None:
    """The upstream connection is closed at once: nobody pays for what nobody reads."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        now = asyncio.get_running_loop().time
        world.provider.pace = 3.0 if stream else 0.0
        if not stream:
            world.provider.always(faults.silence())
        caller.send(chat(stream=stream))
        (attempt,) = await world.provider.wait_for_attempts(1)
        if stream:
            head = await caller.head()
            assert head.status == 200
            await caller.chunk()
        gone = now()
        caller.hang_up()
        await attempt.finished.wait()
        assert attempt.closed_by_peer_at is not None
        assert attempt.closed_by_peer_at - gone < 1.0
        await world.provider.wait_for_connections(0)
        assert world.steer.gateway.active == 0
        assert len(world.forwarded) == 1


async def test_a_caller_that_hangs_up_between_attempts(tmp_path: Path) -> None:
    """A wait before a retry ends with its caller; no attempt follows."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(faults.rate_limit(retry_after=4))
        caller.send(chat())
        await world.provider.wait_for_attempts(1)
        await asyncio.sleep(1.0)
        caller.hang_up()
        await asyncio.sleep(60.0)
        assert len(world.forwarded) == 1
        assert world.steer.gateway.active == 0


async def test_a_caller_that_hangs_up_before_its_body_has_come(tmp_path: Path) -> None:
    """Nothing is forwarded and nothing is left."""
    async with stage(tmp_path) as world:
        for size in (100, 2_000_000):
            async with dialled(world.port) as caller:
                caller.send(request("POST", "/tool/x", "Content-Length: 3000000"))
                await caller.send_slowly(b"x" * size, 65536)
                await asyncio.sleep(1.0)
                caller.hang_up()
            await asyncio.sleep(1.0)
            assert world.steer.gateway.active == 0
            assert world.steer.gateway._budget.used == 0
        assert world.forwarded == []


async def test_answers_of_our_own_are_json_of_the_dialect(tmp_path: Path) -> None:
    """What the official SDK reads: `error.message`, `error.code`, and no word of ours about us."""
    async with stage(tmp_path) as world:
        reply = await ask(world.port, chat('X-Steer-Budget: {"ms": 0}'))
        assert reply.value("Content-Type") == "application/json"
        error: dict[str, Any] = json.loads(reply.body)["error"]
        assert error["code"] == "steer_bad_header"
        assert error["type"] == "steer_error"
        assert {name for name, _ in reply.fields} <= {"Content-Type", "Content-Length"}


async def test_an_answer_that_is_neither_ours_nor_odd(tmp_path: Path) -> None:
    """A provider's own refusal is not ours to change."""
    async with stage(tmp_path) as world:
        world.provider.always(json_answer(418, {"tea": True}))
        reply = await ask(world.port, get())
        assert (reply.status, reply.json) == (418, {"tea": True})
