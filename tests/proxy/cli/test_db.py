"""`steer db`."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.migrate import HEAD
from tests.migrations.places import SqlitePlace
from tests.proxy.cli.conftest import Steer


@pytest.fixture
def place(tmp_path: Path) -> SqlitePlace:
    """A SQLite file that is not there yet."""
    return SqlitePlace(tmp_path)


def test_sqlite_upgrade_and_current(steer: Steer, place: SqlitePlace) -> None:
    """From nothing to the newest revision; each command says where that leaves the file."""
    told = f"SQLite file {place.path}"
    empty = steer("db", "current", "--database-url", place.url)
    assert (empty.exit_code, empty.stdout) == (1, f"{told} is empty.\n")
    assert empty.stderr == "steer: the database has no ledger yet: run `steer db upgrade`\n"
    done = steer("db", "upgrade", "--database-url", place.url)
    assert (done.exit_code, done.output) == (
        0,
        f"{told} was at nothing, is now at revision {HEAD}.\n",
    )
    again = steer("db", "upgrade", "--database-url", place.url)
    assert (again.exit_code, again.output) == (0, f"{told} is at revision {HEAD} already.\n")
    now = steer("db", "current", "--database-url", place.url)
    assert (now.exit_code, now.output) == (
        0,
        f"{told} is at revision {HEAD} (current), for writers from 1 on.\n",
    )


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
