"""Whatever happens in whatever order, SQLite and its memory twin say and keep the same."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from steer_policies.idempotency import Move, State
from steer_proxy.ledger import migrate
from steer_proxy.ledger.protocol import Ledger, LedgerUnavailable
from steer_proxy.ledger.values import Batch, Claim, Purge, Record, Ref
from tests.ledger_contract.make import LEASE, ME, OTHER, attempt, call, chunks, claim, ending
from tests.ledger_contract.subject import MemorySubject, SqliteSubject
from tests.support.virtual_time import VirtualTimeLoop

SCOPES = st.sampled_from(["scope-1", "scope-2"])
OWNERS = st.sampled_from([ME, OTHER])
PICK = st.integers(0, 11)
TABLES = ("requests", "attempts", "response_chunks", "breaker_events")


@cache
def template() -> Path:
    """An empty ledger to copy: migrating takes longer than a whole example."""
    folder = Path(tempfile.mkdtemp(prefix="steer-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    migrate.upgrade(f"sqlite:///{folder / 'empty.db'}")
    return folder / "empty.db"


class Twins(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="steer-test-"))
        shutil.copy(template(), self.folder / "steer.db")
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.memory, self.sqlite = MemorySubject(), SqliteSubject(self.folder / "steer.db")
        self.sqlite.wall = self.memory.wall
        self.sqlite.ledger._wall = self.memory.wall
        self.claims: list[Claim] = []
        self.epochs: dict[str, int] = {}
        self.seen: list[tuple[str, Record]] = []

    @initialize()
    def open(self) -> None:
        self.runner.run(self.memory.ledger.open())
        self.runner.run(self.sqlite.ledger.open())

    def teardown(self) -> None:
        self.runner.run(self.sqlite.ledger.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def both(self, do: Callable[[Ledger], Awaitable[Any]]) -> Any:
        """Do it to both, and say what both said."""

        async def one(ledger: Ledger) -> Any:
            try:
                return await do(ledger)
            except LedgerUnavailable as error:
                return str(error)

        expected = self.runner.run(one(self.memory.ledger))
        assert self.runner.run(one(self.sqlite.ledger)) == expected
        return expected

    def picked(self, pick: int) -> Claim:
        return self.claims[-1 - pick % len(self.claims)]

    def ref(self, mine: Claim) -> Ref:
        return Ref(mine.row.id, self.epochs[mine.row.id])

    # --- What callers do ------------------------------------------------------------------------

    @rule(scope=SCOPES, owner=OWNERS, sent=st.booleans(), retention=st.sampled_from([20, 200]))
    def claim(self, scope: str, owner: str, sent: bool, retention: float) -> None:
        mine = claim(self.memory, scope, sent=sent, owner=owner, retention=retention)
        there = self.both(lambda ledger: ledger.claim(mine))
        if there is None:
            self.claims.append(mine)
            self.epochs[mine.row.id] = 1
        else:
            self.seen.append((scope, there))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def claim_again(self, pick: int) -> None:
        mine = self.picked(pick)
        self.both(lambda ledger: ledger.claim(mine))

    @precondition(lambda self: self.seen)
    @rule(owner=OWNERS, pick=PICK, sent=st.booleans())
    def take_over(self, owner: str, pick: int, sent: bool) -> None:
        """By what was seen lately, or long ago."""
        scope, found = self.seen[-1 - pick % len(self.seen)]
        mine = claim(self.memory, scope, sent=sent, owner=owner, retention=200)
        if self.both(lambda ledger: ledger.take_over(mine, found)) is None:
            self.claims.append(mine)
            self.epochs[mine.row.id] = found.epoch + 1

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def mark_sent(self, pick: int) -> None:
        mine = self.picked(pick)
        self.both(lambda ledger: ledger.mark_sent(self.ref(mine)))

    @precondition(lambda self: self.claims)
    @rule(
        pick=PICK,
        state=st.sampled_from([State.COMPLETED, State.COMPLETED, State.UNCERTAIN, State.RELEASED]),
        pieces=st.integers(0, 3),
        written=st.integers(0, 1),
    )
    def finish(self, pick: int, state: State, pieces: int, written: int) -> None:
        mine = self.picked(pick)
        bodies = [b"x" * 300] * (pieces if state is State.COMPLETED else 0)
        epoch = self.epochs[mine.row.id]
        end = ending(self.memory, mine, state, *bodies, epoch=epoch, retention=100, written=written)
        self.both(lambda ledger: ledger.finish(end))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, start=st.integers(0, 2))
    def add_chunks(self, pick: int, start: int) -> None:
        mine = self.picked(pick)
        rows = chunks(mine, b"a" * 100, b"b" * 100, start=start)
        self.both(lambda ledger: ledger.begin_answer(self.ref(mine), 200, "{}"))
        self.both(lambda ledger: ledger.add_chunks(rows))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def drop_chunks(self, pick: int) -> None:
        mine = self.picked(pick)
        self.both(lambda ledger: ledger.drop_chunks(self.ref(mine)))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, move=st.sampled_from([Move.SETTLE, Move.REOPEN]))
    def settle(self, pick: int, move: Move) -> None:
        mine = self.picked(pick)
        self.both(lambda ledger: ledger.settle(mine.row.id, move))

    @rule(pick=PICK)
    def log(self, pick: int) -> None:
        id_ = self.picked(pick).row.id if self.claims and pick % 2 else None
        row = call(self.memory, id=id_)
        batch = Batch([row], [attempt(row)])
        self.both(lambda ledger: ledger.write(batch))

    # --- What happens ---------------------------------------------------------------------------

    @rule(owner=OWNERS)
    def renew(self, owner: str) -> None:
        held = [each.row.id for each in self.claims if each.row.owner_id == owner]
        self.both(lambda ledger: ledger.renew(owner, "pod", LEASE, held))

    @rule(owner=OWNERS)
    def retire(self, owner: str) -> None:
        self.both(lambda ledger: ledger.retire(owner))

    @rule(seconds=st.sampled_from([0.5, 6, LEASE, 50, 150]))
    def pass_time(self, seconds: float) -> None:
        self.memory.wall.now += seconds

    @rule(age=st.sampled_from([0, 30, 10_000]), max_bytes=st.sampled_from([None, 500, 0]))
    def purge(self, age: int, max_bytes: int | None) -> None:
        before = self.memory.now_us() - age * 1_000_000

        async def whole(ledger: Ledger) -> None:
            for _ in range(1_000):
                if not (await ledger.purge(Purge(before, max_bytes, limit=7))).more:
                    return
            raise AssertionError("there is always more")

        self.both(whole)

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.memory.reopen())
        self.runner.run(self.sqlite.reopen())

    # --- What always holds ----------------------------------------------------------------------

    @invariant()
    def rows_are_the_same(self) -> None:
        for table in TABLES:
            expected = self.runner.run(self.memory.rows(table))
            rows = self.runner.run(self.sqlite.rows(table))
            assert _sorted(rows) == _sorted(expected), table

    @invariant()
    def records_look_the_same(self) -> None:
        for scope in ("scope-1", "scope-2"):
            there = self.both(lambda ledger, scope=scope: ledger.find(scope))  # type: ignore[misc]
            if there is not None:
                self.seen.append((scope, there))
        for mine in self.claims[-3:]:
            self.both(lambda ledger, id_=mine.row.id: ledger.follow(id_, -1, 9))  # type: ignore[misc]
            self.both(lambda ledger, id_=mine.row.id: ledger.answer(id_))  # type: ignore[misc]


def _sorted(rows: list[dict[str, Any]]) -> list[list[tuple[str, Any]]]:
    return sorted((list(row.items()) for row in rows), key=repr)


TestTwins = Twins.TestCase
TestTwins.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
