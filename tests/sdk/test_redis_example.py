"""A custom store written as users write one: two methods over a Redis client, no `super()`."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Optional

import pytest

from steer_llm_sdk.errors import ConflictError
from steer_llm_sdk.reliability.idempotency import (
    IdempotencyManager,
    StoreUnavailableError,
    UncertainOutcomeError,
    once_of,
)
from tests.sdk.test_once import Worker, asking


class FakeRedis:
    """Text by key with a time to live, on the loop's clock; gives bytes, as the client does."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[float, bytes]] = {}
        self.away = False

    async def get(self, name: str) -> bytes | None:
        await self._round_trip()
        expires, value = self.held.get(name, (0.0, b""))
        return value if expires > asyncio.get_running_loop().time() else None

    async def setex(self, name: str, time: int, value: str) -> None:
        await self._round_trip()
        self.held[name] = (asyncio.get_running_loop().time() + time, value.encode())

    async def _round_trip(self) -> None:
        await asyncio.sleep(0.001)
        if self.away:
            raise ConnectionError("Connection refused")


class RedisManager(IdempotencyManager):
    def __init__(self, redis_client: Any) -> None:
        self.redis = redis_client
        self.ttl = 900

    async def get(self, key: str) -> Optional[Any]:  # noqa: UP045 - as many write it
        value = await self.redis.get(f"once:{key}")
        return json.loads(value) if value else None

    async def store(self, key: str, value: Any) -> None:
        await self.redis.setex(f"once:{key}", self.ttl, json.dumps(value))


async def test_results_are_shared_by_way_of_redis() -> None:
    """Another process's manager with the same Redis replays what the first one ran."""
    redis, work = FakeRedis(), Worker({"content": {"total": 12.5}})
    first = await once_of(RedisManager(redis)).run(asking(), work)
    second = await once_of(RedisManager(redis)).run(asking(), work)
    assert first.value == second.value == {"content": {"total": 12.5}}
    assert (second.replayed, work.made) == (True, 1)


async def test_a_conflict_is_seen_across_processes() -> None:
    """The record says what its key is bound to."""
    redis, work = FakeRedis(), Worker()
    await once_of(RedisManager(redis)).run(asking(), work)
    with pytest.raises(ConflictError):
        await once_of(RedisManager(redis)).run(asking("Pay order 8"), work)
    assert work.made == 1


async def test_concurrent_duplicates_of_one_process_run_once() -> None:
    """Which get and store alone could not do."""
    once, work = once_of(RedisManager(FakeRedis())), Worker(seconds=2.0)
    await asyncio.gather(*[once.run(asking(), work) for _ in range(100)])
    assert work.made == 1


async def test_its_own_time_to_live_counts() -> None:
    """When Redis has forgotten, the key is free."""
    once, work = once_of(RedisManager(FakeRedis())), Worker()
    await once.run(asking(), work)
    await asyncio.sleep(901.0)
    await once.run(asking(), work)
    assert work.made == 2


async def test_redis_is_away() -> None:
    """Nothing is run, and the error says why."""
    redis, work = FakeRedis(), Worker()
    redis.away = True
    with pytest.raises(StoreUnavailableError, match="Connection refused"):
        await once_of(RedisManager(redis)).run(asking(), work)
    assert work.made == 0


async def test_what_is_uncertain_is_so_for_other_processes_too() -> None:
    """The mark is stored as well."""
    redis = FakeRedis()
    with pytest.raises(TimeoutError):
        await once_of(RedisManager(redis)).run(asking(), Worker(TimeoutError()))
    with pytest.raises(UncertainOutcomeError):
        await once_of(RedisManager(redis)).run(asking(), Worker())
