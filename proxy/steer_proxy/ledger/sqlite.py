"""The ledger in a SQLite file: one writing process, many readers.

Changes queue in the event loop and go to the one writing thread in batches; a batch is one
transaction (group commit): the disk is made to sync once for all who wait, and nobody waits for a
timer. Reads have a thread and a read-only connection of their own; they see all that is committed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import steer_proxy
from steer_policies.idempotency import Move
from steer_proxy.ledger import sqlite_work
from steer_proxy.ledger.batcher import Batcher, Outcome, Work
from steer_proxy.ledger.protocol import LedgerRefused, LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sqlite_file import BUSY_TIMEOUT, SqliteFile, refuses
from steer_proxy.ledger.sqlite_health import JournalWatch, told
from steer_proxy.ledger.sqlite_place import out_of_reach
from steer_proxy.ledger.sqlite_purge import Purger
from steer_proxy.ledger.values import (
    MICROSECONDS,
    Batch,
    ChunkRow,
    Claim,
    Finish,
    Following,
    Lease,
    Purge,
    Purged,
    Record,
    Ref,
    StoredAnswer,
)
from steer_proxy.ledger.watching import Watchers

#: How long opening may take, in seconds: it may migrate, which waits for others.
OPEN_TIMEOUT: Final = 60.0

_T = TypeVar("_T")


class SqliteLedger:
    """A ledger in the file at `path`, made when there is none; `wall` gives Unix seconds.

    `busy_timeout` is how long to wait for another program's lock on the file, in seconds. A
    `guest` writes now and then beside the one process that has the file; it makes no file.
    """

    def __init__(
        self,
        path: Path,
        wall: Callable[[], float],
        *,
        busy_timeout: float = BUSY_TIMEOUT,
        guest: bool = False,
    ) -> None:
        self._wall = wall
        self._file = SqliteFile(path, wall, busy_timeout, guest=guest)
        self._available = False
        self._watchers = Watchers()
        commit, self._reads, self._scans = (
            _Writer(self._file),
            _Reader(self._file),
            _Reader(self._file),
        )
        self._writer = Batcher("ledger-write", commit)
        self._reader = Batcher("ledger-read", self._reads)
        self._scanner = Batcher("ledger-purge", self._scans)
        self._purger = Purger(self._write, self._scan)
        self._journal = JournalWatch(self._file.path)

    @property
    def shared(self) -> bool:
        """A file has one writing process."""
        return False

    @property
    def secret(self) -> bytes | None:
        """See the protocol."""
        return self._file.secret

    @property
    def available(self) -> bool:
        """See the protocol."""
        return self._available

    async def open(self) -> None:
        """Have the file, its lock and its schema; end the leases of processes before us.

        Raises:
            LedgerUnusable, LedgerUnavailable: see the protocol.
        """
        await self._writer.run(_nothing, timeout=OPEN_TIMEOUT)
        self._available = True

    async def close(self) -> None:
        """See the protocol."""
        self._available = False
        await self._scanner.close(self._scans.close)
        await self._reader.close(self._reads.close)
        await self._writer.close(self._file.close)

    async def check_keys(self, checks: Mapping[str, str]) -> dict[str, str]:
        """See the protocol."""
        return await self._write(sqlite_work.check_keys, checks, atomic=False)

    # --- Owners ---------------------------------------------------------------------------------

    async def renew(
        self,
        owner: str,
        instance: str,
        lease: float,
        held: Sequence[str],
        *,
        unsure: bool = False,
    ) -> Lease:
        """See the protocol."""
        now = self._now()
        values = {
            "owner": owner,
            "instance": instance,
            "version": steer_proxy.__version__,
            "until": now + int(lease * MICROSECONDS),
        }
        renew = partial(sqlite_work.renew, unsure=unsure)
        return await self._write(renew, values, tuple(held), now)

    async def retire(self, owner: str) -> None:
        """See the protocol."""
        await self._write(sqlite_work.retire, owner, self._now())

    # --- Records --------------------------------------------------------------------------------

    async def claim(self, claim: Claim) -> Record | None:
        """See the protocol."""
        return await self._write(sqlite_work.claim, claim.row, self._now())

    async def take_over(self, claim: Claim, found: Record) -> Record | None:
        """See the protocol."""
        now = self._now()
        there = await self._write(sqlite_work.take_over, claim.row, found, now, atomic=False)
        self._watchers.tell(found.id)
        return there

    async def mark_sent(self, ref: Ref) -> bool:
        """See the protocol."""
        done = await self._write(sqlite_work.mark_sent, ref, self._now())
        self._watchers.tell(ref.id)
        return done

    async def finish(self, finish: Finish) -> bool:
        """See the protocol."""
        done = await self._write(sqlite_work.finish, finish, atomic=False)
        self._watchers.tell(finish.ref.id)
        return done

    async def begin_answer(
        self, ref: Ref, status: int, headers: str, keyring_id: str | None = None
    ) -> bool:
        """See the protocol."""
        done = await self._write(sqlite_work.begin_answer, ref, status, headers, keyring_id)
        self._watchers.tell(ref.id)
        return done

    async def add_chunks(self, chunks: Sequence[ChunkRow]) -> None:
        """See the protocol."""
        await self._write(sqlite_work.add_chunks, tuple(chunks), atomic=False)
        for id_ in {chunk.request for chunk in chunks}:
            self._watchers.tell(id_)

    async def trim_chunks(self, ref: Ref, before: int) -> None:
        """See the protocol."""
        await self._write(sqlite_work.trim_chunks, ref, before, atomic=False)

    async def drop_chunks(self, ref: Ref) -> None:
        """See the protocol."""
        await self._write(sqlite_work.drop_chunks, ref, atomic=False)
        self._watchers.tell(ref.id)

    async def find(self, scope: str) -> Record | None:
        """See the protocol."""
        return await self._read(sqlite_work.find, scope, self._now())

    async def answer(self, id: str, first: int = 0) -> StoredAnswer | None:  # noqa: A002
        """See the protocol."""
        return await self._read(sqlite_work.answer, id, first)

    async def chunks(self, id: str, after: int, limit: int) -> list[ChunkRow]:  # noqa: A002
        """See the protocol."""
        return await self._read(sqlite_work.chunks, id, after, limit)

    async def follow(self, id: str, after: int, limit: int) -> Following:  # noqa: A002
        """See the protocol."""
        return await self._read(sqlite_work.follow, id, after, limit, self._now())

    def watch(self, id: str) -> AbstractAsyncContextManager[asyncio.Event]:  # noqa: A002
        """See the protocol."""
        return self._watchers.watch(id)

    def followed(self, id: str) -> bool:  # noqa: A002, ARG002 - the column's name
        """See the protocol. A file has one process."""
        return False

    async def settle(self, id: str, move: Move) -> bool:  # noqa: A002
        """See the protocol."""
        done = await self._write(sqlite_work.settle, id, move, self._now(), atomic=False)
        self._watchers.tell(id)
        return done

    # --- The log --------------------------------------------------------------------------------

    async def write(self, batch: Batch) -> None:
        """See the protocol. A power cut may take the last of it; no crash of ours does."""
        await self._write(sqlite_work.write, batch, atomic=False, durable=False)

    async def purge(self, purge: Purge) -> Purged:
        """See the protocol."""
        await self._scan(self._journal.look)
        return await self._purger.slice(purge, self._now())

    # --- Getting it done ------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self._wall() * MICROSECONDS)

    async def _write(
        self,
        function: Callable[..., _T],
        *arguments: Any,
        atomic: bool = True,
        durable: bool = True,
    ) -> _T:
        return await self._run(self._writer, function, *arguments, atomic=atomic, durable=durable)

    async def _read(self, function: Callable[..., _T], *arguments: Any) -> _T:
        await self._reach()
        return await self._run(self._reader, function, *arguments)

    async def _scan(self, function: Callable[..., _T], *arguments: Any) -> _T:
        await self._reach()
        return await self._run(self._scanner, function, *arguments)

    async def _reach(self) -> None:
        """It is the writer that opens the file, again if need be."""
        if not (self._available and self._file.is_open):
            await self._write(_nothing)

    async def _run(
        self,
        batcher: Batcher,
        function: Callable[..., _T],
        *arguments: Any,
        atomic: bool = True,
        durable: bool = True,
    ) -> _T:
        try:
            result = await batcher.run(function, *arguments, atomic=atomic, durable=durable)
        except LedgerUnusable as error:
            # It was usable when it was opened, and may be again.
            self._available = False
            raise LedgerUnavailable(str(error)) from None
        except LedgerUnavailable:
            self._available = False
            raise
        self._available = True
        return result


def _nothing(_: sqlite3.Connection) -> None:
    """Reach the file."""


class _Writer:
    """Does a batch as one transaction, in the writing thread."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def __call__(self, batch: Sequence[Work]) -> Sequence[Outcome]:
        try:
            with self._file.turn:
                return self._commit(self._file.writer(), batch)
        except (LedgerUnavailable, LedgerUnusable) as error:
            return _all_failed(batch, error)
        except OSError as error:
            return _all_failed(batch, out_of_reach(self._file.path, error))

    def _commit(self, connection: sqlite3.Connection, batch: Sequence[Work]) -> Sequence[Outcome]:
        try:
            self._file.sync(any(work.durable for work in batch))
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._do(connection, work) for work in batch]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # some errors have rolled back already
                connection.execute("ROLLBACK")
            return _all_failed(batch, self._file.failed(error))
        return outcomes

    @staticmethod
    def _do(connection: sqlite3.Connection, work: Work) -> Outcome:
        """Do one piece of work; its own errors undo only itself.

        Raises:
            sqlite3.Error: the database's errors, which undo the batch.
        """
        if work.atomic:
            return _attempt(connection, work)
        connection.execute("SAVEPOINT work")
        outcome = _attempt(connection, work)
        if outcome.error is not None:
            connection.execute("ROLLBACK TO work")
        connection.execute("RELEASE work")
        return outcome


class _Reader:
    """Does a batch of reads in a thread of its own, with a connection that cannot write."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._reading = file.reading()

    def __call__(self, batch: Sequence[Work]) -> Sequence[Outcome]:
        try:
            with self._reading.use() as connection:
                return [_attempt(connection, work) for work in batch]
        except LedgerUnavailable as error:
            return _all_failed(batch, error)
        except sqlite3.Error as error:
            return _all_failed(
                batch, LedgerUnavailable(f"SQLite file {self._file.path}: {told(error)}")
            )
        except OSError as error:
            return _all_failed(batch, out_of_reach(self._file.path, error))

    def close(self) -> None:
        """Let go of the connection; in its thread."""
        self._reading.drop()


def _attempt(connection: sqlite3.Connection, work: Work) -> Outcome:
    try:
        return Outcome(work.function(connection, *work.arguments))
    except sqlite3.Error as error:
        if not refuses(error):
            raise
        return Outcome(error=LedgerRefused(str(error)))
    except (OverflowError, UnicodeEncodeError) as error:
        return Outcome(error=LedgerRefused(str(error)))
    except Exception as error:  # noqa: BLE001 - it belongs to whose work it is, not to the batch
        return Outcome(error=error)


def _all_failed(batch: Sequence[Work], error: Exception) -> Sequence[Outcome]:
    # An exception of its own for everybody: a traceback is written into it when it is raised.
    return [Outcome(error=type(error)(str(error))) for _ in batch]
