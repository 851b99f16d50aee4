"""Every fault, seen by a raw client."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from tests.provider import (
    Answer,
    Await,
    Fault,
    Finish,
    Head,
    Provider,
    Send,
    Signal,
    faults,
)
from tests.provider_tests.raw import ASKED, CHAT, Ending, connected, request, streamed

HEALTHY_CHUNKS = 14  # role, eleven words, finish, [DONE]


@pytest.mark.parametrize(
    ("fault", "ending"),
    [
        (faults.reset_before_answer(), "reset"),
        (faults.close_before_answer(), "close"),
        (faults.reset_before_reading_body(), "reset"),
    ],
)
async def test_no_answer_at_all(fault: Fault, ending: Ending) -> None:
    """The connection ends without a byte, in the manner named; the attempt is on record."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(fault)
        client.send(request())
        assert await client.rest() == (b"", ending)
        attempt = provider.attempts[0]
        assert (attempt.status, attempt.bytes_written) == (None, 0)
        assert attempt.closed_by_peer_at is None


async def test_reset_before_reading_a_large_body() -> None:
    """The head alone provokes the reset."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.reset_before_reading_body())
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        assert await client.rest() == (b"", "reset")
        assert not provider.attempts[0].received.is_set()


async def test_silence() -> None:
    """Nothing before the pause is over, or ever."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.silence(0.03), faults.silence())
        client.send(request())
        assert await client.silent()
        assert (await client.plain())[0] == 200
        client.send(request())
        assert await client.silent()


async def test_headers_then_silence() -> None:
    """The head comes, the body does not."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.headers_then_silence())
        client.send(streamed())
        assert (await client.head())[0] == 200
        assert await client.silent()


async def test_slow_first_token() -> None:
    """The prelude comes at once, the first token after the pause."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.slow_first_token(0.03))
        client.send(streamed())
        await client.head()
        assert b'"role":"assistant"' in await client.chunk()
        assert await client.silent()


async def test_pings_before_the_first_token() -> None:
    """Signs of life, but no content."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.pings_before_first_token(3, 0.001))
        client.send(streamed())
        await client.head()
        chunks = await client.chunks()
        assert chunks[1:4] == [b": ping\n\n"] * 3
        assert len(chunks) == HEALTHY_CHUNKS + 3


async def test_stall_after_events_and_bytes() -> None:
    """So many events, or bytes of an event, then nothing; with seconds, the rest follows."""
    async with Provider() as provider:
        provider.then(faults.stall_after(events=3), faults.stall_after(bytes=10))
        provider.then(faults.stall_after(events=2, seconds=0.001))
        async with connected(provider) as client:
            client.send(streamed())
            await client.head()
            assert len([await client.chunk() for _ in range(3)]) == 3
            assert await client.silent()
        async with connected(provider) as client:
            client.send(request())
            await client.head()
            assert len(await client.reader.readexactly(10)) == 10
            assert await client.silent()
        async with connected(provider) as client:
            client.send(streamed())
            await client.head()
            assert len(await client.chunks()) == HEALTHY_CHUNKS


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_cut_after_events(how: Any) -> None:
    """So many whole chunks, then the end of the connection without the last chunk."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.cut_after(events=4, how=how))
        client.send(streamed())
        await client.head()
        for _ in range(4):
            await client.chunk()
        assert await client.rest() == (b"", how)


async def test_a_clean_end_without_the_terminal_marker() -> None:
    """Properly ended chunks, and yet not the whole stream."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.cut_after(events=4, how="clean_end"))
        provider.then(faults.without_terminal_marker())
        client.send(streamed())
        await client.head()
        assert len(await client.chunks()) == 4
        client.send(streamed())
        await client.head()
        assert len(await client.chunks()) == HEALTHY_CHUNKS - 1


async def test_cut_after_bytes() -> None:
    """A plain body falls short of its length, or its length fits; a chunk stays unfinished."""
    async with Provider() as provider:
        provider.then(faults.cut_after(bytes=20), faults.cut_after(bytes=20, how="clean_end"))
        provider.then(faults.cut_after(bytes=20, how="close"))
        async with connected(provider) as client:
            client.send(request())
            _, headers = await client.head()
            assert int(dict(headers)["content-length"]) > 20
            data, ending = await client.rest()
            assert (len(data), ending) == (20, "reset")
        async with connected(provider) as client:
            client.send(request())
            assert len((await client.plain())[1]) == 20
            client.send(streamed())
            await client.head()
            size = int(await client.reader.readline(), 16)
            data, ending = await client.rest()
            assert (size > 20, len(data), ending) == (True, 20, "close")


async def test_a_cut_in_a_huge_answer() -> None:
    """Counted in bytes, wherever that is."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.huge_answer() | faults.cut_after(bytes=1_500_000, how="close"))
        client.send(request())
        await client.head()
        assert len((await client.rest())[0]) == 1_500_000


async def test_without_done_but_open() -> None:
    """The whole stream but its marker, on a connection that just stays."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.without_done_but_open())
        client.send(streamed())
        await client.head()
        chunks = [await client.chunk() for _ in range(HEALTHY_CHUNKS - 1)]
        assert b'"finish_reason":"stop"' in chunks[-1]
        assert await client.silent()


async def test_malformed_event_and_malformed_json() -> None:
    """One broken event among good ones; a plain answer of the right length that is no JSON."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.malformed_event(at=2), faults.malformed_json())
        client.send(streamed())
        await client.head()
        chunks = await client.chunks()
        assert chunks[2] == b'data: {"broken": \n\n'
        assert len(chunks) == HEALTHY_CHUNKS
        client.send(request())
        _, body = await client.plain()
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(body)


async def test_wrong_length() -> None:
    """More promised than sent ends short; less promised leaves bytes in front of the next."""
    async with Provider() as provider:
        provider.then(faults.wrong_length(+5), faults.wrong_length(-3, then="open"))
        async with connected(provider) as client:
            client.send(request())
            _, headers = await client.head()
            data, ending = await client.rest()
            assert (len(data) + 5, ending) == (int(dict(headers)["content-length"]), "close")
        async with connected(provider) as client:
            client.send(request())
            await client.plain()
            client.send(request())
            assert (await client.reader.readexactly(12))[3:] == b"HTTP/1.1 "


async def test_bad_chunk_size_and_garbage() -> None:
    """Bytes that are no chunk, and bytes that are no HTTP."""
    async with Provider() as provider:
        provider.then(faults.bad_chunk_size(at=1), faults.garbage())
        async with connected(provider) as client:
            client.send(streamed())
            await client.head()
            await client.chunk()
            assert await client.rest() == (b"zz\r\n", "close")
        async with connected(provider) as client:
            client.send(request())
            data, _ = await client.rest()
            assert not data.startswith(b"HTTP/")


async def test_one_byte_writes_and_slow_headers_change_no_byte() -> None:
    """However it is cut, the answer is the healthy one."""
    async with Provider() as provider, connected(provider) as client:
        client.send(request())
        healthy = await client.plain()
        provider.then(faults.one_byte_writes(), faults.slow_header(0.0, size=50))
        for _ in range(2):
            client.send(request())
            assert await client.plain() == healthy
        provider.then(faults.slow_header(0.03))
        client.send(request())
        assert await client.reader.read(10) == b"H"


async def test_informational_answers_come_first() -> None:
    """103, then the answer."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.informational_first(103) | faults.status(204))
        provider.then(faults.status(200, {}) | faults.informational_first(103))
        client.send(request())
        assert (await client.head())[0] == 204
        client.send(request())
        status, headers = await client.head()
        assert (status, headers[0][0]) == (103, "link")
        assert (await client.plain())[0] == 200


async def test_an_early_answer() -> None:
    """413 before the body is there; a polite provider takes the body and waits for the client."""
    async with Provider() as provider:
        provider.then(
            faults.early_answer_then_close(), faults.early_answer_then_close(polite=False)
        )
        head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"
        async with connected(provider) as client:
            client.send(head)
            status, headers = await client.head()
            assert (status, dict(headers)["connection"]) == (413, "close")
            client.send(b"x" * 100_000)
            await provider.attempts[0].received.wait()
            assert await client.reader.read(9) == b"too large"
            assert await client.silent()
        async with connected(provider) as client:
            client.send(head)
            data, _ = await client.rest()
            assert data.startswith(b"HTTP/1.1 413")
            assert not provider.attempts[1].received.is_set()


async def test_connections_that_end_after_a_good_answer() -> None:
    """Announced, unannounced, or as the only end of the body."""
    async with Provider() as provider:
        provider.then(faults.then_close(), faults.then_close(announced=True), faults.until_close())
        for announced in (False, True):
            async with connected(provider) as client:
                client.send(request())
                _, headers = await client.head()
                assert ("connection" in dict(headers)) == announced
                assert (await client.rest())[1] == "close"
        async with connected(provider) as client:
            client.send(request())
            _, headers = await client.head()
            assert not {"content-length", "transfer-encoding"} & set(dict(headers))
            data, _ = await client.rest()
            assert json.loads(data)["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("path", "more", "at_zero"),
    [
        (CHAT, {}, b'data: {"error":{"message":"The engine'),
        ("/v1/responses", {"input": "x"}, b'event: error\ndata: {"type":"error","code":'),
        ("/v1/messages", {}, b'event: error\ndata: {"type":"error","error":{"type":"overloaded_'),
        (
            "/v1beta/models/m:streamGenerateContent?alt=sse",
            {},
            b'data: {"error":{"code":503,"message"',
        ),
        ("/v1beta/models/m:streamGenerateContent", {}, b'[{"error":{"code":503'),
        ("/tool/mcp", {"id": 1, "method": "tools/call"}, b'event: error\ndata: {"error":"over'),
    ],
)
async def test_in_band_errors(path: str, more: dict[str, Any], at_zero: bytes) -> None:
    """In every dialect: first event or later one, in the dialect's own shape, cleanly ended."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.in_band_error(), faults.in_band_error(at=2))
        client.send(streamed(path, **more))
        assert (await client.head())[0] == 200
        (only,) = await client.chunks()
        assert only.startswith(at_zero)
        client.send(streamed(path, **more))
        await client.head()
        first, _, last = await client.chunks()
        assert b"overloaded" not in first
        assert b"overloaded" in last


async def test_a_failed_response_and_a_marker_after_an_error() -> None:
    """`response.failed` is its own event; `[DONE]` may follow an error."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.in_band_error(2, "failed"), faults.in_band_error(1, terminal=True))
        client.send(streamed("/v1/responses", input="x"))
        await client.head()
        assert (await client.chunks())[-1].startswith(b"event: response.failed\n")
        client.send(streamed())
        await client.head()
        assert (await client.chunks())[-1] == b"data: [DONE]\n\n"


async def test_compressed_only_when_accepted() -> None:
    """Gzip and deflate, whole and event by event, and not for those who refuse it."""
    async with Provider() as provider, connected(provider) as client:
        client.send(request())
        _, healthy = await client.plain()
        provider.always(faults.compressed())
        client.send(request(headers=("Accept-Encoding: br;q=1, GZIP;q=0.5",)))
        assert gzip.decompress((await client.plain())[1]) == healthy
        client.send(request(headers=("Accept-Encoding: gzip;q=0, *",)))
        assert (await client.plain())[1] == healthy
        provider.always(faults.compressed("deflate", unasked=True))
        client.send(streamed())
        _, headers = await client.head()
        assert dict(headers)["content-encoding"] == "deflate"
        inflate = zlib.decompressobj()
        assert b'"role"' in inflate.decompress(await client.chunk())
        rest = b"".join(await client.chunks())
        assert inflate.decompress(rest).endswith(b"data: [DONE]\n\n")
        assert inflate.eof


async def test_test_controlled_points() -> None:
    """A signal tells the test where the answer is, an await holds it there."""
    async with Provider() as provider, connected(provider) as client:
        here, go_on = asyncio.Event(), asyncio.Event()
        provider.then(faults.at_event(2, Signal(here), Await(go_on)))
        client.send(streamed())
        await client.head()
        await here.wait()
        await client.chunk()
        await client.chunk()
        assert await client.silent()
        go_on.set()
        assert await client.chunk()


async def test_a_point_within_a_chunk() -> None:
    """Steps at a byte: what came before it is there, and the chunk is whole in the end."""
    async with Provider() as provider, connected(provider) as client:
        client.send(streamed())
        await client.head()
        healthy = await client.chunks()
        here, go_on = asyncio.Event(), asyncio.Event()
        within = len(healthy[0]) + 5
        provider.then(faults.at_byte(within, Signal(here), Await(go_on)))
        client.send(streamed())
        await client.head()
        assert await client.chunk() == healthy[0]
        await here.wait()
        promised = b"%x\r\n" % len(healthy[1])
        assert await client.reader.readexactly(len(promised) + 5) == promised + healthy[1][:5]
        assert await client.silent()
        go_on.set()
        assert await client.reader.readexactly(len(healthy[1]) - 3) == healthy[1][5:] + b"\r\n"
        assert await client.chunks() == healthy[2:]


async def test_bare_steps_are_an_answer() -> None:
    """Whatever no fault can do, steps can."""
    async with Provider() as provider, connected(provider) as client:
        odd = Answer((Head(299, (("X-Odd", "1"),), "chunked"), Send(b"1\r\na\r\n"), Finish()))
        provider.then(odd, lambda attempt, healthy: odd if attempt.json == ASKED else healthy)
        for _ in range(2):
            client.send(request())
            assert (await client.head())[0] == 299
            assert await client.chunks() == [b"a"]
