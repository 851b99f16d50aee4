"""`steer doctor` in a SQLite file."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from steer_proxy.cli import doctor_file, doctor_ledger
from steer_proxy.cli.findings import Finding, Level
from steer_proxy.ledger import migrate
from steer_proxy.ledger.address import Sqlite
from steer_proxy.ledger.sqlite_health import LARGE_JOURNAL


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger."""
    path = tmp_path / "steer.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


def found(path: Path) -> list[Finding]:
    """All findings of a file."""
    return list(doctor_ledger.file(Sqlite(str(path)), "ext4"))


def test_a_large_journal(path: Path) -> None:
    """Is told with its size, and with who may be the reason."""
    journal = path.with_name("steer.db-wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("DELETE FROM owners")
        os.truncate(journal, LARGE_JOURNAL - 1)
        (finding,) = found(path)
        assert finding.level is Level.OK
        os.truncate(journal, LARGE_JOURNAL)
        _, finding = found(path)
    assert (finding.level, "steer.db-wal is 256 MiB" in finding.text) == (Level.WARNING, True)
    assert f"lsof {path}" in finding.remedy


def test_damage(path: Path) -> None:
    """Is found where serving would meet it only later, and told with the remedy."""
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        root = "SELECT rootpage FROM sqlite_master WHERE name = 'attempts'"
        (page,) = connection.execute(root).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)
    _, finding = found(path)
    assert finding.level is Level.FAILURE
    assert "steer.db is damaged: " in finding.text
    assert "\n" not in finding.text
    assert "move it away together with its -wal and -shm" in finding.remedy


def test_a_file_too_large_to_be_looked_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told to be that, and not to be sound."""
    monkeypatch.setattr(doctor_file, "PATIENCE", 0.0)
    _, finding = found(path)
    assert (finding.level, "not enough for all of it" in finding.text) == (Level.NOTE, True)
    assert "PRAGMA quick_check" in finding.remedy
