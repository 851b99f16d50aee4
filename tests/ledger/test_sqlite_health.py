"""A SQLite file whose journal grows."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from steer_proxy.ledger import sqlite_health
from steer_proxy.ledger.sqlite_health import LARGE_JOURNAL, TELL_EVERY, JournalWatch
from steer_proxy.ledger.values import Batch, Purge
from tests.ledger_contract.make import call
from tests.ledger_contract.subject import SqliteSubject, Wall


def grow(path: Path, size: int) -> None:
    """Make a journal of so many bytes, which take no room."""
    with path.with_name(f"{path.name}-wal").open("ab") as journal:
        os.truncate(journal.fileno(), size)


def test_a_large_journal_is_told_once_an_hour(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And not at all when it is no larger than some minutes of a report make it."""
    clock = Wall()
    path = tmp_path / "steer.db"
    watch = JournalWatch(path, clock)
    watch.look()
    grow(path, LARGE_JOURNAL - 1)
    watch.look()
    assert caplog.messages == []
    grow(path, LARGE_JOURNAL)
    for seconds in (0.0, 60.0, TELL_EVERY - 61, 1.0):
        clock.now += seconds
        watch.look()
    first, second = caplog.messages
    assert first == second
    assert "steer.db-wal has grown to 256 MiB" in first
    assert {record.levelname for record in caplog.records} == {"WARNING"}


async def test_a_long_reader_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While another program's transaction keeps the journal from being used again."""
    monkeypatch.setattr(sqlite_health, "LARGE_JOURNAL", 200_000)
    path = tmp_path / "steer.db"
    subject = SqliteSubject(path)
    await subject.ledger.open()
    try:
        await subject.ledger.purge(Purge(0))
        assert caplog.messages == []
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT COUNT(*) FROM requests").fetchone()
            for _ in range(10):
                await subject.ledger.write(Batch([call(subject) for _ in range(50)]))
            await subject.ledger.purge(Purge(0))
            await subject.ledger.purge(Purge(0))
        (message,) = caplog.messages
        assert "a transaction of another program" in message
    finally:
        await subject.ledger.close()
