"""Tunnels: bytes pass untouched both ways, and no end of one side leaves the other waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from steer_policies.frames import FrameTracker
from steer_proxy.http import websocket as under_test
from tests.provider import Answer, Attempt, Head, Provider, Send, WebSocket, faults
from tests.provider.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebSocketClosed,
    accept_key,
    frame,
)
from tests.support.exact import Asked, ExactClient, ask
from tests.support.sidecar import Running, configure, running
from tests.support.websocket import KEY, RawWebSocket, handshake, masked, settled, websocket

PATH = "/tools/socket"
Session = Callable[[WebSocket], Awaitable[None]]
MIB = 2**20
HOW = pytest.mark.parametrize("how", ["close", "reset"])


class Ends:
    """Both ends of Steer: a scripted provider and the port callers use."""

    def __init__(self, provider: Provider, steer: Running) -> None:
        self.provider = provider
        self.steer = steer
        self.port = steer.sidecar.port

    def serve(self, session: Session) -> None:
        """What the provider does after the handshake."""
        self.provider.always(faults.websocket_session(session))

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def attempt(self) -> Attempt:
        """The only request the provider got."""
        (attempt,) = self.provider.attempts
        return attempt

    @property
    def towards_caller(self) -> asyncio.Transport:
        """Steer's end of the only caller's connection."""
        (protocol,) = self.steer.sidecar._calls.connections
        assert protocol.transport is not None
        return protocol.transport

    @property
    def towards_provider(self) -> asyncio.Transport:
        """Steer's end of the only connection in use to the provider."""
        (protocol,) = self.steer.gateway.wire._connector._acquired
        assert protocol.transport is not None
        return protocol.transport

    async def given_back(self) -> None:
        """The provider's connection is closed, its slot free, no call is served."""
        await self.provider.wait_for_connections(0)
        assert await self.steer.sidecar._quiet(60, None)
        assert self.steer.gateway.registry.states["tools"].slots.busy == 0


@contextlib.asynccontextmanager
async def ends(tmp_path: Path, **upstream: Any) -> AsyncIterator[Ends]:
    async with Provider() as provider:
        settings = {
            "upstreams": {"tools": {"dialect": "http", "base_url": provider.base_url, **upstream}},
            "routes": [{"name": "tools", "path": "/tools", "candidates": ["tools"]}],
        }
        async with running(configure(settings, tmp_path)) as steer:
            yield Ends(provider, steer)


# --- what passes

MESSAGES = [
    (TEXT, "hé".encode(), True),
    (TEXT, b"", True),
    (BINARY, b"x" * 125, True),
    (BINARY, b"y" * 126, True),
    (BINARY, bytes(range(256)) * 256, True),
    (BINARY, b"z" * 70_000, True),
    (TEXT, b"in ", False),
    (PING, b"between", True),
    (CONTINUATION, b"three ", False),
    (CONTINUATION, b"parts", True),
    (PONG, b"unasked", True),
]


@pytest.mark.parametrize("cut", [0, 1, 3, 1000])
async def test_every_frame_passes_to_the_byte(tmp_path: Path, cut: int) -> None:
    """Every opcode, length form and fragment, masks included, however the writes are cut."""
    up = b"".join(masked(opcode, payload, final=final) for opcode, payload, final in MESSAGES)
    down = b"".join(frame(opcode, payload, final=final) for opcode, payload, final in MESSAGES)
    if 0 < cut < 10:  # piece by piece is slow: the short frames say it all
        up, down = up[:1200], down[:1200]
    received = b""

    async def session(peer: WebSocket) -> None:
        nonlocal received
        received = await peer._reader.readexactly(len(up))
        for at in range(0, len(down), cut or len(down)):
            await peer.send_raw(down[at : at + (cut or len(down))])
            await asyncio.sleep(0)
        await peer.close()

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            for at in range(0, len(up), cut or len(up)):
                caller.send_raw(up[at : at + (cut or len(up))])
                await asyncio.sleep(0)
            assert await caller.read(len(down)) == down
        assert received == up


async def test_what_comes_with_the_handshake_is_not_lost(tmp_path: Path) -> None:
    """Frames sent before the 101, and frames in one segment with it, arrive."""
    early = masked(TEXT, b"early") + masked(BINARY, b"x" * 300_000)
    with_head = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(KEY).encode() + b"\r\n\r\n" + frame(TEXT, b"first")
    )
    heard: list[str | bytes] = []

    async def session(peer: WebSocket) -> None:
        heard.append(await peer.receive())
        heard.append(await peer.receive())
        await peer.close()

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH, early=early) as caller:
            assert await caller.closed() == (1000, "")
        assert heard == ["early", b"x" * 300_000]
        both.provider.healthy().always(Answer((Send(with_head),)))
        async with websocket(both.port, PATH) as caller:
            assert await caller.text() == "first"


async def test_handshake_fields_pass_both_ways(tmp_path: Path) -> None:
    """Subprotocols and extensions are the two ends' business; answers keep order and spelling."""
    extensions = (
        ("Sec-WebSocket-Extensions", "permessage-deflate;\tclient_max_window_bits"),
        ("sec-websocket-extensions", "x-other\udce9"),
        ("Sec-WebSocket-Protocol", "one, two"),
        ("sec-websocket-protocol", "three"),
    )
    agreed = (
        ("connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("sec-websocket-accept", accept_key(KEY)),
        ("Sec-WebSocket-Protocol", "two"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Sec-Websocket-Extensions", "x-other"),
        ("Set-Cookie", "a=1"),
        ("set-cookie", "b=2"),
    )
    async with ends(tmp_path) as both:
        both.provider.always(Answer((Head(101, agreed, "none"),)))
        async with websocket(both.port, PATH, *extensions) as caller:
            own = [pair for pair in caller.got.fields if not pair[0].startswith("X-Steer-")]
            assert own == list(agreed)
            assert caller.got.value("X-Steer-Upstream") == "tools"
        asked = both.attempt
        assert asked.header_values("sec-websocket-key") == [KEY]
        assert asked.header_values("sec-websocket-version") == ["13"]
        assert asked.header_values("sec-websocket-extensions") == [
            "permessage-deflate;\tclient_max_window_bits",
            "x-other\xe9",
        ]
        assert asked.header_values("sec-websocket-protocol") == ["one, two", "three"]
        assert asked.header_values("upgrade") == ["websocket"]
        assert asked.header_values("connection") == ["Upgrade"]


async def test_a_conversation_has_no_time_limit(tmp_path: Path) -> None:
    """Hours of silence are no reason to hang up: neither limits of calls nor keep-alive apply."""
    timeouts = {"first_byte": 2, "answer": 2, "idle": 2}
    async with ends(tmp_path, timeouts=timeouts) as both:
        silence = ("x-stainless-read-timeout", "3")
        async with websocket(both.port, PATH, silence) as caller:
            await asyncio.sleep(2 * 3600)
            caller.send(TEXT, b"still there?")
            assert await caller.text() == "still there?"


async def test_the_kernel_looks_after_silent_peers(tmp_path: Path) -> None:
    """Both connections are probed, so that a peer that vanished is noticed in minutes."""
    async with ends(tmp_path) as both, websocket(both.port, PATH):
        for transport in (both.towards_caller, both.towards_provider):
            found = transport.get_extra_info("socket")
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


# --- how it ends


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "leaving"), (4321, "own é")])
async def test_the_caller_closes(tmp_path: Path, code: int, reason: str) -> None:
    """Its code reaches the provider, the provider's answer comes back, nobody waits."""
    async with ends(tmp_path) as both:
        async with websocket(both.port, PATH) as caller:
            began = both.now()
            caller.send(TEXT, b"x")
            await caller.text()
            caller.close(code, reason)
            assert await caller.closed() == (code, "")
            assert await caller.ended() == ("close", b"")
            assert both.now() - began < 0.1
        await both.given_back()
        assert both.attempt.messages == ["x"]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1013, "later"), (4000, "done")])
async def test_the_provider_closes(tmp_path: Path, code: int, reason: str) -> None:
    """Its code reaches the caller, whose answer goes back."""
    answered: list[int | None] = []

    async def session(peer: WebSocket) -> None:
        await peer.close(code, reason)
        answered.append(peer.close_code)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            began = both.now()
            assert await caller.closed() == (code, reason)
            caller.close(code)
            assert await caller.ended() == ("close", b"")
            assert both.now() - began < 0.1
        await both.given_back()
        assert answered == [code]


async def test_the_provider_says_goodbye_and_hangs_up_at_once(tmp_path: Path) -> None:
    """The caller still gets the code, and time to answer it."""

    async def session(peer: WebSocket) -> None:
        await peer.send_frame(CLOSE, (1012).to_bytes(2, "big"))
        await peer.end("close")

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            assert await caller.closed() == (1012, "")
            await asyncio.sleep(1)
            began = both.now()
            caller.close(1012)
            assert await caller.ended() == ("close", b"")
            assert both.now() - began < 0.1
        await both.given_back()


@HOW
async def test_the_provider_vanishes(tmp_path: Path, how: Literal["close", "reset"]) -> None:
    """The caller is told with 1011, and let go as soon as it has answered."""

    async def session(peer: WebSocket) -> None:
        await peer.send("last words")
        await peer.end(how)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            assert await caller.text() == "last words"
            assert await caller.closed() == (1011, "the other side is gone")
            began = both.now()
            caller.close(1011)
            assert await caller.ended() == ("close", b"")
            assert both.now() - began < 0.1
        await both.given_back()


@HOW
async def test_the_provider_vanishes_within_a_frame(
    tmp_path: Path, how: Literal["close", "reset"]
) -> None:
    """Half a frame can only be cut off: a close frame would be taken for the rest of it."""
    half = frame(TEXT, b"x" * 100)[:50]

    async def session(peer: WebSocket) -> None:
        await peer.send_raw(half)
        await peer.end(how)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            began = both.now()
            _, rest = await caller.ended()
            assert rest == half
            assert both.now() - began < 0.1
        await both.given_back()


@HOW
async def test_half_a_head_is_nothing(tmp_path: Path, how: Literal["close", "reset"]) -> None:
    """A frame whose head never became whole was never begun, so the caller can be told."""

    async def session(peer: WebSocket) -> None:
        await peer.send_raw(frame(BINARY, b"x" * 300)[:3])
        await peer.end(how)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            assert (await caller.closed())[0] == 1011


@HOW
async def test_the_caller_vanishes(tmp_path: Path, how: Literal["close", "reset"]) -> None:
    """The provider gets what was sent, then 1011; its connection and slot are given back."""
    codes: list[int] = []

    async def session(peer: WebSocket) -> None:
        await peer.send("hello")
        try:
            while True:
                await peer.receive()
        except WebSocketClosed as closed:
            codes.append(closed.code)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            await caller.text()
            caller.send(TEXT, b"one")
            if how == "close":  # a reset may overtake what was sent
                caller.send(TEXT, b"two")
            else:
                await asyncio.sleep(0.1)
            caller.end(how)
        began = both.now()
        await both.given_back()
        assert both.now() - began < 1
        assert codes == [1011]
        assert both.attempt.messages == (["one", "two"] if how == "close" else ["one"])


@HOW
async def test_the_caller_vanishes_within_a_frame(
    tmp_path: Path, how: Literal["close", "reset"]
) -> None:
    """The provider sees the cut, too, and no close frame."""
    async with ends(tmp_path) as both:
        async with websocket(both.port, PATH) as caller:
            caller.send_raw(masked(TEXT, b"x" * 100)[:50])
            await asyncio.sleep(0.1)
            caller.end(how)
        began = both.now()
        await both.given_back()
        assert both.now() - began < 1
        assert both.attempt.closed_by_peer_at is not None
        assert both.attempt.messages == []
        assert both.attempt.bytes_written < 300  # the head of the 101, and no answer to a close


async def test_both_vanish(tmp_path: Path) -> None:
    """Nothing is left of a tunnel whose two ends are cut in one moment."""
    async with ends(tmp_path) as both:
        async with websocket(both.port, PATH) as caller:
            caller.send(TEXT, b"x")
            await caller.text()
            caller.end("reset")
            await both.provider.drop_connections()
        await both.given_back()


async def test_nobody_answers_a_goodbye(tmp_path: Path) -> None:
    """Whoever keeps silent after a close frame is cut off in the end, whichever side it is."""

    async def silent(peer: WebSocket) -> None:
        await asyncio.sleep(3600)

    async def rude(peer: WebSocket) -> None:
        await peer.send_frame(CLOSE, b"\x03\xe8")
        await asyncio.sleep(3600)

    limit = under_test.CLOSING + under_test.FAREWELL
    for session in (silent, rude):
        async with ends(tmp_path) as both:
            both.serve(session)
            async with websocket(both.port, PATH) as caller:
                began = both.now()
                if session is silent:
                    caller.close(1000)
                else:
                    assert await caller.closed() == (1000, "")
                await caller.ended()
                assert under_test.CLOSING <= both.now() - began <= limit + 0.1
            await both.given_back()


async def test_a_gone_side_does_not_keep_the_other(tmp_path: Path) -> None:
    """After 1011 a silent caller, and a silent provider, have some seconds and no more."""

    async def gone(peer: WebSocket) -> None:
        await peer.end("close")

    async def deaf(peer: WebSocket) -> None:
        await asyncio.sleep(3600)

    async with ends(tmp_path) as both:
        both.serve(gone)
        async with websocket(both.port, PATH) as caller:
            began = both.now()
            await caller.closed()
            await caller.ended()
            assert both.now() - began == pytest.approx(under_test.FAREWELL, abs=0.2)
        await both.given_back()
    async with ends(tmp_path) as both:
        both.serve(deaf)
        async with websocket(both.port, PATH):
            pass
        began = both.now()
        await both.given_back()
        assert both.now() - began == pytest.approx(under_test.FAREWELL, abs=0.2)


async def test_a_provider_that_does_not_answer_a_goodbye_has_not_failed(tmp_path: Path) -> None:
    """It hangs up when the caller has said goodbye: rude, but no loss of anything."""

    async def session(peer: WebSocket) -> None:
        await peer._read_frame()
        await peer.end("close")

    async with ends(tmp_path, breaker={"failure_threshold": 1}) as both:
        both.serve(session)
        for _ in range(2):
            async with websocket(both.port, PATH) as caller:
                caller.close(1000)
                assert (await caller.closed())[0] == 1011
                assert await caller.ended() == ("close", b"")
            await both.given_back()


@pytest.mark.parametrize("breaks", [True, False])
async def test_only_a_provider_that_vanishes_has_failed(tmp_path: Path, breaks: bool) -> None:
    """Its breaker learns of a session without a goodbye; any close code is a good end."""
    ending: Any = "reset" if breaks else 1013
    breaker = {"failure_threshold": 1, "open_duration": 30}
    async with ends(tmp_path, breaker=breaker) as both:
        both.provider.always(faults.websocket_breaks(1, ending))
        async with websocket(both.port, PATH) as caller:
            caller.send(TEXT, b"x")
            await caller.text()
            assert (await caller.closed())[0] == (1011 if breaks else 1013)
            caller.close(1000)
            await caller.ended()
        await both.given_back()
        assert (await ask(both.port, handshake(PATH))).status == (503 if breaks else 101)


# --- bounds


@pytest.mark.parametrize("sender", ["caller", "provider"])
async def test_too_large_a_frame_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sender: str
) -> None:
    """What came before passes, nothing of the frame does, both sides get 1009."""
    monkeypatch.setattr(under_test, "MAX_FRAME", 1000)
    large = 1001
    codes: list[int] = []

    async def session(peer: WebSocket) -> None:
        if sender == "provider":
            await peer.send("before")
            await peer.send_raw(frame(BINARY, b"x" * 1000) + frame(BINARY, b"x" * large))
        try:
            while True:
                await peer.receive()
        except WebSocketClosed as closed:
            codes.append(closed.code)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            if sender == "caller":
                caller.send(TEXT, b"before")
                caller.send_raw(masked(BINARY, b"x" * 1000) + masked(BINARY, b"x" * large))
            else:
                assert await caller.text() == "before"
                assert len((await caller.receive())[2]) == 1000
            assert await caller.closed() == (1009, "a frame is larger than 1000 bytes")
            caller.close(1009)
            assert await caller.ended() == ("close", b"")
        await both.given_back()
        assert codes == [1009]
        sent = ["before", b"x" * 1000] if sender == "caller" else []
        assert both.attempt.messages == sent


async def test_a_goodbye_is_heard_though_the_other_side_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once nothing is passed any more, nobody is held back for the sake of the slow side."""
    monkeypatch.setattr(under_test, "MAX_FRAME", MIB)
    codes: list[int] = []

    async def session(peer: WebSocket) -> None:
        for _ in range(24):
            await peer.send(b"x" * MIB)
        with contextlib.suppress(WebSocketClosed):
            await peer.receive()
        codes.append(peer.close_code or 0)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            await asyncio.sleep(1)
            assert codes == []
            caller.send(BINARY, b"x" * (MIB + 1))
            await asyncio.sleep(1)
            assert codes == [1009]


async def test_what_a_deaf_provider_does_not_take_is_dropped(tmp_path: Path) -> None:
    """After the caller is gone it is not waited for beyond the farewell."""

    async def session(peer: WebSocket) -> None:
        peer._connection.transport.pause_reading()
        await asyncio.sleep(3600)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            transport = both.towards_provider
            while not transport.get_write_buffer_size():
                caller.send(BINARY, b"x" * 16_384)
                await settled()
        await asyncio.sleep(under_test.FAREWELL - 1)
        assert transport.get_write_buffer_size() > 0
        await asyncio.sleep(2)
        assert transport.get_write_buffer_size() == 0


class Peer:
    """A transport whose peer takes what the test says."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.aborted_at: float | None = None

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.aborted_at = asyncio.get_running_loop().time()


async def test_patience_lasts_as_long_as_there_is_progress() -> None:
    """One byte less in a period is enough; the same number after a whole one is not."""
    peer = Peer(100)
    began = asyncio.get_running_loop().time()
    patience = under_test._Patience(cast("asyncio.Transport", peer))
    await asyncio.sleep(under_test.STALLED - 1)
    for _ in range(5):
        peer.waiting -= 1
        await asyncio.sleep(under_test.STALLED)
    assert peer.aborted_at is None
    await asyncio.sleep(3 * under_test.STALLED)
    assert peer.aborted_at == pytest.approx(began + 6 * under_test.STALLED, abs=1)
    patience.end()
    ended = under_test._Patience(cast("asyncio.Transport", other := Peer(1)))
    ended.end()
    await asyncio.sleep(3 * under_test.STALLED)
    assert other.aborted_at is None


def test_the_bound_of_a_frame() -> None:
    """64 MiB pass, a byte more does not; a head is enough to tell."""
    for more, too_big in ((0, False), (1, True)):
        tracker = FrameTracker(under_test.MAX_FRAME)
        tracker.feed(b"\x82\x7f" + (64 * 2**20 + more).to_bytes(8, "big"))
        assert tracker.too_big is too_big


async def test_a_slow_caller_holds_the_provider_back(tmp_path: Path) -> None:
    """What waits in Steer stays small, and in the end everything arrives in order."""
    pieces = [bytes((number,)) * MIB for number in range(24)]

    async def session(peer: WebSocket) -> None:
        for piece in pieces:
            await peer.send(piece)
        await peer.close(1000)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            await asyncio.sleep(60)
            assert 0 < both.towards_caller.get_write_buffer_size() < MIB
            assert both.attempt.bytes_written < 24 * MIB
            for piece in pieces:
                assert (await caller.receive())[2] == piece
            assert await caller.closed() == (1000, "")


async def test_a_slow_provider_holds_the_caller_back(tmp_path: Path) -> None:
    """The same in the other direction; the goodbye waits its turn."""
    whole = masked(BINARY, b"x" * 24 * MIB)
    go_on = asyncio.Event()

    async def session(peer: WebSocket) -> None:
        peer._connection.transport.pause_reading()
        await go_on.wait()
        peer._connection.transport.resume_reading()
        await peer.receive()
        with pytest.raises(WebSocketClosed):
            await peer.receive()

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            caller.send_raw(whole)
            caller.close(1000, "done")
            await asyncio.sleep(60)
            assert 0 < both.towards_provider.get_write_buffer_size() < MIB
            go_on.set()
            assert await caller.closed() == (1000, "")
        await both.given_back()
        assert both.attempt.messages == [b"x" * 24 * MIB]


async def test_a_caller_that_never_reads_is_cut_off(tmp_path: Path) -> None:
    """Slowness is waited for as long as there is progress; without any, the slot is given back."""
    # Several kernels' buffers full: a sender hears of progress only when much was read.
    large = 4 * MIB

    async def session(peer: WebSocket) -> None:
        for _ in range(12):
            await peer.send(b"x" * large)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            for _ in range(4):
                await asyncio.sleep(0.9 * under_test.STALLED)
                assert len((await caller.receive())[2]) == large
            assert both.provider.open_connections == 1
            await asyncio.sleep(2.1 * under_test.STALLED)
            await both.given_back()


async def test_a_tunnel_keeps_its_slot(tmp_path: Path) -> None:
    """It counts against the upstream's concurrency as long as it lasts, and no longer."""
    async with ends(tmp_path, concurrency={"limit": 1, "queue": 0}) as both:
        async with websocket(both.port, PATH) as caller:
            assert (await ask(both.port, handshake(PATH))).status == 503
            caller.close(1000)
            await caller.closed()
        await both.given_back()
        async with websocket(both.port, PATH):
            pass


async def test_a_drain_says_so(tmp_path: Path) -> None:
    """At the end of the drain both sides get 1001, answer, and are gone in no time."""
    codes: list[int] = []

    async def session(peer: WebSocket) -> None:
        try:
            await peer.receive()
        except WebSocketClosed as closed:
            codes.append(closed.code)

    async with ends(tmp_path) as both:
        both.serve(session)
        async with websocket(both.port, PATH) as caller:
            draining = asyncio.create_task(both.steer.sidecar.drain(3))
            began = both.now()
            assert await caller.closed() == (1001, "Steer is shutting down")
            assert both.now() - began == pytest.approx(3, abs=0.1)
            caller.close(1001)
            assert await caller.ended() == ("close", b"")
            assert await draining is False
            assert both.now() - began < 3.5
        await both.given_back()
        assert codes == [1001]


async def test_a_conversation_that_ends_in_time_is_drained(tmp_path: Path) -> None:
    """Whoever says goodbye during the drain is not cut."""
    async with ends(tmp_path) as both, websocket(both.port, PATH) as caller:
        draining = asyncio.create_task(both.steer.sidecar.drain(3))
        await asyncio.sleep(1)
        caller.send(TEXT, b"bye")
        assert await caller.text() == "bye"
        caller.close(1000)
        assert await caller.closed() == (1000, "")
        assert await draining is True


async def test_stopping_at_once_leaves_nothing(tmp_path: Path) -> None:
    """Without any drain the ends see their connections close, and no task is left."""
    async with Provider() as provider:
        settings = {
            "upstreams": {"tools": {"dialect": "http", "base_url": provider.base_url}},
            "routes": [{"name": "tools", "path": "/tools", "candidates": ["tools"]}],
        }
        async with (
            running(configure(settings, tmp_path)) as steer,
            ExactClient(steer.sidecar.port) as client,
        ):
            got = await client.ask(handshake(PATH))
            caller = RawWebSocket(client, got)
            caller.send(TEXT, b"x")
            await caller.text()
            await steer.sidecar.__aexit__()
            await caller.ended()


# --- what is no WebSocket

NOT_UPGRADES = {
    "another protocol": "GET /tools/x HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n",
    "several": "GET /tools/x HTTP/1.1\r\nUpgrade: h2c, websocket\r\nConnection: Upgrade\r\n",
    "HTTP/1.0": "GET /tools/x HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    "a POST": "POST /tools/x HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    "not connected": "GET /tools/x HTTP/1.1\r\nUpgrade: websocket\r\n",
    "upgraded": "GET /tools/x HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgraded\r\n",
}
UPGRADES = {
    "in a list": "Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n",
    "in lines": "Upgrade: WebSocket\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n",
}


@pytest.mark.parametrize("name", NOT_UPGRADES)
async def test_any_other_upgrade_is_ignored(tmp_path: Path, name: str) -> None:
    """It is an ordinary request, which goes on without the field."""
    rest = f"Host: localhost\r\nSec-WebSocket-Key: {KEY}\r\nContent-Length: 0\r\n\r\n"
    async with ends(tmp_path) as both, ExactClient(both.port) as client:
        client.writer.write((NOT_UPGRADES[name] + rest).encode())
        got = await client.answer("GET")
        assert got.status == 200
        for field in ("upgrade", "connection", "sec-websocket-key"):
            assert both.attempt.header(field) is None
        if got.values("Connection") != ["close"]:
            assert (await client.ask(Asked("GET", "/tools/again"))).status == 200


@pytest.mark.parametrize("name", UPGRADES)
async def test_upgrades_are_recognised(tmp_path: Path, name: str) -> None:
    """Tokens are compared without case, over all lines of `Connection`."""
    rest = f"Host: localhost\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    async with ends(tmp_path) as both, ExactClient(both.port) as client:
        client.writer.write((f"GET {PATH} HTTP/1.1\r\n" + UPGRADES[name] + rest).encode())
        assert (await client.answer("GET")).status == 101


@pytest.mark.parametrize("status", [200, 401, 404, 429, 503])
async def test_a_refused_handshake_leaves_the_connection_usable(
    tmp_path: Path, status: int
) -> None:
    """The refusal passes with its body, and what follows on the connection is HTTP again."""
    async with ends(tmp_path) as both, ExactClient(both.port) as client:
        both.provider.always(faults.status(status, {"why": "not today"}))
        got = await client.ask(handshake(PATH))
        assert (got.status, got.json) == (status, {"why": "not today"})
        both.provider.healthy()
        assert (await client.ask(Asked("GET", "/tools/again"))).status == 200
        assert (await client.ask(handshake(PATH))).status == 101


SWITCHES = {
    "to something else": (("Upgrade", "h2c"), ("Connection", "Upgrade")),
    "without saying to what": (("Connection", "Upgrade"),),
    "without saying so": (("Upgrade", "websocket"),),
}


@pytest.mark.parametrize("name", SWITCHES)
async def test_a_switch_that_is_none(tmp_path: Path, name: str) -> None:
    """An upstream that switches to anything but WebSocket has broken the protocol."""
    async with ends(tmp_path) as both:
        both.provider.always(Answer((Head(101, SWITCHES[name], "none"),)))
        got = await ask(both.port, handshake(PATH))
        assert got.status in (502, 504)
        assert b"protocol" in got.body
        await both.provider.wait_for_connections(0)


async def test_a_switch_nobody_asked_for(tmp_path: Path) -> None:
    """The same after an ordinary request."""
    switch = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
    async with ends(tmp_path) as both:
        both.provider.always(Answer((Head(101, switch, "none"),)))
        assert (await ask(both.port, Asked("GET", "/tools/x"))).status == 502
