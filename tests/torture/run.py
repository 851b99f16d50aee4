"""A run: callers and nemesis against sidecars and a provider, then the reckoning."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.provider import Provider
from tests.torture.caller import Patience, attempt, call_like_an_sdk
from tests.torture.checker import Evidence, LedgerRow, Violation, check
from tests.torture.database import Database
from tests.torture.history import Call, History, Try
from tests.torture.nemesis import Nemesis
from tests.torture.provider_log import arrivals, moody
from tests.torture.replica import Replica, replicas

#: The sidecars' lease in seconds; the product's own is longer than a short run.
LEASE: Final = 1.0

#: What may pass after the lease until nothing is in progress any more, in seconds.
GRACE: Final = 1.2

#: Callers at once, and the keys they may come back to.
CALLERS: Final = 16
RECENT: Final = 12

#: How long a caller waits for an answer, in seconds; at the end of the run, when all is well.
PATIENCE: Final = 2.5
PATIENCE_AT_LAST: Final = 15.0

#: Calls that are asked for again at the end: the newest of the long run's.
ASKED_AGAIN: Final = 1500


def settings(provider: Provider, database: Database) -> dict[str, Any]:
    """Two routes to one provider: one that fails when a call is uncertain, one that reruns it."""
    timeouts = {"connect": 1.0, "first_byte": 1.5, "answer": 1.5, "first_token": 1.5, "idle": 1.5}
    upstream = {
        "dialect": "openai",
        "base_url": f"{provider.base_url}/v1",
        "timeouts": timeouts,
        # What is under test is behind the breaker: it must not keep the calls away.
        "breaker": {"failure_threshold": 1000, "failure_rate": 1.0, "open_duration": 0.1},
    }
    retry = {"initial_delay": 0.02, "max_delay": 0.2}
    keyed = {"join_timeout": 2.0}
    return {
        "catalogue": False,
        "drain_timeout": 1.0,
        "database": {"url": database.url},
        "upstreams": {"llm": upstream},
        "routes": [
            {
                "name": name,
                "path": path,
                "candidates": ["llm"],
                "retry": retry,
                "idempotency": {**keyed, "on_uncertain": on_uncertain},
            }
            for name, path, on_uncertain in (
                ("chat", "/v1", "fail"),
                ("rerun", "/rerun/v1", "rerun"),
            )
        ],
    }


@dataclass(slots=True)
class Report:
    """What a run found."""

    seed: int
    database: str
    seconds: float
    violations: list[Violation]
    checked: Counter[int]
    injected: Counter[str]
    outcomes: Counter[str]
    calls: int
    tries: int
    arrivals: int
    executed: int
    succeeded: int
    events: list[tuple[float, str]] = field(default_factory=list)

    def __str__(self) -> str:
        def table(counts: Counter[Any]) -> str:
            return "".join(f"\n    {count:7,}  {what}" for what, count in sorted(counts.items()))

        broken = Counter(violation.invariant for violation in self.violations)
        lines = [
            f"seed {self.seed}, {self.database}, {self.seconds:.1f} s",
            f"  {self.calls:,} calls, {self.tries:,} tries ({self.tries / self.seconds:.0f}/s)",
            f"  {self.arrivals:,} requests reached the provider, {self.executed:,} executions",
            f"  faults:{table(self.injected)}",
            f"  what callers saw:{table(self.outcomes)}",
            f"  invariants, and how often each was checked:{table(self.checked)}",
            f"  violations: {len(self.violations)}",
            *(f"    {count:7,}  of {number}" for number, count in sorted(broken.items())),
            *(f"    {violation}" for violation in self.violations[:20]),
        ]
        return "\n".join(lines)


class Run:
    """One run, by one seed. The seed decides who does what; the machine, in which order."""

    def __init__(self, database: Database, seed: int, say: Callable[[str], None]) -> None:
        self._database = database
        self._seed = seed
        self._say = say
        self._dice = random.Random(seed)
        self._history = History()
        self._recent: list[Call] = []
        self._rows: list[LedgerRow] = []
        self._made = 0
        self._sick = True
        self._began = time.monotonic()

    async def run(self, folder: Path, seconds: float) -> Report:
        """Torture for so many seconds, then put everything right, look again and check."""
        async with Provider(pace=0.004, distinct=True) as provider:
            provider.always(moody(random.Random(self._seed + 1), lambda: self._sick))
            made = settings(provider, self._database)
            names = self._database.replicas
            with replicas(folder, names, made, CRASH_LEASE=str(LEASE)) as sidecars:
                for replica in sidecars:
                    replica.start()
                for replica in sidecars:
                    await replica.ready()
                dice = random.Random(self._seed + 2)
                nemesis = Nemesis(
                    dice, sidecars, self._database, provider, lease=LEASE, tell=self._tell
                )
                await self._torment(nemesis, sidecars, seconds)
                await self._reckoning(sidecars, made)
                return self._report(provider, nemesis, folder)

    async def _torment(self, nemesis: Nemesis, sidecars: list[Replica], seconds: float) -> None:
        tasks = [asyncio.create_task(nemesis.run())]
        tasks += [asyncio.create_task(self._caller(number, sidecars)) for number in range(CALLERS)]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in done:
            task.result()  # an error of the harness, or of a sidecar that did not start again
        self._sick = False
        await nemesis.heal()

    async def _caller(self, number: int, sidecars: list[Replica]) -> None:
        dice = random.Random(f"{self._seed}/{number}")

        def make() -> tuple[str, int, Patience]:
            replica = dice.choice(sidecars)
            size = dice.randrange(3000) if dice.random() < 0.15 else None
            hasty = dice.random() < 0.1
            return (
                replica.name,
                replica.port,
                Patience(dice.uniform(0.01, 0.3) if hasty else PATIENCE, size),
            )

        while True:
            call, payload = self._choose(dice)
            await call_like_an_sdk(make, call, payload, dice, self._history.tries.append)
            await asyncio.sleep(dice.uniform(0.0, 0.05))

    def _choose(self, dice: random.Random) -> tuple[Call, int]:
        """A new call, or one that somebody makes or made already; now and then not quite it."""
        if not self._recent or dice.random() < 0.3:
            self._made += 1
            key = f"key-{self._made}"
            call = Call(key, "ann", stream=dice.random() < 0.5, rerun=dice.random() < 0.15)
            self._recent.append(call)
        else:
            newest = self._recent[-RECENT:] if dice.random() < 0.8 else self._recent
            call = dice.choice(newest)
        if dice.random() < 0.1:
            call = Call(call.key, "bob", call.stream, call.rerun)
        return call, int(dice.random() < 0.06)

    async def _reckoning(self, sidecars: list[Replica], made: dict[str, Any]) -> None:
        """Kill everything once more, wait until all leases are over, and ask for every call.

        Meanwhile the ledger is purged of everything it need not keep.
        """
        self._tell("kill -9 all")
        for replica in sidecars:
            await replica.kill()
        self._rows = self._database.rows()
        for replica in sidecars:
            replica.configure({**made, "ledger": {"retention": 0.1}})
            replica.start(CRASH_PURGE="0.2")
        for replica in sidecars:
            await replica.ready()
        await asyncio.sleep(LEASE + GRACE)
        calls = sorted({each.call for each in self._history.tries}, key=_age)[-ASKED_AGAIN:]
        waiting = iter(calls)

        async def ask() -> None:
            for call in waiting:
                replica = self._dice.choice(sidecars)
                patience = Patience(PATIENCE_AT_LAST)
                self._history.tries.append(
                    await attempt(call, 0, replica.name, replica.port, patience, final=True)
                )

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(ask())

    def _report(self, provider: Provider, nemesis: Nemesis, folder: Path) -> Report:
        tries = self._history.tries
        evidence = Evidence(
            tries,
            arrivals(provider.attempts),
            self._rows,
            self._database.rows(),
            nemesis.outages,
        )
        violations = check(evidence)
        if violations:
            self._keep(evidence, folder / "evidence.txt")
        return Report(
            seed=self._seed,
            database=self._database.name,
            seconds=time.monotonic() - self._began,
            violations=violations,
            checked=evidence.checked,
            injected=nemesis.injected,
            outcomes=Counter(_outcome(each) for each in tries),
            calls=len({each.call for each in tries}),
            tries=len(tries),
            arrivals=len(evidence.arrivals),
            executed=sum(arrival.executed for arrival in evidence.arrivals),
            succeeded=sum(each.succeeded for each in tries),
            events=self._history.events,
        )

    def _keep(self, evidence: Evidence, path: Path) -> None:
        """Write down all that was seen, in the order of time."""
        lines = [(each.began, str(each)) for each in evidence.tries]
        lines += [(arrival.at, str(arrival)) for arrival in evidence.arrivals]
        lines += [(when, f"--- {what}") for when, what in self._history.events]
        rows = [
            str(row) for row in (*(evidence.rows or ()), "--- purged", *(evidence.purged or ()))
        ]
        text = [f"{when:.3f} {what}" for when, what in sorted(lines)]
        path.write_text("\n".join([*text, *rows, ""]))

    def _tell(self, what: str) -> None:
        now = time.monotonic()
        self._history.events.append((now, what))
        self._say(f"{now - self._began:7.1f} s  (at {now:.1f})  {what}")


def _age(call: Call) -> int:
    return int(call.key.rpartition("-")[2])


def _outcome(each: Try) -> str:
    if each.status is None:
        return f"{each.end}"
    how = each.code or each.value("Idempotency-Status") or "provider's"
    return f"{each.end} {each.status} {how}"


async def torture(
    database: Database,
    seed: int,
    seconds: float,
    folder: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """One run."""
    return await Run(database, seed, say).run(folder, seconds)
