"""WebSockets: frames of every size, and the ways a session breaks."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from tests.provider import Provider, faults
from tests.provider.websocket import PING, WebSocket, accept_key, unmask


def address(provider: Provider, path: str = "/v1/realtime?model=m") -> str:
    return f"ws://127.0.0.1:{provider.port}{path}"


def test_the_key_of_the_specification() -> None:
    """RFC 6455 section 1.3 gives an example."""
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmasking(payload: bytes, mask: bytes) -> None:
    """As the specification defines it, byte by byte."""
    assert unmask(payload, mask) == bytes(
        byte ^ mask[index % 4] for index, byte in enumerate(payload)
    )


async def test_echo_of_every_length_and_kind() -> None:
    """Text, binary, all three length encodings, fragments, pings; logged on the attempt."""
    async with Provider() as provider:
        async with connect(address(provider, "/tool"), subprotocols=["a", "b"]) as client:  # type: ignore[list-item]
            assert client.subprotocol == "a"
            sent: list[Any] = ["", "x" * 125, b"y" * 126, os.urandom(70_000), "\u00e9\u20ac"]
            for message in sent:
                await client.send(message)
                assert await client.recv() == message
            await client.send(["in ", "three ", "parts"])
            assert await client.recv() == "in three parts"
            await (await client.ping())
        assert provider.attempts[0].messages == [*sent, "in three parts"]
        await provider.attempts[0].finished.wait()


async def test_a_refused_handshake() -> None:
    """Any status of the script refuses the upgrade."""
    async with Provider() as provider:
        provider.then(faults.authentication_failed())
        with pytest.raises(InvalidStatus) as caught:
            await connect(address(provider))
        assert caught.value.response.status_code == 401
        assert "upgrade" not in caught.value.response.headers


@pytest.mark.parametrize(("ending", "code"), [("reset", 1006), ("close", 1006), (1011, 1011)])
async def test_a_session_that_breaks(ending: Any, code: int) -> None:
    """After so many messages: reset, closed, or closed with a code; realtime and echo alike."""
    async with Provider() as provider:
        provider.always(faults.websocket_breaks(2, ending))
        async with connect(address(provider)) as client:
            assert '"session.created"' in str(await client.recv())
            await client.send('{"type":"response.create"}')
            assert '"response.created"' in str(await client.recv())
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == code
        async with connect(address(provider, "/tool")) as client:
            for _ in range(2):
                await client.send("x")
                await client.recv()
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == code


async def test_a_frame_cut_in_the_middle() -> None:
    """Half a message is no message."""
    async with Provider() as provider:
        provider.then(faults.websocket_cut_frame())
        async with connect(address(provider)) as client:
            with pytest.raises(ConnectionClosedError):
                await client.recv()


async def test_any_session() -> None:
    """A test can script the provider's end by hand."""

    async def session(socket: WebSocket) -> None:
        await socket.send_frame(PING, b"there?")
        await socket.send(b"bytes")
        await socket.close(4000, "done")

    async with Provider() as provider:
        provider.then(faults.websocket_session(session))
        async with connect(address(provider)) as client:
            assert await client.recv() == b"bytes"
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (4000, "done")
