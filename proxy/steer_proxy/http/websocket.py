"""WebSockets for realtime APIs: the handshake is a call like any other, then bytes flow untouched.

After both sides switched protocols, frames are forwarded as they are, masks and negotiated
extensions included; `FrameTracker` only watches where they end and how large they are.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from aiohttp.base_protocol import BaseProtocol
from aiohttp.web_request import BaseRequest

from steer_policies.frames import GOING_AWAY, INTERNAL_ERROR, TOO_BIG, FrameTracker, close_frame
from steer_proxy.http.wire import UpstreamResponse

#: Largest frame let through, in bytes. Realtime audio comes in far smaller ones.
MAX_FRAME: Final = 64 * 1024 * 1024

#: Bytes held in one direction before its sender is paused.
HELD: Final = 64 * 1024

#: How long the other side may take to finish after one side has gone, in seconds.
FAREWELL: Final = 5.0


def wants_websocket(request: BaseRequest) -> bool:
    """Whether the caller asks to switch to WebSocket (RFC 6455 §4.2.1)."""
    return (
        request.method == "GET"
        and request.headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in request.headers.get("Connection", "").lower()
    )


class _Lane:
    """One direction: takes what a protocol received and writes it to the other side.

    It stands where aiohttp expects its WebSocket parser, hence `feed_data` and `feed_eof`.
    """

    def __init__(self, source: BaseProtocol, sink: BaseProtocol) -> None:
        self._source = source
        self._sink = sink
        self._held = bytearray()
        self._arrived = asyncio.Event()
        self._ended = False
        self.tracker = FrameTracker()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        if data:
            self._held += data
            self._arrived.set()
            if len(self._held) > HELD:
                self._source.pause_reading()
        return False, b""

    def feed_eof(self) -> None:
        self._ended = True
        self._arrived.set()

    async def run(self) -> None:
        """Forward until the source ends or a frame is too large."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            data, self._held = bytes(self._held), bytearray()
            if data:
                self.tracker.feed(data)
                if self.tracker.largest > MAX_FRAME:
                    return
                self._source.resume_reading()
                if not await self.write(data):
                    return
            if self._ended and not self._held:
                return

    async def write(self, data: bytes) -> bool:
        """Write to the sink with back-pressure; False when it is gone."""
        transport = self._sink.transport
        if transport is None or transport.is_closing():
            return False
        transport.write(data)
        try:
            await self._sink._drain_helper()  # noqa: SLF001 - aiohttp's writers do the same
        except ConnectionError:
            return False
        return True


class Tunnel:
    """Two lanes between a caller and an upstream that both switched protocols."""

    def __init__(self, request: BaseRequest, response: UpstreamResponse) -> None:
        caller = request.protocol
        self._down = _Lane(response.protocol, caller)
        self._up = _Lane(caller, response.protocol)
        response.protocol.set_parser(self._down, self._down)
        caller.set_parser(self._up)  # type: ignore[arg-type]

    async def run(self) -> None:
        """Forward both ways until one side has ended, then let the other say goodbye."""
        lanes = {asyncio.create_task(self._down.run()), asyncio.create_task(self._up.run())}
        try:
            _, left = await asyncio.wait(lanes, return_when=asyncio.FIRST_COMPLETED)
            if self._too_big():
                await self.say_goodbye(TOO_BIG, "frame too large")
            elif left and (self._down.tracker.closing or self._up.tracker.closing):
                await asyncio.wait(left, timeout=FAREWELL)
            elif left:
                await self.say_goodbye(INTERNAL_ERROR, "the other side is gone")
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.wait(lanes)

    def _too_big(self) -> bool:
        return max(self._down.tracker.largest, self._up.tracker.largest) > MAX_FRAME

    async def say_goodbye(self, code: int, reason: str) -> None:
        """Send a close frame both ways, where no frame of theirs is under way."""
        if self._down.tracker.at_boundary and not self._down.tracker.closing:
            await self._down.write(close_frame(code, reason))
        if self._up.tracker.at_boundary and not self._up.tracker.closing:
            await self._up.write(close_frame(code, reason, os.urandom(4)))

    async def go_away(self) -> None:
        """Tell both sides that this process is leaving."""
        await self.say_goodbye(GOING_AWAY, "Steer is shutting down")
