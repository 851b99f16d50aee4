"""docs/ledger.md says how to connect, and so it is."""

from __future__ import annotations

import re
import shutil
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from steer_proxy.ledger import migrate
from tests.ledger.test_cookbook import COOKBOOK, DOCUMENT
from tests.migrations.places import PostgresPlace
from tests.support.filled import (  # noqa: F401 - fixtures
    FilledPostgres,
    FilledSqlite,
    filled_postgres,
    filled_sqlite,
)
from tests.support.postgres import Server

TEXT: Final = DOCUMENT.read_text("utf-8")
OPERATIONS: Final = DOCUMENT.with_name("operations.md").read_text("utf-8")
ALL: Final = "\n".join(COOKBOOK.values())


def test_the_shell_of_sqlite_runs_the_cookbook(
    filled_sqlite: FilledSqlite,  # noqa: F811
    tmp_path: Path,
) -> None:
    """With the options that are printed there, on a file in WAL mode that another process holds."""
    shell = shutil.which("sqlite3")
    if shell is None:
        pytest.skip("there is no sqlite3 on this machine")
    path = tmp_path / "steer.db"
    shutil.copyfile(filled_sqlite.path, path)
    writer = sqlite3.connect(path, isolation_level=None)
    try:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE owners SET version = 'x'")
        assert "sqlite3 -readonly -header -column steer.db" in TEXT
        done = subprocess.run(
            [shell, "-readonly", "-header", "-column", "-bail", path],
            input=ALL,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    finally:
        writer.close()
    assert (done.returncode, done.stderr) == (0, "")
    assert "order-5" in done.stdout


def test_a_backup_is_made_while_others_write(tmp_path: Path) -> None:
    """As the operations manual writes it: whole, for its owner only, and in one go. The shell's own
    `.backup` begins again whenever another process has committed."""
    if shutil.which("sqlite3") is None:
        pytest.skip("there is no sqlite3 on this machine")
    path = tmp_path / "steer.db"
    migrate.upgrade(f"sqlite:///{path}")
    below = OPERATIONS.partition("\n### Backup\n")[2]
    command = re.search(r"^    (.*sqlite3 .*)$", below, re.MULTILINE)
    assert command is not None
    with _written_all_the_time(path):
        done = subprocess.run(
            ["/bin/sh", "-c", f"umask 022; {command[1]}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert {each.name for each in tmp_path.glob("steer-backup.db*")} == {"steer-backup.db"}
    backup = tmp_path / "steer-backup.db"
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT COUNT(*) FROM breaker_events").fetchone() == (100,)
    assert migrate.current(f"sqlite:///{backup}").standing is migrate.Standing.CURRENT


@contextmanager
def _written_all_the_time(path: Path) -> Iterator[None]:
    """A file of some 10 MB, too much to be copied between two commits of its writer."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            writer.execute("INSERT OR REPLACE INTO steer_meta VALUES ('test', random())")

    connected = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with closing(connected) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = OFF")
        writer.executemany(
            "INSERT INTO breaker_events (id, at_us, instance, kind, upstream, to_state, reason) "
            "VALUES (?, 0, '', 'manual', '', 'open', ?)",
            ((str(n), "x" * 100_000) for n in range(100)),
        )
        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def test_psql_runs_the_cookbook(
    filled_postgres: FilledPostgres,  # noqa: F811
    postgres_server: Server,
) -> None:
    """All of it in one go."""
    assert "order-5" in postgres_server.sql(ALL, filled_postgres.url.rpartition("/")[2])


def test_a_reader_may_read_what_is_granted(
    filled_postgres: FilledPostgres,  # noqa: F811
    postgres_server: Server,
) -> None:
    """The printed grants are enough for every query, and give away no secret and no answer."""
    grants = re.findall(r"^    (GRANT [^;]+;)$", TEXT, re.MULTILINE)
    assert len(grants) == 3
    database = filled_postgres.url.rpartition("/")[2]
    postgres_server.sql("CREATE ROLE reader LOGIN")
    try:
        postgres_server.sql(" ".join(grants), database)
        reader = FilledPostgres.__new__(FilledPostgres)
        reader.url = filled_postgres.url.replace("postgres@", "reader@")
        for title, query in COOKBOOK.items():
            assert reader.ask(query)[1], title
        for secret in ("* FROM steer_meta", "body FROM response_chunks", "* FROM response_chunks"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                reader.ask(f"SELECT {secret}")
    finally:
        postgres_server.sql("DROP OWNED BY reader", database)
        postgres_server.sql("DROP ROLE reader")


def test_a_schema_of_its_own(postgres_empty_url: str) -> None:
    """As the document writes it: nothing is made in `public`."""
    (options,) = re.findall(r"`postgresql://steer@db/steer\?([^`]+)`", TEXT)
    place = PostgresPlace(postgres_empty_url)
    place.run("CREATE SCHEMA steer")
    url = f"{postgres_empty_url}?{options}"
    migrate.upgrade(url)
    migrate.upgrade(url)
    assert migrate.current(url).revision == migrate.HEAD
    assert place.names() == set()
    assert place.run("SELECT COUNT(*) FROM steer.requests") == [(0,)]
