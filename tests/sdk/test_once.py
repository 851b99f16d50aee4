from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime as dt
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.errors import (
    BudgetExceeded,
    CircuitOpen,
    ConflictError,
    InvalidValue,
    OrchestratorError,
    PlanningError,
    ToolExecutionError,
)
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.reliability.idempotency import (
    IdempotencyManager,
    KeyInProgressError,
    NotStorableError,
    ResultNotStoredError,
    StoreUnavailableError,
    UncertainOutcomeError,
    once_of,
)
from steer_llm_sdk.reliability.json_text import NotJSON, json_text
from steer_llm_sdk.reliability.once import Identity, Once, executed_by
from steer_policies.outcome import Executed


class Worker:
    """A run's work: counts how often it is made, and waits while it is told to."""

    def __init__(self, *results: Any, seconds: float = 0.0) -> None:
        self.results = list(results) or [{"content": "done"}]
        self.seconds = seconds
        self.made = 0
        self.cut = 0
        self._begun = asyncio.Event()

    async def begun(self) -> None:
        """Wait until it is being made."""
        async with asyncio.timeout(60.0):
            await self._begun.wait()

    async def __call__(self) -> dict[str, Any]:
        self.made += 1
        self._begun.set()
        result = self.results[min(self.made, len(self.results)) - 1]
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cut += 1
            raise
        if isinstance(result, BaseException):
            raise result
        value: dict[str, Any] = result
        return value


class Shelf:
    """A store that is not ours: fails when it is told to."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.get_fails = 0
        self.store_fails = 0

    async def get(self, key: str) -> Any:
        await asyncio.sleep(0.01)
        if self.get_fails:
            self.get_fails -= 1
            raise ConnectionError("the store is away")
        return copy.deepcopy(self.held.get(key))

    async def store(self, key: str, value: Any) -> None:
        await asyncio.sleep(0.01)
        if self.store_fails:
            self.store_fails -= 1
            raise ConnectionError("the store is away")
        self.held[key] = copy.deepcopy(value)


class OnShelf(IdempotencyManager):
    """A manager over it that calls no constructor of ours."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    async def get(self, key: str) -> Any:
        return await self.shelf.get(key)

    async def store(self, key: str, value: Any) -> None:
        await self.shelf.store(key, value)


def asking(request: Any = "Pay order 7", key: str = "pay-7", tool: str | None = None) -> Identity:
    """A request with a key."""
    return Identity(key, {"request": request, "tool": tool})


class Told:
    """Hears events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    async def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        self.events.append((kind, facts))


Make = Callable[[], Once]
STORES: dict[str, Make] = {
    "memory": lambda: once_of(IdempotencyManager()),
    "subclass": lambda: once_of(OnShelf(Shelf())),
    "anything with get and store": lambda: once_of(Shelf()),
}


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest) -> Make:
    """Every store there is, but for SQL."""
    return STORES[request.param]


# --- One key, one run -----------------------------------------------------------------------------


async def test_the_second_run_is_given_the_first_ones_result(make: Make) -> None:
    """The same request with the same key: one run, equal results, and the second says so."""
    once, work = make(), Worker({"content": {"a": [1, None]}})
    first = await once.run(asking(), work)
    second = await once.run(asking(), work)
    assert (work.made, first.value) == (1, {"content": {"a": [1, None]}})
    assert second.value == first.value
    assert (first.replayed, second.replayed, second.joined) == (False, True, False)


async def test_point_2_a_hundred_at_once_are_one_run(make: Make) -> None:
    """Concurrent duplicates wait for the one that runs."""
    once, work = make(), Worker(seconds=5.0)
    outcomes = await asyncio.gather(*[once.run(asking(), work) for _ in range(100)])
    assert work.made == 1
    assert [outcome.joined for outcome in outcomes].count(False) == 1
    assert all(outcome.value == {"content": "done"} for outcome in outcomes)


async def test_results_are_each_callers_own(make: Make) -> None:
    """What one caller does to a result reaches neither another one nor the store."""
    kept: dict[str, Any] = {"content": [1]}
    once, work = make(), Worker(kept, seconds=1.0)
    first, second = await asyncio.gather(once.run(asking(), work), once.run(asking(), work))
    first.value["content"].append(2)
    kept["content"].append(3)
    assert second.value == {"content": [1]}
    assert (await once.run(asking(), work)).value == {"content": [1]}


async def test_other_keys_do_not_wait(make: Make) -> None:
    """Runs with different keys are made side by side."""
    once, work = make(), Worker(seconds=5.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*[once.run(asking(key=f"key-{n}"), work) for n in range(3)])
    assert work.made == 3
    assert loop.time() - began < 6.0


@pytest.mark.parametrize(
    "other",
    [
        asking("Pay order 8"),
        asking(tool="payments"),
        asking({"request": "Pay order 7"}),
        asking(["Pay order 7"]),
    ],
    ids=["request", "tool", "shape", "list"],
)
@pytest.mark.parametrize("running", [True, False])
async def test_point_3_a_key_is_bound_to_request_and_tool(
    make: Make, other: Identity, running: bool
) -> None:
    """Another request, or another tool named explicitly, is a conflict, and nothing is run."""
    once, work = make(), Worker(seconds=5.0)
    first = asyncio.create_task(once.run(asking(), work))
    if running:
        await asyncio.sleep(1.0)
    else:
        await first
    with pytest.raises(ConflictError, match="pay-7"):
        await once.run(other, work)
    await first
    assert work.made == 1


async def test_a_conflicting_run_is_no_obstacle_to_the_right_one() -> None:
    """While a wrong request is still asking the store, the right one waits and gets its result."""
    shelf = Shelf()
    await once_of(OnShelf(shelf)).run(asking(), Worker())
    once, work = once_of(OnShelf(shelf)), Worker()
    wrong, right = await asyncio.gather(
        once.run(asking("Pay order 8"), work), once.run(asking(), work), return_exceptions=True
    )
    assert isinstance(wrong, ConflictError)
    assert not isinstance(right, BaseException)
    assert right.replayed
    assert work.made == 0


async def test_equal_requests_are_equal_however_they_are_written(make: Make) -> None:
    """The order of members and the kind of a sequence do not matter."""
    once, work = make(), Worker()
    await once.run(asking({"a": 1, "b": (1, 2.0)}), work)
    assert (await once.run(asking({"b": [1, 2], "a": 1}), work)).replayed


# --- What cannot be stored ------------------------------------------------------------------------


async def test_point_4_a_result_that_is_not_json_is_an_error_at_once(make: Make) -> None:
    """The error names the place and holds the result; the key is never run again."""
    value = {"content": {"items": [1, {"when": dt.date(2026, 1, 1)}]}}
    once, work = make(), Worker(value)
    with pytest.raises(NotStorableError, match=r"content\.items\[1\]\.when is a date") as caught:
        await once.run(asking(), work)
    assert caught.value.path == "content.items[1].when"
    assert caught.value.value is value
    assert caught.value.executed
    with pytest.raises(ResultNotStoredError, match="not run again"):
        await once.run(asking(), work)
    assert work.made == 1


async def test_a_request_that_is_not_json_is_refused_before_anything_runs(make: Make) -> None:
    """Its place is named; the key stays free."""
    once, work = make(), Worker()
    with pytest.raises(NotStorableError, match=r"request\.data is a bytes"):
        await once.run(asking({"data": b"x"}), work)
    assert work.made == 0
    assert not (await once.run(asking(), work)).replayed


async def test_a_result_may_be_too_large() -> None:
    """Then it is an error too, that holds it."""
    once, work = once_of(IdempotencyManager(max_stored=100)), Worker({"content": "ä" * 60})
    told = r"max_stored, 100 bytes.* not run again .*raise max_stored"
    with pytest.raises(NotStorableError, match=told) as caught:
        await once.run(asking(), work)
    assert caught.value.value == {"content": "ä" * 60}
    with pytest.raises(ResultNotStoredError):
        await once.run(asking(), work)


@pytest.mark.parametrize("key", ["", "  ", "x" * 256, "a\nb", 7, None])
async def test_keys_that_are_none(make: Make, key: Any) -> None:
    """A key is 1 to 255 printable characters."""
    work = Worker()
    with pytest.raises(InvalidValue, match="idempotency_key"):
        await make().run(asking(key=key), work)
    assert work.made == 0


NOT_JSON: list[tuple[Any, str, str]] = [
    ({1, 2}, "", "a set"),
    ({"a": [0, {"b c": object()}]}, 'a[1]["b c"]', "a object"),
    ({"a": {1: "x"}}, "a", "the key 1, a int"),
    (float("nan"), "", "nan, which is not a JSON number"),
    ([float("-inf")], "[0]", "-inf"),
    ({"a": "\ud800"}, "a", "half a surrogate pair"),
    ({"\ud800": 1}, "", "half a surrogate pair"),
    (10**5000, "", "absurd length"),
    ({"a": 1 + 2j}, "a", "a complex"),
]


@pytest.mark.parametrize(("value", "path", "what"), NOT_JSON, ids=[each[2] for each in NOT_JSON])
def test_what_is_not_json(value: Any, path: str, what: str) -> None:
    """The first fault's place is told, and what it is."""
    with pytest.raises(NotJSON) as caught:
        json_text(value)
    assert caught.value.path == path
    assert what in caught.value.what


def test_a_value_within_itself() -> None:
    """It ends, with an error."""
    value: list[Any] = []
    value += [value, value]
    with pytest.raises(NotJSON, match="in itself"):
        json_text(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("grün", '"grün"'),
        ((1, (2,)), "[1,[2]]"),
        ({"a": {}, "b": 1.5}, '{"a":{},"b":1.5}'),
        (Executed.NO, '"no"'),
        (2**80, str(2**80)),
    ],
)
def test_json(value: Any, text: str) -> None:
    """What is JSON, and how it is written."""
    assert json_text(value) == text


# --- When it fails --------------------------------------------------------------------------------


async def test_a_tool_that_fails_frees_the_key(make: Make) -> None:
    """All who waited get its error; the next run runs it again."""
    once, work = make(), Worker(ToolExecutionError("no"), {"content": 2}, seconds=1.0)
    results = await asyncio.gather(
        once.run(asking(), work), once.run(asking(), work), return_exceptions=True
    )
    assert [type(each) for each in results] == [ToolExecutionError] * 2
    assert (await once.run(asking(), work)).value == {"content": 2}
    assert work.made == 2


async def test_a_key_may_be_kept_when_its_tool_fails() -> None:
    """It is kept unless it is known that nothing was executed, or the manager frees it."""
    once = once_of(IdempotencyManager())
    unexecuted = ToolExecutionError("refused", maybe_executed=False)
    work = Worker(unexecuted, ValueError("halfway"))
    with pytest.raises(ToolExecutionError):
        await once.run(asking(), work)
    with pytest.raises(ValueError, match="halfway"):
        await once.run(asking(), work)
    with pytest.raises(UncertainOutcomeError, match="may have been run"):
        await once.run(asking(), work)
    assert work.made == 2
    once = once_of(IdempotencyManager(on_failure="release"))
    work = Worker(ValueError("halfway"), {"content": 2})
    with pytest.raises(ValueError, match="halfway"):
        await once.run(asking(), work)
    assert (await once.run(asking(), work)).value == {"content": 2}


async def test_a_cancelled_run_is_uncertain(make: Make) -> None:
    """Nobody knows how far its tool had come; nothing of it is left running."""
    once, work = make(), Worker(seconds=100.0)
    run = asyncio.create_task(once.run(asking(), work))
    await asyncio.sleep(1.0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert work.cut == 1
    with pytest.raises(UncertainOutcomeError, match="find out what it did"):
        await once.run(asking(), work)
    assert work.made == 1


async def test_a_run_whose_time_is_up_is_uncertain(make: Make) -> None:
    """The same, by the caller's own time limit, or one within the work."""
    once, work = make(), Worker(seconds=100.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3.0):
            await once.run(asking(), work)
    with pytest.raises(TimeoutError):
        await once.run(asking(key="other"), Worker(TimeoutError()))
    for key in ("pay-7", "other"):
        with pytest.raises(UncertainOutcomeError):
            await once.run(asking(key=key), work)


async def test_what_is_uncertain_may_be_run_again_by_choice() -> None:
    """`on_uncertain="rerun"`."""
    once = once_of(IdempotencyManager(on_uncertain="rerun"))
    with pytest.raises(TimeoutError):
        await once.run(asking(), Worker(TimeoutError()))
    assert (await once.run(asking(), Worker())).value == {"content": "done"}
    assert (await once.run(asking(), Worker())).replayed


async def test_who_knows_better_says_whether_a_tool_was_run(make: Make) -> None:
    """An interruption before any tool was run frees the key."""
    once, work = make(), Worker(TimeoutError(), {"content": 2})
    with pytest.raises(TimeoutError):
        await once.run(asking(), work, executed=lambda _: Executed.NO)
    assert (await once.run(asking(), work)).value == {"content": 2}


async def test_a_judge_that_fails_is_no_reason_to_run_twice(make: Make) -> None:
    """Then nobody knows, and the outcome is uncertain."""

    def judge(_: BaseException) -> Executed:
        raise RuntimeError("cannot tell")

    once = make()
    with pytest.raises(ToolExecutionError):
        await once.run(asking(), Worker(ToolExecutionError("no")), executed=judge)
    with pytest.raises(UncertainOutcomeError):
        await once.run(asking(), Worker())


@pytest.mark.parametrize(
    ("error", "executed"),
    [
        (asyncio.CancelledError(), Executed.MAYBE),
        (TimeoutError(), Executed.MAYBE),
        (ToolExecutionError("x"), Executed.NO),
        (ToolExecutionError("x", maybe_executed=True), Executed.YES),
        (CircuitOpen("x"), Executed.NO),
        (RuntimeError("x"), Executed.YES),
        (PlanningError("x"), Executed.NO),
        (InvalidValue("a", "b"), Executed.NO),
        (BudgetExceeded("ms", 1, 2), Executed.NO),
        (BudgetExceeded("ms", 1, 2, OrchestrationOutput()), Executed.MAYBE),
    ],
)
def test_what_an_error_says_of_execution(error: BaseException, executed: Executed) -> None:
    """Each error by itself."""
    assert executed_by(error) is executed


# --- Who waits ------------------------------------------------------------------------------------


async def test_one_callers_leaving_costs_the_others_nothing(make: Make) -> None:
    """The first one is cancelled; the run goes on for the one that joined."""
    once, work = make(), Worker(seconds=5.0)
    first = asyncio.create_task(once.run(asking(), work))
    await asyncio.sleep(1.0)
    second = asyncio.create_task(once.run(asking(), work))
    await asyncio.sleep(1.0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).value == {"content": "done"}
    assert (work.made, work.cut) == (1, 0)


async def test_a_duplicate_does_not_wait_for_ever() -> None:
    """Beyond `join_timeout` it is told to come again; the run goes on."""
    once, work = once_of(IdempotencyManager(join_timeout=2.0)), Worker(seconds=5.0)
    first = asyncio.create_task(once.run(asking(), work))
    await asyncio.sleep(0)
    with pytest.raises(KeyInProgressError, match="more than 2 s"):
        await once.run(asking(), work)
    assert not (await first).joined


async def test_waiting_for_a_run_that_does_not_let_itself_be_ended_has_a_bound() -> None:
    """Its caller has left and it goes on: its duplicates wait as long as any other's."""
    ended = asyncio.Event()

    async def stubborn() -> dict[str, Any]:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()
        return {"content": "done"}

    once = once_of(IdempotencyManager(join_timeout=20.0))
    first = asyncio.create_task(once.run(asking(), stubborn))
    await asyncio.sleep(1.0)
    first.cancel()
    await asyncio.sleep(1.0)
    async with asyncio.timeout(30.0):
        with pytest.raises(KeyInProgressError, match="more than 20 s"):
            await once.run(asking(), Worker())
    ended.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await once.run(asking(), Worker())).replayed


async def test_so_many_may_wait(make: Make) -> None:
    """More duplicates than `MAX_JOINERS` are told to come again."""
    once, work = make(), Worker(seconds=5.0)
    runs = [asyncio.create_task(once.run(asking(), work)) for _ in range(257)]
    results = await asyncio.gather(*runs, return_exceptions=True)
    assert [type(each) for each in results].count(KeyInProgressError) == 1
    assert work.made == 1


async def test_cancelled_at_any_moment_nothing_is_left_and_nothing_runs_twice() -> None:
    """A run cut off after each of the loop's turns: the key is free, done, or uncertain."""
    for turns in range(12):
        shelf, work = Shelf(), Worker(seconds=0.01)
        once = once_of(OnShelf(shelf))
        run = asyncio.create_task(once.run(asking(), work))
        for _ in range(turns):
            await asyncio.sleep(0.004)
        run.cancel()
        await asyncio.wait([run])
        made = work.made
        try:
            again = await once.run(asking(), work)
        except UncertainOutcomeError:
            assert (made, work.made, work.cut) == (1, 1, 1)
        else:
            assert again.value == {"content": "done"}
            assert work.made == 1
            assert again.replayed is (made == 1)


async def test_who_comes_while_a_run_is_being_given_up_starts_anew() -> None:
    """It does not inherit the cancellation of a run that had not begun its work."""
    once, work = once_of(OnShelf(Shelf())), Worker(seconds=5.0)
    first = asyncio.create_task(once.run(asking(), work))
    await asyncio.sleep(0.005)
    first.cancel()
    second = asyncio.create_task(once.run(asking(), work))
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).value == {"content": "done"}
    assert work.made == 1


async def test_closing_ends_what_runs() -> None:
    """Who waits is told that the outcome is uncertain; the manager can be used again."""
    async with IdempotencyManager() as manager:
        work = Worker(seconds=100.0)
        run = asyncio.create_task(once_of(manager).run(asking(), work))
        await asyncio.sleep(1.0)
    with pytest.raises(UncertainOutcomeError):
        await run
    assert work.cut == 1
    assert not (await once_of(manager).run(asking(key="other"), Worker())).replayed


def test_loops_in_sequence_share_a_memory() -> None:
    """A manager outlives a loop, with runs cut off at its end."""
    manager, work = IdempotencyManager(), Worker(seconds=0.0)
    slow = Worker(seconds=100.0)

    async def use() -> bool:
        cut = asyncio.create_task(once_of(manager).run(asking(key="slow"), slow))
        await asyncio.sleep(0.01)
        assert not cut.done()
        return (await once_of(manager).run(asking(), work)).replayed

    assert not asyncio.run(use())
    with pytest.raises(UncertainOutcomeError):
        asyncio.run(use_slow(manager, slow))
    assert work.made == slow.made == 1


async def use_slow(manager: IdempotencyManager, work: Worker) -> None:
    """Ask for what was cut off."""
    await once_of(manager).run(asking(key="slow"), work)


def test_two_loops_at_a_time_are_refused() -> None:
    """A future of another running loop cannot be waited for: an error, not a second run."""
    manager, work = IdempotencyManager(), Worker(seconds=100.0)
    other = asyncio.new_event_loop()
    run = other.create_task(once_of(manager).run(asking(), work))
    other.run_until_complete(asyncio.sleep(0.01))
    with pytest.raises(OrchestratorError, match="another event loop"):
        asyncio.run(use_slow(manager, work))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        other.run_until_complete(run)
    other.close()
    assert work.made == 1


def unheard_loop() -> asyncio.AbstractEventLoop:
    """An event loop that does not tell of the tasks it loses, which is what a test is about."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    return loop


def left_behind(begun: Any) -> None:
    """Begin something in a loop that then ends without a word: nothing of it is cancelled."""
    loop = unheard_loop()
    task = loop.create_task(begun)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has no eager tasks before 3.12")
def test_a_task_that_begins_at_once() -> None:
    """A tool may fail before its task is known to who began it."""

    async def fail(*_: object) -> Any:
        raise ValueError("no")

    async def eagerly() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - see above
        once = once_of(IdempotencyManager())
        with pytest.raises(ValueError, match="no"):
            await asyncio.wait_for(once.run(asking(), fail), 5.0)

    asyncio.run(eagerly())


def test_a_run_left_behind_by_its_loop_is_uncertain() -> None:
    """Its tool was being run: it is not run a second time."""
    manager, work, other = IdempotencyManager(), Worker(seconds=100.0), Worker()
    left_behind(once_of(manager).run(asking(), work))
    with pytest.raises(UncertainOutcomeError):
        asyncio.run(once_of(manager).run(asking(), other))
    assert (work.made, other.made) == (1, 0)


def test_what_is_left_behind_is_not_heard_of_again() -> None:
    """When it is thrown away, long after, the key is another run's."""
    manager = IdempotencyManager(on_uncertain="rerun")
    left_behind(once_of(manager).run(asking(), Worker(seconds=100.0)))
    work = Worker()
    asyncio.run(once_of(manager).run(asking(), work))
    gc.collect()
    asyncio.run(once_of(manager).run(asking(), work))
    assert work.made == 1


def test_a_run_left_behind_while_it_asks_the_store_leaves_its_key_free() -> None:
    """Nothing was run for it."""

    class Slow(Shelf):
        patience = 100.0

        async def get(self, key: str) -> Any:
            await asyncio.sleep(self.patience)
            return await super().get(key)

    manager, work = Slow(), Worker()
    once = once_of(manager)
    left_behind(once.run(asking(), work))
    manager.patience = 0.0
    assert not asyncio.run(once.run(asking(), work)).replayed
    assert work.made == 1


def test_closing_after_a_loop_that_left_runs_behind() -> None:
    """There is nothing left to be ended."""
    manager = IdempotencyManager()
    left_behind(once_of(manager).run(asking(), Worker(seconds=100.0)))
    asyncio.run(manager.close())
    with pytest.raises(UncertainOutcomeError):
        asyncio.run(once_of(manager).run(asking(), Worker()))


def test_a_tool_that_ends_the_program_leaves_nobody_waiting() -> None:
    """Where the loop goes on all the same, as in a notebook, who waits is told."""
    manager = IdempotencyManager()
    loop = unheard_loop()
    work = Worker(SystemExit(3), seconds=0.01)
    runs = [loop.create_task(once_of(manager).run(asking(), work)) for _ in range(2)]
    with pytest.raises(SystemExit):
        loop.run_until_complete(asyncio.gather(*runs))
    done, waiting = loop.run_until_complete(asyncio.wait(runs, timeout=1.0))
    for run in waiting:
        run.cancel()
    loop.run_until_complete(asyncio.wait(runs))
    assert not waiting
    assert {type(run.exception()) for run in done} == {UncertainOutcomeError}
    with pytest.raises(UncertainOutcomeError):
        loop.run_until_complete(once_of(manager).run(asking(), work))
    loop.close()
    assert work.made == 1


class Aborted(BaseException):
    """As what ends a test in pytest, and groups of such."""


@pytest.mark.parametrize(
    "error", [Aborted("no"), BaseExceptionGroup("both", [Aborted("no")]), GeneratorExit("no")]
)
@pytest.mark.parametrize("sql", [False, True])
async def test_whatever_a_tool_raises_leaves_nobody_waiting(
    error: BaseException, sql: bool, tmp_path: Path
) -> None:
    """No Exception, and nothing that ends a loop: it is its callers' all the same."""
    url = f"sqlite:///{tmp_path / 'steer.db'}" if sql else None
    async with IdempotencyManager(database_url=url) as manager:
        once, work = once_of(manager), Worker(error, seconds=0.01)
        runs = [asyncio.create_task(once.run(asking(), work)) for _ in range(2)]
        done, waiting = await asyncio.wait(runs, timeout=30.0)
        for run in waiting:
            run.cancel()
        assert not waiting
        assert {type(run.exception()) for run in done} == {type(error)}
        with pytest.raises(UncertainOutcomeError):
            await once.run(asking(), work)
        assert work.made == 1


async def test_a_run_that_asks_for_itself_is_refused_at_once() -> None:
    """It would wait for its own end; others join it as ever."""
    once = once_of(IdempotencyManager())

    async def itself() -> dict[str, Any]:
        with pytest.raises(KeyInProgressError, match="its own end"):
            await asyncio.create_task(once.run(asking(), itself))
        inner = await once.run(asking(key="another"), Worker())
        return {"content": inner.value}

    began = asyncio.get_running_loop().time()
    first, second = await asyncio.gather(*(once.run(asking(), itself) for _ in range(2)))
    assert (first.joined, second.joined) == (False, True)
    assert first.value == {"content": {"content": "done"}}
    assert asyncio.get_running_loop().time() - began < 1.0


# --- A store that is down -------------------------------------------------------------------------


async def test_point_4_a_store_that_is_down_is_an_error_and_an_event() -> None:
    """Nothing is run; an event tells."""
    shelf, work, told = Shelf(), Worker(), Told()
    shelf.get_fails = 1
    once = once_of(OnShelf(shelf))
    with pytest.raises(
        StoreUnavailableError, match=r"the store is away\. Nothing was run"
    ) as caught:
        await once.run(asking(), work, tell=told)
    assert not caught.value.executed
    assert work.made == 0
    facts = {"error": "the store is away", "executed": False, "policy": "fail"}
    assert told.events == [("idempotency_store_unavailable", facts)]
    assert not (await once.run(asking(), work)).replayed


async def test_by_policy_a_run_goes_on_without_its_store() -> None:
    """`on_store_down="open"`: it is run, and says that it is not stored."""

    class Open(OnShelf):
        on_store_down = "open"

    shelf, work, told = Shelf(), Worker(), Told()
    shelf.get_fails, shelf.store_fails = 1, 1
    outcome = await once_of(Open(shelf)).run(asking(), work, tell=told)
    assert (outcome.value, outcome.stored) == ({"content": "done"}, False)
    assert [facts["executed"] for _, facts in told.events] == [False, True]
    assert {facts["policy"] for _, facts in told.events} == {"open"}


@pytest.mark.parametrize("away", [1, 100])
async def test_point_4_a_result_that_could_not_be_stored_is_never_run_again(away: int) -> None:
    """The error holds the result; this process remembers it, and stores it when it can."""
    shelf, work, told = Shelf(), Worker(), Told()
    shelf.store_fails = away
    once = once_of(OnShelf(shelf))
    with pytest.raises(StoreUnavailableError, match="could not be stored") as caught:
        await once.run(asking(), work, tell=told)
    assert caught.value.value == {"content": "done"}
    assert told.events[0][1]["executed"] is True
    again = await once.run(asking(), work)
    assert (again.value, again.replayed, work.made) == ({"content": "done"}, True, 1)
    assert ("pay-7" in shelf.held) is (away == 1)


async def test_a_store_that_hangs_is_down() -> None:
    """It is given up after some seconds."""

    class Hanging(IdempotencyManager):
        async def get(self, key: str) -> Any:
            await asyncio.Event().wait()

    with pytest.raises(StoreUnavailableError, match="TimeoutError"):
        await once_of(Hanging()).run(asking(), Worker())


@pytest.mark.parametrize("found", ["text", {"content": 1}, {"steer": 1, "state": "odd"}, 7])
async def test_what_is_no_record_is_not_taken_for_one(found: Any) -> None:
    """A key that something else uses in the store: an error, not a run."""
    shelf, work = Shelf(), Worker()
    shelf.held["pay-7"] = found
    with pytest.raises(StoreUnavailableError, match="no record of a run"):
        await once_of(OnShelf(shelf)).run(asking(), work)
    assert work.made == 0


async def test_who_is_told_cannot_make_it_worse() -> None:
    """A callback that raises changes nothing."""

    async def raising(_: str, __: dict[str, Any]) -> None:
        raise RuntimeError("a bug of the caller's")

    shelf = Shelf()
    shelf.get_fails = 1
    with pytest.raises(StoreUnavailableError):
        await once_of(OnShelf(shelf)).run(asking(), Worker(), tell=raising)


async def test_point_5_the_result_is_stored_before_the_caller_goes_on() -> None:
    """What a caller does with a result, its callbacks included, comes after it is stored."""
    shelf, work = Shelf(), Worker()
    once = once_of(OnShelf(shelf))

    async def run_and_tell() -> None:
        await once.run(asking(), work)
        assert shelf.held["pay-7"]["value"] == {"content": "done"}
        raise RuntimeError("on_complete has a bug")

    with pytest.raises(RuntimeError):
        await run_and_tell()
    assert (await once.run(asking(), work)).replayed
    assert work.made == 1
