"""Many rows into a table of SQLite, cheaply.

Three things cost more here than the database does. Each parameter takes `sqlite3` 0.1 us, and half
of a call's say the same as its neighbour's: so rows that agree in the columns that often do are
written together, and those are bound once for all of them. A None takes eight times as long as a
number, since it goes through the adapter protocol, and half of a row is None: so a statement names
only the columns that some row has a value for. And every step of a statement lets go of the
interpreter's lock, and gets it back when the event loop's thread has had its turn: so a statement
has many rows, which matters most under load, when both threads wait for that lock. Together that
halves what a call's row takes, and more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, Final

#: Rows of one statement. A statement is made ready for each shape of a batch and each of these.
SIZES: Final = (64, 8, 1)

#: Texts of statements kept. A table has few shapes in practice.
TEXTS: Final = 128

_Row = Sequence[Any]


class Table:
    """How rows get into a table.

    `columns` is the order of a row's values, `shared` those of them in which many rows of a batch
    agree: either none, or at least two, as for the others.
    """

    def __init__(self, name: str, columns: Sequence[str], shared: Iterable[str] = ()) -> None:
        self._name = name
        self._shared = tuple(each for each in columns if each in set(shared))
        self._own = tuple(each for each in columns if each not in self._shared)
        places = {each: place for place, each in enumerate(columns)}
        self._own_values = itemgetter(*(places[each] for each in self._own))
        self._shared_values = (
            itemgetter(*(places[each] for each in self._shared)) if self._shared else None
        )

    def insert(self, connection: sqlite3.Connection, rows: Sequence[_Row]) -> int:
        """Insert rows; those that are there are left alone. Returns how many were not there."""
        inserted = 0
        for common, group in self._groups(rows).items():
            named = zip(self._shared, common, strict=True)
            given = {name: value for name, value in named if value is not None}
            inserted += self._insert(connection, given, group)
        return inserted

    def _groups(self, rows: Sequence[_Row]) -> Mapping[tuple[Any, ...], Sequence[_Row]]:
        """By what rows have in common, what they have of their own."""
        if self._shared_values is None:
            return {(): rows} if rows else {}
        groups: dict[tuple[Any, ...], list[_Row]] = {}
        for common, own in zip(
            map(self._shared_values, rows), map(self._own_values, rows), strict=True
        ):
            if (group := groups.get(common)) is None:
                groups[common] = [own]
            else:
                group.append(own)
        return groups

    def _insert(
        self, connection: sqlite3.Connection, common: Mapping[str, Any], rows: Sequence[_Row]
    ) -> int:
        used = [
            (name, values)
            for name, values in zip(self._own, zip(*rows, strict=True), strict=True)
            if values[0] is not None or values.count(None) < len(values)
        ]
        shared, own = tuple(common), tuple(name for name, _ in used)
        rows = list(zip(*(values for _, values in used), strict=True))
        first = tuple(common.values())
        start = inserted = 0
        for size in SIZES:
            while len(rows) - start >= size:
                text = _statement(self._name, shared, own, size)
                values = first + tuple(chain.from_iterable(rows[start : start + size]))
                inserted += connection.execute(text, values).rowcount
                start += size
        return inserted


@lru_cache(TEXTS)
def _statement(table: str, shared: tuple[str, ...], own: tuple[str, ...], rows: int) -> str:
    # Tables and columns are ours. A question mark without a number counts on from the highest.
    marks = [*(f"?{number + 1}" for number in range(len(shared))), *("?" * len(own))]
    values = f"({', '.join(marks)})"
    return (
        f"INSERT INTO {table} ({', '.join(shared + own)}) "  # noqa: S608 - see above
        f"VALUES {', '.join([values] * rows)} ON CONFLICT DO NOTHING"
    )
