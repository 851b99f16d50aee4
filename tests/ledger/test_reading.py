"""Reading a ledger from outside."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.ledger import migrate, reading, reports, schema
from steer_proxy.ledger.address import Memory, Postgres, Sqlite
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.values import Batch, CallRow


@pytest.fixture
def file(tmp_path: Path) -> Sqlite:
    """A ledger in a file whose name means something in a URI."""
    path = tmp_path / "a %41?.db"
    with closing(sqlite3.connect(tmp_path / "b.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    migrate.upgrade(f"sqlite:///{tmp_path}/b.db")
    (tmp_path / "b.db").rename(path)
    return Sqlite(str(path))


def count(reader: reading.Reader) -> int:
    """How many calls there are."""
    return len(reports.calls(reader, reports.Filters(), ["id"], "id", 10))


@pytest.mark.real_time
async def test_beside_the_writer(tmp_path: Path) -> None:
    """What is committed is seen; its lock is not asked for, nor a transaction of its waited for."""
    path = tmp_path / "steer.db"
    ledger = SqliteLedger(path, time.time)
    await ledger.open()
    await ledger.write(Batch(calls=[CallRow(id="1", request_id="r")]))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with reading.reading(Sqlite(str(path))) as reader:
            assert count(reader) == 1
        other.execute("ROLLBACK")
    await ledger.close()


def test_a_url_that_the_driver_does_not_understand() -> None:
    """Its words may quote a part of the password: they are not told."""
    url = "postgresql://u:pass@word:hunter2@h/d"  # its @ should be encoded
    with pytest.raises(LedgerUnusable, match="not understood") as told:
        reading.reading(Postgres(url)).__enter__()
    assert "hunter2" not in str(told.value)


def test_it_cannot_write(file: Sqlite) -> None:
    """Whatever it is asked."""
    with reading.reading(file) as reader, pytest.raises(LedgerUnavailable, match="readonly"):
        reader.rows("DELETE FROM requests RETURNING id", {})


def test_a_place_where_nothing_can_be_made(file: Sqlite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in WAL mode is then read as it is, if nobody writes it.

    Root can write anywhere, so SQLite's refusal is made up.
    """
    asked: list[str] = []
    connect: Any = sqlite3.connect

    def refuse(place: str, **terms: Any) -> Any:
        asked.append(place)
        if "immutable" in place:
            return connect(place, **terms)
        refusing = connect(":memory:")
        refusing.set_progress_handler(lambda: 1, 1)
        return refusing

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(LedgerUnusable, match="cannot be read"), reading.reading(file):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(reading, "_readable", lambda *_: None)
    with reading.reading(file) as reader:
        assert count(reader) == 0
    assert asked[-1].endswith("?mode=ro&immutable=1")


def test_a_query_has_a_bound(file: Sqlite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr(reading, "PATIENCE", 0.0)
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT MAX(x) AS m FROM n"
    )
    with reading.reading(file) as reader, pytest.raises(LedgerUnavailable, match="interrupted"):
        reader.rows(endless, {})


def test_the_schema_of_an_older_version(file: Sqlite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named, with the remedy."""
    old = schema.HEAD
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "newer"))
    monkeypatch.setattr(schema, "HEAD", "newer")
    expected = rf"older version \(revision {old}\)"
    with pytest.raises(LedgerUnusable, match=expected), reading.reading(file):
        pass


def test_memory() -> None:
    """Belongs to its process."""
    with (
        pytest.raises(LedgerUnusable, match="belongs to its process"),
        reading.reading(Memory()),
    ):
        pass
