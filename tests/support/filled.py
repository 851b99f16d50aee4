"""The made-up ledger in both databases, to be asked the same questions."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.address import Sqlite, parse_address
from tests.support.ledger_data import LedgerData, fill_postgres, fill_sqlite, made_up
from tests.support.postgres import Server

Row = tuple[Any, ...]


class Filled(ABC):
    """A database that holds the made-up ledger."""

    name: str

    @abstractmethod
    def ask(self, query: str) -> tuple[list[str], list[Row]]:
        """The names of a query's columns, and its rows as they come."""

    def rows(self, query: str) -> list[Row]:
        """A query's rows, with one type of number."""
        return [plain(row) for row in self.ask(query)[1]]

    def dicts(self, query: str) -> list[dict[str, Any]]:
        """A query's rows by column."""
        names, rows = self.ask(query)
        return [dict(zip(names, plain(row), strict=True)) for row in rows]

    def keyed(self, query: str) -> dict[Any, Any]:
        """A query's rows by their first column."""
        return {row[0]: row[1] if len(row) == 2 else row[1:] for row in self.rows(query)}


def plain(row: Row) -> Row:
    """A row as either database would give it: fractions as floats, to a billionth."""
    return tuple(
        round(float(value), 9) if isinstance(value, Decimal | float) else value for value in row
    )


def fill(url: str, data: LedgerData) -> None:
    """Write rows into a ledger in either database."""

    async def on_a_server() -> None:
        connection = await asyncpg.connect(url)
        try:
            await fill_postgres(connection, data)
        finally:
            await connection.close()

    migrate.upgrade(url)
    file = parse_address(url)
    if isinstance(file, Sqlite):
        with closing(sqlite3.connect(file.path)) as connection:
            fill_sqlite(connection, data)
    else:
        asyncio.run(on_a_server())


class FilledSqlite(Filled):
    name = "sqlite"

    def __init__(self, path: Path, data: LedgerData | None = None) -> None:
        self.path = path
        fill(f"sqlite:///{path}", data or made_up())

    def ask(self, query: str) -> tuple[list[str], list[Row]]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            cursor = connection.execute(query)
            return [column[0] for column in cursor.description], cursor.fetchall()


class FilledPostgres(Filled):
    name = "postgres"

    def __init__(self, url: str, data: LedgerData | None = None) -> None:
        self.url = url
        fill(url, data or made_up())

    def ask(self, query: str) -> tuple[list[str], list[Row]]:
        return asyncio.run(self._ask(query))

    async def _ask(self, query: str) -> tuple[list[str], list[Row]]:
        connection = await asyncpg.connect(self.url)
        try:
            prepared = await connection.prepare(query)
            names = [attribute.name for attribute in prepared.get_attributes()]
            return names, [tuple(record.values()) for record in await prepared.fetch()]
        finally:
            await connection.close()


@pytest.fixture(scope="module")
def filled_sqlite(tmp_path_factory: pytest.TempPathFactory) -> FilledSqlite:
    """A SQLite file with the made-up ledger; only to be read."""
    return FilledSqlite(tmp_path_factory.mktemp("filled") / "steer.db")


@pytest.fixture(scope="module")
def filled_postgres(postgres_server: Server) -> Iterator[FilledPostgres]:
    """A PostgreSQL database with the made-up ledger; only to be read."""
    name = postgres_server.migrated()
    yield FilledPostgres(postgres_server.url(name))
    postgres_server.drop(name)


@pytest.fixture(params=["sqlite", "postgres"])
def filled(request: pytest.FixtureRequest) -> Filled:
    """Either of them."""
    found = request.getfixturevalue(f"filled_{request.param}")
    assert isinstance(found, Filled)
    return found
