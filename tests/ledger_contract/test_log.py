from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steer_proxy.ledger.protocol import LedgerRefused
from steer_proxy.ledger.values import AttemptRow, Batch, BreakerEventRow
from tests.ledger_contract.make import attempt, call, claim, event, fresh_id, made
from tests.ledger_contract.subject import LOG_TABLES, Subject, Subjects


async def counts(subject: Subject) -> list[int]:
    return [len(await subject.rows(table)) for table in LOG_TABLES]


async def test_rows_are_written_as_they_are(subjects: Subjects) -> None:
    """Every column of every table where it belongs; what is not known stays NULL."""
    async with subjects() as subject:
        row = call(subject, route="chat", status=200, labels=None, cost_nusd=0, outcome="ok")
        tried = AttemptRow(
            row.id, 1, *[_sample(AttemptRow, name) for name in AttemptRow._fields[2:]]
        )
        changed = BreakerEventRow(
            fresh_id(), *[_sample(BreakerEventRow, name) for name in BreakerEventRow._fields[1:]]
        )
        await subject.ledger.write(Batch([row], [tried], [changed]))
        assert await subject.row(row.id) == row._asdict()
        assert await subject.rows("attempts") == [tried._asdict()]
        assert await subject.rows("breaker_events") == [changed._asdict()]


def _sample(kind: type, name: str) -> Any:
    """A value that fits a column, and differs from its neighbours'."""
    if "int" in str(kind.__annotations__[name]):
        return 1 if name in ("reused_conn", "wasted") else 1000 + len(name)
    return fresh_id() if name == "request" else f"the {name}"


async def test_rows_that_are_there_are_left_alone(subjects: Subjects) -> None:
    """A batch whose reply was lost is written again: nothing doubles, nothing changes."""
    async with subjects() as subject:
        row = call(subject, route="chat")
        batch = Batch([row], [attempt(row), attempt(row, 2)], [event(subject)])
        await subject.ledger.write(batch)
        again = Batch([row._replace(route="other")], [*batch.attempts], [*batch.events])
        again.calls.append(call(subject))
        await subject.ledger.write(again)
        assert await counts(subject) == [2, 2, 1]
        assert (await subject.row(row.id))["route"] == "chat"


async def test_a_log_row_does_not_overwrite_a_record(subjects: Subjects) -> None:
    """Nor does it stand in a claim's way."""
    async with subjects() as subject:
        mine = await made(subject, claim(subject))
        await subject.ledger.write(Batch([call(subject, id=mine.row.id)]))
        assert (await subject.row(mine.row.id))["idem_live"] == 1
        served = call(subject, idem_scope="scope-2", idem_role="joined", served_from=mine.row.id)
        await subject.ledger.write(Batch([served]))
        assert await subject.ledger.find("scope-2") is None
        await made(subject, claim(subject, "scope-2"))


@pytest.mark.parametrize("broken", ["call", "attempt", "event"])
async def test_a_batch_is_written_whole_or_not_at_all(subjects: Subjects, broken: str) -> None:
    """A row that cannot be stored takes its batch with it, and nobody else's."""
    async with subjects() as subject:
        rows = [call(subject) for _ in range(3)]
        batch = Batch(list(rows), [attempt(each) for each in rows], [event(subject)])
        match broken:
            case "call":
                batch.calls[1] = rows[1]._replace(bytes_in=2**63)
            case "attempt":
                batch.attempts[2] = attempt(rows[2], wait_us=-(2**63) - 1)
            case _:
                batch.events.append(event(subject, until_us=10**30))
        other = Batch([call(subject)])
        results = await asyncio.gather(
            subject.ledger.write(other), subject.ledger.write(batch), return_exceptions=True
        )
        assert results[0] is None
        assert isinstance(results[1], LedgerRefused)
        assert await counts(subject) == [1, 0, 0]
        assert subject.ledger.available


async def test_text_that_is_no_unicode_is_refused(subjects: Subjects) -> None:
    """A lone surrogate has no UTF-8 form."""
    async with subjects() as subject:
        with pytest.raises(LedgerRefused):
            await subject.ledger.write(Batch([call(subject, path="/\ud800")]))
        assert await counts(subject) == [0, 0, 0]


async def test_an_empty_batch_is_written(subjects: Subjects) -> None:
    """Nothing is no error."""
    async with subjects() as subject:
        await subject.ledger.write(Batch())
        assert await counts(subject) == [0, 0, 0]


async def test_many_batches_at_once(subjects: Subjects) -> None:
    """Each is there when its write has returned."""
    async with subjects() as subject:
        batches = [Batch([call(subject) for _ in range(20)]) for _ in range(20)]
        await asyncio.gather(*map(subject.ledger.write, batches))
        assert await counts(subject) == [400, 0, 0]
