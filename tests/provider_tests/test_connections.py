"""What holds on every connection: logging, keep-alive, pipelining, back-pressure, clean ends."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.provider import Provider, Signal, faults
from tests.provider_tests.raw import ASKED, CHAT, connected, request, streamed


async def test_an_attempt_records_the_whole_request() -> None:
    """Raw target, header pairs in order and case, body, connection, times."""
    async with Provider() as provider, connected(provider) as client:
        before = asyncio.get_running_loop().time()
        client.send(request(CHAT + "?a=1&a=2", headers=("X-Odd: 1", "x-odd: \xe9")))
        await client.plain()
        attempt = provider.attempts[0]
        assert (attempt.method, attempt.path, attempt.query) == ("POST", CHAT, "a=1&a=2")
        assert attempt.query_parameters == {"a": ["1", "2"]}
        assert ("X-Odd", "1") in attempt.headers
        assert attempt.header("X-ODD") == "1"
        assert attempt.header_values("x-odd") == ["1", "\xc3\xa9"]
        assert attempt.json == ASKED
        assert before <= attempt.at <= asyncio.get_running_loop().time()
        assert attempt.finished.is_set()
        assert (attempt.connection, attempt.first_on_connection) == (1, True)
        assert (attempt.status, attempt.closed_by_peer_at) == (200, None)


async def test_connections_are_kept_alive_and_pipelined_requests_answered_in_order() -> None:
    """Three requests in one write: three answers, one connection, the slow one first."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.status(500) | faults.silence(0.01), faults.status(501))
        client.send(request() + request() + request("/tool", method="PUT", body=b"x" * 100_000))
        statuses = [(await client.plain())[0] for _ in range(3)]
        assert statuses == [500, 501, 200]
        assert {attempt.connection for attempt in provider.attempts} == {1}
        assert [a.first_on_connection for a in provider.attempts] == [True, False, False]
        assert provider.attempts[2].body == b"x" * 100_000


async def test_a_chunked_body_is_decoded() -> None:
    """What a client streams is logged without its framing, trailers apart."""
    async with Provider() as provider, connected(provider) as client:
        client.send(
            b"POST /tool HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n"
        )
        _, body = await client.plain()
        assert json.loads(body)["body"] == "abcde"
        assert provider.attempts[0].trailers == [("X-Sum", "5")]


async def test_continue_is_sent_before_the_body_or_scripted_not_to_be() -> None:
    """`Expect: 100-continue` gets its 100 first; `without_continue` waits in silence."""
    async with Provider() as provider, connected(provider) as client:
        head, _, body = request(headers=("Expect: 100-continue",)).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.head())[0] == 100
        client.send(body)
        assert (await client.plain())[0] == 200
        provider.then(faults.without_continue())
        client.send(head + b"\r\n\r\n")
        assert await client.silent()
        client.send(body)
        assert (await client.plain())[0] == 200
        provider.then(faults.before_body(faults.status(413)))
        client.send(head + b"\r\n\r\n")
        assert (await client.plain())[0] == 413


async def test_head_and_options() -> None:
    """HEAD has the length of the body and no body; OPTIONS names the methods."""
    async with Provider() as provider, connected(provider) as client:
        client.send(b"HEAD /tool HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers = await client.head()
        assert status == 200
        assert int(dict(headers)["content-length"]) > 0
        client.send(b"OPTIONS /tool HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers = await client.head()
        assert (status, "POST" in dict(headers)["allow"]) == (204, True)


@pytest.mark.parametrize("close", [b"HTTP/1.1\r\nConnection: close", b"HTTP/1.0\r\nA: b"])
async def test_the_connection_ends_when_the_client_asks(close: bytes) -> None:
    """`Connection: close` and HTTP/1.0 are said back and done; a 1.0 client gets no chunks."""
    async with Provider() as provider, connected(provider) as client:
        body = json.dumps({**ASKED, "stream": True}).encode()
        length = b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.send(b"POST /v1/chat/completions " + close + length + body)
        _, headers = await client.head()
        assert dict(headers)["connection"] == "close"
        assert ("transfer-encoding" in dict(headers)) == (b"1.1" in close)
        data, ending = await client.rest()
        assert (b"[DONE]" in data, ending) == (True, "close")


async def test_a_client_that_goes_is_noticed_at_once() -> None:
    """`closed_by_peer_at` is set, the answer stops, and its end can be awaited."""
    async with Provider() as provider:
        reached = asyncio.Event()
        provider.then(faults.at_event(3, Signal(reached)) | faults.stall_after(events=3))
        async with connected(provider) as client:
            client.send(streamed())
            await reached.wait()
        attempt = provider.attempts[0]
        await attempt.finished.wait()
        assert attempt.closed_by_peer_at is not None
        assert attempt.closed_by_peer_at >= attempt.at
        await provider.wait_for_connections(0)
        assert provider.open_connections == 0


async def test_a_client_that_goes_within_its_body_is_noticed() -> None:
    """A request cut short is logged as never received."""
    async with Provider() as provider:
        async with connected(provider) as client:
            client.send(request()[:-3])
            await provider.wait_for_attempts(1)
        await provider.attempts[0].finished.wait()
        assert not provider.attempts[0].received.is_set()
        assert provider.attempts[0].closed_by_peer_at is not None


async def test_a_huge_answer_is_made_only_as_fast_as_it_is_read() -> None:
    """Hundreds of megabytes asked for, a few taken: the provider writes little more than that."""
    async with Provider() as provider:
        provider.always(faults.huge_answer(500 * 1024 * 1024))
        async with connected(provider) as client:
            client.send(request())
            _, headers = await client.head()
            assert int(dict(headers)["content-length"]) > 500 * 1024 * 1024
            await client.reader.readexactly(1024 * 1024)
            await asyncio.sleep(0.02)
            written = provider.attempts[0].bytes_written
            assert written < 50 * 1024 * 1024
        await provider.attempts[0].finished.wait()


async def test_a_huge_stream_is_whole_when_it_is_read() -> None:
    """The filler repeats the first token; the terminal marker still comes."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.huge_answer(1_000_000))
        client.send(streamed())
        await client.head()
        chunks = await client.chunks()
        assert sum(map(len, chunks)) > 1_000_000
        assert chunks[-1] == b"data: [DONE]\n\n"


async def test_a_huge_plain_answer_is_valid_json() -> None:
    """The enormous text stands where the model's words stand."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.huge_answer(1_000_000))
        client.send(request())
        _, body = await client.plain()
        text = json.loads(body)["choices"][0]["message"]["content"]
        assert len(text) > 900_000
        assert text.endswith("plain words.")


async def test_an_error_of_the_script_fails_the_test() -> None:
    """A fault that does not fit its answer resets the connection and raises at the end."""
    provider = Provider()
    with pytest.raises(ValueError, match="has 0 events"):
        await ask_for_a_malformed_event(provider)


async def ask_for_a_malformed_event(provider: Provider) -> None:
    async with provider, connected(provider) as client:
        provider.then(faults.malformed_event(at=2))
        client.send(request())
        assert await client.rest() == (b"", "reset")


async def test_a_request_that_is_no_http_fails_the_test() -> None:
    """It gets a 400 and a close, and the provider's block raises."""
    async with Provider() as provider, connected(provider) as client:
        client.send(b"nonsense\r\n\r\n")
        data, ending = await client.rest()
        assert (data[:12], ending) == (b"HTTP/1.1 400", "close")
        assert [str(error) for error in provider.errors] == ["bad request line"]
        provider.errors.clear()


async def test_listening_can_stop_and_start_again() -> None:
    """Refused while stopped, served on the same port after."""
    async with Provider() as provider:
        port = provider.port
        await provider.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await provider.start_listening()
        assert provider.port == port
        async with connected(provider) as client:
            client.send(request())
            assert (await client.plain())[0] == 200


async def test_what_meets_a_new_connection() -> None:
    """Reset, closed, or ignored before any request is read."""
    async with Provider() as provider:
        provider.on_connect = "reset"
        async with connected(provider) as client:
            assert await client.rest() == (b"", "reset")
        provider.on_connect = "close"
        async with connected(provider) as client:
            assert await client.rest() == (b"", "close")
        provider.on_connect = "ignore"
        async with connected(provider) as client:
            client.send(request())
            assert await client.silent()
        assert provider.attempts == []


async def test_idle_connections_can_be_closed_and_all_be_dropped() -> None:
    """What makes a pooled connection stale, and what a crash of the provider looks like."""
    async with Provider() as provider, connected(provider) as idle, connected(provider) as busy:
        idle.send(request())
        await idle.plain()
        provider.then(faults.silence())
        busy.send(request())
        await provider.wait_for_attempts(2)
        await provider.close_idle_connections()
        assert await idle.rest() == (b"", "close")
        assert provider.open_connections == 1
        await provider.drop_connections()
        assert await busy.rest() == (b"", "reset")


async def test_leaving_the_block_ends_everything() -> None:
    """Answers under way are cancelled, connections ended; the debug loop finds nothing left."""
    async with Provider() as provider:
        provider.always(faults.silence())
        reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
        writer.write(request())
        await provider.wait_for_attempts(1)
    assert provider.open_connections == 0
    assert provider.attempts[0].finished.is_set()
    assert provider.attempts[0].closed_by_peer_at is None
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert asyncio.all_tasks() == {asyncio.current_task()}
