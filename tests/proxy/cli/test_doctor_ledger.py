"""`steer doctor` around the ledger."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.cli import doctor_ledger
from steer_proxy.cli.findings import Finding, Level
from steer_proxy.engine.config import Config, Database
from steer_proxy.engine.secret import Secret
from steer_proxy.ledger import migrate
from steer_proxy.ledger.address import Postgres, Sqlite
from steer_proxy.ledger.sealing import Sealer
from steer_proxy.settings import load
from tests.proxy.cli.conftest import Steer
from tests.support.postgres import Server
from tests.support.unprivileged import unprivileged

OK, NOTE, WARNING, FAILURE = Level.OK, Level.NOTE, Level.WARNING, Level.FAILURE
NOWHERE = "postgresql://127.0.0.1:9/steer"


def found(url: str, *, online: bool = False, **keys: Any) -> list[Finding]:
    """The findings for a ledger at an address."""
    config = load(None, {}, {"database": {"url": url, **keys}})
    return list(doctor_ledger.ledger(config, online=online))


def test_a_ledger_in_memory() -> None:
    """Is told to be no more than that."""
    (finding,) = found("memory:")
    assert finding.level is NOTE
    assert "gone when the process ends" in finding.text


def test_a_file_to_come_and_one_that_is_there(tmp_path: Path) -> None:
    """The first is made by `steer serve`, not by a look."""
    url = f"sqlite:///{tmp_path}/steer.db"
    (finding,) = found(url)
    assert (finding.level, "steer serve brings it to" in finding.text) == (OK, True)
    assert list(tmp_path.iterdir()) == []
    migrate.upgrade(url)
    (finding,) = found(url)
    assert (finding.level, finding.text.endswith(f"revision {migrate.HEAD}")) == (OK, True)


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    """With the command that makes it."""
    (finding,) = found(f"sqlite:///{tmp_path}/data/steer.db")
    assert finding.level is FAILURE
    assert f"mkdir -p {tmp_path}/data" in finding.remedy


def test_a_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the answer is made up."""
    monkeypatch.setattr(os, "access", lambda place, _: place != tmp_path)
    (finding,) = found(f"sqlite:///{tmp_path}/steer.db")
    assert finding.level is FAILURE
    assert f"{tmp_path} cannot be written" in finding.text


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
@pytest.mark.parametrize("place", ["steer.db", "deeper/steer.db"])
def test_a_directory_that_one_may_not_enter(place: str) -> None:
    """Is a finding as any other."""
    with unprivileged() as folder:
        folder.chmod(0o000)
        (finding,) = found(f"sqlite:///{folder}/{place}")
    assert finding.level is FAILURE
    assert "cannot be reached: Permission denied" in finding.text


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
@pytest.mark.parametrize(("suffix", "level"), [("-lock", FAILURE), ("-turn", WARNING)])
def test_a_lock_of_another_user(suffix: str, level: Level) -> None:
    """Steer does not start with one, and goes without the other."""
    with unprivileged() as folder:
        (folder / f"steer.db{suffix}").touch(0o000)
        first, *_ = found(f"sqlite:///{folder}/steer.db")
    assert first.level is level
    assert f"steer.db{suffix} is there, of user" in first.text
    assert "chown it" in first.remedy


def test_a_file_with_several_names(tmp_path: Path) -> None:
    """With the command that gives it one."""
    url = f"sqlite:///{tmp_path}/steer.db"
    migrate.upgrade(url)
    (tmp_path / "other.db").hardlink_to(tmp_path / "steer.db")
    first, *_ = found(url)
    assert (first.level, "has 2 names" in first.text) == (FAILURE, True)
    assert f"cp -p {tmp_path}/steer.db" in first.remedy


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """Not SQLite's, or another program's."""
    (tmp_path / "text.db").write_text("hello " * 100)
    with closing(sqlite3.connect(tmp_path / "newer.db")) as connection:
        connection.executescript(
            "CREATE TABLE alembic_version (version_num TEXT);"
            "INSERT INTO alembic_version VALUES ('9999');"
            "CREATE TABLE steer_meta (name TEXT, value TEXT);"
            "INSERT INTO steer_meta VALUES ('min_writer', '99');"
        )
    for name, expected in (("text.db", "not a database"), ("newer.db", "from writer 99 on")):
        (finding,) = found(f"sqlite:///{tmp_path}/{name}")
        assert finding.level is FAILURE
        assert expected in finding.text


def test_an_empty_file(tmp_path: Path) -> None:
    """It may have been a ledger."""
    (tmp_path / "steer.db").touch()
    (finding,) = found(f"sqlite:///{tmp_path}/steer.db")
    assert (finding.level, "is empty: as a new ledger" in finding.text) == (WARNING, True)


def test_a_network_file_system(tmp_path: Path) -> None:
    """Its WAL is not safe there."""
    address = Sqlite(str(tmp_path / "steer.db"))
    assert [each.level for each in doctor_ledger.file(address, "ext4")] == [OK]
    first, _ = doctor_ledger.file(address, "nfs4")
    assert first.level is WARNING
    assert "nfs4" in first.text


def test_a_server_is_asked_only_when_online() -> None:
    """Nothing leaves this machine otherwise."""
    (finding,) = found(NOWHERE)
    assert (finding.level, "--online" in finding.remedy) == (NOTE, True)
    (finding,) = found(NOWHERE, online=True)
    assert (finding.level, "cannot be reached" in finding.text) == (WARNING, True)
    (finding,) = found(NOWHERE, online=True, required=True)
    assert finding.level is FAILURE


@pytest.mark.real_time
def test_a_server(postgres_url: str, postgres_empty_url: str) -> None:
    """With its schema's revision, or the command that makes it."""
    finding, unsafe = found(postgres_url, online=True)
    assert (finding.level, finding.text.endswith(f"revision {migrate.HEAD}")) == (OK, True)
    assert (unsafe.level, "fsync is off" in unsafe.text) == (WARNING, True)  # a test's server
    (finding,) = found(postgres_empty_url, online=True)
    assert (finding.level, "steer db upgrade" in finding.text) == (FAILURE, True)


@pytest.mark.real_time
def test_a_server_that_forgets(postgres_server: Server, postgres_url: str) -> None:
    """What it answers before it is on disk is told."""
    database = postgres_url.rpartition("/")[2]
    postgres_server.sql(f"ALTER DATABASE {database} SET synchronous_commit = off")
    _, finding, _ = found(postgres_url, online=True)
    assert (finding.level, "synchronous_commit is off" in finding.text) == (WARNING, True)


def test_a_reference_that_no_longer_resolves() -> None:
    """Is named."""
    config = Config(routes=(), upstreams={}, database=Database(url=Secret(env="GONE", environ={})))
    (finding,) = doctor_ledger.ledger(config, online=True)
    assert (finding.level, "environment variable GONE" in finding.text) == (FAILURE, True)


@pytest.mark.parametrize(
    ("mode", "warned"),
    [(0o600, False), (0o400, False), (0o440, False), (0o640, False), (0o644, True), (0o620, True)],
)
def test_files_of_keys(tmp_path: Path, mode: int, warned: bool) -> None:
    """Not for everybody; a group may read, as a mounted secret's does."""
    key = tmp_path / "key"
    key.write_text("0" * 64)
    key.chmod(mode)
    config = load(
        None,
        {"K": "1" * 64, "STEER_DATABASE__URL": "memory:"},
        {
            "database": {
                "encryption": {
                    "keys": [
                        {"id": "new", "secret": {"file": str(key)}},
                        {"id": "old", "secret": {"env": "K"}},
                    ]
                }
            }
        },
    )
    _, *found, last = doctor_ledger.ledger(config, online=False)
    assert last.text == "stored answers are encrypted with new; old still open what they sealed"
    assert bool(found) is warned
    for finding in found:
        assert finding.level is WARNING
        assert finding.remedy == f"chmod 600 {key}"
        assert f"{mode:04o}" in finding.text


def test_a_file_of_the_url(tmp_path: Path) -> None:
    """It holds a password."""
    (tmp_path / "url").write_text("postgresql://u:hunter2@127.0.0.1:9/d")
    (tmp_path / "url").chmod(0o644)
    config = load(None, {}, {"database": {"url": {"file": f"{tmp_path}/url"}}})
    findings = list(doctor_ledger.ledger(config, online=True))
    assert any("0644" in each.text for each in findings)
    assert "hunter2" not in repr(findings)


def test_the_password_is_not_shown() -> None:
    """Nor in an error of the driver's."""
    finding = doctor_ledger.server(
        Postgres("postgresql://u:hunter2@127.0.0.1:9/d"), online=True, required=False
    )
    assert "hunter2" not in repr(finding)


def test_the_command(steer: Steer, tmp_path: Path) -> None:
    """Looks at it."""
    result = steer("doctor", "--json", STEER_DATABASE__URL=f"sqlite:///{tmp_path}/no/steer.db")
    assert result.exit_code == 1
    findings = json.loads(result.output)["findings"]
    assert [each["level"] for each in findings if each["name"] == "ledger"] == ["failure"]


def test_a_key_that_is_another_one(tmp_path: Path) -> None:
    """Is told before `steer serve` refuses it, with its reference; so is one that is missing."""
    url = f"sqlite:///{tmp_path}/steer.db"
    env = {"NEW": "1" * 64, "OLD": "2" * 64, "OTHER": "3" * 64}

    def about(**keys: str) -> list[tuple[Level, str]]:
        ring = [{"id": name, "secret": {"env": place}} for name, place in keys.items()]
        database = {"url": url, "encryption": {"keys": ring}}
        findings = doctor_ledger.ledger(load(None, env, {"database": database}), online=False)
        return [(each.level, each.text) for each in findings if each.name == "ledger keys"][1:]

    assert about(new="NEW", old="OLD") == []  # there is no file yet
    migrate.upgrade(url)
    assert about(new="NEW", old="OLD") == []
    with closing(sqlite3.connect(tmp_path / "steer.db")) as connection, connection:
        for name, value in Sealer([("new", b"\x11" * 32), ("old", b"\x22" * 32)]).checks().items():
            connection.execute("INSERT INTO steer_meta VALUES (?, ?)", (f"key:{name}", value))
    assert about(new="NEW", old="OLD") == []
    ((level, text),) = about(new="NEW", old="OTHER")
    assert level is FAILURE
    assert text.startswith("encryption key 'old' (environment variable OTHER) is not the key")
    ((level, text),) = about(new="NEW")
    assert (level, "'old', which is not in the ring" in text) == (WARNING, True)
