from __future__ import annotations

import pytest

from steer_policies.idempotency import MOVES, Move
from steer_proxy.ledger import statements
from steer_proxy.ledger.statements import FINISH, FINISH_COLUMNS, FINISHING, positional, states
from steer_proxy.ledger.values import CallRow, ChunkRow


def test_parameters_by_position() -> None:
    """Every occurrence has a place; a cast is none."""
    assert positional("SELECT :a, b::text WHERE c = :b2 OR d = :a") == (
        "SELECT ?, b::text WHERE c = ? OR d = ?",
        ("a", "b2", "a"),
    )


@pytest.mark.parametrize("move", Move)
def test_states_are_those_of_the_table(move: Move) -> None:
    """The SQL's list is what the table of moves allows."""
    expected = {f"'{state}'" for state, each in MOVES if each is move}
    assert set(states(move).split(", ")) == expected


def test_finishing_is_a_move_to_that_state() -> None:
    """Each final state with the move that leads to it."""
    for state, move in FINISHING.items():
        assert {to for (_, each), to in MOVES.items() if each is move} == {state}


def test_whole_rows_are_parameters_by_position() -> None:
    """What the hot path hands over as tuples has the statements' order."""
    assert positional(statements.INSERT_CALL).names == CallRow._fields
    assert positional(statements.INSERT_CHUNK).names == ChunkRow._fields
    assert positional(statements.ADD_CHUNK).names == (*ChunkRow._fields, "request")
    for text in FINISH.values():
        assert positional(text).names == (*FINISH_COLUMNS, "id", "epoch")
    assert set(FINISH_COLUMNS) <= set(CallRow._fields)
