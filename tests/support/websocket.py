"""A WebSocket client by hand, so that it can also misbehave, and see every byte."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from tests.provider.websocket import CLOSE, TEXT, accept_key, frame, unmask
from tests.support.exact import Asked, ExactClient, Got

KEY = base64.b64encode(b"sixteen bytes ok").decode()
MASK = b"\x0a\x0b\x0c\x0d"
Fields = tuple[tuple[str, str], ...]


def handshake(path: str, *fields: tuple[str, str]) -> Asked:
    """The request that asks for a WebSocket."""
    own = (
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    )
    return Asked("GET", path, (*own, *fields))


def masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """One frame as clients send it."""
    plain = frame(opcode, payload, final=final)
    head = plain[: len(plain) - len(payload)]
    return bytes((head[0], head[1] | 0x80)) + head[2:] + MASK + unmask(payload, MASK)


class RawWebSocket:
    """The client's end; `got` is the answer to the handshake."""

    def __init__(self, client: ExactClient, got: Got) -> None:
        self._client = client
        self.got = got

    def send(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        self.send_raw(masked(opcode, payload, final=final))

    def send_raw(self, data: bytes) -> None:
        self._client.writer.write(data)

    async def drained(self) -> None:
        await self._client.writer.drain()

    async def receive(self) -> tuple[int, bool, bytes]:
        """The next frame: its opcode, whether it is final, its payload."""
        first, second = await self.read(2)
        assert not second & 0x80, "a server's frame must not be masked"
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(await self.read(2 if length == 126 else 8), "big")
        return first & 0x0F, bool(first & 0x80), await self.read(length)

    async def read(self, size: int) -> bytes:
        return await self._client.reader.readexactly(size)

    async def text(self) -> str:
        """The next message, which is one text frame."""
        opcode, final, payload = await self.receive()
        assert (opcode, final) == (TEXT, True)
        return payload.decode()

    async def closed(self) -> tuple[int, str]:
        """The code and reason of the close frame that comes next."""
        opcode, _, payload = await self.receive()
        assert opcode == CLOSE, (opcode, payload)
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def close(self, code: int, reason: str = "") -> None:
        self.send(CLOSE, struct.pack("!H", code) + reason.encode())

    async def ended(self) -> tuple[Literal["close", "reset"], bytes]:
        """How the connection ended, and what still came before."""
        rest = bytearray()
        try:
            while piece := await self._client.reader.read(1 << 16):
                rest += piece
        except ConnectionResetError:
            return "reset", bytes(rest)
        return "close", bytes(rest)

    def end(self, how: Literal["close", "reset"]) -> None:
        """Hang up without a word."""
        if how == "reset":
            transport = self._client.writer.transport
            connection = transport.get_extra_info("socket")
            connection.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER
            transport.abort()
        else:
            self._client.writer.close()


@asynccontextmanager
async def websocket(
    port: int, path: str, *fields: tuple[str, str], early: bytes = b"", accepted: bool = True
) -> AsyncIterator[RawWebSocket]:
    """Shake hands; `early` is sent in the same breath, before the answer."""
    async with ExactClient(port) as client:
        asked = handshake(path, *fields)
        client.writer.write(asked.bytes(path, "localhost") + early)
        got = await client.answer("GET")
        if accepted:
            assert got.status == 101, got
            assert got.value("Sec-WebSocket-Accept") == accept_key(KEY)
        yield RawWebSocket(client, got)


async def settled(turns: int = 10) -> None:
    """Let what is under way in this loop arrive."""
    for _ in range(turns):
        await asyncio.sleep(0)
