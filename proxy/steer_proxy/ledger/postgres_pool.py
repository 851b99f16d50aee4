"""A few connections to PostgreSQL, each with a task of its own that runs statements on it.

A caller hands in a statement and waits; that it stops waiting does not disturb the connection. The
tasks come when there is work and go when there has been none for a while. While the database cannot
be reached, one caller at a time tries, and the others are refused at once.

A connection is lost also while the database is well: the server ends idle ones, a pooler or a
firewall forgets them, a failover moves the place. So one that was closed is left without being
asked, and a statement whose connection is lost runs once more, on another one, before anybody is
told: if its being carried out twice is the same as once (`Statement.once`).

Behind PgBouncer a connection is anybody's after each transaction. Prepared statements need its
version 1.21 there, and settings sent while connecting are refused unless it was told to ignore
them. Both is noticed: from then on nothing is prepared, and the server's time-out of statements is
left to the role (`ALTER ROLE steer SET statement_timeout = '2s'`). `?prepared=off` in the URL says
so from the start. Until it is noticed nothing wrong can be run: a prepared statement is named after
its text, so that whoever prepared it on a connection prepared the same.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from steer_proxy.lateness import after_a_look, is_late
from steer_proxy.ledger.parameters import Statement
from steer_proxy.ledger.postgres_errors import (
    DRIVER_ERRORS,
    is_conflict,
    is_lost,
    is_of_a_pooler,
    of_connecting,
    of_statement,
    refuses_settings,
)
from steer_proxy.ledger.postgres_tls import tls_problem
from steer_proxy.ledger.protocol import STATEMENT_TIMEOUT, LedgerUnavailable, LedgerUnusable

if TYPE_CHECKING:
    from asyncpg.prepared_stmt import PreparedStatement

    Connection: TypeAlias = asyncpg.Connection[Any]

LOGGER: Final = logging.getLogger("steer.ledger")

#: Connections at most. A commit waits for the disk, not for us: more of them do not write faster.
SIZE: Final = 10
#: Statements that may wait for a connection.
MAX_WAITING: Final = 2_000
#: How often a statement gives way to others before it counts as failed.
MAX_CONFLICTS: Final = 10
#: How long a statement may take with all it waits for: a little more than the server gives it.
PATIENCE: Final = STATEMENT_TIMEOUT + 0.25
#: How long after a failed attempt to connect others are refused without one.
BACK_OFF: Final = 0.5
#: A connection that was not used for so long is closed: firewalls forget idle ones.
IDLE: Final = 60.0
#: How old a connection may get: after a failover or a rescaling, load finds its new places.
MAX_AGE: Final = 1_800.0
#: How long closing may take.
FAREWELL: Final = 2.0

#: Each statement is a transaction of its own that looks at the newest of what it locks.
#: Everything asked here goes by an index, whatever the values. Plans that are made while the tables
#: are still empty would read all of them, and be kept while they grow.
_SETTINGS: Final = {
    "application_name": "steer",
    "statement_timeout": str(int(STATEMENT_TIMEOUT * 1000)),
    "default_transaction_isolation": "read committed",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}


# Neither is ever shown: event loops log the callbacks that fail with what they are bound to, and
# here that is statements' values, and a password.


@dataclass(slots=True, eq=False, repr=False)
class _Job:
    statement: Statement
    arguments: Sequence[object]
    answer: asyncio.Future[list[asyncpg.Record]]
    timer: asyncio.TimerHandle | None = None
    connection: Connection | None = None
    """What it runs on."""
    repeated: bool = False
    """Whether it is here again since a connection was lost, or is a pooler's."""
    conflicts: int = 0

    def fail(self, error: Exception) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if not self.answer.done():
            self.answer.set_exception(error)

    def expire_at(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Give up at `due` (loop time), if what arrived by then is no answer."""
        self.timer = loop.call_at(due, self._overdue, loop, due)

    def _overdue(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if is_late(loop, due):
            self.timer = after_a_look(loop, self._expire)
        else:
            self._expire()

    def _expire(self) -> None:
        """Give up; what may still run on the connection is of no interest."""
        self.fail(LedgerUnavailable(f"the database did not answer within {STATEMENT_TIMEOUT:g} s"))
        if self.connection is not None:
            self.connection.terminate()


@dataclass(slots=True, repr=False)
class Pool:
    """Connections to one database; `greet` looks at each new one, and may refuse the database.

    `dsn` is a libpq URL.
    """

    dsn: str
    greet: Callable[[Connection], Awaitable[None]]
    size: int = SIZE
    pooled: bool = False
    """Whether there is a pooler in between."""
    _waiting: deque[_Job] = field(default_factory=deque)
    _idle: list[asyncio.Future[_Job | None]] = field(default_factory=list)
    _workers: set[asyncio.Task[None]] = field(default_factory=set)
    _connecting: int = 0
    _connected: int = 0
    _refusal: Exception | None = None
    """Why the last attempt to connect failed; None when it did not."""
    _retry_at: float = 0.0
    _generation: int = 0
    _closed: bool = False

    async def fetch(self, statement: Statement, arguments: Sequence[object] = ()) -> list[Any]:
        """The rows of a statement.

        Raises:
            LedgerUnavailable: it may or may not have been carried out.
            LedgerRefused: the values cannot be written.
            LedgerUnusable: when `greet` says so.
        """
        self._admit()
        loop = asyncio.get_running_loop()
        job = _Job(statement, arguments, loop.create_future())
        job.expire_at(loop, loop.time() + PATIENCE)
        self._submit(job)
        return await job.answer

    def post(self, statement: Statement, arguments: Sequence[object]) -> None:
        """Run a statement some time soon, if that is possible; nobody learns whether it was."""
        try:
            self._admit()
        except (LedgerUnavailable, LedgerUnusable):
            return
        loop = asyncio.get_running_loop()
        job = _Job(statement, arguments, loop.create_future())
        job.expire_at(loop, loop.time() + PATIENCE)
        # Asked for, so that asyncio does not report that nobody did.
        job.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        self._submit(job)

    def drop(self) -> None:
        """Use none of the present connections for anything new."""
        self._generation += 1
        self._send_away()

    async def close(self) -> None:
        """Finish what was handed in, for a while, and close every connection."""
        self._closed = True
        self._send_away()
        if self._workers:
            await asyncio.wait(self._workers, timeout=FAREWELL)
        left = list(self._workers)
        for worker in left:
            worker.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self._fail_waiting(LedgerUnavailable("the ledger is closed"))

    async def connect(self) -> Connection:
        """A new connection, the caller's own.

        Raises:
            LedgerUnavailable: the database cannot be reached.
            LedgerUnusable: the URL cannot be understood, or names a file that is not there.
        """
        if (problem := tls_problem(self.dsn)) is not None:
            raise LedgerUnusable(problem)
        try:
            return await self._opened()
        except (*DRIVER_ERRORS, ValueError) as error:
            if not (refuses_settings(error) and not self.pooled):
                raise of_connecting(error) from None
        self.pooled = True
        try:
            return await self._opened()
        except DRIVER_ERRORS as error:
            raise of_connecting(error) from None

    # --- Inside -------------------------------------------------------------------------------

    def _send_away(self) -> None:
        while self._idle:
            _wake(self._idle.pop(), None)

    async def _opened(self) -> Connection:
        """A connection; being cancelled waits for it a little.

        Stopped in the middle of its handshake, the driver would leave a future behind.
        """
        opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait((opening,), timeout=FAREWELL / 4)
            if not opening.done():
                opening.cancel()
                await asyncio.wait((opening,))
            if not opening.cancelled() and opening.exception() is None:
                opening.result().terminate()
            raise

    async def _open(self) -> Connection:
        several = "," in self.dsn and "target_session_attrs" not in self.dsn
        return await asyncpg.connect(
            self.dsn,
            # Of several servers the one that writes, whichever that is by now.
            target_session_attrs="read-write" if several else None,
            timeout=STATEMENT_TIMEOUT,
            # Its names for prepared statements are numbers: another process may mean another one.
            statement_cache_size=0,
            server_settings={} if self.pooled else _SETTINGS,
        )

    def _admit(self) -> None:
        """Refuse at once what has no prospects."""
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        if len(self._waiting) >= MAX_WAITING:
            raise LedgerUnavailable("too many statements wait for the database")
        if self._refusal is not None and not self._connected:
            now = asyncio.get_running_loop().time()
            if self._connecting or now < self._retry_at:
                raise type(self._refusal)(str(self._refusal))

    def _submit(self, job: _Job) -> None:
        while self._idle:
            if _wake(self._idle.pop(), job):
                return
        self._waiting.append(job)
        self._hire()

    def _hire(self) -> None:
        """Add a connection, if one may help."""
        if len(self._workers) >= self.size or self._connecting >= len(self._waiting):
            return
        loop = asyncio.get_running_loop()
        if self._refusal is not None and self._connected and loop.time() < self._retry_at:
            return
        worker = loop.create_task(self._work())
        self._connecting += 1
        self._workers.add(worker)
        worker.add_done_callback(self._left)

    def _left(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and (error := worker.exception()) is not None:
            _tell_bug(error)  # its job has failed; the others wait for another connection
        if self._waiting and not self._closed:
            self._hire()

    def _fail_waiting(self, error: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().fail(type(error)(str(error)))

    async def _work(self) -> None:
        """Connect, and run statements until there are none, or the connection is lost."""
        try:
            generation = self._generation
            connection = await self._introduce()
        finally:
            self._connecting -= 1
        if connection is None:
            return
        self._connected += 1
        try:
            loop = asyncio.get_running_loop()
            retires = loop.time() + MAX_AGE
            prepared: dict[str, PreparedStatement[Any]] = {}
            while generation == self._generation and loop.time() < retires:
                job = self._waiting.popleft() if self._waiting else await self._next()
                if job is None:
                    break
                if connection.is_closed():
                    self._submit(job)
                    break
                await self._run(job, connection, prepared)
        finally:
            self._connected -= 1
            if connection.is_closed():
                connection.terminate()
            else:
                await _close(connection)

    async def _introduce(self) -> Connection | None:
        """A connection that may be used; None when there is none, and callers know."""
        connection = None
        try:
            connection = await self.connect()
            async with asyncio.timeout(STATEMENT_TIMEOUT):
                await self.greet(connection)
        except Exception as error:  # noqa: BLE001 - a bug: the next connection may meet it too
            if isinstance(error, LedgerUnavailable | LedgerUnusable):
                self._refusal = error
            elif isinstance(error, DRIVER_ERRORS):
                self._refusal = of_connecting(error)
            else:
                _tell_bug(error)
                self._refusal = _failed(error)
            self._retry_at = asyncio.get_running_loop().time() + BACK_OFF
            if connection is not None:
                connection.terminate()
            if not self._connected:
                self._fail_waiting(self._refusal)
            return None
        except BaseException:
            if connection is not None:
                connection.terminate()
            raise
        self._refusal = None
        return connection

    async def _next(self) -> _Job | None:
        """The next job; None when there has been none for a while, or the connection must go."""
        if self._closed:
            return None
        call: asyncio.Future[_Job | None] = asyncio.get_running_loop().create_future()
        self._idle.append(call)
        timer = asyncio.get_running_loop().call_later(IDLE, self._dismiss, call)
        try:
            return await call
        finally:
            timer.cancel()

    def _dismiss(self, call: asyncio.Future[_Job | None]) -> None:
        if call in self._idle:
            self._idle.remove(call)
            _wake(call, None)

    async def _rows(
        self, job: _Job, connection: Connection, prepared: dict[str, PreparedStatement[Any]]
    ) -> list[Any]:
        statement = job.statement
        if self.pooled:
            return list(await connection.fetch(statement.sql, *job.arguments))
        known = prepared.get(statement.label)
        if known is None:
            known = await connection.prepare(statement.sql, name=statement.label)
            prepared[statement.label] = known
        return list(await known.fetch(*job.arguments))

    async def _run(
        self, job: _Job, connection: Connection, prepared: dict[str, PreparedStatement[Any]]
    ) -> None:
        if job.answer.done():
            return
        job.connection = connection
        statement = job.statement
        try:
            rows = await self._rows(job, connection, prepared)
        except Exception as error:  # a driver's, or a bug: it is raised again below
            job.connection = None
            # Ended in the middle of its work (`expire`), the driver stumbles over what is gone.
            if not isinstance(error, DRIVER_ERRORS) and not connection.is_closed():
                job.fail(_failed(error))
                raise
            if is_conflict(error) and job.conflicts < MAX_CONFLICTS:
                job.conflicts += 1
                self._submit(job)
                return
            again = False
            if is_of_a_pooler(error):
                again = self.pooled = True
                self.drop()
            elif is_lost(error):
                # The others come from the same server: they are lost too, or will be.
                connection.terminate()
                self.drop()
                again = not statement.once
            if again and not (job.repeated or job.answer.done() or self._closed):
                job.repeated = True
                self._submit(job)
                return
            job.fail(of_statement(error, statement))
        except asyncio.CancelledError:
            job.fail(LedgerUnavailable("the ledger is closed"))
            connection.terminate()
            raise
        else:
            job.connection = None
            assert job.timer is not None  # noqa: S101 - set before it was submitted
            job.timer.cancel()
            if not job.answer.done():
                job.answer.set_result(rows)


def _wake(call: asyncio.Future[_Job | None], job: _Job | None) -> bool:
    if call.done():
        return False
    call.set_result(job)
    return True


def _failed(error: BaseException) -> LedgerUnavailable:
    return LedgerUnavailable(f"the ledger failed: {type(error).__name__}")


def _tell_bug(error: BaseException) -> None:
    """Log where an unexpected error comes from; its words may quote values."""
    place = "".join(traceback.format_tb(error.__traceback__))
    LOGGER.error("a connection to the database ended by %s:\n%s", type(error).__name__, place)


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=FAREWELL / 2)
    except DRIVER_ERRORS:
        connection.terminate()
