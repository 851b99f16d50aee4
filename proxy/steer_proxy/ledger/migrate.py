"""Brings a ledger's schema up to date, or back.

Alembic turns the revisions in `migrations/` into SQL; the ledger's own drivers run that in one
transaction, which a second upgrader waits for. Alembic and SQLAlchemy are imported only when there
is something to change: a ledger at the newest revision is recognised without them (`schema`, whose
names are also this module's), and what makes a new SQLite file one is written down (`sqlite_new`).
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from steer_proxy.ledger import sqlite_new
from steer_proxy.ledger.address import Memory, Postgres, Sqlite, parse_address
from steer_proxy.ledger.postgres_tls import tls_problem
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.schema import (
    HEAD,
    NAMES,
    REVISIONS,
    WRITER,
    Standing,
    State,
    check,
    postgres_state,
    sqlite_state,
    state_of,
)
from steer_proxy.ledger.sqlite_health import OWN_FILE, remedy
from steer_proxy.ledger.sqlite_place import seen

if TYPE_CHECKING:
    import asyncpg

__all__ = [
    "HEAD",
    "REVISIONS",
    "WRITER",
    "Standing",
    "State",
    "check",
    "current",
    "downgrade",
    "is_empty",
    "postgres_state",
    "rendered",
    "scripts",
    "sqlite_state",
    "state_of",
    "upgrade",
]

LOGGER: Final = logging.getLogger("steer.ledger")

#: How long to wait for another upgrader, and for those who use the tables, in seconds: a server's
#: tables may be large; a file's upgrader is done in a moment, and a start waits for it.
PATIENCE: Final = 30.0
FILE_PATIENCE: Final = 5.0

#: How long to wait for the lock of a server's table at a time, in seconds: everybody else waits
#: behind, and a statement of theirs has two. How long they have their way then.
LOCK_TIME: Final = 0.5
PAUSE: Final = 1.0

#: Tells upgraders of Steer's schema from other users of advisory locks ("steer" in ASCII).
_ADVISORY_LOCK: Final = 0x7374656572

# --- Moving ---------------------------------------------------------------------------------------


def upgrade(url: str) -> None:
    """Bring a database's schema to this version's revision, in one transaction.

    Nothing happens when it is there already, or is ahead. Not to be called in a running event loop.

    Raises:
        LedgerUnusable: it cannot be used as it is; the message says what to do.
        LedgerUnavailable: it cannot be reached, or is locked, now.
        ValueError: the URL is none of a ledger.
    """

    def upward(state: State) -> tuple[str | None, str] | None:
        if state.min_writer > WRITER or state.foreign:
            check(state)
        due = state.standing in (Standing.EMPTY, Standing.BEHIND)
        return (state.revision, HEAD) if due else None

    _move(url, upward)


def downgrade(url: str, revision: str) -> None:
    """Bring a database's schema back to an older revision, or to `base`: all data is lost then.

    Raises:
        LedgerUnusable, LedgerUnavailable, ValueError: as `upgrade`.
    """
    if revision != "base" and revision not in REVISIONS:
        raise ValueError(f"no revision {revision!r}; there are base, {', '.join(REVISIONS)}")

    def downward(state: State) -> tuple[str | None, str] | None:
        if state.standing is Standing.AHEAD:
            raise LedgerUnusable(
                f"the ledger's schema is at revision {state.revision}, which this version does not "
                "know: downgrade it with the newer version"
            )
        if state.revision is None:
            return None
        older = revision == "base" or REVISIONS.index(revision) < REVISIONS.index(state.revision)
        return (state.revision, revision) if older else None

    _move(url, downward)


def current(url: str) -> State:
    """Where a database's schema stands. Not to be called in a running event loop.

    Raises:
        LedgerUnusable, LedgerUnavailable, ValueError: as `upgrade`.
    """
    match parse_address(url):
        case Memory():
            return State(Standing.CURRENT, HEAD)
        case Sqlite() as file:
            if seen(Path(file.path)) is None:
                return State(Standing.EMPTY)
            return _in_sqlite(file, sqlite_state)
        case Postgres() as server:
            return asyncio.run(_postgres_current(server))


_T = TypeVar("_T")

_Wanted = Callable[[State], tuple[str | None, str] | None]
"""From which revision to which a database in a state is to go; None to leave it."""


def _move(url: str, wanted: _Wanted) -> None:
    match parse_address(url):
        case Memory():
            pass
        case Sqlite() as file:
            made = _create(file)
            empty = not made and is_empty(file)
            _in_sqlite(file, lambda connection: _move_sqlite(connection, wanted))
            if empty and not is_empty(file):
                LOGGER.warning(
                    "%s was there, and empty: it is a new ledger now, which knows no key; if it "
                    "should have been one, restore a backup",
                    file,
                )
        case Postgres() as server:
            asyncio.run(_move_postgres(server, wanted))


# --- SQLite ---------------------------------------------------------------------------------------


def _create(file: Sqlite) -> bool:
    """Make the file, unless it is there, for its owner only: it will hold prompts' answers. SQLite
    gives the files beside it the same mode. Behind a link too, which would otherwise count as the
    file."""
    try:
        os.close(os.open(os.path.realpath(file.path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise LedgerUnusable(f"{file} cannot be made: {error.strerror}; {OWN_FILE}") from None
    return True


def is_empty(file: Sqlite) -> bool:
    """Whether a file is there, and has nothing in it: a new ledger for SQLite, perhaps an old one
    for somebody else, which a full disk or a shell's `>` has cut."""
    try:
        return Path(file.path).stat().st_size == 0
    except OSError:
        return False


def _in_sqlite(file: Sqlite, work: Callable[[sqlite3.Connection], _T]) -> _T:
    try:
        # isolation_level None: transactions begin where we say so.
        connected = sqlite3.connect(file.path, timeout=FILE_PATIENCE, isolation_level=None)
        with closing(connected) as connection:
            return work(connection)
    except sqlite3.Error as error:
        passing = (error.sqlite_errorcode & 0xFF) in _PASSING
        kind = LedgerUnavailable if passing else LedgerUnusable
        hint = "" if passing else f"; {remedy(error) or OWN_FILE}"
        raise kind(f"{file}: {error}{hint}") from None


#: Primary result codes of SQLite that may be gone the next time.
_PASSING: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
)


def _move_sqlite(connection: sqlite3.Connection, wanted: _Wanted) -> None:
    # A look without a lock first: a ledger at the newest revision is opened beside its writer.
    if wanted(sqlite_state(connection)) is None:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        way = wanted(sqlite_state(connection))
        for statement in [] if way is None else _statements("sqlite", *way):
            connection.execute(statement)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


# --- PostgreSQL -----------------------------------------------------------------------------------


@asynccontextmanager
async def _transaction(server: Postgres) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection with one transaction on it, its errors told in the ledger's terms."""
    import asyncpg

    connection = await _connect(server)
    try:
        async with connection.transaction():
            yield connection
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError) as error:
        raise LedgerUnavailable(f"{server} is locked by another: {_words(error)}") from None
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise LedgerUnavailable(f"{server}: the connection was lost: {_words(error)}") from None
    except asyncpg.PostgresError as error:
        raise LedgerUnusable(
            f"{server}: {_words(error)}; migrating needs a role that may create tables, and a "
            "database, or a schema, of Steer's own"
        ) from None
    finally:
        with suppress(OSError, TimeoutError):
            await connection.close(timeout=5)


async def _connect(server: Postgres) -> asyncpg.Connection[Any]:
    import asyncpg

    if (problem := tls_problem(server.dsn)) is not None:
        raise LedgerUnusable(problem)
    try:
        # No statement cache: PgBouncer may give every transaction another connection.
        return await asyncpg.connect(server.dsn, timeout=10, statement_cache_size=0)
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
    ) as error:
        raise LedgerUnusable(f"{server}: {_words(error)}; see database.url") from None
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise LedgerUnavailable(f"{server} cannot be reached: {_words(error)}") from None
    except (asyncpg.InterfaceError, ValueError):
        # The driver's own words may quote the URL, and that a password.
        raise LedgerUnusable("database.url is not understood: see its options and port") from None


def _words(error: BaseException) -> str:
    """An error's own words, without the details that PostgreSQL adds: they may quote values."""
    return str(error).partition("\n")[0] or "no answer in time"


async def _postgres_current(server: Postgres) -> State:
    async with _transaction(server) as connection:
        return await postgres_state(connection)


async def _move_postgres(server: Postgres, wanted: _Wanted) -> None:
    """Move it as soon as nobody is in the way. Whoever waits for a table keeps all others from it
    who come later, readers too: so it is asked for again and again, and given up in between."""
    now = asyncio.get_running_loop().time
    deadline = now() + PATIENCE
    made: dict[tuple[str | None, str], str] = {}
    while (in_the_way := await _try_to_move(server, wanted, made)) is not None:
        if now() > deadline:
            processes = ", ".join(map(str, in_the_way)) or "that have come and gone"
            raise LedgerUnavailable(
                f"{server} is locked by another: its tables are in use by transactions of server "
                f"processes {processes}; end these (SELECT pg_terminate_backend(...)), or try again"
            )
        await asyncio.sleep(PAUSE)


async def _try_to_move(
    server: Postgres, wanted: _Wanted, made: dict[tuple[str | None, str], str]
) -> list[int] | None:
    """Move it, if its tables can be had soon; else the server's processes that are in the way.

    `made` remembers the SQL of a way, which takes its time.
    """
    import asyncpg

    async with _transaction(server) as connection:
        # All of these end with the transaction, which is also what PgBouncer needs.
        with suppress(asyncpg.PostgresError):  # not all servers can, on all systems
            async with connection.transaction():
                await connection.execute(_NOTICE_OUR_END)
        await connection.execute(f"SET LOCAL lock_timeout = '{PATIENCE * 1000:.0f}ms'")
        await connection.execute(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        way = wanted(await postgres_state(connection))
        if way is None:
            return None
        if way not in made:
            made[way] = "\n".join(_statements("postgresql", *way))
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIME * 1000:.0f}ms'")
        try:
            async with connection.transaction():
                await connection.execute(made[way])
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            rows = await connection.fetch(_IN_THE_WAY, NAMES, LOCK_TIME)
            return [row["pid"] for row in rows]
    return None


#: An upgrade that was killed does not go on waiting for a lock, with all others behind it.
_NOTICE_OUR_END: Final = "SET LOCAL client_connection_check_interval = '1s'"

#: Whose transactions have had a table of ours for longer than we have waited for it.
_IN_THE_WAY: Final = """
SELECT DISTINCT l.pid FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.granted AND l.pid <> pg_backend_pid() AND c.relname = ANY($1::text[])
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND coalesce(a.xact_start < clock_timestamp() - make_interval(secs => $2::float8), TRUE)
ORDER BY l.pid LIMIT 5
"""


# --- SQL ------------------------------------------------------------------------------------------


class _Collected(io.StringIO):
    """Takes what Alembic prints: one statement, or comment, at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[str] = []

    def write(self, text: str) -> int:
        if not text.startswith("--"):
            self.statements.append(text.strip())
        return len(text)


def _statements(dialect: str, start: str | None, end: str) -> list[str]:
    """The SQL that leads from one revision to another."""
    LOGGER.info("the ledger's schema goes from %s to %s", start or "nothing", end)
    if (dialect, start, end) == ("sqlite", None, sqlite_new.REVISION):
        return sqlite_new.statements()
    return rendered(dialect, start, end)


def rendered(dialect: str, start: str | None, end: str) -> list[str]:
    """The SQL that leads from one revision to another by the revisions themselves, the change of
    `alembic_version` included."""
    # Ahead of the import, which tells of its plugins: our one line says it all.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command
    from alembic.config import Config

    collected = _Collected()
    config = Config(output_buffer=collected)
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes["dialect"] = dialect
    upwards = start is None or (end != "base" and REVISIONS.index(start) < REVISIONS.index(end))
    move = command.upgrade if upwards else command.downgrade
    move(config, end if start is None else f"{start}:{end}", sql=True)
    if end == "base":
        # Alembic leaves its empty table there, and begins the next upgrade by making it.
        collected.statements.append("DROP TABLE IF EXISTS alembic_version;")
    return collected.statements


def scripts() -> Path:
    """Where the revisions are: inside the installed package, else in the checkout."""
    here = Path(__file__).resolve()
    inside, checkout = here.parents[1] / "migrations", here.parents[3] / "migrations"
    return inside if inside.is_dir() else checkout
