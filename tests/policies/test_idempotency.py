"""The life of a record, what its key's next request gets, and that a call is not made twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from steer_policies.idempotency import (
    MOVES,
    Decision,
    IdempotencyPolicy,
    Join,
    Mismatch,
    Move,
    NotStored,
    OnUncertain,
    Replay,
    Standing,
    State,
    TakeOver,
    Uncertain,
    decide,
    sources,
)

CLAIMED, SENT, COMPLETED = State.CLAIMED, State.SENT, State.COMPLETED
UNCERTAIN, RELEASED = State.UNCERTAIN, State.RELEASED
FAIL, RERUN = OnUncertain.FAIL, OnUncertain.RERUN

# A row for every state, a column for every move: SEND, COMPLETE, DOUBT, RELEASE, SETTLE, REOPEN.
EXPECTED: dict[State, tuple[State | None, ...]] = {
    CLAIMED: (SENT, None, None, RELEASED, None, RELEASED),
    SENT: (None, COMPLETED, UNCERTAIN, RELEASED, COMPLETED, RELEASED),
    COMPLETED: (None, None, None, None, None, None),
    UNCERTAIN: (None, COMPLETED, None, None, COMPLETED, RELEASED),
    RELEASED: (None, None, None, None, None, None),
}


@pytest.mark.parametrize(("state", "move"), list(product(State, Move)))
def test_moves(state: State, move: Move) -> None:
    """Every move there is, and every one there is not."""
    expected = EXPECTED[state][list(Move).index(move)]
    assert MOVES.get((state, move)) is expected
    assert (state in sources(move)) == (expected is not None)


def test_the_table_of_moves_is_whole_and_fixed() -> None:
    """Every state and move is in the test's table, and the module's cannot be written to."""
    assert list(EXPECTED) == list(State)
    assert {len(row) for row in EXPECTED.values()} == {len(Move)}
    with pytest.raises(TypeError):
        MOVES[COMPLETED, Move.REOPEN] = RELEASED  # type: ignore[index]


@pytest.mark.parametrize(
    ("move", "states"),
    [
        (Move.SEND, (CLAIMED,)),
        (Move.COMPLETE, (SENT, UNCERTAIN)),
        (Move.DOUBT, (SENT,)),
        (Move.RELEASE, (CLAIMED, SENT)),
        (Move.SETTLE, (SENT, UNCERTAIN)),
        (Move.REOPEN, (CLAIMED, SENT, UNCERTAIN)),
    ],
)
def test_sources(move: Move, states: tuple[State, ...]) -> None:
    """What a fenced write asks for."""
    assert sources(move) == states


# --- What a request gets --------------------------------------------------------------------------

ANY = None

#: For a request with the record's own fingerprint: state, lapsed, expired, stored, on_uncertain.
#: The first row that fits, counts.
DECISIONS: list[
    tuple[State, bool | None, bool | None, bool | None, OnUncertain | None, Decision]
] = [
    # A key is free once its record is released, or its retention is over and nobody runs it.
    (RELEASED, ANY, ANY, ANY, ANY, TakeOver()),
    (COMPLETED, ANY, True, ANY, ANY, TakeOver()),
    (UNCERTAIN, ANY, True, ANY, ANY, TakeOver()),
    (CLAIMED, True, True, ANY, ANY, TakeOver()),
    (SENT, True, True, ANY, ANY, TakeOver()),
    # A call that runs is joined, however long that takes.
    (CLAIMED, False, ANY, ANY, ANY, Join()),
    (SENT, False, ANY, ANY, ANY, Join()),
    # Nobody runs it any more.
    (CLAIMED, True, False, ANY, ANY, TakeOver()),
    (SENT, True, False, ANY, FAIL, Uncertain()),
    (SENT, True, False, ANY, RERUN, TakeOver(rerun=True)),
    (UNCERTAIN, ANY, False, ANY, FAIL, Uncertain()),
    (UNCERTAIN, ANY, False, ANY, RERUN, TakeOver(rerun=True)),
    # It is done.
    (COMPLETED, ANY, False, True, ANY, Replay()),
    (COMPLETED, ANY, False, False, ANY, NotStored()),
]

CASES = list(product(State, *[(False, True)] * 3, OnUncertain))


@pytest.mark.parametrize(("state", "lapsed", "expired", "stored", "on_uncertain"), CASES)
def test_decisions(
    state: State, lapsed: bool, expired: bool, stored: bool, on_uncertain: OnUncertain
) -> None:
    """All there can be: with the same fingerprint by the table, with another one none of it."""
    case = (state, lapsed, expired, stored, on_uncertain)
    expected = next(
        decision
        for *row, decision in DECISIONS
        if all(want is ANY or want is have for want, have in zip(row, case, strict=True))
    )
    found = Standing(state, "own", lapsed=lapsed, expired=expired, stored=stored)
    assert decide(found, "own", on_uncertain) == expected
    free = state is RELEASED or (expired and expected == TakeOver())
    assert decide(found, "other", on_uncertain) == (TakeOver() if free else Mismatch())


def test_every_decision_has_a_case() -> None:
    """No row of the table is idle."""
    used = {
        next(
            index
            for index, (*row, _) in enumerate(DECISIONS)
            if all(want is ANY or want is have for want, have in zip(row, case, strict=True))
        )
        for case in CASES
    }
    assert used == set(range(len(DECISIONS)))


# --- Policies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retention": 0.0}, "retention must be greater than 0"),
        ({"retention": -1.0}, "retention must be greater than 0"),
        ({"join_timeout": 0.0}, "join_timeout must be greater than 0"),
        ({"adopt_grace": -0.1}, "adopt_grace must not be negative"),
        ({"max_stored": -1}, "max_stored must not be negative"),
        *(
            ({"scope": scope}, "scope must be caller, route or header:NAME")
            for scope in (
                "",
                "everybody",
                "Caller",
                "header",
                "header:",
                "header: X-Tenant",
                "header:X Tenant",
                "header:X-Tenant:",
                "header:X-Ten\xe4nt",
                "header:X-Tenant\n",
                "header:" + "x" * 129,
                "cookie:session",
            )
        ),
    ],
)
def test_refused_policies(arguments: dict[str, float | str], message: str) -> None:
    """Terms that cannot be kept, by the name of the field."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        IdempotencyPolicy(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["caller", "route", "header:X-Tenant", "header:" + "x" * 128])
def test_policies(scope: str) -> None:
    """Terms that can be kept, the smallest ones too."""
    policy = IdempotencyPolicy(
        scope=scope, retention=0.001, join_timeout=0.001, adopt_grace=0.0, max_stored=0
    )
    assert policy.scope == scope


def test_the_usual_policy() -> None:
    """What holds where nothing is configured: a day, and never a second call."""
    policy = IdempotencyPolicy()
    assert policy.retention == 24 * 3600
    assert policy.on_uncertain is FAIL
    assert policy.scope == "caller"
    assert not policy.require_key


# --- A key is executed once -----------------------------------------------------------------------


@dataclass(eq=False)
class Row:
    """A record as a ledger has it, and what is true of it that no ledger knows."""

    owner: int
    use: int
    """Which use of the key it belongs to: the first, or one that was asked for in so many words."""
    state: State = CLAIMED
    live: bool = True
    stored: bool = True
    may_execute: bool = False
    """Its owner knows that `sent` is durable: the bytes are on their way."""
    executions: int = 0
    refused: bool = False
    """The provider has said that it did not execute it."""
    reopened: bool = False


@dataclass(eq=False)
class Owner:
    """A process: what it believes to run, and whether it renews its lease."""

    rows: list[Row] = field(default_factory=list)
    lapsed: bool = False


class OneKey(RuleBasedStateMachine):
    """Processes that claim, send, pause, die and come back, around one key.

    Writes are fenced as a ledger's are: on the row, on its being live, and on the states that
    `sources` gives. What executes is the provider, at any time after `sent` was written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.owners = [Owner() for _ in range(2)]
        self.rows: list[Row] = []
        self.use = 0

    @property
    def live(self) -> Row | None:
        return next((row for row in self.rows if row.live), None)

    def move(self, row: Row, move: Move) -> bool:
        """A fenced write."""
        if not row.live or row.state not in sources(move):
            return False
        row.state = MOVES[row.state, move]
        row.live = row.state is not RELEASED
        return True

    def claim(self, owner: int) -> None:
        row = Row(owner, self.use)
        self.rows.append(row)
        self.owners[owner].rows.append(row)

    @rule(
        owner=st.integers(0, 1),
        on_uncertain=st.sampled_from(OnUncertain),
        expired=st.sampled_from([False, False, False, True]),
        same=st.sampled_from([True, True, True, False]),
    )
    def request(self, owner: int, on_uncertain: OnUncertain, expired: bool, same: bool) -> None:
        """A request with the key reaches a process, which does what is decided."""
        found = self.live
        if found is None:
            self.claim(owner)
            return
        lapsed = self.owners[found.owner].lapsed
        standing = Standing(found.state, "own", lapsed=lapsed, expired=expired, stored=found.stored)
        decision = decide(standing, "own" if same else "other", on_uncertain)
        running = found.state in (CLAIMED, SENT) and not lapsed
        if isinstance(decision, TakeOver):
            assert not running
            if decision.rerun:
                assert on_uncertain is RERUN
                self.use += 1
            elif expired and found.state is not CLAIMED:
                self.use += 1  # its retention is over: the key is a new one
            else:
                assert found.state is CLAIMED
            found.live = False
            self.claim(owner)
        if isinstance(decision, Replay):
            assert found.state is COMPLETED
        if isinstance(decision, Join):
            assert running

    @rule(owner=st.integers(0, 1), data=st.data())
    def send(self, owner: int, data: st.DataObject) -> None:
        """A process, a zombie perhaps, writes `sent` for a row it believes to own; and only when
        that worked, it sends."""
        if rows := self.owners[owner].rows:
            row = data.draw(st.sampled_from(rows[-2:]))
            if self.move(row, Move.SEND):
                row.may_execute = True

    @rule(data=st.data(), executes=st.sampled_from([True, True, False]))
    def provider(self, data: st.DataObject, executes: bool) -> None:
        """The provider gets what was sent, some time, and executes it or says that it did not."""
        waiting = [row for row in self.rows if row.may_execute]
        if waiting:
            row = data.draw(st.sampled_from(waiting))
            row.may_execute = False
            row.executions += executes
            row.refused = row.executions == 0

    @rule(owner=st.integers(0, 1), data=st.data(), stored=st.booleans())
    def finish(self, owner: int, data: st.DataObject, stored: bool) -> None:
        """A process, a zombie perhaps, writes how its call went, as far as it knows."""
        rows = self.owners[owner].rows
        if not rows:
            return
        row = data.draw(st.sampled_from(rows[-2:]))
        if row.executions:
            row.stored = stored
            self.move(row, data.draw(st.sampled_from([Move.COMPLETE, Move.DOUBT])))
        elif row.refused or row.state is CLAIMED:
            self.move(row, Move.RELEASE)
        else:
            self.move(row, Move.DOUBT)

    @rule(owner=st.integers(0, 1), lapsed=st.booleans())
    def lease(self, owner: int, lapsed: bool) -> None:
        """A process is stopped or goes on."""
        self.owners[owner].lapsed = lapsed

    @precondition(lambda self: len(self.rows) > 2)
    @rule(move=st.sampled_from([Move.SETTLE, Move.REOPEN]))
    def by_hand(self, move: Move) -> None:
        """Somebody settles the record; to reopen it is to ask for another use of the key."""
        row = self.live
        if row is not None and self.move(row, move) and move is Move.REOPEN:
            row.reopened = True
            self.use += 1

    @invariant()
    def once(self) -> None:
        """At most one execution for each use of the key."""
        executions = Counter(row.use for row in self.rows if row.executions)
        assert all(count == 1 for count in executions.values())
        assert all(row.executions <= 1 for row in self.rows)

    @invariant()
    def one_live_record(self) -> None:
        """No key has two records, and a released one is not live."""
        live = [row for row in self.rows if row.live]
        assert len(live) <= 1
        assert all(row.state is not RELEASED for row in live)

    @invariant()
    def an_execution_is_never_forgotten(self) -> None:
        """What was executed is at least in doubt: only by hand does that key become free."""
        for row in self.rows:
            if row.executions and not row.reopened:
                assert row.state in (SENT, COMPLETED, UNCERTAIN)


OneKey.TestCase.settings = settings(max_examples=300, stateful_step_count=25)
TestOneKey = OneKey.TestCase
