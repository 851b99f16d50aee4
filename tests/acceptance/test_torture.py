"""A short run of the torture on each database; `make torture` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import postgres
from tests.torture.database import Database, Postgres, Sqlite
from tests.torture.run import torture

pytestmark = pytest.mark.real_time

#: Seconds of torture; starting, and asking for everything again, take as long.
SECONDS = 2.5


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A ledger of the test's own."""
    if request.param == "sqlite":
        return Sqlite(tmp_path / "steer.db")
    server: postgres.Server = request.getfixturevalue("postgres_server")
    return Postgres(server, server.migrated())


async def test_invariants(database: Database, tmp_path: Path) -> None:
    """Callers, faults, and a checker that finds nothing wrong."""
    report = await torture(database, 3, SECONDS, tmp_path)
    assert not report.violations, str(report)
    # What was never put to the test is not proved.
    assert set(report.checked) == set(range(1, 9)), str(report)
    assert report.injected.total() >= 1
    assert report.succeeded > 0
