"""Faults of a WebSocket after its handshake; a refused handshake is simply `status(401)`.

These act on the realtime endpoint and on the echo of every other path alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

from tests.provider.choosing import Fault
from tests.provider.faults.rewriting import rewrite
from tests.provider.openai.realtime import Ending, RealtimeSession
from tests.provider.steps import Answer, Step, Upgrade
from tests.provider.websocket import TEXT, WebSocket, WebSocketClosed, frame


def websocket_session(session: Callable[[WebSocket], Awaitable[None]]) -> Fault:
    """The handshake as usual, then any session."""

    def change(answer: Answer) -> Answer:
        return Answer(
            tuple(
                replace(step, session=session) if isinstance(step, Upgrade) else step
                for step in answer.steps
            )
        )

    return rewrite("another WebSocket session", change)


def websocket_breaks(after_events: int, ending: Ending = "reset") -> Fault:
    """The session ends after so many messages of the provider.

    `ending` is "reset" or "close" (of the TCP connection), or the code of a close frame.
    """

    def broken(step: Step) -> Step:
        if not isinstance(step, Upgrade):
            return step
        if isinstance(step.session, RealtimeSession):
            return Upgrade(step.session.breaking(after_events, ending))
        return Upgrade(_breaking_echo(after_events, ending))

    def change(answer: Answer) -> Answer:
        return Answer(tuple(broken(step) for step in answer.steps))

    return rewrite(f"WebSocket breaks after {after_events} by {ending}", change)


def _breaking_echo(after_events: int, ending: Ending) -> Callable[[WebSocket], Awaitable[None]]:
    async def session(socket: WebSocket) -> None:
        try:
            for _ in range(after_events):
                await socket.send(await socket.receive())
        except WebSocketClosed:
            return
        if isinstance(ending, int):
            await socket.close(ending, "scripted")
        else:
            await socket.end(ending)

    return session


def websocket_cut_frame(how: Literal["reset", "close"] = "reset") -> Fault:
    """The first message of the provider is cut in the middle of its frame."""

    async def session(socket: WebSocket) -> None:
        whole = frame(TEXT, b'{"type":"session.created","event_id":"event_0001"}')
        await socket.send_raw(whole[: len(whole) // 2])
        await socket.end(how)

    return websocket_session(session)
