"""Calls whose SDK gave up waiting, kept for a moment for that SDK's own next try.

No official SDK sends an idempotency key, but all of them count their tries. When one hangs up, or
is told to come again, because an answer takes longer than it waits for a byte, the attempt that is
under way goes on; the same request, counted one higher, takes it over. What is paid once is not
paid again, and a call that takes longer than the SDK's patience comes to an end after all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

from steer_policies.deadline import Limit, earliest_deadline, retry_count, sdk_read_timeout
from steer_policies.plan import Plan
from steer_policies.steering import Steering
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.body import EMPTY
from steer_proxy.http.call import Call
from steer_proxy.http.identity import principal_of, request_print

#: The largest request that is kept for another try, in bytes, and how many are kept at most.
MOST: Final = 256 * 1024
MOST_KEPT: Final = 256

#: An SDK that hangs up so much before its time-out, in seconds, is taken to have waited it out.
EARLY: Final = 0.05

Exchanged = asyncio.Task[Settled[HttpAnswer]]


@dataclass(slots=True, eq=False)
class Orphan:
    """An exchange that nobody may be waiting for. `told` is what its caller was told, None when it
    hung up; `digest` that of its request, once it was needed."""

    call: Call
    made: Plan
    task: Exchanged
    spent: Spent
    told: Problem | None = None
    digest: str | None = None
    timer: asyncio.TimerHandle | None = None

    def adopted_by(self, call: Call) -> Call:
        """The call in whose name the exchange goes on; the request's body stays the first one's."""
        call.body.close()
        kept = call.copy()
        kept.body, kept.served_from = self.call.body, self.call.id
        call.body, call.json = EMPTY, None
        return kept


class Log(Protocol):
    """Who writes down what became of an orphan."""

    def __call__(
        self, orphan: Orphan, unused: Settled[HttpAnswer] | None, *, adopted: bool
    ) -> None:
        """It was adopted, or nobody came for it and for what it brought, which is `unused`."""


def may_be_adopted(call: Call) -> bool:
    """Whether this call is one whose SDK may come again for it: nothing but its own patience for
    silence ends its waiting early."""
    policy = call.route.policy
    if call.silence is None or not policy.idempotency.adopt or call.method != "POST":
        return False
    if not call.facts.steered or call.upgrade or call.body.size > MOST:
        return False
    if retry_count(call.headers) is None:
        return False
    budget = call.steering.budget
    limit = earliest_deadline(
        0.0,
        policy.timeouts.total,
        call.steering.timeout,
        None if budget is None else budget.ms,
        call.silence,
    ).limit
    return limit is Limit.SILENCE


def waited_out(call: Call, now: float) -> bool:
    """Whether a caller that hangs up now has waited as long as its SDK does."""
    patience = sdk_read_timeout(call.headers)
    return patience is not None and now - call.accepted_at >= patience - EARLY


class Orphans:
    """The orphans of a process; `secret` is for comparing requests, `log` is told of each."""

    def __init__(self, secret: bytes, log: Log) -> None:
        self._secret = secret
        self._log = log
        self._waiting: list[Orphan] = []
        self._ending: set[asyncio.Task[None]] = set()

    def leave(self, orphan: Orphan) -> bool:
        """Keep an exchange for another try; whether there is room."""
        if len(self._waiting) >= MOST_KEPT:
            return False
        grace = orphan.call.route.policy.idempotency.adopt_grace
        orphan.timer = asyncio.get_running_loop().call_later(grace, self._give_up, orphan)
        self._waiting.append(orphan)
        return True

    async def adopt(self, call: Call) -> Orphan | None:
        """The oldest orphan that this call is another try of; from now on it is the caller's."""
        count = retry_count(call.headers)
        if not self._waiting or not count:
            return None
        asked = _asked(call)
        candidates = [
            orphan
            for orphan in self._waiting
            if retry_count(orphan.call.headers) == count - 1
            and orphan.call.route.name == call.route.name
            and orphan.call.path == call.path
            and orphan.call.body.size == call.body.size
            and _asked(orphan.call) == asked
        ]
        if not candidates:
            return None
        digest = await request_print(call, self._secret)
        for orphan in candidates:
            if orphan not in self._waiting:  # another try has it, or its time is up
                continue
            if orphan.digest is None:
                orphan.digest = await request_print(orphan.call, self._secret)
            if orphan.digest == digest and orphan in self._waiting:
                self._forget(orphan)
                self._log(orphan, None, adopted=True)
                return orphan
        return None

    def _forget(self, orphan: Orphan) -> None:
        self._waiting.remove(orphan)
        if orphan.timer is not None:
            orphan.timer.cancel()

    def _give_up(self, orphan: Orphan) -> None:
        self._forget(orphan)
        ending = asyncio.create_task(self._end(orphan))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, orphan: Orphan) -> None:
        unused: Settled[HttpAnswer] | None = None
        try:
            unused = await give_up(orphan.task)
        finally:
            orphan.call.body.close()
            self._log(orphan, unused, adopted=False)

    async def close(self) -> None:
        """Give all of them up."""
        for orphan in tuple(self._waiting):
            self._give_up(orphan)
        while self._ending:
            await asyncio.wait(self._ending)


def _asked(call: Call) -> tuple[bytes, bytes, Steering]:
    """Who asks, by the credential and by the route's scope, and what was asked of Steer."""
    scope = call.route.policy.idempotency.scope
    return principal_of(call), principal_of(call, scope), call.steering


async def give_up(task: Exchanged) -> Settled[HttpAnswer] | None:
    """End an exchange that nobody wants, and let go of what it brought; that, if it did."""
    task.cancel()
    await asyncio.wait([task])
    if task.cancelled() or task.exception() is not None:
        return None
    settled = task.result()
    if settled.hold is not None:
        settled.hold.release()
    if settled.answer is not None:
        await settled.answer.discard()
    return settled


def keep_body(call: Call) -> Call:
    """The call as its exchange keeps it, with the body, which its handler then leaves alone."""
    kept = call.copy()
    kept.silence = None
    call.body, call.json = EMPTY, None
    return kept
