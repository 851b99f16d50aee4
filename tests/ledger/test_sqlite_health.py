"""A SQLite file that is not well: its journal grows, or it is damaged."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from steer_proxy.ledger import migrate, sqlite_health
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.sqlite_health import LARGE_JOURNAL, TELL_EVERY, JournalWatch
from steer_proxy.ledger.values import Batch, Purge
from tests.ledger_contract.make import alive, call, claim, made
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


# --- Damage ---------------------------------------------------------------------------------------

REMEDY = r"move it away.*-wal and -shm.*restore a backup"


def damaged(path: Path) -> None:
    """A ledger whose schema cannot be read any more."""
    migrate.upgrade(f"sqlite:///{path}")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 3000)


def overwritten(path: Path) -> None:
    """A ledger whose first bytes are gone: it looks like no database at all."""
    migrate.upgrade(f"sqlite:///{path}")
    with path.open("r+b") as file:
        file.write(b"\xa5" * 100)


@pytest.mark.parametrize("harm", [damaged, overwritten])
async def test_a_damaged_file_is_told_with_the_remedy(tmp_path: Path, harm) -> None:  # type: ignore[no-untyped-def]
    """Another file would be no remedy: it knows none of the keys."""
    path = tmp_path / "steer.db"
    harm(path)
    for work in (migrate.upgrade, migrate.current):
        with pytest.raises(LedgerUnusable, match=REMEDY):
            work(f"sqlite:///{path}")
    ledger = SqliteLedger(path, Wall())
    with pytest.raises(LedgerUnusable, match=REMEDY):
        await ledger.open()
    await ledger.close()


async def test_damage_that_is_found_later_is_told_with_the_remedy(tmp_path: Path) -> None:
    """In the log's line that the ledger is unavailable, by whoever finds it, reader or writer."""
    path = tmp_path / "steer.db"
    subject = SqliteSubject(path)
    await alive(subject)
    await made(subject, claim(subject))
    await subject.ledger.close()
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        found = "SELECT rootpage FROM sqlite_master WHERE name IN ('requests', 'requests_live_key')"
        roots = [root for (root,) in connection.execute(found)]
    with path.open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * size)
            file.write(b"\xa5" * size)
    subject.ledger = SqliteLedger(path, subject.wall)
    for ask in (lambda: subject.ledger.find("scope-1"), lambda: made(subject, claim(subject))):
        with pytest.raises(LedgerUnavailable, match=REMEDY):
            await ask()
    await subject.ledger.close()
