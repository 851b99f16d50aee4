"""What an upstream should never do, and what must not come of it."""

from __future__ import annotations

import asyncio
import gzip
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from pathlib import Path

import pytest

from steer_proxy.http.response import MAX_INTERIM
from tests.support.handmade import (
    END,
    STREAM_HEAD,
    answer,
    before,
    chat,
    chunk,
    delta,
    handmade,
    length_of,
    read_head,
    read_request,
    reset,
)
from tests.support.raw import ask, dialled, post


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


async def test_a_half_sent_request_poisons_no_connection(tmp_path: Path) -> None:
    """Answered in full before it read the request: what follows is no part of that request."""
    bodies: list[bytes] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        head = await read_head(reader)
        if length_of(head) < 1_000_000:
            await reader.readexactly(length_of(head))
            writer.write(answer(b"{}"))
            return
        writer.write(STREAM_HEAD + chunk(delta("hi")) + END)
        await asyncio.sleep(1)
        got = bytearray()
        while piece := await reader.read(65536):
            got += piece
        bodies.append(bytes(got))

    async with (
        handmade(talk) as port,
        before(tmp_path, port) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat(stream=True, padding="x" * 6_000_000))
        assert (await caller.reply()).status == 200
        async with dialled(steer.sidecar.port) as other:
            other.send(chat("X-Other: secret"))
            assert (await other.reply()).status == 200
        await asyncio.sleep(5)
    assert all(b"X-Other" not in body and b"POST" not in body for body in bodies)


async def test_an_answer_may_begin_before_the_request_ends(tmp_path: Path) -> None:
    """A tool that answers while it reads gets the whole request all the same."""
    seen: list[tuple[int, int]] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        length = length_of(await read_head(reader))
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: audio/x\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(kind + chunk(b"begin"))
        await asyncio.sleep(1)
        got = 0
        while got < length and (piece := await reader.read(65536)):
            got += len(piece)
        seen.append((got, length))
        writer.write(chunk(b"end") + b"0\r\n\r\n")

    async with (
        handmade(talk) as port,
        before(tmp_path, port, dialect="http") as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(post(b"y" * 4_000_000, "/r/x"))
        assert (await caller.reply()).body == b"beginend"
    assert seen == [(4_000_000, 4_000_000)]


async def test_what_nobody_asked_for_is_nobodys_answer(tmp_path: Path) -> None:
    """A stray answer on an idle connection: that connection is not used again."""
    count = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal count
        while True:
            await read_request(reader)
            count += 1
            writer.write(answer(b'{"n":%d}' % count))
            await asyncio.sleep(0.5)
            writer.write(answer(b'"stray"'))

    async with handmade(talk) as port, before(tmp_path, port) as steer:
        bodies = []
        for _ in range(3):
            async with dialled(steer.sidecar.port) as caller:
                caller.send(chat())
                bodies.append((await caller.reply()).body)
            await asyncio.sleep(2)
    assert bodies == [b'{"n":1}', b'{"n":2}', b'{"n":3}']


async def test_a_reset_is_no_end(tmp_path: Path) -> None:
    """An answer that lasts until its connection ends is cut when that is reset."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"half":')
        await asyncio.sleep(1)
        reset(writer)

    async with (
        handmade(talk) as port,
        before(tmp_path, port) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat())
        reply = await caller.reply()
    assert reply.status == 502
    assert b"steer_upstream_broken" in reply.body


async def test_nothing_is_written_into_half_an_event(tmp_path: Path) -> None:
    """One too large to hold, torn: what would follow it would be taken for its rest."""
    torn = delta("Z" * 2_500_000)[:1_500_000]

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(STREAM_HEAD + chunk(delta("hi")) + chunk(torn))
        await asyncio.sleep(1)
        reset(writer)

    for fields in ((), ("Idempotency-Key: order-1",)):
        async with (
            handmade(talk) as port,
            before(tmp_path, port) as steer,
            dialled(steer.sidecar.port) as caller,
        ):
            caller.send(chat(*fields, stream=True))
            await caller.head()
            data, _ = await caller.rest()
        assert data.endswith(b"Z\r\n")
        assert b"steer_stream_broken" not in data


GZIP_HEAD = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")


@pytest.mark.parametrize("fields", [(), ("Idempotency-Key: order-1",)], ids=["", "keyed"])
@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(
            STREAM_HEAD + chunk(delta("hi")) + chunk(delta("Z" * 2_500_000)[:1_500_000]), id="torn"
        ),
        # Stored, not packed: what is written then ends as an event does.
        pytest.param(GZIP_HEAD + chunk(gzip.compress(delta("hi"), 0)[:-8]), id="coded"),
    ],
)
async def test_a_drain_writes_nothing_into_half_an_event(
    tmp_path: Path, begun: bytes, fields: tuple[str, ...]
) -> None:
    """Nor into what is compressed: it would be taken for the rest of it."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(begun)
        await asyncio.sleep(1000)

    async with (
        handmade(talk) as port,
        before(tmp_path, port) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat(*fields, stream=True))
        await caller.head()
        draining = asyncio.create_task(steer.sidecar.drain(5.0))
        data, _ = await caller.rest()
        assert await draining is False
    assert data
    assert b"steer_draining" not in data


async def test_a_torn_event_is_not_resumed(tmp_path: Path) -> None:
    """What somebody else says would be taken for the rest of half an event."""
    count = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal count
        count += 1
        await read_request(reader)
        writer.write(STREAM_HEAD + chunk(delta("hi")))
        if count == 1:
            writer.write(chunk(delta("Z" * 2_500_000)[:1_500_000]))
            await asyncio.sleep(1)
            reset(writer)

    async with (
        handmade(talk) as port,
        before(tmp_path, port, port, route={"on_break": "resume"}) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat(stream=True))
        await caller.head()
        data, _ = await caller.rest()
    assert data.endswith(b"Z\r\n")
    assert count == 1


async def test_broken_framing_is_noticed_at_once(tmp_path: Path) -> None:
    """Not only when the idle limit has passed."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(STREAM_HEAD + chunk(delta("hi")))
        await asyncio.sleep(1)
        writer.write(b"nonsense\r\n")
        await asyncio.sleep(1000)

    async with (
        handmade(talk) as port,
        before(tmp_path, port) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        began = now()
        caller.send(chat(stream=True))
        data, _ = await caller.rest()
        assert now() - began < 5
    assert b"steer_stream_broken" in data


@pytest.mark.parametrize(
    "head",
    [
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ],
)
async def test_a_coding_in_a_second_line_is_seen(tmp_path: Path, head: bytes) -> None:
    """It would reach the caller without its name, as if it were the answer."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + head + b"\r\n")
        writer.write(b"7\r\n" + b'{"a":1}' + b"\r\n0\r\n\r\n")

    async with handmade(talk) as port, before(tmp_path, port) as steer:
        reply = await ask(steer.sidecar.port, chat(), "POST")
    assert reply.status == 502
    assert reply.json["error"]["code"] == "steer_upstream_broken"


@pytest.mark.parametrize(("interim", "status"), [(MAX_INTERIM, 200), (MAX_INTERIM + 1, 502)])
async def test_interim_answers_come_to_an_end(tmp_path: Path, interim: int, status: int) -> None:
    """A flood of them would keep the process from all else until the answer is overdue."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * interim)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with handmade(talk) as port, before(tmp_path, port) as steer:
        reply = await ask(steer.sidecar.port, chat(), "POST")
    assert reply.status == status


async def test_an_error_beside_the_first_content(tmp_path: Path) -> None:
    """It is relayed at once, though the connection stays open."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        error = b'data: {"error":{"message":"boom","type":"server_error"}}\n\n'
        writer.write(STREAM_HEAD + chunk(delta("hi") + error))
        await asyncio.sleep(1000)

    async with (
        handmade(talk) as port,
        before(tmp_path, port) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        began = now()
        caller.send(chat(stream=True))
        reply = await caller.reply()
        assert now() - began < 5
    assert b"boom" in reply.body


async def test_a_callers_impatience_opens_no_circuit(tmp_path: Path) -> None:
    """Its SDK's read time-out and its own deadline are no evidence against the upstream."""

    async def talk(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(STREAM_HEAD + chunk(delta("hi")))
            await asyncio.sleep(3)
            writer.write(END)

    async with handmade(talk) as port, before(tmp_path, port) as steer:
        for field in ("x-stainless-read-timeout: 2", "X-Steer-Timeout: 0.000001"):
            for _ in range(6):
                async with dialled(steer.sidecar.port) as caller:
                    caller.send(chat(field, stream=True))
                    await caller.rest()
        async with dialled(steer.sidecar.port) as caller:
            caller.send(chat(stream=True))
            assert (await caller.reply()).status == 200


async def test_a_slow_caller_does_not_make_an_upstream_slow(tmp_path: Path) -> None:
    """`slow_call` counts the time to the commit, not how long the answer then lasts."""

    async def talk(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(STREAM_HEAD + chunk(delta("hi")))
            await asyncio.sleep(20)
            writer.write(END)

    breaker = {"breaker": {"slow_call": 5, "failure_threshold": 2}}
    async with handmade(talk) as port, before(tmp_path, port, upstream=breaker) as steer:
        for _ in range(4):
            async with dialled(steer.sidecar.port) as caller:
                caller.send(chat(stream=True))
                assert (await caller.reply()).status == 200


async def test_an_older_answer_does_not_hide_doubt(tmp_path: Path) -> None:
    """503, then a reset of what must not run twice: the caller learns that it may have run."""
    count = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal count
        await read_request(reader)
        count += 1
        if count == 1:
            writer.write(answer(b"{}", "503 Service Unavailable", "Connection: close"))

    async with (
        handmade(talk) as port,
        before(tmp_path, port, dialect="http") as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(post(b"{}", "/r/x"))
        reply = await caller.reply()
    assert count == 2
    assert reply.status == 504
    assert b"steer_outcome_uncertain" in reply.body


async def test_what_may_have_run_is_not_run_elsewhere(tmp_path: Path) -> None:
    """Bound to the upstream that knows the key: when that refuses, nobody else is asked."""
    others: list[bytes] = []

    async def silent(reader: Reader, writer: Writer) -> None:
        await read_request(reader)

    async def willing(reader: Reader, writer: Writer) -> None:
        others.append((await read_request(reader))[0])
        writer.write(answer(b"{}"))

    upstream = {"breaker": {"failure_threshold": 1}, "idempotency_key": "forward"}
    route = {"retry": {"ambiguous": "fail"}}
    async with (
        handmade(silent) as one,
        handmade(willing) as two,
        before(tmp_path, one, two, upstream=upstream, route=route) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat("Idempotency-Key: abc"))
        reply = await caller.reply()
    assert others == []
    assert reply.status == 504


async def test_no_means_no_also_later(tmp_path: Path) -> None:
    """`x-should-retry: false` with a `retry-after`: not asked again when the others failed."""
    asked = 0

    async def firm(reader: Reader, writer: Writer) -> None:
        nonlocal asked
        while True:
            await read_request(reader)
            asked += 1
            no = ("x-should-retry: false", "retry-after: 10")
            writer.write(answer(b"{}", "429 Too Many Requests", *no))

    async def broken(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(answer(b"{}", "503 Service Unavailable"))

    async with (
        handmade(firm) as one,
        handmade(broken) as two,
        before(tmp_path, one, two) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat())
        assert (await caller.reply()).status == 429
    assert asked == 1


async def test_a_large_error_answer_outlives_the_deadline(tmp_path: Path) -> None:
    """Kept as the best answer while others are asked, it is relayed whole."""
    body = b'{"error":"' + b"x" * 3_000_000 + b'"}'

    async def large(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer(body, "500 Internal Server Error"))
        await asyncio.sleep(1000)

    async def silent(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(1000)

    route = {"timeouts": {"total": 5}, "retry": {"max_attempts": 1}}
    async with (
        handmade(large) as one,
        handmade(silent) as two,
        before(tmp_path, one, two, route=route) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat())
        reply = await caller.reply()
    assert (reply.status, reply.body) == (500, body)


async def test_a_resume_has_what_is_left_of_the_call(tmp_path: Path) -> None:
    """`max_total_attempts` spans both streams."""
    asked: list[str] = []

    async def breaks(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        asked.append("a")
        writer.write(STREAM_HEAD + chunk(delta("hi")))
        await asyncio.sleep(0.1)

    async def answers(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        asked.append("b")
        writer.write(STREAM_HEAD + chunk(delta("hi")) + END)

    route = {"on_break": "resume", "retry": {"max_total_attempts": 1}}
    async with (
        handmade(breaks) as one,
        handmade(answers) as two,
        before(tmp_path, one, two, route=route) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(chat(stream=True))
        await caller.rest()
    assert asked == ["a"]


async def test_a_head_without_a_body_is_no_cut_stream(tmp_path: Path) -> None:
    """HEAD of an event stream: its answer is whole as it is."""
    asked = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal asked
        await read_head(reader)
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")

    async with (
        handmade(talk) as port,
        before(tmp_path, port) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        caller.send(b"HEAD /r/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        head = await caller.head()
    assert (head.status, asked) == (200, 1)


async def test_an_upstream_that_takes_no_body_is_left(tmp_path: Path) -> None:
    """Writing the request has a limit as every phase has: the fallback answers."""

    async def deaf(reader: Reader, writer: Writer) -> None:
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        await asyncio.sleep(10_000)

    async def willing(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer(b"{}"))

    upstream = {"timeouts": {"answer": 30, "idle": 7}}
    async with (
        handmade(deaf) as one,
        handmade(willing) as two,
        before(tmp_path, one, two, upstream=upstream) as steer,
        dialled(steer.sidecar.port) as caller,
    ):
        began = now()
        caller.send(chat(padding="x" * 20_000_000))
        assert (await caller.reply()).status == 200
        assert 7 <= now() - began < 30
