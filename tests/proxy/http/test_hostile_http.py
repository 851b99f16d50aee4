"""Requests that are wrong, or too much: refused, the connection closed, and nothing forwarded.

RFC 9112 §11.2: whoever lets a doubtful message pass lets one caller's bytes become another
request. So every case is followed by an innocent request on the same connection, which must not
reach the provider either, and is sent both at once and byte by byte.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_proxy.http.connection import MAX_FIELD, MAX_HEAD, MAX_HEADERS, OVERHEAD
from tests.conftest import run
from tests.provider import Answer, Pause
from tests.support.raw import ask, chunked, dialled, get, post, request, stage

HOST = "Host: localhost\r\n"
CHUNKED = "Transfer-Encoding: chunked"
NEXT = get("/tool/smuggled")


def raw(text: str) -> bytes:
    return text.encode("latin-1")


def body_as(framing: str, body: str = "0\r\n\r\n", version: str = "HTTP/1.1") -> bytes:
    return raw(f"POST /tool/x {version}\r\n{HOST}{framing}\r\n\r\n{body}")


def line(text: str) -> bytes:
    return raw(f"{text}\r\n{HOST}\r\n")


def field(text: str) -> bytes:
    return raw(f"GET /tool/x HTTP/1.1\r\n{HOST}{text}\r\n\r\n")


def noise(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator would see in the log, Steer's and aiohttp's."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno > logging.DEBUG and record.name.startswith(("steer", "aiohttp"))
    ]


FRAMING = {
    "length, then coding": body_as("Content-Length: 5\r\nTransfer-Encoding: chunked"),
    "coding, then length": body_as("Transfer-Encoding: chunked\r\nContent-Length: 5"),
    "the same length twice": body_as("Content-Length: 5\r\nContent-Length: 5"),
    "two lengths": body_as("Content-Length: 5\r\nContent-Length: 4"),
    "a list of lengths": body_as("Content-Length: 5, 5"),
    "length with plus": body_as("Content-Length: +5"),
    "length below zero": body_as("Content-Length: -5"),
    "length in base 16": body_as("Content-Length: 0x5"),
    "length with space": body_as("Content-Length: 0 5"),
    "no length": body_as("Content-Length: "),
    "length beyond 64 bits": body_as("Content-Length: 99999999999999999999999"),
    "chunked twice": body_as("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    "a list of chunked": body_as("Transfer-Encoding: chunked, chunked"),
    "a coding under chunked": body_as("Transfer-Encoding: gzip, chunked"),
    "a coding over chunked": body_as("Transfer-Encoding: chunked, gzip"),
    "identity": body_as("Transfer-Encoding: identity"),
    "an unknown coding": body_as("Transfer-Encoding: xchunked"),
    "chunked in disguise": body_as("Transfer-Encoding: \x0bchunked"),
    "chunked in HTTP/1.0": body_as(CHUNKED, version="HTTP/1.0"),
}
CHUNKS = {
    "size not in base 16": body_as(CHUNKED, "G\r\nhi\r\n0\r\n\r\n"),
    "size below zero": body_as(CHUNKED, "-1\r\nhi\r\n0\r\n\r\n"),
    "size with 0x": body_as(CHUNKED, "0x2\r\nhi\r\n0\r\n\r\n"),
    "size and space": body_as(CHUNKED, "2 \r\nhi\r\n0\r\n\r\n"),
    "no size": body_as(CHUNKED, "\r\nhi\r\n0\r\n\r\n"),
    "size beyond 64 bits": body_as(CHUNKED, "fffffffffffffffff\r\nhi\r\n0\r\n\r\n"),
    "bare line feeds": body_as(CHUNKED, "2\nhi\n0\n\n"),
    "a line feed in an extension": body_as(CHUNKED, "2;a\nb\r\nhi\r\n0\r\n\r\n"),
    "longer than it says": body_as(CHUNKED, "2\r\nhixx0\r\n\r\n"),
    "a NUL in a trailer": body_as(CHUNKED, "2\r\nhi\r\n0\r\nX: \x00\r\n\r\n"),
}
LINES = {
    "bare line feeds": raw("GET /tool/x HTTP/1.1\nHost: localhost\n\n"),
    "a bare line feed after a field": raw("GET /tool/x HTTP/1.1\r\nHost: localhost\nA: b\r\n\r\n"),
    "a bare line feed at the end": raw("GET /tool/x HTTP/1.1\r\nHost: localhost\r\n\n"),
    "a bare carriage return": raw("GET /tool/x HTTP/1.1\r\nHost: localhost\rA: b\r\n\r\n"),
    "a tab after the method": line("GET\t/tool/x HTTP/1.1"),
    "a space in the target": line("GET /tool/x y HTTP/1.1"),
    "a byte that is not ASCII": line("GET /tool/\xff HTTP/1.1"),
    "HTTP/0.9": raw("GET /tool/x\r\n\r\n"),
    "HTTP/0.9 by name": line("GET /tool/x HTTP/0.9"),
    "HTTP/1.2": line("GET /tool/x HTTP/1.2"),
    "HTTP/2.0": line("GET /tool/x HTTP/2.0"),
    "HTTP/3": line("GET /tool/x HTTP/3"),
    "the preface of HTTP/2": raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a TLS hello": raw("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 32),
    "a method in lower case": line("get /tool/x HTTP/1.1"),
    "a method that is no token": line("G@T /tool/x HTTP/1.1"),
    "an unknown method": line("FOO /tool/x HTTP/1.1"),
    "a method of RTSP": line("ANNOUNCE /tool/x RTSP/1.0"),
    "a method of Icecast": line("SOURCE /tool/x HTTP/1.1"),
    "TRACE": line("TRACE /tool/x HTTP/1.1"),
    "CONNECT": line("CONNECT localhost:443 HTTP/1.1"),
    "CONNECT with a path": line("CONNECT /tool/x HTTP/1.1"),
    "absolute form": line("GET http://localhost/tool/x HTTP/1.1"),
    "authority form": line("GET localhost:443 HTTP/1.1"),
    "asterisk with GET": line("GET * HTTP/1.1"),
}
FIELDS = {
    "a NUL in a value": field("A: b\x00c"),
    "a control character in a value": field("A: b\x01c"),
    "DEL in a value": field("A: b\x7fc"),
    "a control character in a name": field("A\x01: b"),
    "a name that is not ASCII": field("\xc4: b"),
    "no name": field(": b"),
    "no colon": field("A"),
    "a folded value": field("A: b\r\n c"),
    "a folded first line": raw(f"GET /tool/x HTTP/1.1\r\n A: b\r\n{HOST}\r\n"),
    "a space before the colon": field("A : b"),
    "a tab before the colon": field("A\t: b"),
    "no Host": raw("GET /tool/x HTTP/1.1\r\n\r\n"),
    "two Hosts": field("Host: localhost"),
}
TARGETS = {
    name: line(f"GET /tool/{target} HTTP/1.1")
    for name, target in {
        "a dot segment": "../x",
        "a single dot": "./x",
        "a dot segment at the end": "x/..",
        "an encoded dot segment": "%2e%2E/x",
        "a half-encoded dot segment": ".%2e/x",
        "a dot segment with a parameter": "..;a=b/x",
        "an encoded slash": "..%2fx",
        "an encoded backslash": "a%5Cx",
        "a backslash": "..\\x",
        "an encoded NUL": "%00x",
        "an encoding of nothing": "%zz",
        "a fragment": "x#y",
    }.items()
}
TOO_LARGE = {
    "request line": line(f"GET /tool/{'x' * (MAX_FIELD + 1)} HTTP/1.1"),
    "field value": field("A: " + "x" * (MAX_FIELD + 1)),
    "field name": field("A" * (MAX_FIELD + 1) + ": x"),
    "number of fields": field("\r\n".join(f"A{index}: x" for index in range(MAX_HEADERS + 1))),
    "all of it": field("\r\n".join(f"A{index}: {'x' * 1000}" for index in range(MAX_HEAD // 990))),
}
BAD = [
    pytest.param(data, id=f"{kind}: {name}")
    for kind, cases in (
        ("framing", FRAMING),
        ("chunks", CHUNKS),
        ("line", LINES),
        ("field", FIELDS),
        ("target", TARGETS),
    )
    for name, data in cases.items()
]


@pytest.mark.parametrize("data", BAD)
async def test_what_is_malformed(
    data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """400 in the shape of our errors, then the end of the connection; quiet in the log."""
    caplog.set_level(logging.DEBUG)
    async with stage(tmp_path) as world:
        async with dialled(world.port) as caller:
            caller.send(data + NEXT)
            reply = await caller.reply()
            assert (reply.first_line, reply.closes) == ("HTTP/1.1 400 Bad Request", True)
            assert reply.code in {"steer_bad_request", "steer_bad_target"}
            assert await caller.ended() == "close"
        async with dialled(world.port) as caller:
            # Byte by byte: what the parser is given at once must make no difference.
            await caller.send_slowly(data, 1)
            assert (await caller.reply()).status == 400
            caller.send(NEXT)
            assert await caller.ended() == "close"
        assert world.forwarded == []
    assert noise(caplog) == []


SHAPES = {
    "a control character": raw(f"POST /v1/chat/completions HTTP/1.1\r\n{HOST}A: b\x01\r\n\r\n"),
    "no Host": raw("POST /v1/chat/completions HTTP/1.1\r\n\r\n"),
    "after an empty line": raw(f"\r\nPOST /v1/chat/completions HTTP/1.1\r\n{HOST}A : b\r\n\r\n"),
    "an unknown coding": raw(
        f"POST /v1/chat/completions HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip\r\n\r\n"
    ),
    "a head too large": raw(
        f"POST /v1/chat/completions HTTP/1.1\r\n{HOST}"
        + "".join(f"A{index}: {'x' * 1000}\r\n" for index in range(MAX_HEAD // 990))
        + "\r\n"
    ),
}


@pytest.mark.parametrize("data", SHAPES.values(), ids=SHAPES.keys())
async def test_a_refusal_speaks_its_routes_dialect(data: bytes, tmp_path: Path) -> None:
    """As soon as the request line was read, however it came."""
    async with stage(tmp_path) as world:
        for size in (len(data), 1460, 7):
            async with dialled(world.port) as caller:
                await caller.send_slowly(data, size)
                reply = await caller.reply()
                assert reply.status in (400, 431)
                error = reply.json["error"]
                assert (error["code"], error["param"]) == ("steer_bad_request", None)
        assert world.forwarded == []


@pytest.mark.parametrize("target", ["/nowhere", "/v1/../x", "*"])
async def test_a_refusal_without_a_route_is_plain(target: str, tmp_path: Path) -> None:
    """Nobody's dialect."""
    async with stage(tmp_path) as world:
        reply = await ask(world.port, raw(f"POST {target} HTTP/1.1\r\n{HOST}A: \x01\r\n\r\n"))
        assert reply.json["error"].keys() == {"code", "message", "type"}


async def test_a_request_line_is_its_own_messages(tmp_path: Path) -> None:
    """What follows a body in one segment does not begin with one: the body may look like it."""
    decoy = b"POST /v1/chat/completions HTTP/1.1\r\n"
    head = raw(f"POST /tool/x HTTP/1.1\r\n{HOST}Content-Length: {len(decoy)}\r\n\r\n")
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(head)
        await asyncio.sleep(1.0)
        caller.send(decoy + field("A: \x01"))
        replies = [await caller.reply(), await caller.reply()]
        assert [reply.status for reply in replies] == [200, 400]
        assert replies[1].json["error"].keys() == {"code", "message", "type"}


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_heads_that_are_too_large(data: bytes, tmp_path: Path) -> None:
    """431 as soon as it is known, whether the head comes at once or in segments."""
    async with stage(tmp_path) as world:
        for size in (len(data), 8192, 1460):
            async with dialled(world.port) as caller:
                await caller.send_slowly(data + NEXT, size)
                reply = await caller.reply()
                assert (reply.status, reply.code) == (431, "steer_bad_request")
                assert reply.closes
                assert await caller.ended() == "close"
        assert world.forwarded == []


async def test_the_largest_heads_that_pass(tmp_path: Path) -> None:
    """Bounds are bounds, not approximations."""
    async with stage(tmp_path) as world:
        long = get("/tool/" + "x" * (MAX_FIELD - 64), "A: " + "y" * (MAX_FIELD - 1024))
        assert len(long) < MAX_HEAD
        many = get("/tool/x", *(f"A{index}: x" for index in range(MAX_HEADERS - 1)))
        for data in (long, many):
            assert (await ask(world.port, data)).status == 200


async def test_a_message_after_a_good_one(tmp_path: Path) -> None:
    """The answer that is owed comes first, then the refusal, then the end."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(lambda _, healthy: Answer((Pause(5.0), *healthy.steps)))
        caller.send(get("/tool/good"))
        await asyncio.sleep(1.0)
        caller.send(field("A : b") + NEXT)
        assert (await caller.reply()).status == 200
        assert (await caller.reply()).status == 400
        assert await caller.ended() == "close"
        assert world.forwarded == [("GET", "/good")]


async def test_a_message_in_one_segment_with_a_good_one(tmp_path: Path) -> None:
    """The parser forgets the good one then. It is refused with the bad one, not forwarded."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(get("/tool/good") + field("A : b") + NEXT)
        assert (await caller.reply()).status == 400
        assert await caller.ended() == "close"
        assert world.forwarded == []


@pytest.mark.parametrize("end", [b"G\r\n", b"2\r\nhixx", b"2\nhi"])
async def test_a_body_that_goes_wrong_in_the_middle(end: bytes, tmp_path: Path) -> None:
    """The call whose body it is gets the 400, at once, and nothing of it is forwarded."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        began = asyncio.get_running_loop().time()
        caller.send(request("POST", "/tool/x", CHUNKED) + b"5\r\nhello\r\n")
        await asyncio.sleep(1.0)
        caller.send(end + NEXT)
        reply = await caller.reply()
        assert (reply.status, reply.code, reply.closes) == (400, "steer_bad_request", True)
        assert await caller.ended() == "close"
        assert asyncio.get_running_loop().time() - began < 2.0
        assert world.forwarded == []


async def test_a_body_that_goes_wrong_after_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The call was refused before its body: that is no bug of ours, and no reason to wait."""
    caplog.set_level(logging.DEBUG)
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(request("POST", "/nowhere", CHUNKED) + b"5\r\nhello\r\n")
        assert (await caller.reply()).status == 404
        caller.send(b"G\r\n" + NEXT)
        assert await caller.ended() == "close"
        assert world.forwarded == []
    assert noise(caplog) == []


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "second", [get("/tool/2"), request("POST", "/tool/2", CHUNKED) + chunked(b"x")]
)
async def test_a_trailer_never_becomes_a_header(second: bytes, apart: bool, tmp_path: Path) -> None:
    """The parser below gives a request's last trailer to the next request as its first header."""
    first = request("POST", "/tool/1", CHUNKED) + chunked(b"hi", trailers="X-Evil: yes\r\n")
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(first)
        if apart:
            await asyncio.sleep(1.0)
        caller.send(second)
        reply = await caller.reply()
        assert reply.status == 200
        assert reply.closes
        await caller.ended()
        assert world.forwarded == [("POST", "/1")]
        (attempt,) = world.provider.attempts
        assert attempt.body == b"hi"
        assert attempt.trailers == []
        assert attempt.header("X-Evil") is None


async def test_a_chunked_request_without_trailers_keeps_its_connection(tmp_path: Path) -> None:
    """Wherever the segments end."""
    data = request("POST", "/tool/1", CHUNKED) + chunked(b"hi", b"there")
    async with stage(tmp_path) as world:
        for size in (len(data), 1, 7):
            async with dialled(world.port) as caller:
                for _ in range(2):
                    await caller.send_slowly(data, size)
                    reply = await caller.reply()
                    assert (reply.status, reply.closes) == (200, False)
        assert [attempt.body for attempt in world.provider.attempts] == [b"hithere"] * 6


async def test_what_follows_an_upgrade_we_do_not_know(tmp_path: Path) -> None:
    """The parser below throws it away; half a request would be left. So nothing may follow."""
    upgrade = get("/tool/1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(upgrade + post(b"x" * 100, "/tool/2")[:-50])
        reply = await caller.reply()
        assert (reply.status, reply.closes) == (200, True)
        caller.send(NEXT)
        await caller.rest()
        assert world.forwarded == [("GET", "/1")]


async def test_chunk_extensions(tmp_path: Path) -> None:
    """Ignored, as RFC 9112 §7.1.1 wants, and bounded in sum, as it advises."""
    async with stage(tmp_path) as world:
        few = request("POST", "/tool/x", CHUNKED) + b'2;a=b;c="d"\r\nhi\r\n0\r\n\r\n'
        assert (await ask(world.port, few)).status == 200
        assert world.provider.attempts[0].body == b"hi"
        async with dialled(world.port) as caller:
            caller.send(request("POST", "/tool/x", CHUNKED))
            for _ in range(2 * OVERHEAD // 1000):
                caller.send(b"1;" + b"x" * 1000 + b"\r\ny\r\n")
                await asyncio.sleep(0)
            reply = await caller.reply()
            assert (reply.status, reply.code) == (400, "steer_bad_request")
            assert await caller.ended() == "close"
        assert len(world.forwarded) == 1


async def test_the_smallest_chunks(tmp_path: Path) -> None:
    """A body of one-byte chunks is wasteful, not hostile."""
    text = b"wasteful" * 4000
    data = chunked(*(bytes([byte]) for byte in text))
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(request("POST", "/tool/x", CHUNKED))
        await caller.send_slowly(data, 1000)
        assert (await caller.reply()).status == 200
        assert world.provider.attempts[0].body == text


async def test_empty_lines_for_ever(tmp_path: Path) -> None:
    """A few before a request are taken (RFC 9112 §2.2); they are not a way to stay."""
    async with stage(tmp_path) as world:
        assert (await ask(world.port, b"\r\n\r\n" + get())).status == 200
        async with dialled(world.port) as caller:
            await caller.send_slowly(b"\r\n" * MAX_HEAD, 4096)
            assert (await caller.reply()).status == 431
            assert await caller.ended() == "close"


#: Pieces of which hostile requests are made: mostly right, so that parsing goes far.
_PIECES = st.one_of(
    st.sampled_from(
        [
            b"GET /tool/x HTTP/1.1\r\n",
            b"POST /tool/x HTTP/1.1\r\n",
            b"Host: localhost\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: 0\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
            b"X-Steer-Budget: {}\r\n",
            b"\r\n",
            b"hello",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"0\r\nX-Trailer: x\r\n\r\n",
            b"CONNECT localhost:1 HTTP/1.1\r\n",
            b"OPTIONS * HTTP/1.1\r\n",
        ]
    ),
    st.binary(max_size=12),
)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(_PIECES, max_size=12), st.booleans()), max_size=12))
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, cases: list[tuple[list[bytes], bool]]
) -> None:
    """Whatever comes, no error of ours: callers get answers that are HTTP, and nothing is left."""

    async def main() -> None:
        async with stage(tmp_path_factory.mktemp("fuzz")) as world:
            for pieces, apart in cases:
                async with dialled(world.port) as caller:
                    for piece in pieces if apart else [b"".join(pieces)]:
                        caller.send(piece)
                        await asyncio.sleep(0)
                    caller.finish()
                    answer, _ = await caller.rest()
                    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
                    assert b"steer_internal_error" not in answer
            assert world.provider.errors == []
            assert (await ask(world.port, get())).status == 200

    run(main)


_REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["none", "length", "chunked", "trailers", "h2c", "bad"]),
        st.binary(max_size=30),
    ),
    min_size=1,
    max_size=6,
)


def _as_sent(index: int, kind: str, body: bytes) -> bytes:
    target, own = f"/tool/{index}", f"X-Own: {index}"
    chunks = [body[at : at + 7] for at in range(0, len(body), 7)]
    match kind:
        case "none":
            return get(target, own)
        case "length":
            return post(body, target, own)
        case "h2c":
            return get(target, own, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
        case "bad":
            return get(target, own, "A : b")
        case _:
            trailers = f"X-Evil: {index}\r\n" if kind == "trailers" else ""
            return request("POST", target, own, CHUNKED) + chunked(*chunks, trailers=trailers)


@settings(max_examples=60)
@given(_REQUESTS, st.lists(st.integers(1, 80), max_size=30))
def test_nothing_of_one_request_becomes_part_of_another(
    tmp_path_factory: pytest.TempPathFactory, cases: list[tuple[str, bytes]], cuts: list[int]
) -> None:
    """Pipelined, in any segments: what is forwarded are the first requests, each as it was sent."""
    data = b"".join(_as_sent(index, *case) for index, case in enumerate(cases))

    async def main() -> None:
        async with stage(tmp_path_factory.mktemp("rows")) as world:
            async with dialled(world.port) as caller:
                at = 0
                for size in [*cuts, len(data)]:
                    caller.send(data[at : at + size])
                    at += size
                    await asyncio.sleep(0.001 if size % 2 else 0)
                await asyncio.sleep(1.0)
                caller.finish()
                answer, end = await caller.rest()
            attempts = world.provider.attempts
            # Who goes on sending after `Connection: close` may be reset.
            assert end == "reset" or answer.count(b"HTTP/1.1 200 OK\r\n") == len(attempts)
            for index, attempt in enumerate(attempts):
                kind, body = cases[index]
                assert kind != "bad"
                assert attempt.target == f"/{index}"
                assert attempt.header_values("X-Own") == [str(index)]
                assert attempt.header("X-Evil") is None
                assert attempt.body == (body if kind in {"length", "chunked", "trailers"} else b"")
            if all(kind in {"none", "length"} for kind, _ in cases):
                assert len(attempts) == len(cases)

    run(main)
