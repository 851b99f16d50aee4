"""The ledger of a running process: its beginning and end, its events, its costs, its trouble."""

from __future__ import annotations

import asyncio
import threading

import pytest

from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.config import LedgerTerms
from steer_proxy.engine.events import HealthEvent
from steer_proxy.engine.lease import RENEW
from steer_proxy.engine.log_queue import DELAY
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sealing import Sealer
from steer_proxy.ledger.values import MICROSECONDS, Batch
from tests.support.books import Books, a_call, a_clock, an_attempt, keeping


async def test_each_process_is_an_owner_of_its_own() -> None:
    """Whatever their instance is called."""
    one, other = Books(LedgerTerms()), Books(LedgerTerms())
    assert one.keeper.owner != other.keeper.owner
    assert one.keeper.instance == other.keeper.instance == "here"


async def test_answers_are_sealed_without_keys_too() -> None:
    """Then they are only compressed."""
    assert Books(LedgerTerms()).keeper.sealer.key_id is None
    keys = Sealer([("k1", bytes(32))])
    assert Books(LedgerTerms(), sealer=keys).keeper.sealer is keys


async def test_changes_of_health_become_rows() -> None:
    """With the wall's time in place of the loop's."""
    async with keeping() as books:
        now, wall = books.clock.now(), books.clock.wall()
        event = HealthEvent("breaker", "openai", "gpt", "closed", "open", "5", now + 30.0, 3, 20, 9)
        books.keeper.event(event)
        books.keeper.event(HealthEvent("credential", "openai", None, "good", "refused", "401"))
        await asyncio.sleep(DELAY + 0.01)
        one, other = books.memory.events.values()
        assert tuple(one) == (
            one.id,
            int(wall * MICROSECONDS),
            "here",
            "breaker",
            "openai",
            "gpt",
            None,
            "closed",
            "open",
            "5",
            3,
            int((wall + 30.0) * MICROSECONDS),
            20,
            9,
            None,
            None,
        )
        assert (other.model, other.until_us, other.generation) == (None, None, None)
        assert one.id != other.id


async def test_costs_are_put_on_in_a_thread_and_before_redaction() -> None:
    """The list of prices knows models by their true names, and a loop has other things to do."""
    threads: list[int] = []

    def price(batch: Batch) -> Batch:
        threads.append(threading.get_ident())
        dear = [row._replace(cost_nusd=len(row.model_answered or "")) for row in batch.calls]
        return Batch(dear, batch.attempts, batch.events)

    def redact(row: dict[str, str]) -> dict[str, str]:
        threads.append(threading.get_ident())
        return dict.fromkeys(row, "-")

    async with keeping(price=price, redact=redact) as books:
        books.keeper.log(a_call("a", model_answered="gpt-4o"), [an_attempt("a", model="gpt-4o")])
        await asyncio.sleep(DELAY + 0.01)
        row = books.memory.calls["a"]
        assert (row.cost_nusd, row.model_answered) == (6, "-")
        assert books.memory.attempts["a", 1].model == "-"
        assert len(threads) == 3
        assert threading.get_ident() not in threads
        assert books.keeper.redacted(a_call("b", path="/x")).path == "-"


async def test_costs_that_cannot_be_told(caplog: pytest.LogCaptureFixture) -> None:
    """A row without them is better than none."""

    def price(_: Batch) -> Batch:
        raise ZeroDivisionError

    async with keeping(price=price) as books:
        for name in ("a", "b"):
            books.keeper.log(a_call(name))
            await asyncio.sleep(DELAY + 0.01)
        assert books.calls == ["a", "b"]
        assert caplog.messages.count("calls could not be priced") == 1


async def test_trouble_is_told_when_it_comes_and_when_it_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once each, whoever notices it."""
    caplog.set_level("INFO")
    async with keeping() as books:
        assert books.trouble() is None
        books.ledger.down()
        books.keeper.log(a_call("a"))
        await asyncio.sleep(100.0)
        assert books.trouble() == "the test says so"
        assert caplog.messages == ["ledger unavailable: the test says so"]
        books.ledger.up()
        await asyncio.sleep(RENEW + 1)
        assert books.trouble() is None
        assert caplog.messages[1:] == ["ledger is back"]


async def test_a_ledger_that_does_some_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """Renewed but not written, as with a full disk: one trouble from its beginning to its end."""
    caplog.set_level("INFO")
    async with keeping() as books:
        books.ledger.fail("write")
        books.keeper.log(a_call("a"))
        for _ in range(50):
            await asyncio.sleep(1.0)
            assert books.trouble() == "the test says so"
        assert caplog.messages == ["ledger unavailable: the test says so"]
        books.ledger.up()
        await asyncio.sleep(RENEW + 1)
        assert books.trouble() is None
        assert caplog.messages[1:] == ["ledger is back"]


async def test_a_ledger_that_waiting_does_not_mend(caplog: pytest.LogCaptureFixture) -> None:
    """An error with the remedy, even when it was away before."""
    caplog.set_level("INFO")
    async with keeping() as books:

        def newer() -> None:
            raise LedgerUnusable("use the newer version")

        books.ledger.down()
        await asyncio.sleep(2 * RENEW)
        books.ledger.up()
        books.ledger.before("renew", newer)
        await asyncio.sleep(2 * RENEW)
        assert [(each.levelname, each.message) for each in caplog.records] == [
            ("WARNING", "ledger unavailable: the test says so"),
            ("ERROR", "the ledger cannot be used: use the newer version"),
        ]


async def test_a_ledger_that_is_away_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """The process starts all the same, keeps its rows, and finds the ledger by itself."""
    caplog.set_level("INFO")
    books = Books(LedgerTerms())
    books.ledger.fail("open", times=1)
    books.ledger.fail("renew")
    async with books.keeper:
        assert books.trouble() == "the test says so"
        books.keeper.log(a_call("a"))
        with pytest.raises(LedgerUnavailable):
            await books.keeper.ensure_lease()
        books.ledger.up()
        await books.keeper.ensure_lease()
        assert books.trouble() is None
        await asyncio.sleep(1.0)
        assert books.calls == ["a"]
    assert caplog.messages == ["ledger unavailable: the test says so", "ledger is back"]


async def test_a_ledger_that_cannot_be_used() -> None:
    """The start fails with its words; what was opened is closed, nothing runs."""
    books = Books(LedgerTerms())
    closed: list[bool] = []

    async def open_() -> None:
        raise LedgerUnusable("another process writes it")

    async def close() -> None:
        closed.append(True)

    books.memory.open = open_  # type: ignore[method-assign]
    books.memory.close = close  # type: ignore[method-assign]
    with pytest.raises(LedgerUnusable, match="another process"):
        await books.keeper.start()
    assert closed == [True]
    assert books.ledger.called["renew"] == 0


async def test_the_end_comes_in_order() -> None:
    """The log is written and the lease ended before the ledger is closed; twice is harmless."""
    done: list[str] = []
    async with keeping() as books:
        books.ledger.after("write", lambda: done.append("write"))
        books.ledger.after("retire", lambda: done.append("retire"))
        close = books.memory.close

        async def closing() -> None:
            done.append("close")
            await close()

        books.memory.close = closing  # type: ignore[method-assign]
        books.keeper.log(a_call("a"))
        await books.keeper.stop()
        assert done == ["write", "retire", "close"]
        await books.keeper.stop()
        assert done == ["write", "retire", "close", "close"]


async def test_an_end_that_is_cut_short() -> None:
    """Cancelled while the ledger hangs: nothing goes on running, and it is closed all the same."""
    closed: list[bool] = []
    books = Books(LedgerTerms())

    async def close() -> None:
        closed.append(True)

    books.memory.close = close  # type: ignore[method-assign]
    await books.keeper.start()
    books.ledger.hang("*")
    books.keeper.log(a_call("a"))
    ending = asyncio.create_task(books.keeper.stop())
    await asyncio.sleep(1.0)
    ending.cancel()
    await asyncio.wait([ending])
    assert ending.cancelled()
    assert closed == [True]


async def test_an_end_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A bug on the way does not keep the ledger open."""
    async with keeping() as books:
        books.ledger.before("retire", lambda: 1 / 0)
        await books.keeper.stop()
        assert "the ledger did not end well" in caplog.messages


async def test_defaults() -> None:
    """Nothing but a ledger, its terms and a clock is needed."""
    clock = a_clock()
    books = Books(LedgerTerms(), clock)
    plain = Bookkeeper(books.ledger, LedgerTerms(), clock, instance="x")
    async with plain:
        await plain.ensure_lease()
        assert plain.leased
