"""The log's queue: what waits, what is written together, what is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_proxy.engine.config import LedgerTerms
from steer_proxy.engine.log_queue import BATCH, DELAY, FULL, LONGEST_PAUSE, TOGETHER
from steer_proxy.ledger.protocol import LedgerRefused
from steer_proxy.ledger.values import AttemptRow, Batch, CallRow
from tests.conftest import run
from tests.support.books import Books, a_call, an_attempt, keeping


def watch_batches(books: Books) -> list[int]:
    """The sizes of the batches that will be written."""
    sizes: list[int] = []
    write = books.memory.write

    async def written(batch: Batch) -> None:
        sizes.append(len(batch))
        await write(batch)

    books.memory.write = written  # type: ignore[method-assign]
    return sizes


async def test_a_quarter_of_a_second_after_the_first() -> None:
    """What came meanwhile goes along, attempts with their call, in the order it came."""
    async with keeping() as books:
        sizes = watch_batches(books)
        books.keeper.log(a_call("a"), [an_attempt("a", 1), an_attempt("a", 2)])
        await asyncio.sleep(DELAY - 0.01)
        books.keeper.log(a_call("b"), [an_attempt("b")])
        books.keeper.log_attempts([an_attempt("keyed")])
        books.keeper.log_attempts([])
        assert (books.calls, books.keeper.queued) == ([], 6)
        await asyncio.sleep(0.02)
        assert (books.calls, books.keeper.queued) == (["a", "b"], 0)
        assert list(books.memory.attempts) == [("a", 1), ("a", 2), ("b", 1), ("keyed", 1)]
        assert (sizes, books.keeper.written, books.keeper.dropped) == ([6], 6, 0)


async def test_at_once_when_many_wait() -> None:
    """In no time, and the timer does not write a second time."""
    async with keeping() as books:
        sizes = watch_batches(books)
        now = asyncio.get_running_loop().time
        began = now()
        for index in range(FULL):
            books.keeper.log(a_call(f"{index:04}"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert books.keeper.queued == 0
        assert now() == began
        await asyncio.sleep(1.0)
        assert sizes == [FULL]
        assert books.ledger.called["write"] == 1


async def test_what_comes_while_a_batch_is_written() -> None:
    """It makes the next batch, not a trickle of small ones."""
    async with keeping() as books:
        sizes = watch_batches(books)
        books.ledger.hang("write", times=1)
        books.keeper.log(a_call("first"))
        await asyncio.sleep(DELAY + 0.01)
        for index in range(10):
            books.keeper.log(a_call(f"{index}"))
        books.ledger.up()
        await asyncio.sleep(DELAY / 2)
        assert sizes == [1]
        await asyncio.sleep(DELAY)
        assert sizes == [1, 10]


async def test_no_batch_is_too_large() -> None:
    """A crowd goes in batches of at most a thousand rows; a call is not torn from its attempts."""
    async with keeping() as books:
        sizes = watch_batches(books)
        for index in range(900):
            books.keeper.log(a_call(f"{index:04}"), [an_attempt(f"{index:04}", n) for n in (1, 2)])
        await asyncio.sleep(DELAY + 0.01)
        await asyncio.sleep(DELAY + 0.01)
        assert sizes == [999, 999, 702]
        assert max(sizes) <= BATCH


async def test_an_idle_queue_does_nothing() -> None:
    """No timer, no write, however long it lasts."""
    async with keeping() as books:
        await asyncio.sleep(600.0)
        assert books.ledger.called["write"] == 0


async def test_a_full_queue(caplog: pytest.LogCaptureFixture) -> None:
    """What finds no room is dropped, whole calls only; it is counted, and told once a minute."""
    async with keeping(LedgerTerms(queue=5)) as books:
        books.ledger.down()
        books.keeper.log(a_call("a"), [an_attempt("a"), an_attempt("a", 2)])
        books.keeper.log(a_call("b"), [an_attempt("b"), an_attempt("b", 2)])
        books.keeper.log(a_call("c"))
        books.keeper.log(a_call("d"), [an_attempt("d")])
        assert (books.keeper.queued, books.keeper.dropped) == (4, 5)
        told = [text for text in caplog.messages if "queue is full" in text]
        assert told == ["the log's queue is full: 3 rows were dropped until now (ledger.queue: 5)"]
        await asyncio.sleep(61.0)
        books.keeper.log(a_call("e"), [an_attempt("e")])
        books.keeper.log(a_call("f"), [an_attempt("f")])
        told = [text for text in caplog.messages if "queue is full" in text]
        assert told[1:] == [
            "the log's queue is full: 7 rows were dropped until now (ledger.queue: 5)"
        ]
        books.ledger.up()
        await asyncio.sleep(LONGEST_PAUSE)
        assert books.calls == ["a", "c"]
        assert (books.keeper.queued, books.keeper.written, books.keeper.dropped) == (0, 4, 9)


async def test_rows_being_written_still_count() -> None:
    """A bound on what is in memory is no bound if what hangs does not count."""
    async with keeping(LedgerTerms(queue=2)) as books:
        books.ledger.hang("write")
        books.keeper.log(a_call("a"), [an_attempt("a")])
        await asyncio.sleep(1.0)
        books.keeper.log(a_call("b"))
        assert (books.keeper.queued, books.keeper.dropped) == (2, 1)
        books.ledger.up()


async def test_while_the_ledger_is_away() -> None:
    """Rows wait, the pauses grow to five seconds, and everything is there in the end."""
    async with keeping() as books:
        books.ledger.fail("write")
        books.keeper.log(a_call("a"))
        await asyncio.sleep(600.0)
        tries = books.ledger.called["write"]
        assert 600 / LONGEST_PAUSE <= tries <= 2 * 600 / LONGEST_PAUSE
        assert books.keeper.queued == 1
        books.ledger.up()
        books.keeper.log(a_call("b"))
        await asyncio.sleep(LONGEST_PAUSE)
        assert books.calls == ["a", "b"]


async def test_who_remembers_more_of_a_call_may_forget_it_when_it_is_written() -> None:
    """Or never will be; and not before, as it may be priced again."""
    forgotten: list[str] = []

    def forget(calls: Sequence[CallRow]) -> None:
        forgotten.extend(call.id for call in calls)

    async with keeping(forget=forget) as books:
        books.ledger.fail("write")
        books.keeper.log(a_call("a"), [an_attempt("a")])
        books.keeper.log_attempts([an_attempt("keyed")])
        await asyncio.sleep(600.0)
        assert forgotten == []
        books.ledger.up()
        await asyncio.sleep(LONGEST_PAUSE)
        assert forgotten == ["a"]


async def test_many_rows_do_not_shorten_the_pause() -> None:
    """A ledger that is down is not asked more often because much happens."""
    async with keeping() as books:
        books.ledger.fail("write")
        for index in range(1000):
            books.keeper.log(a_call(f"{index:04}"))
            await asyncio.sleep(0.01)
        assert books.ledger.called["write"] <= 8


async def test_a_lost_reply() -> None:
    """What was written although it did not seem so is not there twice."""
    async with keeping() as books:
        books.ledger.lose_reply("write", times=1)
        books.keeper.log(a_call("a"), [an_attempt("a")])
        await asyncio.sleep(2.0)
        assert books.ledger.called["write"] == 2
        assert (books.calls, books.keeper.written) == (["a"], 2)


async def test_batches_shrink_for_a_slow_ledger() -> None:
    """One that cannot write a thousand rows in time may manage fewer."""
    async with keeping() as books:
        write = books.memory.write
        sizes: list[int] = []

        async def slowly(batch: Batch) -> None:
            sizes.append(len(batch))
            if len(batch) > 200:
                books.ledger.fail("write", times=1)
                await books.ledger.write(batch)
            await write(batch)

        books.memory.write = slowly  # type: ignore[method-assign]
        for index in range(1000):
            books.keeper.log(a_call(f"{index:04}"))
        await asyncio.sleep(60.0)
        assert books.keeper.written == 1000
        assert sizes[:4] == [1000, 500, 250, 125]


@pytest.mark.parametrize("error", [LedgerRefused("no such thing"), ValueError("a bug")])
async def test_a_row_that_cannot_be_written(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It is found and left out; no other is lost. A bug's traceback is told."""
    async with keeping() as books:
        write = books.memory.write

        async def picky(batch: Batch) -> None:
            if any(row.id in ("0007", "0311") for row in batch.calls):
                raise error
            await write(batch)

        books.memory.write = picky  # type: ignore[method-assign]
        for index in range(500):
            books.keeper.log(a_call(f"{index:04}"))
        await asyncio.sleep(30.0)
        assert len(books.calls) == 498
        assert (books.keeper.written, books.keeper.dropped, books.keeper.queued) == (498, 2, 0)
        (told,) = [each for each in caplog.records if "cannot be written" in each.message]
        assert told.message.endswith(f"1 until now: {error}")
        assert bool(told.exc_info) is isinstance(error, ValueError)


async def test_the_end_writes_what_waits() -> None:
    """At once, without waiting for the timer; afterwards nothing is taken any more."""
    async with keeping() as books:
        now = asyncio.get_running_loop().time
        books.keeper.log(a_call("a"))
        began = now()
        await books.keeper.stop()
        assert now() == began
        assert books.calls == ["a"]
        books.keeper.log(a_call("late"))
        assert (books.keeper.queued, books.keeper.dropped) == (0, 1)


async def test_the_end_while_a_batch_is_written() -> None:
    """The write is cut and made again: nothing is lost, nothing is there twice."""
    async with keeping() as books:
        books.ledger.hang("write", times=1)
        books.keeper.log(a_call("a"))
        await asyncio.sleep(1.0)
        books.keeper.log(a_call("b"))
        await books.keeper.stop()
        assert books.ledger.called["write"] == 2
        assert books.calls == ["a", "b"]
        assert books.keeper.written == 2


@pytest.mark.parametrize("fault", ["fail", "hang"])
async def test_the_end_of_a_ledger_that_is_away(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Five seconds are given to it; what could not be written is counted and told."""
    async with keeping() as books:
        now = asyncio.get_running_loop().time
        getattr(books.ledger, fault)("write")
        books.keeper.log(a_call("a"), [an_attempt("a")])
        await asyncio.sleep(1.0)
        began = now()
        await books.keeper.stop()
        assert 4.0 < now() - began < 5.1
        assert (books.keeper.queued, books.keeper.dropped) == (0, 2)
        assert "2 rows of the log could not be written and are lost" in caplog.messages
        assert "in all" not in caplog.text


async def test_the_end_tells_all_that_was_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Rows were dropped while the log kept quiet of them: nobody can ask for the number later."""
    async with keeping(LedgerTerms(queue=2)) as books:
        books.ledger.fail("write")
        for name in "abcde":
            books.keeper.log(a_call(name))
        await books.keeper.stop()
        assert books.keeper.dropped == 5
        assert "5 rows of the log were lost in all" in caplog.messages


async def test_a_ledger_that_comes_back_in_the_last_seconds() -> None:
    """The end tries again and again, while it may."""
    async with keeping() as books:
        books.ledger.fail("write")
        books.keeper.log(a_call("a"))
        await asyncio.sleep(1.0)
        asyncio.get_running_loop().call_later(2.0, books.ledger.up)
        await books.keeper.stop()
        assert (books.calls, books.keeper.dropped) == (["a"], 0)


# --- Rows that are made later ---------------------------------------------------------------------

Made = tuple[CallRow, list[AttemptRow]]


def making(made: list[str], name: str, attempts: int = 0) -> Callable[[], Made]:
    """Makes a call's rows, and notes that it did."""

    def make() -> Made:
        made.append(name)
        return a_call(name), [an_attempt(name, n + 1) for n in range(attempts)]

    return make


async def test_rows_are_made_together() -> None:
    """None before there are enough, and then all that wait, at once."""
    async with keeping() as books:
        made: list[str] = []
        for index in range(TOGETHER - 1):
            books.keeper.log_later(making(made, f"{index:02}"))
        assert (made, books.keeper.queued) == ([], TOGETHER - 1)
        books.keeper.log_later(making(made, "last"))
        assert len(made) == TOGETHER == books.keeper.queued
        await asyncio.sleep(DELAY + 0.01)
        assert books.calls == made


async def test_a_few_are_made_when_they_are_due() -> None:
    """As late as they are written, and with their attempts, which count from then on."""
    async with keeping() as books:
        made: list[str] = []
        books.keeper.log_later(making(made, "a", attempts=2))
        await asyncio.sleep(DELAY - 0.01)
        assert (made, books.keeper.queued) == ([], 1)
        await asyncio.sleep(0.02)
        assert books.calls == made == ["a"]
        assert list(books.memory.attempts) == [("a", 1), ("a", 2)]
        assert (books.keeper.written, books.keeper.queued) == (3, 0)


async def test_attempts_may_make_a_batch_full() -> None:
    """How many there are is known when they are made; then nobody waits for the timer."""
    async with keeping() as books:
        now = asyncio.get_running_loop().time
        began = now()
        made: list[str] = []
        for index in range(TOGETHER):
            books.keeper.log_later(making(made, f"{index:02}", attempts=FULL // TOGETHER))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (books.calls, now()) == (made, began)


async def test_the_end_makes_what_is_not_made() -> None:
    """No call is lost because it came last."""
    async with keeping() as books:
        made: list[str] = []
        books.keeper.log_later(making(made, "a"))
        await books.keeper.stop()
        assert books.calls == made == ["a"]
        books.keeper.log_later(making(made, "late"))
        assert (made, books.keeper.dropped) == (["a"], 1)


async def test_rows_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    """A bug costs its own call its row, and no other."""

    def broken() -> Made:
        raise ValueError("a bug")

    async with keeping() as books:
        made: list[str] = []
        for make in (making(made, "a"), broken, making(made, "b"), broken):
            books.keeper.log_later(make)
        await asyncio.sleep(DELAY + 0.01)
        assert books.calls == ["a", "b"]
        assert (books.keeper.written, books.keeper.dropped, books.keeper.queued) == (2, 2, 0)
        (told,) = [each for each in caplog.records if "could not be told" in each.message]
        assert told.exc_info


async def test_made_rows_need_room_too() -> None:
    """A call with more attempts than there is room for is dropped whole."""
    async with keeping(LedgerTerms(queue=4)) as books:
        made: list[str] = []
        books.keeper.log_later(making(made, "a", attempts=1))
        books.keeper.log_later(making(made, "b", attempts=2))
        books.keeper.log_later(making(made, "c"))
        await asyncio.sleep(DELAY + 0.01)
        assert made == ["a", "b", "c"]
        assert books.calls == ["a", "c"]
        assert (books.keeper.written, books.keeper.dropped, books.keeper.queued) == (3, 3, 0)


# --- Whatever happens ----------------------------------------------------------------------------

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["log", "later"]), st.integers(0, 4)),
        st.tuples(st.just("many later"), st.integers(10, 40)),
        st.tuples(st.just("crowd"), st.integers(200, 400)),
        st.tuples(st.just("wait"), st.floats(0.0, 2.0)),
        st.tuples(st.sampled_from(["down", "up", "lose", "hang"]), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(_STEPS)
def test_every_row_is_accounted_for(steps: list[tuple[str, Any]]) -> None:
    """Whatever the ledger does: each row is queued, written or dropped, and written once."""

    async def main() -> None:
        books = Books(LedgerTerms(queue=600))
        keeper = books.keeper
        given_rows = made_rows = 0
        made: list[str] = []
        async with keeper:
            for number, (step, size) in enumerate(steps):
                match step:
                    case "log" | "crowd":
                        name = f"{number:03}"
                        keeper.log(a_call(name), [an_attempt(name, n) for n in range(size)])
                        given_rows += 1 + size
                    case "later":
                        keeper.log_later(making(made, f"{number:03}", size))
                        given_rows += 1
                        made_rows += size
                    case "many later":
                        for each in range(size):
                            keeper.log_later(making(made, f"{number:03}-{each}"))
                        given_rows += size
                    case "wait":
                        await asyncio.sleep(size)
                    case "down":
                        books.ledger.fail("write")
                    case "up":
                        books.ledger.up()
                    case "lose":
                        books.ledger.lose_reply("write", times=1)
                    case _:
                        books.ledger.hang("write", times=1)
                told = keeper.queued + keeper.written + keeper.dropped
                assert given_rows <= told <= given_rows + made_rows
                assert keeper.queued <= 600
            books.ledger.up()
        assert keeper.queued == 0
        assert given_rows <= keeper.written + keeper.dropped <= given_rows + made_rows
        assert keeper.written == len(books.memory.calls) + len(books.memory.attempts)

    run(main)
