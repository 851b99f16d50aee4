"""WebSockets for realtime APIs: the handshake is a call like any other, then bytes flow untouched.

After both sides switched protocols, frames are forwarded as they are, masks and negotiated
extensions included; `FrameTracker` only watches where they end, how large they are, and whether a
side said goodbye. When one side goes without that, Steer says it to the other in its place.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from math import inf
from typing import Final

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion11
from aiohttp.web_request import BaseRequest

from steer_policies.frames import GOING_AWAY, INTERNAL_ERROR, TOO_BIG, FrameTracker, close_frame
from steer_policies.outcome import SUCCESS, Failure, Verdict, failed
from steer_proxy.http.response import UpstreamResponse

#: Largest frame let through, in bytes. Realtime audio comes in far smaller ones.
MAX_FRAME: Final = 64 * 1024 * 1024

#: How long the answer to a side's close frame may take, in seconds: client libraries wait 10 to 30.
CLOSING: Final = 30.0

#: How long a side may take to say goodbye and hang up once the other has gone, in seconds.
FAREWELL: Final = 10.0

#: How long a side may take none of the bytes that wait for it, in seconds. Reading slowly is fine;
#: whoever neither reads nor leaves would keep an upstream's slot for good.
STALLED: Final = 120.0

#: Silence after which the kernel asks whether a peer is still there, in seconds; it asks four times
#: as many seconds apart as `_ASK_EVERY`. A tunnel may be idle for hours, and peers vanish.
_ASK_AFTER: Final = 60
_ASK_EVERY: Final = 15


def wants_websocket(request: BaseRequest) -> bool:
    """Whether the caller asks to switch to WebSocket (RFC 6455 §4.2.1, RFC 9110 §7.8)."""
    headers = request.headers
    return (
        request.method == "GET"
        and request.version >= HttpVersion11
        and headers.get("Upgrade", "").lower() == "websocket"
        and any(
            token.strip().lower() == "upgrade"
            for line in headers.getall("Connection", ())
            for token in line.split(",")
        )
    )


class _Lane:
    """One direction: what one side sends is written to the other as it comes.

    It stands where aiohttp expects its WebSocket parser, hence `feed_data` and `feed_eof`. While
    the sink is full its source is not read.
    """

    def __init__(
        self, source: BaseProtocol, sink: BaseProtocol, changed: Callable[[], None]
    ) -> None:
        self._source = source
        self._sink = sink
        self._changed = changed
        self._waiting: asyncio.Task[None] | None = None
        self._ended = False
        self.tracker: Final = FrameTracker(MAX_FRAME)
        self.source_gone = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        tracker = self.tracker
        passed = tracker.feed(data)
        if passed and not self._ended:
            self._write(passed)
        if tracker.closing or tracker.too_big:
            self._changed()
        return False, b""

    def feed_eof(self) -> None:
        self.source_gone = True
        self._changed()

    def _write(self, data: bytes) -> None:
        transport = self._sink.transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if self._waiting is None and self._sink.writing_paused:
            self._source.pause_reading()
            self._waiting = asyncio.create_task(self._wait_for_room(transport))

    async def _wait_for_room(self, transport: asyncio.Transport) -> None:
        patience = _Patience(transport)
        try:
            await self._sink._drain_helper()  # noqa: SLF001 - aiohttp's writers do the same
        except ConnectionError:
            pass  # the sink is gone, and its own lane tells so
        finally:
            patience.end()
        self._waiting = None
        self._source.resume_reading()

    def end(self, code: int, reason: str, mask: bytes | None = None) -> None:
        """Pass nothing more, and tell the sink, unless the source itself has said goodbye.

        In the middle of a frame nothing can be said: then the connection ends after what was
        written. What the source still sends is read, so that its own goodbye is seen. Idempotent.
        """
        if self._ended:
            return
        self._ended = True
        transport = self._sink.transport
        if transport is not None and not transport.is_closing() and not self.tracker.closing:
            if self.tracker.at_boundary:
                transport.write(close_frame(code, reason, mask))
            else:
                transport.close()
        if self._waiting is not None:
            self._waiting.cancel()
            self._source.resume_reading()

    async def stopped(self) -> None:
        """Let go of everything; after `end`."""
        if self._waiting is not None:
            await asyncio.wait({self._waiting})


class _Patience:
    """Drops a connection whose peer takes nothing for `STALLED` seconds."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._look()

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(STALLED, self._judge, left)

    def _judge(self, left: int) -> None:
        if self._transport.get_write_buffer_size() < left:
            self._look()
        else:
            self._transport.abort()

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()


class Tunnel:
    """Two lanes between a caller and an upstream that both switched protocols."""

    def __init__(self, request: BaseRequest, response: UpstreamResponse) -> None:
        caller, upstream = request.protocol, response.protocol
        self._caller: Final = caller
        self._upstream: Final = upstream
        self._change = asyncio.Event()
        self._excused = False
        self._down = _Lane(upstream, caller, self._change.set)
        self._up = _Lane(caller, upstream, self._change.set)
        for protocol in (caller, upstream):
            _ask_whether_alive(protocol)
        upstream.set_parser(self._down, None)
        caller.set_parser(self._up)  # type: ignore[arg-type]

    async def run(self) -> Verdict:
        """Forward both ways until one side has ended, then let the other say goodbye.

        The verdict is on the upstream: a failure when it went without a goodbye. Cancelled by
        anything but the caller's end, it tells both sides that Steer is going away.
        """
        now = asyncio.get_running_loop().time
        try:
            await self._until(self._closing, inf)
            await self._until(self._over, now() + CLOSING)
            verdict = self._verdict()
            await self._part(*self._reason())
            return verdict
        except asyncio.CancelledError:
            await self._part(GOING_AWAY, "Steer is shutting down")
            raise
        finally:
            await self._cut()

    def _closing(self) -> bool:
        """Whether the end has begun."""
        return self._over() or self._down.tracker.closing or self._up.tracker.closing

    def _over(self) -> bool:
        """Whether nothing more can come of it."""
        down, up = self._down, self._up
        return (
            down.source_gone
            or up.source_gone
            or down.tracker.too_big
            or up.tracker.too_big
            or (down.tracker.closing and up.tracker.closing)
        )

    def _caller_done(self) -> bool:
        """Whether the caller has nothing to wait for: in WebSocket the server hangs up first."""
        return self._up.source_gone or self._up.tracker.closing

    def _both_gone(self) -> bool:
        return self._up.source_gone and self._down.source_gone

    def _verdict(self) -> Verdict:
        said = self._down.tracker.closing or self._up.tracker.closing
        if self._down.source_gone and not self._up.source_gone and not said:
            return failed(Failure.TRUNCATED)
        return SUCCESS

    def _reason(self) -> tuple[int, str]:
        if self._down.tracker.too_big or self._up.tracker.too_big:
            return TOO_BIG, f"a frame is larger than {MAX_FRAME} bytes"
        return INTERNAL_ERROR, "the other side is gone"

    async def _part(self, code: int, reason: str) -> None:
        """Say goodbye to who is still there, and give them a little time to do the same."""
        self._down.end(code, reason)
        self._up.end(code, reason, os.urandom(4))
        deadline = asyncio.get_running_loop().time() + FAREWELL
        await self._until(self._caller_done, deadline)
        if self._caller.transport is not None:
            self._caller.transport.close()
        await self._until(self._both_gone, deadline)

    async def _until(self, met: Callable[[], bool], deadline: float) -> None:
        """Wait until a condition is met, or for the deadline (loop time).

        aiohttp cancels a handler whose caller hung up. That is one of the ways a tunnel ends, and
        the upstream has still to be told, so this one cancellation is passed over.
        """
        while not met():
            self._change.clear()
            try:
                async with asyncio.timeout_at(None if deadline == inf else deadline):
                    await self._change.wait()
            except TimeoutError:
                return
            except asyncio.CancelledError:
                if self._excused or not self._up.source_gone:
                    raise
                self._excused = True
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()

    async def _cut(self) -> None:
        """Drop whoever is still there."""
        for lane in (self._down, self._up):
            lane.end(GOING_AWAY, "")
        for protocol in (self._caller, self._upstream):
            if protocol.transport is not None:
                protocol.transport.abort()
        await self._down.stopped()
        await self._up.stopped()


def _ask_whether_alive(protocol: BaseProtocol) -> None:
    """Have the kernel notice a peer that vanished without a word."""
    transport = protocol.transport
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _ASK_AFTER),
        ("TCP_KEEPINTVL", _ASK_EVERY),
        ("TCP_KEEPCNT", 4),
    ):
        if hasattr(socket, name):  # macOS has only some of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
