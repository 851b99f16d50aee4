"""The ledger's database during a run: its address, what stands in it, and how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from tests.support import postgres
from tests.torture.checker import LedgerRow

_KEYED: Final = """\
SELECT r.id, r.idem_key, r.idem_scope, r.idem_state, r.idem_live, r.idem_epoch,
       CASE WHEN o.lease_until_us > {now} THEN 0 ELSE 1 END AS lapsed
FROM requests r LEFT JOIN owners o ON o.id = r.owner_id
WHERE r.idem_state IS NOT NULL AND r.idem_scope IS NOT NULL AND r.idem_epoch IS NOT NULL
"""


def _rows(found: list[dict[str, Any]]) -> list[LedgerRow]:
    return [
        LedgerRow(
            row["id"],
            row["idem_key"],
            row["idem_scope"],
            row["idem_state"],
            row["idem_live"] == 1,
            row["idem_epoch"],
            row["lapsed"] == 1,
        )
        for row in found
    ]


class Database(Protocol):
    """What a run needs of its database."""

    name: str
    url: str
    replicas: str
    """The names of the sidecars that use it."""

    def rows(self) -> list[LedgerRow]:
        """The keyed rows that stand for a call of their own."""

    def ask(self, statement: str) -> list[dict[str, Any]]:
        """What a statement finds."""

    async def fail(self, seconds: float, *, hard: bool) -> None:
        """Cannot be used for a while; `hard` is the ruder way where there are two."""


class Sqlite:
    """One file, one sidecar."""

    name = "sqlite"
    replicas = "one"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"sqlite:///{path}"

    def rows(self) -> list[LedgerRow]:
        now = str(int(time.time() * 1_000_000))
        return _rows(self.ask(_KEYED.format(now=now)))

    def ask(self, statement: str) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as opened:
            opened.row_factory = sqlite3.Row
            return [dict(row) for row in opened.execute(statement)]

    async def fail(self, seconds: float, *, hard: bool) -> None:
        """Somebody else holds the file's write lock."""
        opened = sqlite3.connect(self._path, timeout=1.0, isolation_level=None)
        try:
            with contextlib.suppress(sqlite3.OperationalError):  # busy: then it is not our turn
                opened.execute("BEGIN EXCLUSIVE" if hard else "BEGIN IMMEDIATE")
            await asyncio.sleep(seconds)
        finally:
            opened.close()


class Postgres:
    """A server of its own, and several sidecars."""

    name = "postgres"
    replicas = "one two three"

    def __init__(self, server: postgres.Server, database: str) -> None:
        self._server = server
        self._database = database
        self.url = server.url(database)

    def rows(self) -> list[LedgerRow]:
        now = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        return _rows(self.ask(_KEYED.format(now=now)))

    def ask(self, statement: str) -> list[dict[str, Any]]:
        whole = f"SELECT json_agg(t) FROM ({statement}) t"
        found = self._server.sql(whole, self._database)
        return list(json.loads(found)) if found else []

    async def fail(self, seconds: float, *, hard: bool) -> None:
        """The server is stopped, and started again."""
        await asyncio.to_thread(self._server.stop, "immediate" if hard else "fast")
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._server.start)


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Database]:
    """A file that is made by the first sidecar."""
    yield Sqlite(folder / "steer.db")


@contextlib.contextmanager
def postgresql() -> Iterator[Database]:
    """A server of its own with the newest schema."""
    with postgres.running() as server:
        yield Postgres(server, server.migrated())
