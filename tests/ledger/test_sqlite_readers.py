"""Readers that the writer sends away."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from steer_proxy.ledger import sqlite_readers
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.sqlite_readers import Reading, away

_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"


def reading() -> Reading:
    """One of a database in memory."""
    return Reading(lambda: sqlite3.connect(":memory:", check_same_thread=False))


def test_a_connection_is_kept_until_it_is_taken_away() -> None:
    """And the next use makes another."""
    mine = reading()
    with pytest.raises(sqlite3.OperationalError), mine.use() as first:
        first.execute("SELECT nothing")
    with mine.use() as second:
        assert second is not first
    with mine.use() as third:
        assert third is second
    with away([mine]):
        pass
    with mine.use() as fourth:
        assert fourth is not second
    mine.drop()


def test_a_reader_that_takes_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose read fails; it can read again afterwards."""
    monkeypatch.setattr(sqlite_readers, "GRACE", 0.01)
    mine, running, errors = reading(), threading.Event(), list[sqlite3.Error]()

    def read() -> None:
        try:
            with mine.use() as connection:
                connection.set_progress_handler(running.set, 1000)
                connection.execute(_ENDLESS).fetchone()
        except sqlite3.Error as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert running.wait(10)
    with away([mine]):
        thread.join(10)
    assert [str(error) for error in errors] == ["interrupted"]
    with mine.use() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    mine.drop()


def test_a_reader_that_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told, and those that were sent away can read again."""
    monkeypatch.setattr(sqlite_readers, "GRACE", 0.0)
    monkeypatch.setattr(sqlite_readers, "PATIENCE", 0.0)
    mine, stuck = reading(), reading()
    with stuck.use(), pytest.raises(LedgerUnavailable), away([mine, stuck]):
        pass
    with mine.use(), stuck.use():
        pass
    with away([mine, stuck]):
        pass
