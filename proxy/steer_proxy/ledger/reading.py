"""Reads a ledger from outside: beside a running sidecar, without a lock, and without writing.

For commands, not for the data plane: a `Reader` blocks, and has its own connection. The two
databases differ in few things here, and those are the reader's: parameters, labels, time.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from steer_proxy.ledger.address import Address, Memory, Postgres, Sqlite
from steer_proxy.ledger.parameters import numbered
from steer_proxy.ledger.postgres_tls import tls_problem
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.schema import Standing, State, check, sqlite_state, state_of
from steer_proxy.ledger.sqlite_health import told
from steer_proxy.ledger.sqlite_place import seen
from steer_proxy.ledger.values import MICROSECONDS

if TYPE_CHECKING:
    import asyncpg

Row = dict[str, Any]

#: The longest a query may take, in seconds: a report over millions of rows takes some.
PATIENCE: Final = 60.0

_CONNECT: Final = 10.0


class Reader(ABC):
    """Runs queries written with `:name` parameters."""

    @abstractmethod
    def rows(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows of a query, by column.

        Raises:
            LedgerUnavailable: when it cannot be answered now.
        """

    @abstractmethod
    def now_us(self) -> int:
        """The ledger's time, in Unix microseconds."""

    @abstractmethod
    def label(self, parameter: str) -> str:
        """SQL for the label of a call (`r.labels`) that a parameter names, as text: a number as
        JSON writes it, a flag as `true` or `false`."""

    @abstractmethod
    def label_name(self, name: str) -> str:
        """That parameter's value for a label."""

    @abstractmethod
    def day(self, column: str) -> str:
        """SQL for the day, in UTC, that a column of Unix microseconds lies in."""

    def row(self, query: str, parameters: Mapping[str, Any]) -> Row | None:
        """The first row of a query."""
        return next(iter(self.rows(query, parameters)), None)


@contextmanager
def reading(address: Address) -> Iterator[Reader]:
    """Open a ledger for reading.

    Raises:
        LedgerUnusable: when there is none; the message gives the remedy.
        LedgerUnavailable: when it cannot be reached now.
    """
    match address:
        case Memory():
            raise LedgerUnusable(
                "a ledger in memory belongs to its process and cannot be read from here: set "
                "database.url, or give --database-url"
            )
        case Sqlite():
            with _sqlite(address) as reader:
                yield reader
        case Postgres():
            with _postgres(address) as reader:
                yield reader


def _readable(state: State, place: str, remedy: str) -> None:
    """Make sure that there is a schema to read; a newer one than ours still has all our columns."""
    if state.foreign:
        check(state)
    if state.standing is Standing.EMPTY:
        raise LedgerUnusable(f"{place} has no ledger yet: {remedy}")
    if state.standing is Standing.BEHIND:
        raise LedgerUnusable(
            f"{place} has the schema of an older version (revision {state.revision}): {remedy}"
        )


# --- SQLite ---------------------------------------------------------------------------------------


class _SqliteReader(Reader):
    def __init__(self, connection: sqlite3.Connection, place: str) -> None:
        self._connection = connection
        self._place = place

    def rows(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        try:
            cursor = self._connection.execute(query, dict(parameters))
            names = [each[0] for each in cursor.description]
            return [dict(zip(names, values, strict=True)) for values in cursor]
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"{self._place}: {told(error)}") from None

    def now_us(self) -> int:
        return int(time.time() * MICROSECONDS)

    def label(self, parameter: str) -> str:
        # As PostgreSQL's `->>` tells them: SQLite's own gives numbers, and 1 and 0 for flags.
        return (
            f"CASE json_type(r.labels, :{parameter}) WHEN 'true' THEN 'true' "
            f"WHEN 'false' THEN 'false' ELSE CAST(json_extract(r.labels, :{parameter}) AS TEXT) END"
        )

    def label_name(self, name: str) -> str:
        return f'$."{name}"'

    def day(self, column: str) -> str:
        return f"strftime('%Y-%m-%d', {column} / 1000000, 'unixepoch')"


@contextmanager
def _sqlite(file: Sqlite) -> Iterator[Reader]:
    there = seen(Path(file.path))
    if there is None or not stat.S_ISREG(there.st_mode):
        raise LedgerUnusable(
            f"there is no {file} (the working directory is {Path.cwd()}): `steer serve` makes it; "
            "database.url, --config or --database-url say where it is"
        )
    try:
        with closing(open_read_only(file.path)) as connection:
            _readable(sqlite_state(connection), str(file), "start `steer serve` on it once")
            deadline = time.monotonic() + PATIENCE
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 100_000)
            yield _SqliteReader(connection, str(file))
    except sqlite3.Error as error:
        raise LedgerUnusable(f"{file} cannot be read: {told(error)}") from None


def open_read_only(path: str) -> sqlite3.Connection:
    """A connection that cannot write.

    Where no process has the file open, SQLite must be able to make the files beside it that it
    reads through. Where it cannot (a directory we may not write to, a read-only disk) and there is
    no WAL, nothing changes the file and it can be read without them.
    """
    uri = f"file:{quote(path)}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=2.0, isolation_level=None)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if Path(f"{path}-wal").exists() or os.access(Path(path).resolve().parent, os.W_OK):
            raise
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True, isolation_level=None)
    return connection


# --- PostgreSQL -----------------------------------------------------------------------------------


class _PostgresReader(Reader):
    def __init__(
        self, runner: asyncio.Runner, connection: asyncpg.Connection[Any], place: str
    ) -> None:
        self._runner = runner
        self._connection = connection
        self._place = place

    def rows(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        import asyncpg

        statement = numbered(query)
        values = statement.arguments(parameters)
        try:
            found = self._runner.run(self._connection.fetch(statement.sql, *values))
        except asyncpg.InsufficientPrivilegeError as error:
            raise LedgerUnavailable(
                f"{self._place}: its role may not read that ({error.message}): see Connecting in "
                "docs/ledger.md for the rights it needs"
            ) from None
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise LedgerUnavailable(f"{self._place}: {error or 'no answer in time'}") from None
        return [{name: _plain(value) for name, value in each.items()} for each in found]

    def now_us(self) -> int:
        (row,) = self.rows(
            "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS now", {}
        )
        return int(row["now"])

    def label(self, parameter: str) -> str:
        return f"(r.labels ->> CAST(:{parameter} AS TEXT))"

    def label_name(self, name: str) -> str:
        return name

    def day(self, column: str) -> str:
        return f"to_char(to_timestamp({column} / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


def _plain(value: Any) -> Any:
    """A value as SQLite would give it: sums and quotients are Decimals here."""
    if not isinstance(value, Decimal):
        return value
    whole = value == value.to_integral_value() and value.as_tuple().exponent == 0
    return int(value) if whole else float(value)


def _state(reader: Reader) -> State:
    """Where the schema stands, as far as a role may see that which may read calls alone."""
    if reader.row("SELECT 1 FROM pg_class WHERE oid = to_regclass('requests')", {}) is None:
        return State(Standing.EMPTY)
    told = "SELECT 1 WHERE has_table_privilege(to_regclass('alembic_version'), 'SELECT')"
    if reader.row(told, {}) is None:
        return State(Standing.CURRENT)
    found = reader.row("SELECT version_num FROM alembic_version", {})
    # `min_writer` is for writers; whoever reads alone may not be let at `steer_meta`.
    return state_of(None if found is None else found["version_num"], "1")


@contextmanager
def _postgres(server: Postgres) -> Iterator[Reader]:
    import asyncpg

    if (problem := tls_problem(server.dsn)) is not None:
        raise LedgerUnusable(problem)
    with asyncio.Runner() as runner:
        try:
            # No statement cache: PgBouncer may give every transaction another connection.
            connection = runner.run(
                asyncpg.connect(
                    server.dsn, timeout=_CONNECT, command_timeout=PATIENCE, statement_cache_size=0
                )
            )
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise LedgerUnavailable(
                f"{server} cannot be reached: {error or 'no answer in time'}"
            ) from None
        except (asyncpg.InterfaceError, ValueError):
            # The driver's own words may quote the URL, and that a password.
            raise LedgerUnusable(
                "database.url is not understood: see its options and port"
            ) from None
        try:
            # One read-only transaction: everything a command shows is of one moment. Unlike a
            # setting of the session, it leaves nothing behind in a pooler's connection.
            runner.run(connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            reader = _PostgresReader(runner, connection, str(server))
            _readable(_state(reader), str(server), "run `steer db upgrade`")
            yield reader
        finally:
            runner.run(connection.close(timeout=5))
