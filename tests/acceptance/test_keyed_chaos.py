"""Two sidecars on one ledger, and everything going wrong at once, in virtual time: by the dice.

The provider's log says how often a key was executed; the callers say what they got. Whatever
happened in between: one execution for a key, all complete answers of it the same, and nothing left
behind.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest

from tests.provider import Answer, Attempt, Fault, Pause, faults
from tests.support.pair import Pair, Replica, key, pair
from tests.support.world import Reply

#: How long callers come, and what may pass then until nothing runs any more, in seconds.
LONG: Final = 25.0
REST: Final = 90.0

CALLERS: Final = 10

TWO_TRIES: Final = {"retry": {"max_attempts": 2}}
NO_BREAKER: Final = {"breaker": {"failure_threshold": 10_000, "min_calls": 10_000}}

_METHODS: Final = (
    "*",
    "renew",
    "claim",
    "take_over",
    "mark_sent",
    "finish",
    "begin_answer",
    "add_chunks",
    "follow",
    "answer",
    "chunks",
    "find",
)


class Chaos:
    """One run of it."""

    def __init__(self, both: Pair, seed: int) -> None:
        self.both = both
        self.dice = random.Random(seed)
        self.complete: dict[str, set[bytes]] = defaultdict(set)
        self.answers = 0

    async def run(self) -> None:
        """Let it happen, then let it come to rest."""
        self.both.provider.distinct = True
        self.both.provider.always(self._answer)
        trouble = asyncio.create_task(self._trouble())
        await asyncio.gather(*(self._caller() for _ in range(CALLERS)))
        trouble.cancel()
        await asyncio.wait([trouble])
        for each in (self.both.here, self.both.there):
            each.ledger.up()
        await asyncio.sleep(REST)

    def _answer(self, attempt: Attempt, healthy: Answer) -> Answer:
        """What the provider does with a request: usually, to answer."""
        fault: Fault = faults.silence(self.dice.choice([0.0, 0.1, 3.0]))
        streamed = bool(attempt.object.get("stream"))
        if streamed:
            fault |= faults.at_event(self.dice.randrange(6), Pause(self.dice.choice([0.1, 4.0])))
        bad = self.dice.randrange(12)
        if bad == 0:
            fault = faults.status(503)
        elif bad == 1 and streamed:
            fault = faults.cut_after(events=4)
        elif bad == 2:
            fault = faults.reset_before_answer()
        return fault.apply(attempt, healthy)

    async def _trouble(self) -> None:
        """The ledger of one of them fails, loses replies or hangs; a moment, or over the lease."""
        while True:
            await asyncio.sleep(self.dice.uniform(0.0, 3.0))
            ledger = self.dice.choice([self.both.here, self.both.there]).ledger
            how = self.dice.choice([ledger.fail, ledger.lose_reply])
            how(self.dice.choice(_METHODS))
            await asyncio.sleep(self.dice.choice([0.0, 0.5, 3.0, 20.0]))
            ledger.up()

    async def _caller(self) -> None:
        now = asyncio.get_running_loop().time
        until = now() + LONG
        while now() < until:
            replica = self.dice.choice([self.both.here, self.both.there])
            name = f"key-{self.dice.randrange(60)}"
            await self._ask(replica, name)
            await asyncio.sleep(self.dice.choice([0.1, 0.5, 2.0]))

    async def _ask(self, replica: Replica, name: str) -> None:
        """Ask, and sometimes hang up."""
        stream = int(name.partition("-")[2]) % 2 == 1
        asking = asyncio.create_task(replica.ask(stream=stream, headers=key(name), user=name))
        patience = self.dice.choice([0.05, 1.0, 600.0, 600.0])
        await asyncio.wait([asking], timeout=patience)
        if asking.done():
            self._note(name, asking.result())
        asking.cancel()
        await asyncio.wait([asking])

    def _note(self, name: str, reply: Reply) -> None:
        whole = not reply.cut
        if reply.status == 200 and whole and (b'"error"' not in reply.body):
            self.complete[name].add(reply.body)
            self.answers += 1
        assert reply.status in {200, 409, 502, 503, 504}, reply

    def check(self) -> None:
        """What must be true whatever happened."""
        executed: dict[str, int] = defaultdict(int)
        for attempt in self.both.provider.attempts:
            if attempt.status != 503:
                executed[attempt.json["user"]] += 1
        assert {name: count for name, count in executed.items() if count > 1} == {}
        assert {name: bodies for name, bodies in self.complete.items() if len(bodies) > 1} == {}
        assert self.answers > 20
        for replica in (self.both.here, self.both.there):
            gateway: Any = replica.steer.gateway
            assert gateway._keyed._running == {}
            assert gateway._keyed._memory.used == 0
            assert gateway._keyed._executions._claims._held.ids() == ()
            assert gateway._keyed._executions._live._streams == set()
            assert gateway._budget.used == 0
            assert replica.steer.sidecar.active == 0


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_goes_wrong_one_key_is_one_execution(tmp_path: Path, seed: int) -> None:
    """Callers come and go, the provider fails, the ledger fails."""
    async with pair(tmp_path, route=TWO_TRIES, upstream=NO_BREAKER) as both:
        chaos = Chaos(both, seed)
        await chaos.run()
        chaos.check()
