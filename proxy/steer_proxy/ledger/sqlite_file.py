"""A SQLite file with one writing process: opening it, noticing when it is gone, naming its errors.

The writing process holds a lock for as long as it lives, see `sqlite_locks`. Everything here runs
in one thread.
"""

from __future__ import annotations

import logging
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from steer_proxy.ledger import migrate
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sqlite_health import remedy, told
from steer_proxy.ledger.sqlite_locks import (
    Identity,
    Turn,
    WriterLock,
    beside,
    identity,
    may_write,
    real,
)
from steer_proxy.ledger.sqlite_place import NAME_ANOTHER, other_names, seen
from steer_proxy.ledger.sqlite_readers import Reading, away
from steer_proxy.ledger.statements import RETIRE_ALL, positional
from steer_proxy.ledger.values import MICROSECONDS

LOGGER: Final = logging.getLogger("steer.ledger")

#: How long to wait for a lock that another program has on the file: less than a statement may take.
BUSY_TIMEOUT: Final = 1.5
#: How often to look whether the file is still there, in seconds.
LOOK_EVERY: Final = 1.0
#: Statements kept prepared.
STATEMENTS: Final = 256

_RETIRE_ALL: Final = positional(RETIRE_ALL)

#: Primary result codes that say something of this moment only: the connection stays.
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})
#: Primary result codes that say something of a value, not of the database.
_REFUSED: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_RANGE,
    }
)
#: Primary result codes that a file has which cannot become a ledger.
_HOPELESS: Final = frozenset(
    {
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_FORMAT,
    }
)


def refuses(error: sqlite3.Error) -> bool:
    """Whether an error is about a value, and not about the database."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by Python's module: a parameter it cannot bind
        return isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError)
    return code & 0xFF in _REFUSED


_Journal = tuple[Identity | None, Identity | None]
"""Which files hold the journal and its index."""


class SqliteFile:
    """The writing connection to a file, opened when it is asked for and whenever it was lost."""

    def __init__(
        self,
        path: Path,
        wall: Callable[[], float],
        busy_timeout: float,
        *,
        guest: bool = False,
    ) -> None:
        # Once: a link that is moved while we run leads to another ledger.
        self.path: Final = real(path)
        self.turn: Final = Turn(self.path, busy_timeout)
        self._guest = guest
        self.secret: bytes | None = None
        self._wall = wall
        self._busy_timeout = busy_timeout
        self._lock = WriterLock(self.path)
        self._connection: sqlite3.Connection | None = None
        self._full = True
        self._file: Identity | None = None
        self._journal: _Journal = (None, None)
        self._readings: list[Reading] = []
        self._looked = 0.0

    def writer(self) -> sqlite3.Connection:
        """The connection to write with.

        Raises:
            LedgerUnusable, LedgerUnavailable: it cannot be had.
        """
        now = time.monotonic()
        due = now - self._looked >= LOOK_EVERY
        if self._connection is None or (due and not self._unchanged()):
            with away(self._readings):
                self.lose()
                self._connection = self._open()
            self._full = due = True
        if due:
            self._looked = now
        return self._connection

    @property
    def is_open(self) -> bool:
        """Whether there is a connection to write with; readers are not opened without."""
        return self._connection is not None

    def reading(self) -> Reading:
        """A read-only connection for another thread, which is closed when the file is reopened."""
        reading = Reading(self._reader)
        self._readings.append(reading)
        return reading

    def _reader(self) -> sqlite3.Connection:
        if not self.is_open:
            raise LedgerUnavailable(f"SQLite file {self.path} is not open now")
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            cached_statements=STATEMENTS,
            check_same_thread=False,  # the writer's may close it
        )

    def sync(self, full: bool) -> None:  # noqa: FBT001 - the one thing it is told
        """Whether the next transaction is to be on disk when it is committed, or soon after.

        Without, a power cut may take it, though never one that came before a `full` one, and it
        costs no wait for the disk. The file stays sound either way
        (https://www.sqlite.org/pragma.html#pragma_synchronous).
        """
        if full is not self._full and self._connection is not None:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full

    def failed(self, error: sqlite3.Error) -> LedgerUnavailable:
        """What an error of the database means to callers; a connection that is suspect is left."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code not in _BUSY:
            self.lose()
        self._looked = 0.0
        return LedgerUnavailable(f"SQLite file {self.path}: {told(error)}")

    def lose(self) -> None:
        """Let go of the connection; the next `writer` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._save(connection)
            with suppress(sqlite3.Error):
                connection.close()

    def close(self) -> None:
        """Let go of everything."""
        with suppress(LedgerUnavailable), self.turn:  # the last connection to close checkpoints
            self.lose()
        self.lose()
        self.turn.close()
        self._lock.release()

    # --- Opening --------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        folder = self.path.absolute().parent
        place = seen(folder)
        if place is None or not stat.S_ISDIR(place.st_mode):
            raise LedgerUnusable(
                f"SQLite file {self.path}: there is no directory {folder}: make it, or "
                f"{NAME_ANOTHER}"
            )
        there = seen(self.path)
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise LedgerUnusable(f"{self.path} is a directory, not a SQLite file: {NAME_ANOTHER}")
        if there is not None and not may_write(self.path):
            # SQLite would open it all the same, and leave files beside it that cannot be written.
            raise LedgerUnusable(
                f"SQLite file {self.path} is not writable: make it writable to this user, or "
                f"{NAME_ANOTHER}"
            )
        # Not of one that is ours already: a name it is given meanwhile is no reason to stop.
        if (
            there is not None
            and not self._lock.held()
            and (reason := other_names(self.path, there)) is not None
        ):
            raise LedgerUnusable(reason)
        fresh = not self._guest and self._lock.acquire()
        try:
            return self._visit() if self._guest else self._connect(fresh=fresh)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _HOPELESS:
                writable = f"make it writable to this user, with its directory, or {NAME_ANOTHER}"
                raise LedgerUnusable(
                    f"SQLite file {self.path} cannot be used: {error}; {remedy(error) or writable}"
                ) from None
            raise LedgerUnavailable(f"SQLite file {self.path}: {error}") from None

    def _visit(self) -> sqlite3.Connection:
        """A connection beside the writing process's own: it leaves schema and leases alone."""
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",  # a ledger is not made in passing
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            migrate.check(migrate.sqlite_state(connection))
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        self._file = identity(self.path)
        return connection

    def _connect(self, *, fresh: bool) -> sqlite3.Connection:
        there = identity(self.path)
        if self._file is not None and there != self._file:
            self._remove_left_overs()
        migrate.upgrade(f"sqlite:///{self.path}")
        connection = sqlite3.connect(
            self.path,
            timeout=self._busy_timeout,
            isolation_level=None,  # transactions begin where we say so
            cached_statements=STATEMENTS,
            check_same_thread=False,  # one thread at a time, but not always the same
        )
        try:
            if there is not None and fresh:
                _warn_of_readers(self.path)
            migrate.check(migrate.sqlite_state(connection))
            self._set_up(connection)
            self._take(connection, created=there is None, fresh=fresh)
        except BaseException:
            connection.close()
            raise
        self._journal = self._journal_now()
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        # WAL: readers never wait for the writer. FULL: what is committed survives a power cut; see
        # `sync`.
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise LedgerUnusable(
                f"SQLite file {self.path}: its file system cannot share memory between processes "
                f"(SQLite's WAL mode needs it); put it on a local disk, or {NAME_ANOTHER}"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")

    def _take(self, connection: sqlite3.Connection, *, created: bool, fresh: bool) -> None:
        """Make the file ours: read its secret; whoever had a lease before us is dead."""
        found = identity(self.path)
        connection.execute("BEGIN IMMEDIATE")
        try:
            if created and self.secret is not None:
                # It vanished under us. Calls under way have their scopes by the old secret.
                connection.execute(
                    "UPDATE steer_meta SET value = ? WHERE name = 'secret'", (self.secret.hex(),)
                )
            (secret,) = connection.execute(
                "SELECT value FROM steer_meta WHERE name = 'secret'"
            ).fetchone()
            if fresh or found != self._file:
                now = int(self._wall() * MICROSECONDS)
                connection.execute(_RETIRE_ALL.text, (now, now))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.secret = bytes.fromhex(secret)
        self._file = found

    # --- Vanishing ------------------------------------------------------------------------------

    def _unchanged(self) -> bool:
        """Whether the file at the path is the one we have open, and what is beside it still ours.

        SQLite itself removes a journal only when nobody has the file open.
        """
        if identity(self.path) != self._file:
            return False
        return self._guest or (self._lock.held() and self._journal_now() == self._journal)

    def _journal_now(self) -> _Journal:
        return identity(beside(self.path, "-wal")), identity(beside(self.path, "-shm"))

    def _save(self, connection: sqlite3.Connection) -> None:
        """Bring into the file what is in a journal that was removed from under us."""
        there = self._journal_now()
        if self._guest or there == self._journal or identity(self.path) != self._file:
            return
        saved = False
        # Another's new journal may be newer than the file: nothing is written into it past that.
        if all(now in (None, ours) for now, ours in zip(there, self._journal, strict=True)):
            with suppress(sqlite3.Error):
                (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                saved = not busy
        LOGGER.warning(
            "SQLite file %s: its journal (-wal, -shm) was removed while Steer used it; %s. "
            "Never remove these files while a process has the ledger open",
            self.path,
            "what was in it is saved" if saved else "calls and keys that were in it may be lost",
        )

    def _remove_left_overs(self) -> None:
        """Remove the journal of a file that is gone: SQLite would apply it to the new one."""
        ours, _ = self._journal
        if ours is not None and identity(wal := beside(self.path, "-wal")) == ours:
            with suppress(OSError):
                wal.unlink()
                beside(self.path, "-shm").unlink()


def _warn_of_readers(path: Path) -> None:
    """Tell of a file that others may read: who made it so may have wanted it so."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        LOGGER.warning(
            "SQLite file %s may be read by other users (mode %o), and so may the answers in it: "
            "if nobody needs that, chmod 600 it",
            path,
            mode,
        )
