from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.reliability.idempotency import (
    IdempotencyManager,
    NotStorableError,
    StoreUnavailableError,
    once_of,
)
from tests.sdk.test_once import Shelf, Worker, asking


async def test_results_live_for_their_time() -> None:
    """`ttl_seconds` after its run has ended, a key is free."""
    once, work = once_of(IdempotencyManager(ttl_seconds=900)), Worker(seconds=100.0)
    await once.run(asking(), work)
    await asyncio.sleep(899.0)
    assert (await once.run(asking(), work)).replayed
    await asyncio.sleep(2.0)
    assert not (await once.run(asking(), work)).replayed
    assert work.made == 2


async def test_the_least_recently_used_make_room() -> None:
    """At most `max_entries` results are kept."""
    manager, work = IdempotencyManager(max_entries=2), Worker()
    once = once_of(manager)
    for key in ("a", "b", "a", "c"):
        await once.run(asking(key=key), work)
    assert work.made == 3
    assert [await manager.get(key) is None for key in ("a", "b", "c")] == [False, True, False]


async def test_a_run_under_way_is_never_forgotten() -> None:
    """However many others come meanwhile."""
    once = once_of(IdempotencyManager(max_entries=1))
    slow, quick = Worker(seconds=10.0), Worker()
    first = asyncio.create_task(once.run(asking(), slow))
    await asyncio.sleep(1.0)
    for n in range(10):
        await once.run(asking(key=f"key-{n}"), quick)
    second = await once.run(asking(), slow)
    assert (second.joined, (await first).value, slow.made) == (True, second.value, 1)


async def test_get_and_store_by_hand() -> None:
    """Any JSON value is kept, and given back as the caller's own."""
    manager = IdempotencyManager()
    value = {"a": [1, "zwei", None]}
    await manager.store("key", value)
    value["a"].append(4)
    found = await manager.get("key")
    assert found == {"a": [1, "zwei", None]}
    found["a"].clear()
    assert await manager.get("key") == {"a": [1, "zwei", None]}
    assert await manager.get("other") is None


async def test_what_is_no_json_is_not_kept() -> None:
    """An error that names the place, and nothing stored."""
    manager = IdempotencyManager()
    with pytest.raises(NotStorableError, match=r"a\[0\] is a set"):
        await manager.store("key", {"a": [{1}]})
    assert await manager.get("key") is None


async def test_a_stored_record_is_json_and_says_what_it_is() -> None:
    """The shape that custom stores hold: it must stay readable for later versions."""
    shelf = Shelf()
    await once_of(shelf).run(asking(), Worker())
    record = json.loads(json.dumps(shelf.held["pay-7"]))
    print_ = record.pop("fingerprint")
    assert record == {"steer": 1, "state": "completed", "value": {"content": "done"}}
    assert len(print_) == 64


async def test_a_fingerprint_stays_what_it_is() -> None:
    """Processes of different versions share a store: equal requests are equal for all of them."""
    shelf = Shelf()
    await once_of(shelf).run(asking({"b": 1, "a": [2.0]}, tool="t"), Worker())
    assert shelf.held["pay-7"]["fingerprint"] == (
        "438b94b1b922ad0800e0b63d843c7079c3051dd94e50486f1e91023aae1837a4"
    )


class Slotted:
    """Cannot be referred to weakly."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    async def get(self, key: str) -> Any:
        await asyncio.sleep(0.01)
        return self.held.get(key)

    async def store(self, key: str, value: Any) -> None:
        self.held[key] = value


@dataclass
class Compared(Shelf):
    """Equal to others, and so without a hash."""

    name: str = ""

    def __post_init__(self) -> None:
        super().__init__()


@dataclass(frozen=True)
class Frozen(IdempotencyManager):
    """A subclass that calls no constructor of ours, and of which nothing can be set."""

    shelf: Shelf

    async def get(self, key: str) -> Any:
        return await self.shelf.get(key)

    async def store(self, key: str, value: Any) -> None:
        await self.shelf.store(key, value)


@pytest.mark.parametrize(
    "make", [IdempotencyManager, Shelf, Slotted, Compared, lambda: Frozen(Shelf())]
)
async def test_orchestrators_that_share_a_manager_share_its_runs(make: Callable[[], Any]) -> None:
    """Of any kind: at the same time, one runs and the other waits."""
    manager = make()
    work = Worker(seconds=1.0)
    both = [once_of(manager).run(asking(), work) for _ in range(2)]
    assert sorted(outcome.joined for outcome in await asyncio.gather(*both)) == [False, True]
    assert work.made == 1


async def test_managers_that_are_equal_are_not_the_same() -> None:
    """Each has its own store."""
    one, other = Compared(), Compared()
    assert one == other
    await once_of(one).run(asking(), Worker())
    assert not (await once_of(other).run(asking(), Worker())).replayed


async def test_a_manager_that_nobody_has_any_more_is_gone() -> None:
    """With the memory of its runs."""
    manager = Shelf()
    await once_of(manager).run(asking(), Worker())
    gone = weakref.ref(manager)
    del manager
    gc.collect()
    assert gone() is None


async def test_what_its_store_did_not_take_is_known_to_its_next_orchestrator() -> None:
    """It is remembered with the manager, whoever asks."""
    shelf, work = Shelf(), Worker()
    shelf.store_fails = 1
    with pytest.raises(StoreUnavailableError):
        await once_of(shelf).run(asking(), work)
    gc.collect()
    assert (await once_of(shelf).run(asking(), work)).replayed
    assert work.made == 1


async def test_a_manager_of_any_kind() -> None:
    """Whatever has both methods will do."""
    assert (await once_of(Slotted()).run(asking(), Worker())).value == {"content": "done"}
    with pytest.raises(InvalidValue, match=r"idempotency_manager: .* has no method get"):
        once_of(object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ttl_seconds": 0}, "ttl_seconds: must be above 0"),
        ({"ttl_seconds": float("inf")}, "ttl_seconds"),
        ({"ttl_seconds": "1"}, "ttl_seconds"),
        ({"max_entries": 0}, "max_entries: must be at least 1"),
        ({"max_entries": 1.5}, "max_entries"),
        ({"join_timeout": -1}, "join_timeout"),
        ({"max_stored": 0}, "max_stored"),
        ({"on_failure": "forget"}, "on_failure: must be release or uncertain, not 'forget'"),
        ({"on_uncertain": "x"}, "on_uncertain: must be fail or rerun"),
        ({"on_store_down": "x"}, "on_store_down: must be fail or open"),
        ({"database_url": ""}, "database_url"),
        ({"database_url": "mysql://x:secret@y/z"}, "database_url: expected sqlite"),
        ({"database_url": "postgres://x"}, "write postgresql://"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    """The error names the argument, and no password."""
    with pytest.raises(InvalidValue, match=message) as caught:
        IdempotencyManager(**arguments)
    assert "secret" not in str(caught.value)
