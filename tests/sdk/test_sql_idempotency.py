from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.errors import ConflictError, RunTimeout, ToolExecutionError
from steer_llm_sdk.orchestration import OrchestrationConfig
from steer_llm_sdk.reliability import open_ledger
from steer_llm_sdk.reliability.idempotency import (
    IdempotencyManager,
    JoinedRunFailedError,
    KeyInProgressError,
    NotStorableError,
    ResultNotStoredError,
    StoreUnavailableError,
    UncertainOutcomeError,
    once_of,
)
from steer_llm_sdk.reliability.in_sql import SqlOnce
from steer_llm_sdk.reliability.once import Caller, Terms
from steer_policies.idempotency import Move, OnLedgerDown, OnUncertain
from steer_policies.trace_context import trace_id_from
from steer_proxy.ledger import batcher, migrate
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import CallRow
from tests.sdk.stubs import Scripted, lasting, reliable, unwell
from tests.sdk.test_once import Told, Worker, asking, unheard_loop
from tests.support.books import a_clock
from tests.support.faulty_ledger import FaultyLedger
from tests.support.postgres import Server
from tests.support.sidecar import configure, running

ROOT = Path(__file__).parents[2]

EMPTY_DIGEST = hashlib.sha256().hexdigest()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A SQLite file of the test's own."""
    return f"sqlite:///{tmp_path / 'steer.db'}"


def rows(tmp_path: Path, columns: str, where: str = "1") -> list[tuple[Any, ...]]:
    """What the file holds, oldest first."""
    with contextlib.closing(sqlite3.connect(tmp_path / "steer.db")) as connection:
        statement = f"SELECT {columns} FROM requests WHERE {where} ORDER BY started_us, id"
        return connection.execute(statement).fetchall()


# --- A file ---------------------------------------------------------------------------------------


async def test_a_result_outlives_its_manager(url: str) -> None:
    """Another manager, as after a restart, replays it; another request is a conflict."""
    work = Worker({"content": {"a": [1, None, "ä"]}})
    async with IdempotencyManager(database_url=url) as manager:
        first = await once_of(manager).run(asking(), work)
    async with IdempotencyManager(database_url=url) as manager:
        second = await once_of(manager).run(asking(), work)
        with pytest.raises(ConflictError, match="pay-7"):
            await once_of(manager).run(asking("Pay order 8"), work)
        with pytest.raises(ConflictError):
            await once_of(manager).run(asking(tool="payments"), work)
    assert (second.value, second.replayed, work.made) == (first.value, True, 1)


async def test_a_hundred_at_once_are_one_run(url: str, tmp_path: Path) -> None:
    """One execution, one owner, ninety-nine rows that point to it."""
    work = Worker(seconds=5.0)
    async with IdempotencyManager(database_url=url) as manager:
        once = once_of(manager)
        outcomes = await asyncio.gather(*[once.run(asking(), work) for _ in range(100)])
    assert work.made == 1
    assert {outcome.value["content"] for outcome in outcomes} == {"done"}
    owner, *others = rows(tmp_path, "id, idem_role, served_from, status")
    assert owner[1:] == ("owner", None, 200)
    assert len(others) == 99
    assert {row[1:] for row in others} == {("joined", owner[0], 200)}


async def test_a_runs_row(url: str, tmp_path: Path) -> None:
    """It has what a sidecar's has, where a run knows it."""
    output = {
        "content": "x" * 300,
        "cost_usd": 0.0125,
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        "metadata": {"tool_name": "analysis", "matched_rule": "cheap", "retry_attempts": 2},
    }
    caller = Caller("req-1", "trace-1", "analysis", {"team": "search"})
    async with IdempotencyManager(database_url=url, ttl_seconds=60) as manager:
        for _ in range(2):
            await once_of(manager).run(asking(), Worker(output, seconds=2.0), caller=caller)
    names = CallRow._fields
    owner, replay = (dict(zip(names, row, strict=True)) for row in rows(tmp_path, ", ".join(names)))
    known = {
        "request_id": "req-1", "trace_id": trace_id_from("trace-1"), "labels": '{"team": "search"}',
        "route": "sdk", "dialect": "python", "operation": "analysis", "method": "RUN",
        "stream": 0, "status": 200, "outcome": "ok", "upstream": "analysis", "rule": "cheap",
        "attempts": 2, "tokens_in": 10, "tokens_out": 5, "cost_nusd": 12_500_000,
        "cost_source": "reported", "idem_key": "pay-7", "idem_role": "owner",
        "idem_state": "completed", "idem_live": 1, "idem_epoch": 1, "resp_chunks": 1,
    }  # fmt: skip
    assert {name: owner[name] for name in known} == known
    assert owner["duration_us"] == pytest.approx(2_000_000, abs=50_000)
    assert owner["expires_us"] - owner["ended_us"] == 60_000_000
    assert owner["sent_us"] >= owner["started_us"]
    assert (replay["idem_role"], replay["served_from"]) == ("replayed", owner["id"])
    assert (replay["avoided_nusd"], replay["attempts"]) == (12_500_000, 0)
    assert (replay["idem_scope"], replay["idem_live"]) == (owner["idem_scope"], None)


async def test_results_of_any_size(url: str) -> None:
    """Beyond a chunk, and beyond a page of chunks."""
    async with IdempotencyManager(database_url=url) as manager:
        for size in (0, 64 * 1024, 3 * 2**20):
            value = {"content": "ü" * (size // 2)}
            key = f"key-{size}"
            await once_of(manager).run(asking(key=key), Worker(value))
            assert (await once_of(manager).run(asking(key=key), Worker())).value == value


async def test_a_failure_frees_the_key(url: str, tmp_path: Path) -> None:
    """Its row says how it ended; the next run is a row of its own."""
    work = Worker(ToolExecutionError("no"), {"content": 2})
    async with IdempotencyManager(database_url=url) as manager:
        with pytest.raises(ToolExecutionError):
            await once_of(manager).run(asking(), work)
        assert (await once_of(manager).run(asking(), work)).value == {"content": 2}
    assert rows(tmp_path, "idem_state, idem_live, outcome, error_class") == [
        ("released", None, "upstream_5xx", "ToolExecutionError"),
        ("completed", 1, "ok", None),
    ]


def attempts(tmp_path: Path, columns: str) -> list[tuple[Any, ...]]:
    """The attempts that the file holds, in their order."""
    with contextlib.closing(sqlite3.connect(tmp_path / "steer.db")) as connection:
        statement = (
            f"SELECT {columns} FROM attempts AS a JOIN requests AS r ON r.id = a.request "
            "ORDER BY r.started_us, a.n"
        )
        return connection.execute(statement).fetchall()


async def test_the_rows_of_attempts(url: str, tmp_path: Path) -> None:
    """Each has its own, retries and fallbacks too, with what its tool said it cost."""
    paid = {"usage": {"prompt_tokens": 7, "completion_tokens": 2}, "cost_usd": 0.5}
    tool = Scripted("tool", unwell(503), unwell(429, retry_after=3.0), unwell(401))
    spare = Scripted("spare", lasting(2.0, paid))
    async with IdempotencyManager(database_url=url) as manager:
        runs = reliable(tool, spare, manager=manager)
        for _ in range(2):  # a duplicate has none
            await runs.run("go", options=OrchestrationConfig(idempotency_key="a"))
        tool.script = [TimeoutError()]
        with pytest.raises(ToolExecutionError):
            await runs.run("go", options=OrchestrationConfig(idempotency_key="b"))
        tool.script = [lasting(60.0)]
        with pytest.raises(RunTimeout):
            await runs.run("go", options=OrchestrationConfig(idempotency_key="c", timeout_ms=500))
    what = "n, a.upstream, a.status, a.outcome, a.failure_class, a.executed, a.wasted"
    assert attempts(tmp_path, what) == [
        (1, "tool", 503, "upstream_5xx", "overloaded", "no", 0),
        (2, "tool", 429, "throttled", "throttled", "no", 0),
        (3, "tool", 401, "client_4xx", "credential", "no", 0),
        (4, "spare", None, "ok", None, "yes", 0),
        (1, "tool", None, "timeout", "first_byte_timeout", "maybe", 1),
        (1, "tool", None, "cancelled", "cancelled", "maybe", 1),
    ]
    cost = "a.wait_source, a.wait_us, a.tokens_in, a.tokens_out, a.cost_nusd, a.duration_us"
    first, second, third, fourth, *_ = attempts(tmp_path, cost)
    assert first[:5] == ("none", 0, None, None, None)
    assert second[:2] == ("backoff", 1_000_000)
    assert third[0] == "retry_after"
    assert 3_000_000 <= third[1] <= 3_300_000
    assert fourth[:5] == ("none", 0, 7, 2, 500_000_000)
    assert fourth[5] == pytest.approx(2_000_000, abs=50_000)
    run = "upstream, attempts, ambiguous, outcome, error_class"
    assert rows(tmp_path, run) == [
        ("spare", 4, 0, "ok", None),
        (None, 0, 0, "ok", None),
        ("tool", 1, 1, "timeout", "first_byte_timeout"),
        ("tool", 1, 1, "cancelled", "CancelledError"),
    ]
    with contextlib.closing(sqlite3.connect(tmp_path / "steer.db")) as connection:
        wasted = connection.execute("SELECT upstream, failure_class FROM v_wasted").fetchall()
        health = connection.execute("SELECT upstream, attempts, ok FROM v_upstream_health")
        assert sorted(wasted) == [("tool", "cancelled"), ("tool", "first_byte_timeout")]
        assert sorted(health.fetchall()) == [("spare", 1, 1), ("tool", 5, 0)]


async def test_a_failure_that_may_have_had_an_effect(url: str, tmp_path: Path) -> None:
    """It keeps the key, as a call through a sidecar does; `on_failure="release"` frees it."""
    async with IdempotencyManager(database_url=url) as manager:
        with pytest.raises(RuntimeError):
            await once_of(manager).run(asking(), Worker(RuntimeError("no")))
        with pytest.raises(UncertainOutcomeError, match="steer ledger resolve"):
            await once_of(manager).run(asking(), Worker())
    work = Worker(RuntimeError("no"), {"content": 2})
    async with IdempotencyManager(database_url=url, on_failure="release") as manager:
        with pytest.raises(RuntimeError):
            await once_of(manager).run(asking(key="free"), work)
        assert (await once_of(manager).run(asking(key="free"), work)).value == {"content": 2}
    assert rows(tmp_path, "idem_state, outcome") == [
        ("uncertain", "upstream_5xx"),
        ("released", "upstream_5xx"),
        ("completed", "ok"),
    ]


async def test_labels_are_told_as_far_as_they_can_be(url: str, tmp_path: Path) -> None:
    """Half a surrogate pair is no reason to refuse a run: PostgreSQL would take no such label."""
    caller = Caller(labels={"team\ud800": "a\udc00b"})
    async with IdempotencyManager(database_url=url) as manager:
        await once_of(manager).run(asking(), Worker(), caller=caller)
    assert rows(tmp_path, "labels") == [('{"team?": "a?b"}',)]


@pytest.mark.real_time
@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_first_run_that_is_cut_off_does_not_keep_the_file_locked(
    url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being opened is everybody's: it is opened to the end, or let go of."""
    monkeypatch.setattr(batcher, "STATEMENT_TIMEOUT", 60.0)
    upgrade, begun, gate = migrate.upgrade, threading.Event(), threading.Event()

    def slow(where: str) -> None:
        begun.set()
        assert gate.wait(30)
        upgrade(where)

    monkeypatch.setattr(migrate, "upgrade", slow)
    work, manager = Worker(), IdempotencyManager(database_url=url)
    first = asyncio.create_task(once_of(manager).run(asking(), work))
    assert await asyncio.to_thread(begun.wait, 30)
    first.cancel()
    await asyncio.wait((first,), timeout=20)
    assert first.cancelled()
    closing = asyncio.create_task(manager.close()) if how == "closed" else None
    await asyncio.sleep(0)
    gate.set()
    if closing is not None:
        await closing
    async with IdempotencyManager(database_url=url) as another:
        assert not (await once_of(another).run(asking(), work)).replayed
    await manager.close()
    assert work.made == 1


async def test_a_cancelled_run_is_uncertain(url: str, tmp_path: Path) -> None:
    """For this process, and for later ones; a sidecar's command can settle it."""
    work = Worker(seconds=100.0)
    async with IdempotencyManager(database_url=url) as manager:
        run = asyncio.create_task(once_of(manager).run(asking(), work))
        await work.begun()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        with pytest.raises(UncertainOutcomeError, match="steer ledger resolve"):
            await once_of(manager).run(asking(), work)
    async with IdempotencyManager(database_url=url) as manager:
        with pytest.raises(UncertainOutcomeError):
            await once_of(manager).run(asking(), work)
    async with IdempotencyManager(database_url=url, on_uncertain="rerun") as manager:
        assert (await once_of(manager).run(asking(), Worker())).value == {"content": "done"}
    assert work.made == work.cut == 1
    assert rows(tmp_path, "idem_state, idem_live, outcome, idem_epoch") == [
        ("uncertain", None, "cancelled", 1),
        ("completed", 1, "ok", 2),
    ]


async def test_closing_ends_what_runs(url: str, tmp_path: Path) -> None:
    """The record is uncertain, and who waits is told."""
    async with IdempotencyManager(database_url=url) as manager:
        work = Worker(seconds=100.0)
        run = asyncio.create_task(once_of(manager).run(asking(), work))
        await work.begun()
    with pytest.raises(UncertainOutcomeError):
        await run
    assert rows(tmp_path, "idem_state") == [("uncertain",)]


async def test_a_result_that_is_not_json(url: str, tmp_path: Path) -> None:
    """An error at once; the key is used, without a result."""
    work = Worker({"content": {1}})
    async with IdempotencyManager(database_url=url) as manager:
        with pytest.raises(NotStorableError, match="content is a set"):
            await once_of(manager).run(asking(), work)
        with pytest.raises(ResultNotStoredError):
            await once_of(manager).run(asking(), work)
    assert work.made == 1
    assert rows(tmp_path, "idem_state, resp_chunks") == [("completed", None)]


async def test_results_can_be_encrypted(url: str, tmp_path: Path) -> None:
    """With the first key of a ring; without the key, the result is not given, and nothing runs."""
    work = Worker({"content": "a secret of state" * 20})
    ring = (("k1", b"1" * 32),)
    async with IdempotencyManager(database_url=url, encryption=ring) as manager:
        await once_of(manager).run(asking(), work)
    assert b"secret of state" not in (tmp_path / "steer.db").read_bytes()
    async with IdempotencyManager(database_url=url, encryption=ring) as manager:
        assert (await once_of(manager).run(asking(), work)).replayed
    async with IdempotencyManager(database_url=url) as manager:
        with pytest.raises(ResultNotStoredError, match="cannot be read"):
            await once_of(manager).run(asking(), work)
    assert work.made == 1


@pytest.mark.parametrize(
    "changes",
    [
        [
            "UPDATE requests SET idem_live = NULL WHERE idem_key = 'mine'",
            """UPDATE requests SET idem_scope = mine.idem_scope, idem_fp = mine.idem_fp
            FROM (SELECT * FROM requests WHERE idem_key = 'mine') AS mine
            WHERE requests.idem_key = 'theirs'""",
        ],
        [f"UPDATE requests SET resp_chunks = 0, resp_bytes = 0, resp_sha256 = '{EMPTY_DIGEST}'"],
    ],
    ids=["whose", "cut short"],
)
async def test_who_has_no_key_cannot_change_a_record(
    url: str, tmp_path: Path, changes: list[str]
) -> None:
    """Whoever writes the database gives nobody the result of another key, nor a part of one."""
    ring, work = (("k1", b"1" * 32),), Worker()
    async with IdempotencyManager(database_url=url, encryption=ring) as manager:
        for name in ("mine", "theirs"):
            await once_of(manager).run(asking(key=name), work)
    with contextlib.closing(sqlite3.connect(tmp_path / "steer.db")) as connection, connection:
        for change in changes:
            connection.execute(change)
    async with IdempotencyManager(database_url=url, encryption=ring) as manager:
        with pytest.raises(ResultNotStoredError, match="its record is not what it was"):
            await once_of(manager).run(asking(key="mine"), work)
    assert work.made == 2


@pytest.mark.parametrize("turns", range(6))
async def test_closed_while_it_opens(url: str, tmp_path: Path, turns: int) -> None:
    """Whoever gave up at whatever moment, nothing stays open."""
    manager = IdempotencyManager(database_url=url)
    run = asyncio.ensure_future(once_of(manager).run(asking(), Worker()))
    for _ in range(turns):
        await asyncio.sleep(0)
    run.cancel()
    await manager.close()
    await asyncio.wait((run,))
    assert len(asyncio.all_tasks()) == 1
    async with IdempotencyManager(database_url=url) as other:
        await once_of(other).run(asking(), Worker())


async def test_get_and_store_by_hand(url: str) -> None:
    """Values come back as they were; of a run, its record."""
    async with IdempotencyManager(database_url=url) as manager:
        await manager.store("by hand", {"a": [1]})
        assert await manager.get("by hand") == {"a": [1]}
        await once_of(manager).run(asking(), Worker())
        record = await manager.get("pay-7")
        assert (record["state"], record["value"]) == ("completed", {"content": "done"})
        assert await manager.get("other") is None
        with pytest.raises(ConflictError):
            await manager.store("by hand", {"a": [2]})


async def test_a_subclass_may_build_on_the_ledgers_get_and_store(url: str) -> None:
    """One that overrides them and calls `super`: its records are kept as it gives them."""

    class Watching(IdempotencyManager):
        asked = 0

        async def get(self, key: str) -> Any:
            self.asked += 1
            return await super().get(key)

    work = Worker()
    for replayed in (False, True):
        async with Watching(database_url=url) as manager:
            assert (await once_of(manager).run(asking(), work)).replayed is replayed
            assert manager.asked == 1
    assert work.made == 1


# --- One writer -----------------------------------------------------------------------------------


async def test_a_file_that_a_sidecar_writes(url: str, tmp_path: Path) -> None:
    """A clear error that names PostgreSQL; nothing is run."""
    work, told = Worker(), Told()
    settings = {"database": {"url": url}, "routes": [], "upstreams": {}}
    async with (
        running(configure(settings, tmp_path)),
        IdempotencyManager(database_url=url, on_store_down="open") as manager,
    ):
        with pytest.raises(StoreUnavailableError, match=r"one writer.*share PostgreSQL"):
            await once_of(manager).run(asking(), work, tell=told)
    assert work.made == 0
    assert [kind for kind, _ in told.events] == ["idempotency_store_unavailable"]


async def test_rows_of_both_in_one_file(url: str, tmp_path: Path) -> None:
    """A sidecar that comes after finds the runs among its calls, and keeps them."""
    async with IdempotencyManager(database_url=url) as manager:
        await once_of(manager).run(asking(), Worker())
    settings = {"database": {"url": url}, "routes": [], "upstreams": {}}
    async with running(configure(settings, tmp_path)):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "steer.db")) as connection:
        found = connection.execute("SELECT route, state FROM v_idempotency").fetchall()
    assert found == [("sdk", "completed")]


async def test_managers_of_one_process_share_a_file(url: str) -> None:
    """They know each other's runs, and the file is open as long as one of them is."""
    work = Worker(seconds=5.0)
    one, other = IdempotencyManager(database_url=url), IdempotencyManager(database_url=url)
    outcomes = await asyncio.gather(
        once_of(one).run(asking(), work), once_of(other).run(asking(), work)
    )
    assert sorted(outcome.joined for outcome in outcomes) == [False, True]
    await one.close()
    assert (await once_of(other).run(asking(), work)).replayed
    await other.close()
    assert work.made == 1
    async with IdempotencyManager(database_url=url) as another:
        assert (await once_of(another).run(asking(), work)).replayed


async def test_managers_that_were_not_closed(url: str) -> None:
    """One for each request: the next one goes on with the file, which its loop's end closes."""
    work = Worker()
    for replayed in (False, True, True):
        manager = IdempotencyManager(database_url=url)
        assert (await once_of(manager).run(asking(), work)).replayed is replayed
        del manager
        gc.collect()
    async with IdempotencyManager(database_url=url) as last:
        assert (await once_of(last).run(asking(), work)).replayed
    assert work.made == 1


async def test_one_file_with_different_keys(url: str) -> None:
    """The error says who has it, and what to do; closed, it may be opened with others."""
    ring = (("k1", b"1" * 32),)
    async with IdempotencyManager(database_url=url) as manager:
        await once_of(manager).run(asking(), Worker())
        async with IdempotencyManager(database_url=url, encryption=ring) as other:
            with pytest.raises(StoreUnavailableError, match=r"of this process.*same encryption"):
                await once_of(other).run(asking(), Worker())
            await manager.close()
            assert (await once_of(other).run(asking(), Worker())).replayed


def test_a_file_and_two_loops_at_a_time(url: str) -> None:
    """The error does not ask for another manager, which would not help."""
    one, other = IdempotencyManager(database_url=url), IdempotencyManager(database_url=url)

    async def use(manager: IdempotencyManager) -> None:
        await once_of(manager).run(asking(), Worker())

    async def hold(opened: threading.Event, ended: threading.Event) -> None:
        async with one:
            await use(one)
            opened.set()
            await asyncio.to_thread(ended.wait, 60.0)

    opened, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(hold(opened, ended)))
    thread.start()
    try:
        assert opened.wait(60.0)
        with pytest.raises(StoreUnavailableError, match=r"one event loop at a time.*PostgreSQL"):
            asyncio.run(use(other))
        with pytest.raises(StoreUnavailableError, match="close it there"):
            asyncio.run(one.close())
    finally:
        ended.set()
        thread.join()
    asyncio.run(use(other))


# --- Life -----------------------------------------------------------------------------------------


def test_loops_in_sequence_without_closing(url: str) -> None:
    """A loop's end closes the file in order: the next loop opens it, and so may another process."""
    manager, work = IdempotencyManager(database_url=url), Worker()

    async def use() -> bool:
        return (await once_of(manager).run(asking(), work)).replayed

    assert [asyncio.run(use()) for _ in range(3)] == [False, True, True]
    assert work.made == 1

    async def another() -> bool:
        async with IdempotencyManager(database_url=url) as other:
            return (await once_of(other).run(asking(), work)).replayed

    assert asyncio.run(another())


def test_a_loop_that_ended_without_a_word(url: str) -> None:
    """Its file is let go of by the next one that asks."""
    manager, work = IdempotencyManager(database_url=url), Worker()

    async def use() -> bool:
        return (await once_of(manager).run(asking(), work)).replayed

    loop = asyncio.new_event_loop()
    assert not loop.run_until_complete(use())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert asyncio.run(use_and_close(manager, use))


async def use_and_close(manager: IdempotencyManager, use: Callable[[], Any]) -> bool:
    """In a loop of its own."""
    async with manager:
        return bool(await use())


def test_closing_after_a_loop_that_left_a_run_behind(url: str, tmp_path: Path) -> None:
    """The file is let go of; what ran is uncertain."""
    manager, work = IdempotencyManager(database_url=url), Worker(seconds=100.0)
    loop = unheard_loop()
    run = loop.create_task(once_of(manager).run(asking(), work))
    loop.run_until_complete(work.begun())
    assert not run.done()
    loop.close()
    asyncio.run(manager.close())

    async def another() -> None:
        async with IdempotencyManager(database_url=url) as other:
            await once_of(other).run(asking(), Worker())

    with pytest.raises(UncertainOutcomeError):
        asyncio.run(another())
    assert work.made == 1


def test_a_run_cut_off_by_its_loops_end_is_uncertain(url: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run: what is left says so."""
    manager, work = IdempotencyManager(database_url=url), Worker(seconds=100.0)

    async def use() -> None:
        task = asyncio.create_task(once_of(manager).run(asking(), work))
        await work.begun()
        assert not task.done()

    asyncio.run(use())
    assert work.cut == 1
    assert rows(tmp_path, "idem_state, idem_live") == [("uncertain", 1)]


async def test_closed_and_used_again(url: str) -> None:
    """A manager opens anew when it is needed; closing twice is no harm."""
    manager, work = IdempotencyManager(database_url=url), Worker()
    for _ in range(2):
        await once_of(manager).run(asking(), work)
        await manager.close()
        await manager.close()
    assert work.made == 1


# --- A ledger that fails, and other processes -----------------------------------------------------


class World:
    """Processes over one ledger that says it is shared, in virtual time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = a_clock()
        self.memory = MemoryLedger(self.clock.wall, shared=True)
        self.faulty: list[FaultyLedger] = []
        self._onces: list[SqlOnce] = []
        monkeypatch.setattr(open_ledger, "open_ledger", self._open)

    def _open(self, _: str, __: object) -> FaultyLedger:
        ledger = FaultyLedger(self.memory)
        self.faulty.append(ledger)
        return ledger

    def process(self, **terms: Any) -> SqlOnce:
        """Another process's manager."""
        once = SqlOnce("postgresql://none/none", Terms(**terms), clock=self.clock)
        self._onces.append(once)
        return once

    @property
    def states(self) -> list[str | None]:
        """The records' states, oldest first."""
        calls = self.memory.calls.values()
        return [row.idem_state for row in calls if row.idem_role == "owner"]

    async def close(self) -> None:
        for once in self._onces:
            await once.close()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Makes the world of a test; in its loop."""

    @contextlib.asynccontextmanager
    async def made() -> AsyncIterator[World]:
        world = World(monkeypatch)
        try:
            yield world
        finally:
            await world.close()

    return made


async def test_another_process_waits_for_the_run(processes: Callable[[], Any]) -> None:
    """And is given its result; one that comes later replays it."""
    async with processes() as world:
        work, one, other = Worker(seconds=30.0), world.process(), world.process()
        first = asyncio.create_task(one.run(asking(), work))
        await asyncio.sleep(1.0)
        second = await other.run(asking(), work)
        assert (second.joined, second.value) == (True, (await first).value)
        assert (await other.run(asking(), work)).replayed
        assert work.made == 1


async def test_a_run_that_fails_elsewhere(processes: Callable[[], Any]) -> None:
    """Who joined it is told so, and does not run it; the next run does."""
    async with processes() as world:
        work = Worker(ToolExecutionError("no"), seconds=5.0)
        one, other = world.process(), world.process()
        first = asyncio.create_task(one.run(asking(), work))
        await asyncio.sleep(1.0)
        with pytest.raises(JoinedRunFailedError, match="of another process, has failed"):
            await other.run(asking(), work)
        with pytest.raises(ToolExecutionError, match="no"):
            await first
        assert work.made == 1
        assert (await other.run(asking(), Worker())).value == {"content": "done"}


async def test_a_process_that_dies(processes: Callable[[], Any]) -> None:
    """Its run may have been executed: uncertain, once its lease is over; run again by choice."""
    async with processes() as world:
        work, dead, other = Worker(seconds=1000.0), world.process(), world.process()
        run = asyncio.create_task(dead.run(asking(), work))
        await asyncio.sleep(1.0)
        world.faulty[0].down()  # from now on nothing is heard of it
        with pytest.raises(UncertainOutcomeError):
            await other.run(asking(), Worker())
        again = world.process(on_uncertain=OnUncertain.RERUN)
        assert (await again.run(asking(), Worker())).value == {"content": "done"}
        assert world.states == ["sent", "completed"]
        world.faulty[0].up()
        # It finds out that it has lost the key, and stops.
        with pytest.raises(UncertainOutcomeError, match=r"taken .* over"):
            await run
        assert work.cut == 1


async def test_an_outage_makes_nobody_dead(processes: Callable[[], Any]) -> None:
    """Whoever has the ledger back first waits for the other, whose lease is over as well."""
    async with processes() as world:
        work, one = Worker(seconds=40.0), world.process()
        other = world.process(on_uncertain=OnUncertain.RERUN)
        first = asyncio.create_task(one.run(asking(), work))
        await asyncio.sleep(1.0)
        waiting = asyncio.create_task(other.run(asking(), work))
        await asyncio.sleep(1.0)
        for ledger in world.faulty:
            ledger.down()
        await asyncio.sleep(20.0)
        world.faulty[1].up()
        await asyncio.sleep(4.0)
        world.faulty[0].up()
        assert (await waiting).joined
        assert (await first).value == {"content": "done"}
        assert work.made == 1


@pytest.mark.parametrize("move", [Move.REOPEN, Move.SETTLE])
async def test_a_key_that_a_person_settled_meanwhile(
    processes: Callable[[], Any], move: Move
) -> None:
    """Nobody else has the key: the run goes on, and its result is given, though not kept."""
    async with processes() as world:
        work, one = Worker(seconds=1000.0), world.process()
        run = asyncio.create_task(one.run(asking(), work))
        await asyncio.sleep(1.0)
        world.faulty[0].down()
        await asyncio.sleep(60.0)
        (row,) = world.memory.calls.values()
        assert await world.memory.settle(row.id, move)
        world.faulty[0].up()
        outcome = await run
        assert (outcome.value, outcome.stored) == ({"content": "done"}, False)
        assert (work.made, work.cut) == (1, 0)


async def test_a_process_that_dies_before_it_began(processes: Callable[[], Any]) -> None:
    """Nothing was executed for a record that is only claimed: the key is taken over."""
    async with processes() as world:
        one = world.process()
        await one.run(asking(), Worker())
        (row,) = world.memory.calls.values()
        claimed = row._replace(
            idem_state="claimed", owner_id="dead", sent_us=None, resp_chunks=None
        )
        world.memory.calls[row.id] = claimed
        assert (await one.run(asking(), Worker({"content": 2}))).value == {"content": 2}
        assert world.states == ["released", "completed"]


async def test_waiting_for_another_process_has_a_bound(processes: Callable[[], Any]) -> None:
    """The manager's, or the caller's own; then nothing is left waiting."""
    async with processes() as world:
        work, one, other = Worker(seconds=500.0), world.process(), world.process(join_timeout=20.0)
        first = asyncio.create_task(one.run(asking(), work))
        await asyncio.sleep(1.0)
        with pytest.raises(KeyInProgressError, match="more than 20 s"):
            await other.run(asking(), work)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await other.run(asking(), work)
        assert (await first).value == {"content": "done"}
        assert work.made == 1


async def test_a_ledger_that_is_down(processes: Callable[[], Any]) -> None:
    """Nothing is run, and an event tells; it is used again when it is back."""
    async with processes() as world:
        once, work, told = world.process(), Worker(), Told()
        await once.run(asking(key="first"), Worker())
        world.faulty[0].down()
        with pytest.raises(StoreUnavailableError, match="Nothing was run") as caught:
            await once.run(asking(), work, tell=told)
        assert not caught.value.executed
        assert told.events[0][1]["policy"] == "fail"
        assert work.made == 0
        world.faulty[0].up()
        await once.run(asking(), work)
        assert work.made == 1


async def test_a_ledger_that_is_down_from_the_start(processes: Callable[[], Any]) -> None:
    """The same, before its secret was ever read."""
    async with processes() as world:
        for policy, made in ((OnLedgerDown.FAIL, 0), (OnLedgerDown.OPEN, 1)):
            once, work, told = world.process(on_store_down=policy), Worker(), Told()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(MemoryLedger, "secret", None)
                patch.setattr(FaultyLedger, "open", _refusing)
                patch.setattr(FaultyLedger, "renew", _refusing)
                with contextlib.suppress(StoreUnavailableError):
                    assert not (await once.run(asking(), work, tell=told)).stored
            assert work.made == made
            assert told.events


async def _refusing(*_: object) -> Any:
    from steer_proxy.ledger.protocol import LedgerUnavailable

    raise LedgerUnavailable("no route to host")


async def test_by_policy_a_run_goes_on_without_the_ledger(processes: Callable[[], Any]) -> None:
    """`on_store_down="open"`: it says that it is not stored."""
    async with processes() as world:
        once, work, told = world.process(on_store_down=OnLedgerDown.OPEN), Worker(), Told()
        await once.run(asking(key="first"), Worker())
        world.faulty[0].down()
        outcome = await once.run(asking(), work, tell=told)
        assert (outcome.value, outcome.stored) == ({"content": "done"}, False)
        assert told.events


async def test_a_result_that_cannot_be_committed_now(processes: Callable[[], Any]) -> None:
    """The error holds it; it is committed when the ledger is back, and replayed from then on."""
    async with processes() as world:
        once, work, told = world.process(), Worker(seconds=10.0), Told()
        run = asyncio.create_task(once.run(asking(), work, tell=told))
        await asyncio.sleep(5.0)
        world.faulty[0].fail("finish")
        with pytest.raises(StoreUnavailableError, match="could not be stored yet") as caught:
            await run
        assert caught.value.value == {"content": "done"}
        assert told.events[0][1]["executed"] is True
        world.faulty[0].up()
        again = await once.run(asking(), work)
        assert (again.value, work.made) == ({"content": "done"}, 1)
        assert world.states == ["completed"]


async def test_a_claim_whose_reply_is_lost(processes: Callable[[], Any]) -> None:
    """Nothing was run for it: the next run may be made."""
    async with processes() as world:
        once, work = world.process(), Worker()
        await once.run(asking(key="first"), Worker())
        world.faulty[0].lose_reply("claim", times=1)
        with pytest.raises(StoreUnavailableError):
            await once.run(asking(), work)
        assert work.made == 0
        assert (await once.run(asking(), work)).value == {"content": "done"}


async def test_cancelled_at_any_await_no_claim_is_left(processes: Callable[[], Any]) -> None:
    """However far it had come: the key is free, done or uncertain, never in progress."""
    async with processes() as world:
        once = world.process()
        await once.run(asking(key="first"), Worker())
        for ledger in world.faulty:
            for method in ("claim", "finish", "renew"):
                ledger.before(method, lambda: asyncio.sleep(0.01))
        for step in range(12):
            key, work = f"key-{step}", Worker(seconds=0.01)
            run = asyncio.create_task(once.run(asking(key=key), work))
            await asyncio.sleep(0.004 * step)
            run.cancel()
            await asyncio.wait([run])
            made = work.made
            try:
                again = await once.run(asking(key=key), work)
            except UncertainOutcomeError:
                assert (made, work.made, work.cut) == (1, 1, 1)
            else:
                assert work.made == 1
                assert again.replayed is (made == 1)


# --- PostgreSQL -----------------------------------------------------------------------------------

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from steer_llm_sdk.reliability.idempotency import IdempotencyManager, once_of
from steer_llm_sdk.reliability.once import Identity

url, log, seconds, runs = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

async def work():
    with log.open("a") as out:
        out.write("executed\\n")
    print("executing", flush=True)
    await asyncio.sleep(seconds)
    return {"content": "done"}

async def main():
    async with IdempotencyManager(database_url=url) as manager:
        print("ready", flush=True)
        sys.stdin.readline()
        identity = Identity("pay-7", {"request": "Pay order 7", "tool": None})
        once = once_of(manager)
        outcomes = await asyncio.gather(*[once.run(identity, work) for _ in range(runs)])
        own = [each for each in outcomes if not each.joined and not each.replayed]
        print(json.dumps([len(own), sorted({each.value["content"] for each in outcomes})]))

asyncio.run(main())
"""


@contextlib.contextmanager
def program(url: str, log: Path, seconds: float, runs: int) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to run the key."""
    paths = os.pathsep.join(str(ROOT / each) for each in ("policies", "proxy", "sdk"))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(log), str(seconds), str(runs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_two_processes_on_one_postgresql(postgres_url: str, tmp_path: Path) -> None:
    """Fifty runs in each, all with one key: one execution, and everybody has its result."""
    log = tmp_path / "log"
    with program(postgres_url, log, 1.0, 50) as one, program(postgres_url, log, 1.0, 50) as other:
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        told = [
            json.loads(process.communicate(timeout=60)[0].splitlines()[-1])
            for process in (one, other)
        ]
    assert log.read_text() == "executed\n"
    assert sorted(told) == [[0, ["done"]], [1, ["done"]]]


def test_a_killed_process_leaves_its_key_uncertain(
    postgres_server: Server, postgres_url: str, tmp_path: Path
) -> None:
    """After kill -9 in the middle of a run nobody runs it again."""
    log = tmp_path / "log"
    with program(postgres_url, log, 60.0, 1) as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout is not None
        assert process.stdout.readline() == "executing\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    database = postgres_url.rpartition("/")[2]
    postgres_server.sql("UPDATE owners SET lease_until_us = 0", database)  # its lease runs out
    work = Worker()

    async def ask() -> None:
        async with IdempotencyManager(database_url=postgres_url) as manager:
            await once_of(manager).run(asking(), work)

    with pytest.raises(UncertainOutcomeError):
        asyncio.run(ask())
    assert work.made == 0
    assert log.read_text() == "executed\n"


@pytest.mark.real_time
async def test_postgresql_without_a_schema(postgres_empty_url: str) -> None:
    """The error says what to do."""
    async with IdempotencyManager(database_url=postgres_empty_url) as manager:
        with pytest.raises(StoreUnavailableError, match="steer db upgrade"):
            await once_of(manager).run(asking(), Worker())


def test_postgresql_and_loops_in_sequence(postgres_url: str) -> None:
    """Each loop has connections of its own, closed with it."""
    manager, work = IdempotencyManager(database_url=postgres_url), Worker()

    async def use() -> bool:
        return (await once_of(manager).run(asking(), work)).replayed

    assert [asyncio.run(use()) for _ in range(3)] == [False, True, True]
    assert work.made == 1
