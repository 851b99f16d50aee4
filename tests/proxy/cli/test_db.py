"""`steer db`."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.migrate import HEAD
from tests.migrations.conftest import (  # noqa: F401 - fixtures
    postgres_place,
    sqlite_place,
)
from tests.migrations.places import PostgresPlace, SqlitePlace
from tests.proxy.cli.conftest import Steer


def test_sqlite_upgrade_and_current(
    steer: Steer,
    sqlite_place: SqlitePlace,  # noqa: F811
) -> None:
    """From nothing to the newest revision; each command says where that leaves the file."""
    told = f"SQLite file {sqlite_place.path}"
    empty = steer("db", "current", "--database-url", sqlite_place.url)
    assert (empty.exit_code, empty.stdout) == (1, f"{told} does not exist.\n")
    assert empty.stderr == "steer: the database has no ledger yet: run `steer db upgrade`\n"
    done = steer("db", "upgrade", "--database-url", sqlite_place.url)
    assert (done.exit_code, done.output) == (
        0,
        f"{told} was at nothing, is now at revision {HEAD}.\n",
    )
    again = steer("db", "upgrade", "--database-url", sqlite_place.url)
    assert (again.exit_code, again.output) == (0, f"{told} is at revision {HEAD} already.\n")
    now = steer("db", "current", "--database-url", sqlite_place.url)
    assert (now.exit_code, now.output) == (
        0,
        f"{told} is at revision {HEAD} (current), for writers from 1 on.\n",
    )


def test_a_server_without_a_ledger(steer: Steer, postgres_place: PostgresPlace) -> None:  # noqa: F811
    """It may hold what is others'; what has our names stands in the way, and is left alone."""
    place = postgres_place
    place.run("CREATE TABLE others (x BIGINT)")
    result = steer("db", "current", "--database-url", place.url)
    assert (result.exit_code, "has no ledger.\n" in result.stdout) == (1, True)
    place.run("CREATE TABLE requests (x BIGINT)", "CREATE VIEW v_spend AS SELECT x FROM others")
    before = place.names()
    refused = (
        "steer: the database has requests, v_spend already, not made by Steer: name a "
        "database, a schema or a file of Steer's own in database.url\n"
    )
    for command in ("current", "upgrade"):
        result = steer("db", command, "--database-url", place.url)
        assert (result.exit_code, result.stderr) == (1, refused)
        shown = "holds tables that are not Steer's: requests, v_spend.\n" in result.stdout
        assert shown is (command == "current")
    assert place.names() == before
    place.run("DROP VIEW v_spend", "DROP TABLE requests")
    assert steer("db", "upgrade", "--database-url", place.url).exit_code == 0


def test_a_file_of_others_is_no_ledger(
    steer: Steer,
    sqlite_place: SqlitePlace,  # noqa: F811
) -> None:
    """Told by whoever would read it, or make a ledger of it; it stays as it is."""
    sqlite_place.run(
        "CREATE TABLE Requests (x)", "CREATE TABLE users (x)", "CREATE VIEW u AS SELECT 1"
    )
    before = sqlite_place.path.read_bytes()
    for command in (
        ("ledger", "list"),
        ("db", "upgrade"),
        ("db", "current"),
        ("doctor",),
        ("serve", "--port", "0", "--admin-port", "0"),
    ):
        result = steer(*command, STEER_DATABASE__URL=sqlite_place.url)
        assert result.exit_code == 1, command
        told = " ".join((result.output + result.stderr).split())
        assert "has Requests, u, users already, not made by Steer: name a" in told, command
    assert sqlite_place.path.read_bytes() == before


def test_postgres_by_reference(steer: Steer, postgres_empty_url: str, tmp_path: Path) -> None:
    """The address comes from the configuration, from a secret where it holds a password."""
    path = tmp_path / "steer.yaml"
    path.write_text("database: {url: {env: LEDGER}}\n")
    done = steer("db", "upgrade", "-c", str(path), LEDGER=postgres_empty_url)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("PostgreSQL 127.0.0.1:")
    assert done.output.endswith(f"was at nothing, is now at revision {HEAD}.\n")
    assert migrate.current(postgres_empty_url).revision == HEAD


@pytest.mark.parametrize("command", ["upgrade", "current"])
def test_memory_has_no_schema(command: str, steer: Steer) -> None:
    """There is nothing to do, and that is no failure."""
    result = steer("db", command, "--database-url", "memory:")
    assert result.exit_code == 0
    assert result.output.startswith("The ledger is in memory: ")


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        ("sqlite:////nowhere/at/all/steer.db", 1, "No such file or directory"),
        ("postgresql://127.0.0.1:1/ledger", 1, "cannot be reached"),
        ("mysql://127.0.0.1/ledger", 2, "expected sqlite:///PATH"),
        ("postgresql://steer:hush@127.0.0.1/ledger", 2, "a URL with a password is a secret"),
    ],
)
def test_what_cannot_be_done_is_one_line(url: str, code: int, told: str, steer: Steer) -> None:
    """1 for a database that cannot be used, 2 for an address that is none; no password is shown."""
    result = steer("db", "upgrade", "--database-url", url)
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert "hush@" not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("mysql://steer:hush@db/ledger", "expected sqlite:///PATH"),
        ("", "is empty"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_reference_that_does_not_help(
    content: str | None, told: str, steer: Steer, tmp_path: Path
) -> None:
    """Told with the reference; what it holds is not quoted."""
    secret, path = tmp_path / "url", tmp_path / "steer.yaml"
    if content is not None:
        secret.write_text(content)
    path.write_text(f"database: {{url: {{file: {secret}}}}}\n")
    result = steer("db", "upgrade", "-c", str(path))
    assert result.exit_code == 2, result.output
    assert f"file {secret}" in result.stderr
    assert told in result.stderr
    assert "hush" not in result.output
