"""docs/ledger.md says how to connect, and so it is."""

from __future__ import annotations

import re
import shutil
import subprocess
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
ALL: Final = "\n".join(COOKBOOK.values())


def test_the_shell_of_sqlite_runs_the_cookbook(
    filled_sqlite: FilledSqlite,  # noqa: F811
    tmp_path: Path,
) -> None:
    """With the options that are printed there, on a file in WAL mode that another process holds."""
    shell = shutil.which("sqlite3")
    if shell is None:
        pytest.skip("there is no sqlite3 on this machine")
    import sqlite3

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
