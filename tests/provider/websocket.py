"""The server's end of a WebSocket (RFC 6455), by hand, so that it can also misbehave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tests.provider.attempt import Attempt
    from tests.provider.connection import Connection

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocketClosed(Exception):
    """The peer closed; `code` is its status code, 1005 when it gave none."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed by the peer with {code}")
        self.code = code


def accept_key(key: str) -> str:
    """The value of `Sec-WebSocket-Accept` (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID).digest()).decode()


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """One unmasked frame, as servers send them."""
    first = opcode | (0x80 if final else 0)
    length = len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 1 << 16:
        return bytes((first, 126)) + length.to_bytes(2, "big") + payload
    return bytes((first, 127)) + length.to_bytes(8, "big") + payload


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Undo the client's masking, as one big number: a loop over bytes is a hundred times slower."""
    length = len(payload)
    repeated = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(
        length, "big"
    )


class WebSocket:
    """Messages both ways over an upgraded connection; what comes in is logged on the attempt."""

    def __init__(self, connection: Connection, attempt: Attempt) -> None:
        self._connection = connection
        self._reader = connection.upgrade()
        self.attempt = attempt
        self.close_code: int | None = None
        """The code the peer closed with."""

    async def receive(self) -> str | bytes:
        """The next whole message; pings are answered on the way. Raises WebSocketClosed."""
        pieces, kind = bytearray(), TEXT
        while True:
            opcode, final, payload = await self._read_frame()
            if opcode == PING:
                await self.send_frame(PONG, payload)
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
                self.close_code = code
                await self.send_frame(CLOSE, payload[:2])
                raise WebSocketClosed(code)
            elif opcode != PONG:
                kind = opcode or kind
                pieces += payload
                if final:
                    message = pieces.decode() if kind == TEXT else bytes(pieces)
                    self.attempt.messages.append(message)
                    return message

    async def _read_frame(self) -> tuple[int, bool, bytes]:
        try:
            first, second = await self._reader.readexactly(2)
            length = second & 0x7F
            if length >= 126:
                length = int.from_bytes(
                    await self._reader.readexactly(2 if length == 126 else 8), "big"
                )
            if not second & 0x80:
                raise ValueError("a client's frame was not masked (RFC 6455 section 5.1)")
            mask = await self._reader.readexactly(4)
            payload = unmask(await self._reader.readexactly(length), mask)
        except asyncio.IncompleteReadError:
            raise WebSocketClosed(1006) from None
        return first & 0x0F, bool(first & 0x80), payload

    async def send_frame(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        """Send one frame of any kind."""
        await self.send_raw(frame(opcode, payload, final=final))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be frames at all."""
        self._connection.write(self.attempt, data)
        await self._connection.drain()

    async def send(self, message: str | bytes) -> None:
        """Send one whole message."""
        if isinstance(message, str):
            await self.send_frame(TEXT, message.encode())
        else:
            await self.send_frame(BINARY, message)

    async def send_json(self, value: Any) -> None:
        """Send one message of JSON text."""
        await self.send(json.dumps(value, separators=(",", ":"), ensure_ascii=False))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and wait for the peer's."""
        await self.send_frame(CLOSE, code.to_bytes(2, "big") + reason.encode())
        try:
            while True:
                await self.receive()
        except WebSocketClosed:
            pass

    async def end(self, how: Literal["reset", "close"]) -> None:
        """End the TCP connection under the WebSocket, without a close frame."""
        await self._connection.flush()
        if how == "reset":
            self._connection.reset()
        else:
            self._connection.close()


async def echo(socket: WebSocket) -> None:
    """Send back every message until the peer closes."""
    try:
        while True:
            await socket.send(await socket.receive())
    except WebSocketClosed:
        pass
