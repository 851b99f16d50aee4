"""Many rows at once: whatever their number and shape, the table has them as they were given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_proxy.ledger.sqlite_insert import SIZES, Table
from steer_proxy.ledger.values import CallRow

COLUMNS: Final = ("id", "kind", "place", "text", "number", "more")
MIXED: Final = Table("things", COLUMNS, ("place", "kind"))
PLAIN: Final = Table("things", COLUMNS)
BUNDLED: Final = Table("things", COLUMNS, ("place",), [("kind", "more"), ("text",), ("number",)])
TABLES: Final = [
    pytest.param(PLAIN, id="plain"),
    pytest.param(MIXED, id="of kinds"),
    pytest.param(BUNDLED, id="of kinds, and with bundles"),
]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(fresh()) as opened:
        yield opened


def fresh() -> sqlite3.Connection:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    opened.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, kind, place, text, number, more)")
    return opened


def rows_of(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT * FROM things ORDER BY id").fetchall()


def a_row(number: int) -> tuple[Any, ...]:
    """Rows of two kinds, with values missing here and there."""
    return (
        number,
        "even" if number % 2 == 0 else None,
        "here",
        None if number % 3 else f"text {number}",
        number * 10,
        None,
    )


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 73, 137])
def test_every_number_of_rows(count: int, table: Table, connection: sqlite3.Connection) -> None:
    """Around the sizes of statements, too."""
    rows = [a_row(number) for number in range(count)]
    assert table.insert(connection, rows) == count
    assert rows_of(connection) == rows


_values = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=3))
_rows = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.sampled_from(["a", "b", None]),
        st.sampled_from([1, None]),
        _values,
        _values,
        _values,
    ),
    max_size=80,
)


@given(rows=_rows)
def test_any_shape(rows: list[tuple[Any, ...]]) -> None:
    """Both ways of inserting do what inserting one by one does, when ids differ."""
    first: dict[int, tuple[Any, ...]] = {}
    for row in rows:
        first.setdefault(row[0], row)
    unique = [first[number] for number in sorted(first)]
    for table in (PLAIN, MIXED, BUNDLED):
        with closing(fresh()) as connection:
            assert table.insert(connection, unique) == len(unique)
            assert rows_of(connection) == unique


@pytest.mark.parametrize("table", TABLES)
def test_rows_that_are_there_stay(table: Table, connection: sqlite3.Connection) -> None:
    """They are left as they are, and not counted."""
    assert table.insert(connection, [a_row(1), a_row(5)]) == 2
    changed = [(number, "even", "there", "new", 0, 0) for number in range(10)]
    assert table.insert(connection, changed) == 8
    assert rows_of(connection)[1] == a_row(1)
    assert rows_of(connection)[2] == changed[2]


def statements(connection: sqlite3.Connection, table: Table, rows: Sequence[Any]) -> list[str]:
    """What is run to insert rows."""
    seen: list[str] = []
    connection.set_trace_callback(seen.append)
    table.insert(connection, rows)
    connection.set_trace_callback(None)
    return seen


def test_rows_that_agree_go_together(connection: sqlite3.Connection) -> None:
    """As many statements as kinds of rows, where the rest of them is full."""
    rows = [a_row(number) for number in range(2 * SIZES[0])]
    assert len(statements(connection, MIXED, rows)) == 2
    assert (
        len(statements(connection, PLAIN, [(n + 1000, *row[1:]) for n, row in enumerate(rows)]))
        == 2
    )


def test_a_bundle_is_bound_once_where_all_rows_agree_in_it(connection: sqlite3.Connection) -> None:
    """In all of it; a batch of a few is not worth the look."""
    rows: list[Any] = [(number, "kind", "here", "text", 7, None) for number in range(8)]
    (text,) = statements(connection, BUNDLED, rows)
    assert "SELECT 'kind', 'here', 'text', 7, * FROM (VALUES (0), (1)," in text
    rows = [(number, "kind", "here", "text", 7, number % 2) for number in range(10, 18)]
    (text,) = statements(connection, BUNDLED, rows)
    assert "SELECT 'here', 'text', 7, * FROM (VALUES (10, 'kind', 0), (11, 'kind', 1)," in text
    assert len(statements(connection, BUNDLED, [(30, *rows[0][1:]), (31, *rows[0][1:])])) == 2
    assert [row[1:] for row in rows_of(connection)[-2:]] == [rows[0][1:]] * 2


def test_a_column_without_values_is_not_named(connection: sqlite3.Connection) -> None:
    """Neither a shared one nor another."""
    (text,) = statements(connection, MIXED, [(1, None, "here", None, 2, None)])
    assert "(id, place, number)" in text


def test_the_largest_statement_is_within_sqlites_limit(connection: sqlite3.Connection) -> None:
    """Of a table as wide as `requests`, every column of every row given."""
    limit = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    assert len(CallRow._fields) * SIZES[0] <= limit
