"""Many rows into a table of SQLite, cheaply.

Two things cost more here than the database does. A None takes `sqlite3` eight times as long as a
number, since it goes through the adapter protocol, and half of a row is None: so a statement names
only the columns that some row has a value for. And every step of a statement lets go of the
interpreter's lock, and gets it back when the event loop's thread has had its turn: so a statement
has many rows. Together that is 14 us for a call and its attempt, and not 29; it matters most under
load, when both threads wait for that lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

#: Rows of one statement. A statement is made ready for each shape of a batch and each of these.
SIZES: Final = (64, 8, 1)

#: Texts of statements kept. A table has few shapes in practice.
TEXTS: Final = 128


def insert(
    connection: sqlite3.Connection,
    table: str,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
) -> int:
    """Insert rows of values in the order of `columns`; rows that are there are left alone.

    Returns how many were not there.
    """
    if not rows:
        return 0
    used = [
        (name, values)
        for name, values in zip(columns, zip(*rows, strict=True), strict=True)
        if values[0] is not None or values.count(None) < len(values)
    ]
    names = tuple(name for name, _ in used)
    rows = list(zip(*(values for _, values in used), strict=True))
    start = inserted = 0
    for size in SIZES:
        while len(rows) - start >= size:
            text = _statement(table, names, size)
            values = tuple(chain.from_iterable(rows[start : start + size]))
            inserted += connection.execute(text, values).rowcount
            start += size
    return inserted


@lru_cache(TEXTS)
def _statement(table: str, columns: tuple[str, ...], rows: int) -> str:
    # Tables and columns are ours.
    values = f"({', '.join('?' * len(columns))})"
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 - see above
        f"VALUES {', '.join([values] * rows)} ON CONFLICT DO NOTHING"
    )
