"""Databases to migrate, of both kinds, with the same few questions."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.ledger_data import LedgerData, fill_postgres, fill_sqlite

TABLES = ("owners", "requests", "attempts", "response_chunks", "breaker_events")


class Place(ABC):
    """A database that may be migrated."""

    url: str

    @abstractmethod
    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each by itself; the last one's rows."""

    @abstractmethod
    def fill(self, data: LedgerData) -> None:
        """Write rows."""

    @abstractmethod
    def columns(self, table: str) -> dict[str, tuple[str, bool]]:
        """A table's or view's columns in order: type in capitals, and whether NULL is allowed."""

    @abstractmethod
    def names(self) -> set[str]:
        """Tables, views and indexes, but for those a primary key brings along."""

    def secret(self) -> str:
        ((value,),) = self.run("SELECT value FROM steer_meta WHERE name = 'secret'")
        return str(value)

    def everything(self, tables: Sequence[str] = TABLES) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of the tables, by the columns the first revision has."""
        return {table: self.run(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}


class SqlitePlace(Place):
    def __init__(self, folder: Path) -> None:
        # A percent sign and a space: neither Alembic nor SQLite may stumble over them.
        self.path = folder / "a 100% odd name.db"
        self.url = f"sqlite:///{self.path}"

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                rows = connection.execute(statement).fetchall()
            return rows

    def fill(self, data: LedgerData) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            fill_sqlite(connection, data)

    def columns(self, table: str) -> dict[str, tuple[str, bool]]:
        return {
            name: (kind, not required)
            for _, name, kind, required, _, _ in self.run(f"PRAGMA table_info({table})")
        }

    def names(self) -> set[str]:
        query = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex%'"
        return {name for (name,) in self.run(query)}


class PostgresPlace(Place):
    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        async def work(connection: Any) -> list[tuple[Any, ...]]:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return [tuple(row.values()) for row in rows]

        rows: list[tuple[Any, ...]] = self._with(work)
        return rows

    def fill(self, data: LedgerData) -> None:
        self._with(lambda connection: fill_postgres(connection, data))

    def columns(self, table: str) -> dict[str, tuple[str, bool]]:
        rows = self.run(
            "SELECT a.attname, upper(format_type(a.atttypid, a.atttypmod)), NOT a.attnotnull "
            f"FROM pg_attribute AS a WHERE a.attrelid = '{table}'::regclass AND a.attnum > 0 "
            "AND NOT a.attisdropped ORDER BY a.attnum"
        )
        return {name: (kind, optional) for name, kind, optional in rows}

    def names(self) -> set[str]:
        query = (
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relname NOT LIKE '%\\_pkey' AND relname NOT LIKE '%\\_pkc'"
        )
        return {name for (name,) in self.run(query)}

    def _with(self, work: Any) -> Any:
        async def whole() -> Any:
            connection = await asyncpg.connect(self.url)
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(whole())
