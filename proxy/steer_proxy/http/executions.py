"""Carrying out runs: whose the key is decides whether a call is made, or who makes it followed."""

from __future__ import annotations

from typing import Protocol

from aiohttp.web_request import BaseRequest

from steer_policies.idempotency import State, TakeOver
from steer_policies.plan import Plan
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.claims import Claims, Found, Owned
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.conclusion import Spent
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.call import Call
from steer_proxy.http.delivery import Services as DeliveryServices
from steer_proxy.http.execution import Execution, Means
from steer_proxy.http.journal import Journal
from steer_proxy.http.live import LiveStreams
from steer_proxy.http.problems import Refusal
from steer_proxy.http.run import Run, Unavailable
from steer_proxy.http.shadow import shadow
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.values import MICROSECONDS, Ref


class Services(DeliveryServices, Protocol):
    """What an execution needs of the gateway it belongs to."""

    async def prepare(self, call: Call) -> Plan:
        """The plan of a call.

        Raises:
            Refusal: when no candidate can take it.
        """


class Executions:
    """Carries out runs."""

    def __init__(
        self, services: Services, books: Bookkeeper, journal: Journal, clock: Clock
    ) -> None:
        self._clock = clock
        self._services = services
        self._books = books
        self._journal = journal
        self._claims = Claims(books, clock.wall, clock.now)
        self._live = LiveStreams(books, self._now_us)
        self._means = Means(services, books, journal, self._claims, self._live, self._now_us)

    async def close(self) -> None:
        """Stop what goes on beside the runs."""
        await self._live.close()
        await self._claims.close()

    async def run(self, run: Run, request: BaseRequest, addresses: Addresses) -> None:
        """Take the key and make the call, or follow who makes it."""
        made: Plan | None = None
        try:
            made = await self._services.prepare(run.call)
        except Refusal as refusal:
            await self._refuse(run, refusal)
            return
        execution = Execution(self._means, run, made, request, addresses)
        try:
            await self._take(run, execution)
        finally:
            execution.close()

    async def _take(self, run: Run, execution: Execution) -> None:
        try:
            taken = await self._claims.take(execution.row, run.policy, run.lose, run.drift)
        except LedgerUnavailable as error:
            run.resolve(Unavailable(str(error)))
            return
        run.resolve(taken)
        if isinstance(taken, Found):
            await self._follow(run, taken)
            return
        try:
            await execution.make(taken)
        finally:
            self._claims.let_go(taken.ref)

    async def _refuse(self, run: Run, refusal: Refusal) -> None:
        """A call that cannot be made now; one that was made before is answered all the same."""
        try:
            found = await self._books.ledger.find(run.identity.scope)
        except LedgerUnavailable:
            found = None
        if found is not None:
            known = Found(self._books.judged(found))
            if not isinstance(known.decision(run.identity.fingerprint, run.policy), TakeOver):
                run.resolve(known)
                await self._follow(run, known)
                return
        run.resolve(Owned(Ref(run.call.id, 1), recorded=False))
        run.say(refusal.problem)
        self._journal.left(run.call, None, Spent(), problem=refusal.problem)

    async def _follow(self, run: Run, found: Found) -> None:
        record = found.record
        if record.state in (State.CLAIMED, State.SENT) and not record.lapsed:
            await shadow(run, record, self._books)
        else:
            run.recording.end(broken=True)  # nobody reads it

    def _now_us(self) -> int:
        """Unix time in microseconds."""
        return int(self._clock.wall() * MICROSECONDS)
