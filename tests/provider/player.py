"""Playing an answer: one step after the other, at the loop's pace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.provider import steps
from tests.provider.attempt import Attempt
from tests.provider.framing import Framer
from tests.provider.steps import Answer
from tests.provider.websocket import WebSocket

if TYPE_CHECKING:
    from tests.provider.connection import Connection


async def play(connection: Connection, attempt: Attempt, answer: Answer, framer: Framer) -> None:
    """Play every step. Returns early once the provider itself has ended the connection."""
    player = _Player(connection, attempt, framer)
    for step in answer.steps:
        if await player.step(step):
            return
    await player.flush()


class _Player:
    """Gathers bytes that belong together (a head and its body) into one write.

    An event is always a write of its own, followed by a turn of the loop, so that the peer can
    read it, and can be seen to go, before the next.
    """

    def __init__(self, connection: Connection, attempt: Attempt, framer: Framer) -> None:
        self._connection = connection
        self._attempt = attempt
        self._framer = framer
        self._gathered = bytearray()
        self._pieces = steps.Slowly(0)

    async def step(self, step: steps.Step) -> bool:
        """Play one step; True when it ended the connection."""
        framer = self._framer
        match step:
            case steps.Event():
                self._gathered += framer.data(step.data)
                await self.flush()
                await asyncio.sleep(0)
            case steps.Data():
                self._gathered += framer.data(step.data)
            case steps.Head():
                self._attempt.status = step.status
                self._gathered += framer.head(step)
            case steps.Finish():
                self._gathered += framer.finish()
            case steps.Send():
                self._gathered += step.data
            case steps.Part():
                self._gathered += framer.data(step.data, step.promised)
            case steps.Repeat():
                await self._repeat(step)
            case _:
                return await self._control(step)
        return False

    async def _control(self, step: steps.Control) -> bool:
        await self.flush()
        match step:
            case steps.Pause():
                await asyncio.sleep(step.seconds)
            case steps.Slowly():
                self._pieces = step
            case steps.WaitUntilClosed():
                await asyncio.get_running_loop().create_future()  # cancelled when the peer goes
            case steps.Close():
                self._connection.close()
                return True
            case steps.Reset():
                await self._connection.flush()
                self._connection.reset()
                return True
            case steps.Signal():
                step.event.set()
            case steps.Await():
                await step.event.wait()
            case steps.Upgrade():
                socket = WebSocket(self._connection, self._attempt)
                await step.session(socket)
                self._connection.close()
                return True
        return False

    async def _repeat(self, step: steps.Repeat) -> None:
        await self.flush()
        framed = self._framer.data(step.data)
        for _ in range(step.count):
            self._gathered += framed
            await self.flush()
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Write what was gathered, in pieces when the answer is to come slowly."""
        if not self._gathered:
            return
        data = bytes(self._gathered)
        self._gathered.clear()
        size = self._pieces.size or len(data)
        for start in range(0, len(data), size):
            self._connection.write(self._attempt, data[start : start + size])
            await self._connection.drain()
            if self._pieces.size:
                await asyncio.sleep(self._pieces.pace)
