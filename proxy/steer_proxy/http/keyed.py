"""Keyed calls: made once, whoever asks and however often.

The first request with a key starts a `Run`, its own task; every other one of this process reads
what it brings. What the ledger knows of the key decides the rest: an answer that is kept is given
again, a call that another process makes is followed, one that may have been made is not repeated.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from aiohttp.web_request import BaseRequest

from steer_policies.idempotency import (
    MAX_JOINERS,
    Join,
    Mismatch,
    NotStored,
    OnLedgerDown,
    Replay,
    Role,
    Status,
    Uncertain,
)
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.claims import Found, Owned
from steer_proxy.engine.conclusion import Spent
from steer_proxy.http import keyed_problems as problems
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.body import EMPTY, MemoryBudget
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.executions import Executions
from steer_proxy.http.following import Watched, give
from steer_proxy.http.identity import Identity, identify, principal_of
from steer_proxy.http.journal import Journal
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.recording import Recording, TooLate
from steer_proxy.http.replay import Replays, replay
from steer_proxy.http.run import Resolution, Run, Unavailable
from steer_proxy.http.terms import deadline_of
from steer_proxy.ledger.protocol import LedgerUnavailable

LOGGER: Final = logging.getLogger("steer.call")

#: The memory of all recordings together, in bytes; an answer that finds none left is not stored.
MEMORY: Final = 256 * 1024 * 1024

#: How long runs that are ended have to finish their records, in seconds, and then to stop trying.
LAST_WRITES: Final = 3.0
LETTING_GO: Final = 0.5


class KeyedCalls:
    """The keyed calls of a process."""

    def __init__(
        self, watched: Watched, books: Bookkeeper, journal: Journal, executions: Executions
    ) -> None:
        self._watched = watched
        self._books = books
        self._journal = journal
        self._executions = executions
        self._memory = MemoryBudget(MEMORY)
        self._replays = Replays(asyncio.get_running_loop().time)
        self._running: dict[str, Run] = {}
        #: Those that nobody joins any more: another one follows the same call.
        self._outgrown: set[Run] = set()
        #: Tells keys apart until the ledger's own secret is known, and the running calls it told.
        self._makeshift = books.owner.encode()
        self._unprotected: set[str] = set()

    @property
    def detached(self) -> int:
        """How many calls are being made that nobody waits for now."""
        return sum(run.joiners == 0 and not run.answered for run in self._runs)

    @property
    def unwritten(self) -> int:
        """How many calls are answered, and wait for nothing but the ledger."""
        return sum(run.answered for run in self._runs)

    @property
    def _count(self) -> int:
        return len(self._running) + len(self._outgrown)

    @property
    def _runs(self) -> list[Run]:
        return [*self._running.values(), *self._outgrown]

    async def close(self) -> None:
        """End what still runs; what may have been executed is marked as uncertain.

        A bounded time: records that cannot be finished by then lapse with the lease.
        """
        tasks = {run.task for run in self._runs if run.task is not None}
        for patience in (LAST_WRITES, LETTING_GO):
            for task in tasks:
                task.cancel()
            if tasks:
                _, tasks = await asyncio.wait(tasks, timeout=patience)
        await self._executions.close()

    async def serve(
        self,
        request: BaseRequest,
        progress: CallProgress,
        call: Call,
        addresses: Addresses,
        *,
        most: int,
    ) -> CallerResponse:
        """Serve a request with a key; at most `most` calls run at once.

        Raises:
            Refusal: 409 and 422 for duplicates that cannot be served, 503 without a ledger.
        """
        secret = self._books.ledger.secret
        if secret is None:
            secret = await self._first_secret(call)
        identity = await self._identify(call, secret)
        if self._unprotected and secret != self._makeshift:
            # The ledger has come since: a call that began without it goes by the other secret.
            before = await self._identify(call, self._makeshift)
            if before.scope in self._unprotected:
                identity = before
        call.scope, call.fingerprint = identity
        run = self._joinable(identity.scope)
        first = run is None
        if run is None:
            if self._count >= most or self._left_behind(call, max(1, most // 4)):
                raise problems.OVERLOADED.refusal(call)
            run = self._start(request, call, identity, addresses)
            if secret == self._makeshift:
                self._unprotected.add(identity.scope)
        elif run.joiners >= MAX_JOINERS:
            raise problems.IN_PROGRESS.refusal(call)
        call.body.close()  # the run has its own, and it may take long
        call.json = None
        run.joiners += 1
        try:
            resolution = await self._resolved(progress, run, call, first=first)
            return await self._serve(request, progress, call, identity, run, resolution, first)
        except asyncio.CancelledError:
            if run.joiners == 1:
                run.call_off(drained=progress.cut)
            raise
        finally:
            run.joiners -= 1
            run.left()

    def _joinable(self, scope: str) -> Run | None:
        """The running call with a key, while it has all of its answer or makes it, or the ledger is
        away: it is known to be running, and who starts anew may be allowed to make it."""
        run = self._running.get(scope)
        if run is not None and run.outgrown and self._books.ledger.available:
            self._outgrown.add(self._running.pop(scope))
            return None
        return run

    def _left_behind(self, call: Call, most: int) -> bool:
        """Whether a caller has hung up on as many running calls as it may."""
        if self._count < most:
            return False
        who = principal_of(call)
        left = (run for run in self._runs if run.joiners == 0)
        return sum(principal_of(run.call) == who for run in left) >= most

    async def _identify(self, call: Call, secret: bytes) -> Identity:
        """Whose key it is, and of which request; large bodies are read one after the other."""
        key, scope = call.key or "", call.route.policy.idempotency.scope
        if call.body.memory is not None:
            return await identify(call, secret, key=key, scope=scope)
        async with self._memory.one_large:
            return await identify(call, secret, key=key, scope=scope)

    async def _first_secret(self, call: Call) -> bytes:
        """The ledger's secret when it was never reached before."""
        books = self._books
        try:
            await books.ensure_lease()
        except LedgerUnavailable as error:
            if call.route.policy.idempotency.on_ledger_down is OnLedgerDown.FAIL:
                raise problems.no_ledger(str(error)).refusal(call) from None
        return books.ledger.secret or self._makeshift

    def _start(
        self, request: BaseRequest, call: Call, identity: Identity, addresses: Addresses
    ) -> Run:
        # The run keeps the body: its callers may be gone long before it is done.
        own = call.copy()
        call.body = EMPTY
        policy = call.route.policy.idempotency
        run = Run(
            call=own,
            identity=identity,
            policy=policy,
            recording=Recording(policy.max_stored, self._memory),
            resolution=asyncio.get_running_loop().create_future(),
        )
        self._running[identity.scope] = run
        run.task = asyncio.create_task(self._run(run, request, addresses))
        return run

    async def _run(self, run: Run, request: BaseRequest, addresses: Addresses) -> None:
        try:
            await self._executions.run(run, request, addresses)
        except Exception:
            # A bug; but nobody may wait for what does not come.
            LOGGER.exception("%s: a keyed call could not be carried out", run.call.request_id)
        finally:
            if run in self._outgrown:
                self._outgrown.remove(run)
            else:
                del self._running[run.identity.scope]
                self._unprotected.discard(run.identity.scope)
            run.resolve(Unavailable("the call was broken off"))
            run.say(problems.BROKEN_OFF)
            run.over = True
            run.left()
            run.call.body.close()

    async def _resolved(
        self, progress: CallProgress, run: Run, call: Call, *, first: bool
    ) -> Resolution:
        """Whose the key is; shielded, as others wait for the same."""
        try:
            async with asyncio.timeout_at(deadline_of(call, call.route.policy.timeouts.total)):
                return await asyncio.shield(run.resolution)
        except TimeoutError:
            if not first:
                raise problems.IN_PROGRESS.refusal(call) from None
            self._log_in_time(progress, run, call, problems.TOO_SHORT.problem)
            raise problems.TOO_SHORT.refusal(call) from None
        except asyncio.CancelledError:
            if first:
                problem = problems.DRAINING.problem if progress.cut else None
                self._log_in_time(progress, run, call, problem)
            raise

    def _log_in_time(
        self, progress: CallProgress, run: Run, call: Call, problem: Problem | None
    ) -> None:
        """Leave a row of who asked first, whose time was up or who has left, once it is known
        whether the run leaves it."""
        progress.told = True
        run.resolution.add_done_callback(partial(self._log_first, call, problem))

    def _log_first(
        self, call: Call, problem: Problem | None, resolution: asyncio.Future[Resolution]
    ) -> None:
        """Who asked first was gone before its run knew whose the key is: its row is the run's, but
        where that made no call."""
        if not isinstance(resolution.result(), Owned):
            self._journal.left(call, None, Spent(), problem=problem)

    async def _serve(
        self,
        request: BaseRequest,
        progress: CallProgress,
        call: Call,
        identity: Identity,
        run: Run,
        resolution: Resolution,
        first: bool,  # noqa: FBT001 - the last of a row of facts
    ) -> CallerResponse:
        if isinstance(resolution, Unavailable):
            raise problems.no_ledger(resolution.why).refusal(call)
        if isinstance(resolution, Owned):
            if identity.fingerprint != run.identity.fingerprint:
                raise problems.MISMATCH.refusal(call)
            if first:
                progress.told = True  # the row is the run's
                return await self._join(request, progress, call, run, first=True)
            return await self._joined(request, progress, call, identity, run, run.call.id)
        record = resolution.record
        match resolution.decision(identity.fingerprint, call.route.policy.idempotency):
            case Replay():
                return await self._replayed(request, progress, call, identity, resolution)
            case Join():
                return await self._joined(request, progress, call, identity, run, record.id)
            case Mismatch():
                raise problems.MISMATCH.refusal(call)
            case NotStored():
                raise problems.NOT_STORED.refusal(call)
            case Uncertain():
                raise problems.uncertain(record.id).refusal(call)
            case _:
                raise problems.IN_PROGRESS.refusal(call)

    async def _replayed(
        self,
        request: BaseRequest,
        progress: CallProgress,
        call: Call,
        identity: Identity,
        found: Found,
    ) -> CallerResponse:
        """Serve a duplicate of a call that is over, and write that down."""
        told, record, role = self._journal.duplicate, found.record, Role.REPLAYED
        try:
            response = await self._replay(request, progress, call, found)
        except (asyncio.CancelledError, ConnectionError):  # or a write has noticed it first
            progress.told = True
            told(
                call,
                identity,
                role,
                record.id,
                None,
                progress.response,
                left=True,
                cut=progress.cut,
            )
            raise
        told(call, identity, role, record.id, record, response)
        return response

    async def _replay(
        self, request: BaseRequest, progress: CallProgress, call: Call, found: Found
    ) -> CallerResponse:
        try:
            record, books = found.record, self._books
            return await replay(
                request, progress, call, record, books, self._watched, self._replays
            )
        except LedgerUnavailable as error:
            raise problems.no_ledger(str(error)).refusal(call) from None

    async def _joined(
        self,
        request: BaseRequest,
        progress: CallProgress,
        call: Call,
        identity: Identity,
        run: Run,
        served_from: str,
    ) -> CallerResponse:
        """Serve a duplicate of a running call, and write that down."""
        told = self._journal.duplicate
        try:
            response = await self._join(request, progress, call, run, first=False)
        except (asyncio.CancelledError, ConnectionError):  # or a write has noticed it first
            progress.told = True
            told(
                call,
                identity,
                Role.JOINED,
                served_from,
                None,
                progress.response,
                left=True,
                cut=progress.cut,
            )
            raise
        since = run.call.accepted_at
        told(call, identity, Role.JOINED, served_from, run.row, response, of_since=since)
        return response

    async def _join(
        self, request: BaseRequest, progress: CallProgress, call: Call, run: Run, *, first: bool
    ) -> CallerResponse:
        """Read what a run brings; the first one there is its owner."""
        deadline = deadline_of(call, call.route.policy.timeouts.total)
        if not first:
            patience = call.route.policy.idempotency.join_timeout
            deadline = min(deadline, asyncio.get_running_loop().time() + patience)
        try:
            reader = run.recording.read()
        except TooLate:
            # What another process makes it may keep all the same.
            made_here = isinstance(run.resolution.result(), Owned)
            late = problems.NOT_STORED if made_here else problems.IN_PROGRESS
            raise late.refusal(call) from None
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await reader.head()
            except TimeoutError:
                late = problems.STILL_RUNNING if first else problems.IN_PROGRESS
                raise late.refusal(call) from None
            status = run.status
            if not first and status in (Status.NEW, Status.RERUN):
                status = Status.JOINED
            return await give(
                request, progress, call, run.recording, reader, status, self._watched, first=first
            )
        finally:
            reader.close()
