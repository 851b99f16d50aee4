from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_proxy.ledger.parameters import numbered


@pytest.mark.parametrize(
    ("text", "sql", "names"),
    [
        ("SELECT :a, :b", "SELECT $1, $2", ("a", "b")),
        ("SELECT :b, :a, :b", "SELECT $1, $2, $1", ("b", "a")),
        ("SELECT :a::bigint", "SELECT $1::bigint", ("a",)),
        ("SELECT a::text", "SELECT a::text", ()),
        ("SELECT 'it''s :no' || :a", "SELECT 'it''s :no' || $1", ("a",)),
        ('SELECT ":no", :a', 'SELECT ":no", $1', ("a",)),
        ("SELECT 1 -- :no\n, :a", "SELECT 1 -- :no\n, $1", ("a",)),
        ("SELECT /* :no\n:no */ :a_1", "SELECT /* :no\n:no */ $1", ("a_1",)),
    ],
)
def test_names_become_numbers(text: str, sql: str, names: tuple[str, ...]) -> None:
    """Each name gets one number; texts, quoted names, comments and casts stay."""
    statement = numbered(text)
    assert (statement.sql, statement.names) == (sql, names)


def test_arguments_come_in_order() -> None:
    """Values are picked by name; one that is missing is an error, others are not looked at."""
    statement = numbered("SELECT :b, :a, :b")
    assert statement.arguments({"a": 1, "b": 2, "c": 3}) == (2, 1)
    with pytest.raises(KeyError, match="a"):
        statement.arguments({"b": 2})


def test_a_label_means_one_text() -> None:
    """Statements prepared under one label are the same statement."""
    assert numbered("SELECT :a").label == numbered("SELECT :b").label
    assert numbered("SELECT :a").label != numbered("SELECT :a, 1").label
    assert len(numbered("SELECT 1").label) < 63, "PostgreSQL cuts longer names"


@given(st.text())
def test_it_takes_any_text(text: str) -> None:
    """What was numbered holds nothing that would be numbered again."""
    once = numbered(text)
    assert numbered(once.sql).sql == once.sql
    assert len(set(once.names)) == len(once.names)
