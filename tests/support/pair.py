"""Two sidecars on one ledger, in front of one provider, in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from steer_proxy.engine.clock import Clock
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import CallRow
from tests.provider import Provider
from tests.support.faulty_ledger import FaultyLedger
from tests.support.sidecar import EPOCH, Running, configure, running
from tests.support.world import World

_BASE = {"openai": "/v1", "anthropic": "", "gemini": "", "http": ""}


def key(value: str = "order-1", **more: str) -> dict[str, str]:
    """The header of a keyed call."""
    return {"Idempotency-Key": value, **{name.replace("_", "-"): more[name] for name in more}}


def virtual_clock() -> Clock:
    """The loop's own time, and a date that passes with it: leases lapse in virtual time."""
    now = asyncio.get_running_loop().time
    return Clock(now=now, wall=lambda: EPOCH + now())


@dataclass
class Replica(World):
    """One of the sidecars, a caller of its own, and its way to the ledger."""

    dialect: str
    primary: Provider
    fallback: Provider
    steer: Running
    session: aiohttp.ClientSession
    faults: FaultyLedger | None
    life: contextlib.AsyncExitStack = field(repr=False)

    @property
    def ledger(self) -> FaultyLedger:
        """Its way to the shared memory ledger, which can be made to fail."""
        assert self.faults is not None
        return self.faults

    async def stop(self, patience: float = 0.0) -> None:
        """Drain it, for so many seconds at most, and end it."""
        await self.steer.sidecar.drain(patience)
        await self.life.aclose()


@dataclass
class Pair:
    """The parties of a test."""

    provider: Provider
    here: Replica
    there: Replica
    memory: MemoryLedger | None

    @property
    def rows(self) -> dict[str, CallRow]:
        """The rows of the shared memory ledger."""
        assert self.memory is not None
        return self.memory.calls

    def records(self, role: str = "owner") -> list[CallRow]:
        """Those of a role, in order."""
        return [row for row in self.rows.values() if row.idem_role == role]


@contextlib.asynccontextmanager
async def pair(
    tmp_path: Path,
    dialect: str = "openai",
    *,
    url: str | None = None,
    route: Mapping[str, Any] | None = None,
    routes: Sequence[Mapping[str, Any]] = ({}, {}),
    upstream: Mapping[str, Any] | None = None,
    database: Sequence[Mapping[str, Any]] = ({}, {}),
    env: Mapping[str, str] = {},
) -> AsyncIterator[Pair]:
    """Two sidecars with a route `/route`, over the database at `url` or a shared memory ledger.

    `database` and `routes` refine those parts of the first one's settings, and of the second one's.
    """
    async with contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(Provider())
        base_url = provider.base_url + _BASE[dialect]
        clock = virtual_clock() if url is None else None
        memory = None if clock is None else MemoryLedger(clock.wall, shared=True)
        replicas = []
        for more, own in zip(database, routes, strict=True):
            settings = {
                "catalogue": False,
                "database": {"url": url or "memory:", **more},
                "upstreams": {
                    "primary": {"dialect": dialect, "base_url": base_url, **(upstream or {})}
                },
                "routes": [
                    {
                        "name": "route",
                        "path": "/route",
                        "candidates": ["primary"],
                        **(route or {}),
                        **own,
                    }
                ],
            }
            config = configure(settings, tmp_path, env)
            life = await stack.enter_async_context(contextlib.AsyncExitStack())
            faulty = None if memory is None else FaultyLedger(memory)
            steer = await life.enter_async_context(running(config, clock, faulty))
            connector = aiohttp.TCPConnector(force_close=True)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            replicas.append(Replica(dialect, provider, provider, steer, session, faulty, life))
        here, there = replicas
        yield Pair(provider, here, there, memory)
