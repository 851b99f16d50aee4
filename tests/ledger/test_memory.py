from __future__ import annotations

from steer_policies.idempotency import State
from steer_proxy.ledger.memory import LOG_ROWS, MemoryLedger
from steer_proxy.ledger.values import Batch
from tests.ledger_contract.make import attempt, call, chunks, claim, ending, event
from tests.ledger_contract.subject import MemorySubject


async def test_it_has_no_secret_before_it_is_open() -> None:
    """As a database that was not reached yet; and the same one when it is opened again."""
    ledger = MemoryLedger(lambda: 0.0)
    assert (ledger.secret, ledger.available, ledger.shared) == (None, False, False)
    await ledger.open()
    secret = ledger.secret
    assert secret is not None
    assert ledger.available
    await ledger.close()
    await ledger.open()
    assert ledger.secret == secret
    assert MemoryLedger(lambda: 0.0, shared=True).shared


async def test_the_log_keeps_its_last_rows() -> None:
    """Rows that are over make room, oldest first; live records stay."""
    subject = MemorySubject()
    ledger = subject.ledger
    live = claim(subject)
    assert await ledger.claim(live) is None
    released = claim(subject, "scope-2", sent=True)
    assert await ledger.claim(released) is None
    await ledger.add_chunks(chunks(released, b"x"))
    assert await ledger.finish(ending(subject, released, State.RELEASED))
    rows = [call(subject) for _ in range(LOG_ROWS)]
    await ledger.write(Batch(rows, [attempt(row) for row in rows], [event(subject) for _ in rows]))
    late = call(subject)
    await ledger.write(Batch([late], [attempt(late)], [event(subject)]))
    assert len(ledger.calls) == LOG_ROWS + 1
    assert live.row.id in ledger.calls
    assert released.row.id not in ledger.calls
    assert rows[0].id not in ledger.calls
    assert late.id in ledger.calls
    assert (len(ledger.attempts), len(ledger.events)) == (LOG_ROWS, LOG_ROWS)
    assert (rows[0].id, 1) not in ledger.attempts
