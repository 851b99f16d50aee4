"""Expand and contract: this version's stores do all they do on the next version's schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer_policies.idempotency import Move, State
from steer_proxy.ledger import migrate
from steer_proxy.ledger.address import Postgres
from steer_proxy.ledger.migrate import Standing
from steer_proxy.ledger.postgres import PostgresLedger
from steer_proxy.ledger.protocol import LedgerUnusable
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.values import Batch, Purge
from tests.ledger_contract.make import (
    ME,
    OTHER,
    alive,
    attempt,
    call,
    chunks,
    claim,
    ending,
    event,
    found,
    made,
    ref,
)
from tests.ledger_contract.postgres import postgres_subjects
from tests.ledger_contract.subject import EPOCH, Subjects, sqlite_subjects
from tests.migrations.versions import ADDITIVE, NextVersion

EITHER = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("postgres", id="postgres", marks=pytest.mark.real_time),
]


@pytest.fixture(params=EITHER)
def expanded(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    next_version: NextVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> Subjects:
    """Ledgers of this version on a schema that the next one has migrated."""
    subjects, url = sqlite_subjects(tmp_path), f"sqlite:///{tmp_path}/steer.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_empty_url")
        subjects = postgres_subjects(url)
    migrate.upgrade(url)
    next_version(ADDITIVE)
    migrate.upgrade(url)
    monkeypatch.undo()
    assert migrate.current(url).standing is Standing.AHEAD
    return subjects


async def test_a_keyed_call_is_made_joined_and_replayed(expanded: Subjects) -> None:
    """Claim, send, head, chunks, completion, replay: as on our own schema."""
    async with expanded() as subject:
        ledger = subject.ledger
        await alive(subject)
        mine = await made(subject, claim(subject))
        assert (await ledger.claim(claim(subject))) == await found(subject)
        assert await ledger.mark_sent(ref(mine))
        assert await ledger.begin_answer(ref(mine), 200, "{}")
        await ledger.add_chunks(chunks(mine, b"one"))
        assert [each.body for each in (await ledger.follow(mine.row.id, -1, 9)).chunks] == [b"one"]
        assert await ledger.finish(
            ending(subject, mine, State.COMPLETED, b"one", b"two", written=1)
        )
        answer = await ledger.answer(mine.row.id)
        assert answer is not None
        assert (answer.status, answer.chunks) == (200, 2)
        assert [each.body for each in await ledger.chunks(mine.row.id, -1, 9)] == [b"one", b"two"]


async def test_keys_change_hands_and_are_settled(expanded: Subjects) -> None:
    """Take-over after a lapse, doubt, and the hand that settles."""
    async with expanded() as subject:
        ledger = subject.ledger
        await alive(subject)
        await made(subject, claim(subject))
        await subject.advance(60)
        await alive(subject, OTHER)
        second = claim(subject, owner=OTHER)
        assert await ledger.take_over(second, await found(subject)) is None
        assert await ledger.mark_sent(ref(second, 2))
        assert await ledger.finish(ending(subject, second, State.UNCERTAIN, epoch=2))
        assert await ledger.settle(second.row.id, Move.REOPEN)
        assert await ledger.find("scope-1") is None


async def test_the_log_is_written_and_purged(expanded: Subjects) -> None:
    """Calls, attempts and events; what the newer version added takes its default."""
    async with expanded() as subject:
        await alive(subject, ME)
        row = call(subject, ended_us=subject.now_us())
        batch = Batch([row], [attempt(row)], [event(subject)])
        await subject.ledger.write(batch)
        (written,) = await subject.rows("attempts")
        assert written["region"] == "somewhere"
        purged = await subject.ledger.purge(Purge(before_us=subject.now_us() + 1_000_000))
        assert (purged.requests, purged.attempts, purged.events) == (1, 1, 1)


async def test_sqlite_is_refused_when_only_newer_versions_may_write(tmp_path: Path) -> None:
    """Opening the file says so, and what to do."""
    path = tmp_path / "steer.db"
    migrate.upgrade(f"sqlite:///{path}")
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE steer_meta SET value = '2' WHERE name = 'min_writer'")
    connection.close()
    ledger = SqliteLedger(path, lambda: EPOCH)
    with pytest.raises(LedgerUnusable, match="use the newer version"):
        await ledger.open()
    await ledger.close()


@pytest.mark.real_time
async def test_postgres_is_refused_when_only_newer_versions_may_write(postgres_url: str) -> None:
    """As above."""
    import asyncpg

    connection = await asyncpg.connect(postgres_url)
    await connection.execute("UPDATE steer_meta SET value = '2' WHERE name = 'min_writer'")
    await connection.close()
    ledger = PostgresLedger(Postgres(postgres_url))
    with pytest.raises(LedgerUnusable, match="use the newer version"):
        await ledger.open()
    await ledger.close()
