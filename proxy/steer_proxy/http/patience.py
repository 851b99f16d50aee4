"""Serving calls whose SDK may give up waiting: its own next try finds the attempt still running."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from aiohttp.web_request import BaseRequest

from steer_policies.outcome import Failure
from steer_policies.plan import Plan
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.clock import new_span_id
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.delivery import Delivery
from steer_proxy.http.delivery import Services as DeliveryServices
from steer_proxy.http.keyed_problems import DRAINING
from steer_proxy.http.orphans import Orphan, Orphans, give_up, keep_body, waited_out
from steer_proxy.http.outlet import TO_CALLER
from steer_proxy.http.problems import Refusal
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.terms import deadline_of
from steer_proxy.http.waiting import result_by

_STILL_RUNNING: Final = Problem(
    504,
    "steer_deadline",
    "No answer came in the time this SDK waits for one. The call goes on for a moment: the SDK's "
    "next try takes it over.",
    sdk_retry=True,
)
_TIME_IS_UP: Final = Problem(504, "steer_deadline", "The call's time is up.", sdk_retry=False)


class Services(DeliveryServices, Protocol):
    """What such calls need of the gateway they belong to."""

    async def prepare(self, call: Call) -> Plan:
        """The plan of a call.

        Raises:
            Refusal: when no candidate can take it.
        """


class Patience:
    """Serves calls for as long as their SDK waits, and a moment longer for its next try."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._orphans = Orphans(new_span_id().encode(), self._log_orphan)

    async def close(self) -> None:
        """Give up what nobody has come for."""
        await self._orphans.close()

    async def serve(
        self, request: BaseRequest, progress: CallProgress, call: Call, addresses: Addresses
    ) -> CallerResponse:
        """Serve a call whose SDK may give up waiting and come again: then its attempt goes on."""
        orphan = await self._orphans.adopt(call)
        if orphan is None:
            orphan = await self._begun(call, addresses)
        else:
            kept = orphan.adopted_by(call)
            orphan = Orphan(kept, orphan.made, orphan.task, orphan.spent, digest=orphan.digest)
        kept, made = orphan.call, orphan.made
        progress.made, progress.spent = made, orphan.spent
        try:
            deadline = deadline_of(call, made.timeouts.total)
            settled = await self._wait(progress, call, orphan, deadline)
            del orphan  # and with it the exchange: a stream may last an hour
            _bear_silence(kept, settled, call.silence)
            progress.told = True
            delivery = Delivery(self._services, request, progress, kept, made, addresses, TO_CALLER)
            return await delivery.deliver(settled)
        finally:
            if not progress.left:
                kept.body.close()

    async def _begun(self, call: Call, addresses: Addresses) -> Orphan:
        """The call's own exchange, which may outlive its caller."""
        made, spent = await self._services.prepare(call), Spent()
        kept = keep_body(call)
        kept.until = call.accepted_at + made.timeouts.total
        deadline = deadline_of(call, made.timeouts.total)
        exchange = self._services.exchange(kept, made, addresses, deadline, spent)
        return Orphan(kept, made, asyncio.create_task(exchange.run()), spent)

    async def _wait(
        self, progress: CallProgress, call: Call, orphan: Orphan, deadline: float
    ) -> Settled[HttpAnswer]:
        """What an exchange brings; or it is left to the SDK's next try."""
        try:
            settled = await result_by(orphan.task, deadline)
        except asyncio.CancelledError:
            if not progress.cut and waited_out(call, self._services.clock.now()):
                progress.left = progress.told = self._orphans.leave(orphan)
            if not progress.left:
                unused = await give_up(orphan.task)
                progress.told = True
                self._log_left(orphan, unused, cut=progress.cut)
            raise
        if settled is not None:
            return settled
        orphan.told = _STILL_RUNNING
        progress.left = progress.told = self._orphans.leave(orphan)
        if not progress.left:
            await give_up(orphan.task)
            raise Refusal(_TIME_IS_UP)
        raise Refusal(_STILL_RUNNING)

    def _log_orphan(
        self, orphan: Orphan, unused: Settled[HttpAnswer] | None, *, adopted: bool
    ) -> None:
        """What became of a call whose SDK gave up waiting: an adopted one's attempts are not its
        own any more."""
        spent = Spent() if adopted else orphan.spent
        if self._services.journal is not None:
            self._services.journal.left(
                orphan.call, orphan.made, spent, unused=unused, problem=orphan.told
            )

    def _log_left(self, orphan: Orphan, unused: Settled[HttpAnswer] | None, *, cut: bool) -> None:
        problem = DRAINING.problem if cut else None
        if self._services.journal is not None:
            self._services.journal.left(
                orphan.call, orphan.made, orphan.spent, unused=unused, problem=problem
            )


def _bear_silence(kept: Call, settled: Settled[HttpAnswer], silence: float | None) -> None:
    """From the commit on the caller's patience counts again, where it is the shorter one; that
    it ends is not the upstream's fault."""
    answer, candidate = settled.answer, settled.candidate
    if answer is None or answer.response is None or candidate is None or silence is None:
        return
    if silence <= kept.config.upstreams[candidate.upstream].policy.timeouts.idle:
        answer.response.limit_silence(silence, Failure.DEADLINE)
