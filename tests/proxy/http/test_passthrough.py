"""What a proxy may not touch: methods, headers, framing and bodies, both ways."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.provider import (
    Answer,
    Attempt,
    Close,
    Data,
    Finish,
    Head,
    Repeat,
    Reset,
    Signal,
    bytes_answer,
    empty_answer,
    faults,
)
from tests.support.raw import Reply, ask, chat, dialled, get, post, request, stage

#: What Steer adds to every answer of a provider.
OWN = {"X-Steer-Request-ID", "X-Steer-Trace-ID", "X-Steer-Upstream", "X-Steer-Attempts"}


def theirs(reply: Reply) -> list[tuple[str, str]]:
    """The fields of an answer that are not Steer's."""
    return [(name, value) for name, value in reply.fields if name not in OWN]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("body", [None, b"", b"some body"])
async def test_methods(method: str, body: bytes | None, tmp_path: Path) -> None:
    """Each goes through with its body, or without one."""
    async with stage(tmp_path) as world:
        world.provider.always(bytes_answer(200, b"answer", content_type="text/x"))
        reply = await ask(world.port, request(method, "/tool/a?b=c", body=body))
        assert (reply.status, reply.body) == (200, b"answer")
        (attempt,) = world.provider.attempts
        assert (attempt.method, attempt.target) == (method, "/a?b=c")
        assert attempt.body == (body or b"")
        lengths = attempt.header_values("Content-Length")
        if body:
            assert lengths == [str(len(body))]
        else:
            # RFC 9110 §8.6: no length where a method expects no content.
            assert lengths == (["0"] if method in {"POST", "PUT", "PATCH"} else [])


@pytest.mark.parametrize("status", [200, 404])
async def test_head(status: int, tmp_path: Path) -> None:
    """The length of what a GET would bring, and not a byte of it."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(bytes_answer(status, b"x" * 1234))
        for _ in range(2):  # framing that was wrong would show in the second answer
            caller.send(request("HEAD", "/tool/x"))
            reply = await caller.reply("HEAD")
            assert (reply.status, reply.value("Content-Length")) == (status, "1234")
        caller.send(get())
        assert (await caller.reply()).body == b"x" * 1234


async def test_head_of_something_of_unknown_length(tmp_path: Path) -> None:
    """No framing is made up for a body that does not come."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        head = Head(200, (("Content-Type", "text/x"),), "chunked")
        world.provider.always(Answer((head, Finish())))
        for _ in range(2):
            caller.send(request("HEAD", "/tool/x"))
            reply = await caller.reply("HEAD")
            assert reply.status == 200
            assert reply.value("Content-Length") is None
            assert reply.value("Transfer-Encoding") is None


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (empty_answer(204), None),
        (Answer((Head(204, (("Content-Length", "0"),), "none"),)), None),
        (empty_answer(304, (("ETag", '"x"'),)), None),
        (Answer((Head(304, (("Content-Length", "99"), ("ETag", '"x"')), "none"),)), "99"),
        (empty_answer(205, (("Content-Length", "0"),)), "0"),
        (bytes_answer(200, b""), "0"),
    ],
)
async def test_answers_without_a_body(answer: Answer, length: str | None, tmp_path: Path) -> None:
    """204 and 304 have none, whatever their fields say (RFC 9110 §8.6, §15.4.5)."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(answer)
        for _ in range(2):
            caller.send(get())
            reply = await caller.reply("HEAD")
            assert (reply.status, reply.value("Content-Length")) == (answer.head.status, length)
            assert reply.value("Transfer-Encoding") is None
            assert reply.closes is False


async def test_nothing_is_added_to_an_answer(tmp_path: Path) -> None:
    """No `Server`, no `Date`, no `Content-Type`: only what says what Steer did."""
    async with stage(tmp_path) as world:
        world.provider.always(Answer((Head(200, (), "length", 2), Data(b"hi"))))
        reply = await ask(world.port, get())
        assert theirs(reply) == [("Content-Length", "2")]
        assert {name for name, _ in reply.fields} - {"Content-Length"} == OWN


async def test_headers_of_an_answer(tmp_path: Path) -> None:
    """Order, spelling and repetition are the provider's; what belongs to its connection stays."""
    sent = (
        ("SERVER", "wall"),
        ("x-MiXeD", "1"),
        ("Set-Cookie", "a=b"),
        ("X-Repeated", "one"),
        ("set-cookie", "c=d; Path=/, x"),
        ("X-Repeated", "two"),
        ("Connection", "X-Private, close-ish"),
        ("X-Private", "for Steer only"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
        ("X-Steer-Upstream", "a liar"),
        ("Empty", ""),
        ("x-request-id", "req_1"),
        ("CONTENT-type", "text/x"),
    )
    async with stage(tmp_path) as world:
        world.provider.always(Answer((Head(200, sent, "length", 2), Data(b"hi"))))
        reply = await ask(world.port, get())
        gone = {"connection", "x-private", "keep-alive", "proxy-authenticate", "x-steer-upstream"}
        expected = [pair for pair in sent if pair[0].lower() not in gone]
        assert theirs(reply) == [*expected, ("Content-Length", "2")]
        assert reply.values("X-Steer-Upstream") == ["tool"]


async def test_headers_of_a_request(tmp_path: Path) -> None:
    """The same the other way; `Host`, `Via`, trace and request id are ours to write."""
    sent = [
        "ACCEPT: */*",
        "x-MiXeD: 1",
        "X-Repeated: one",
        "cookie: a=b",
        "X-Repeated: two",
        "Connection: keep-alive, X-Private",
        "X-Private: for Steer only",
        "Keep-Alive: timeout=5",
        "Proxy-Authorization: Basic x",
        "TE: trailers",
        "Upgrade: h2c",
        "X-Steer-Metadata: {}",
        "X-Steer-Anything: x",
        "Empty:",
        "content-TYPE: text/x",
        "user-agent: test",
    ]
    async with stage(tmp_path) as world:
        assert (await ask(world.port, post(b"hi", "/tool/x", *sent))).status == 200
        (attempt,) = world.provider.attempts
        ours = {"Host", "X-Request-ID", "traceparent", "Via", "Content-Length"}
        assert [pair for pair in attempt.headers if pair[0] not in ours] == [
            ("ACCEPT", "*/*"),
            ("x-MiXeD", "1"),
            ("X-Repeated", "one"),
            ("cookie", "a=b"),
            ("X-Repeated", "two"),
            ("Empty", ""),
            ("content-TYPE", "text/x"),
            ("user-agent", "test"),
        ]
        assert attempt.header("Host") == f"127.0.0.1:{world.provider.port}"


async def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    """Field values are bytes (RFC 9110 §5.5): they pass as they are, both ways."""
    async with stage(tmp_path) as world:
        world.provider.always(Answer((Head(200, (("X-Name", "caf\xe9"),), "length", 0),)))
        reply = await ask(world.port, get("/tool/x", "X-Name: caf\xe9"))
        assert world.provider.attempts[0].header("X-Name") == "caf\xe9"
        assert reply.value("X-Name") == "caf\udce9"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0", "HTTP/1.0 keep-alive"])
async def test_bodies_of_answers(framing: str, size: int, version: str, tmp_path: Path) -> None:
    """Whole, whatever their framing on either side; HTTP/1.0 gets no chunks."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    head = Head(200, (("Content-Type", "application/x"),), framing, size)  # type: ignore[arg-type]
    steps = (head, Data(body), Finish())
    number, _, keep = version.partition(" ")
    fields = ("Connection: keep-alive",) if keep else ()
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(Answer(steps))
        caller.send(get("/tool/x", *fields, version=number))
        reply = await caller.reply()
        assert (reply.first_line, reply.body) == ("HTTP/1.1 200 OK", body)
        coding, length = reply.value("Transfer-Encoding"), reply.value("Content-Length")
        if number == "HTTP/1.0":
            assert coding is None
            kept = keep != "" and length is not None
            assert reply.value("Connection") == ("keep-alive" if kept else "close")
        else:
            kept = True
            assert (coding, length) in {("chunked", None), (None, str(size))}
            assert reply.value("Connection") is None
        if framing == "length":
            assert length == str(size)
        if kept:
            caller.send(get("/tool/x", *fields, version=number))
            assert (await caller.reply()).body == body
        else:
            assert await caller.ended() == "close"


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("end", [Close(), Reset()])
async def test_an_answer_that_is_cut(version: str, end: Close | Reset, tmp_path: Path) -> None:
    """Never ends as if it were complete: for HTTP/1.0 that takes a reset."""
    head = Head(200, (("Content-Type", "application/x"),), "chunked")
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(Answer((head, Data(b"x" * 2_000_000), end)))
        caller.send(get("/tool/x", version=version))
        assert (await caller.head()).status == 200
        data, how = await caller.rest()
        if version == "HTTP/1.0":
            assert how == "reset"
        else:
            assert not data.endswith(b"0\r\n\r\n")


async def test_a_connection_that_asks_to_be_closed(tmp_path: Path) -> None:
    """Is closed after the answer, and the answer says so."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        caller.send(get("/tool/x", "Connection: close"))
        reply = await caller.reply()
        assert reply.closes
        assert await caller.ended() == "close"
        (attempt,) = world.provider.attempts
        assert attempt.header("Connection") is None


# --- a caller that reads slowly

MIB = 2**20


async def test_a_caller_that_stops_reading(tmp_path: Path) -> None:
    """A hundred MiB wait at the provider, not in our memory, for as long as it takes."""
    async with stage(tmp_path) as world:
        world.provider.always(faults.huge_answer(100 * MIB))
        async with dialled(world.port, window=65536) as caller:
            caller.send(get())
            (attempt,) = await world.provider.wait_for_attempts(1)
            head = await caller.head()
            length = int(head.value("Content-Length") or 0)
            assert length >= 100 * MIB
            # Ten times the limit of idle upstreams: the silence is the caller's.
            await asyncio.sleep(1200)
            # What the kernel's buffers on both ways hold, and some.
            assert attempt.bytes_written < 32 * MIB
            (connection,) = world.steer.sidecar._calls.connections
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() < MIB
            while length > 0:
                length -= len(await caller.reader.readexactly(min(length, MIB)))
            assert attempt.closed_by_peer_at is None


async def test_a_stream_whose_caller_stops_reading(tmp_path: Path) -> None:
    """The idle clock stands still while the caller holds the stream, and the stream survives."""
    ended = asyncio.Event()

    def long(attempt: Attempt, healthy: Answer) -> Answer:
        tokens = [event for event in healthy.events if event.role == "token"]
        steps = list(healthy.steps)
        at = steps.index(tokens[-1])
        return Answer((*steps[:at], Repeat(tokens[0].data * 100, 2000), *steps[at:], Signal(ended)))

    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(long)
        caller.send(chat(stream=True))
        assert (await caller.head()).status == 200
        await asyncio.sleep(1000)
        assert not ended.is_set()
        body = b"".join([chunk async for chunk in caller.chunks()])
        assert body.endswith(b"data: [DONE]\n\n")
        events = [line for line in body.split(b"\n\n") if line.startswith(b"data: {")]
        assert len(events) > 200_000
        json.loads(events[-1][6:])


async def test_a_caller_that_leaves_without_reading(tmp_path: Path) -> None:
    """The provider's connection is closed although nothing could be written for a while."""
    async with stage(tmp_path) as world, dialled(world.port) as caller:
        world.provider.always(faults.huge_answer(100 * MIB))
        caller.send(get())
        (attempt,) = await world.provider.wait_for_attempts(1)
        await caller.head()
        await asyncio.sleep(60)
        left = asyncio.get_running_loop().time()
        caller.writer.transport.abort()
        await attempt.finished.wait()
        assert attempt.closed_by_peer_at is not None
        assert attempt.closed_by_peer_at - left < 1.0
