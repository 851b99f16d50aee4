"""What is done to a running system: one thing after the other, by seeded dice."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from tests.provider import Provider
from tests.torture.database import Database
from tests.torture.replica import Replica

#: The pause between two faults, in seconds.
PAUSE: Final = (0.2, 0.8)

#: How long a replica is gone, a database or the provider away, in seconds.
AWAY: Final = (0.0, 0.6)
DOWN: Final = (0.3, 3.0)


class Nemesis:
    """Injects faults until it is cancelled, and puts everything right again with `heal`.

    Attributes:
        injected: how often each fault was.
        outages: from when until when the database was away.
    """

    def __init__(
        self,
        dice: random.Random,
        replicas: Sequence[Replica],
        database: Database,
        provider: Provider,
        *,
        lease: float,
        tell: Callable[[str], None],
    ) -> None:
        self._dice = dice
        self._replicas = replicas
        self._database = database
        self._provider = provider
        self._lease = lease
        self._tell = tell
        self.injected: Counter[str] = Counter()
        self.outages: list[tuple[float, float]] = []
        self._leaving: Replica | None = None
        self._halfway: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """One fault after the other, for ever."""
        faults: tuple[tuple[int, Callable[[], Awaitable[None]]], ...] = (
            (5, self._kill),
            (3, self._pause),
            (2, self._database_away),
            (1, self._provider_crashes),
            (1, self._restart),
        )
        weights, actions = zip(*faults, strict=True)
        # Each kind once before chance decides: a short run has them all.
        first = self._dice.sample(actions, len(actions))
        while True:
            await asyncio.sleep(self._dice.uniform(*PAUSE))
            await (first.pop() if first else self._dice.choices(actions, weights)[0])()

    async def heal(self) -> None:
        """Have everything run, and answer."""
        if self._halfway is not None:
            await self._halfway
        for replica in self._replicas:
            replica.send(signal.SIGCONT)
        if self._leaving is not None:
            await self._leaving.kill()
        for replica in self._replicas:
            if not replica.alive:
                await replica.kill()
                replica.start()
        for replica in self._replicas:
            await replica.ready()

    def _note(self, fault: str, more: str) -> None:
        self.injected[fault] += 1
        self._tell(f"{fault} {more}".strip())

    async def _kill(self) -> None:
        replica = self._dice.choice(self._replicas)
        self._note("kill -9", replica.name)
        await replica.kill()
        await asyncio.sleep(self._dice.uniform(*AWAY))
        replica.start()
        await replica.ready()

    async def _restart(self) -> None:
        replica = self._dice.choice(self._replicas)
        self._note("SIGTERM", replica.name)
        self._leaving = replica
        replica.send(signal.SIGTERM)
        await replica.ended()
        self._leaving = None
        replica.start()
        await replica.ready()

    async def _pause(self) -> None:
        replica = self._dice.choice(self._replicas)
        seconds = self._lease * self._dice.uniform(0.5, 2.0)
        self._note("SIGSTOP", f"{replica.name} for {seconds:.1f} s, lease {self._lease:g} s")
        replica.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            replica.send(signal.SIGCONT)

    async def _database_away(self) -> None:
        seconds, hard = self._dice.uniform(*DOWN), self._dice.random() < 0.5
        self._note("database away", f"for {seconds:.1f} s{', hard' if hard else ''}")
        await self._wholly(self._outage(seconds, hard=hard))

    async def _outage(self, seconds: float, *, hard: bool) -> None:
        began = time.monotonic()
        try:
            await self._database.fail(seconds, hard=hard)
        finally:
            self.outages.append((began, time.monotonic()))

    async def _provider_crashes(self) -> None:
        self._note("provider crashes", "")
        await self._wholly(self._crash_provider(self._dice.uniform(*AWAY)))

    async def _crash_provider(self, seconds: float) -> None:
        await self._provider.stop_listening()
        await self._provider.drop_connections()
        await asyncio.sleep(seconds)
        await self._provider.start_listening()

    async def _wholly(self, fault: Coroutine[Any, Any, None]) -> None:
        """A fault that must not end in the middle: when the run does, `heal` waits for it."""
        self._halfway = asyncio.create_task(fault)
        await asyncio.shield(self._halfway)
