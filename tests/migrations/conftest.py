from __future__ import annotations

from pathlib import Path

import pytest

from tests.migrations.places import Place, PostgresPlace, SqlitePlace
from tests.migrations.versions import NextVersion, become


@pytest.fixture
def postgres_place(postgres_empty_url: str) -> PostgresPlace:
    """An empty PostgreSQL database."""
    return PostgresPlace(postgres_empty_url)


@pytest.fixture
def sqlite_place(tmp_path: Path) -> SqlitePlace:
    """A SQLite file that is not there yet."""
    return SqlitePlace(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    """Either of them."""
    found = request.getfixturevalue(f"{request.param}_place")
    assert isinstance(found, Place)
    return found


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NextVersion:
    """Makes this process the version of Steer that brings one more revision."""
    return lambda revision: become(tmp_path / "next" / "migrations", monkeypatch, revision)
