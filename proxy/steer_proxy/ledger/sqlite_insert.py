"""Many rows into a table of SQLite, cheaply.

Four things cost more here than the database does. Each parameter takes `sqlite3` 0.1 us, and most
of a call's say the same as its neighbour's: so what rows agree in is bound once for all of them. A
None takes eight times as long as a number, since it goes through the adapter protocol, and half of
a row is None: so a statement names only the columns that some row has a value for. Every step of a
statement lets go of the interpreter's lock, and gets it back when the event loop's thread has had
its turn: so a statement has many rows, which matters most under load, when both threads wait for
that lock. And what is done in Python for each value adds up: so values are handled by columns, not
by rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

#: Rows of one statement. A statement is made ready for each shape of a batch and each of these.
SIZES: Final = (32, 8, 1)

#: From so many rows on it is worth a look whether they agree.
SEVERAL: Final = 8

#: Texts of statements kept, as many as a connection keeps ready; in practice there are a few.
TEXTS: Final = 256

_Row = Sequence[Any]
_Values = tuple[Any, ...]


class Table:
    """How rows get into a table.

    `columns` is the order of a row's values. `kinds` are those that have a few values each: rows
    that differ in them are written apart. `shared` are bundles of others that may be bound once
    where all rows agree in the whole bundle: with each, a statement may have twice as many shapes.
    A table's key is in neither.
    """

    def __init__(
        self,
        name: str,
        columns: Sequence[str],
        kinds: Iterable[str] = (),
        shared: Iterable[Sequence[str]] = (),
    ) -> None:
        self._name = name
        self._columns = tuple(columns)
        places = {each: place for place, each in enumerate(columns)}
        self._kinds = [places[each] for each in kinds]
        self._shared = [[places[each] for each in bundle] for bundle in shared]

    def insert(self, connection: sqlite3.Connection, rows: Sequence[_Row]) -> int:
        """Insert rows; those that are there are left alone. Returns how many were not there."""
        if len(rows) < SEVERAL:
            return sum(self._insert_one(connection, row) for row in rows)
        return sum(self._insert(connection, columns) for columns in self._groups(rows))

    def _groups(self, rows: Sequence[_Row]) -> Iterator[Sequence[_Values]]:
        """The columns of all rows of a kind, kind by kind."""
        columns = tuple(zip(*rows, strict=True))
        varied = [columns[place] for place in self._kinds if not _agree(columns[place])]
        if not varied:
            yield columns
            return
        groups: dict[_Values, list[_Row]] = {}
        for kind, row in zip(zip(*varied, strict=True), rows, strict=True):
            if (group := groups.get(kind)) is None:
                groups[kind] = [row]
            else:
                group.append(row)
        for group in groups.values():
            yield tuple(zip(*group, strict=True))

    def _insert_one(self, connection: sqlite3.Connection, row: _Row) -> int:
        given = [place for place, value in enumerate(row) if value is not None]
        text = _statement(self._name, (), tuple(self._columns[place] for place in given), 1)
        return connection.execute(text, [row[place] for place in given]).rowcount

    def _insert(self, connection: sqlite3.Connection, columns: Sequence[_Values]) -> int:
        """Insert rows of a kind, given by columns."""
        alike = set(self._kinds)
        if len(columns[0]) >= SEVERAL:
            for bundle in self._shared:
                if all(_agree(columns[place]) for place in bundle):
                    alike.update(bundle)
        common: dict[str, Any] = {}
        own: dict[str, _Values] = {}
        for place, (name, values) in enumerate(zip(self._columns, columns, strict=True)):
            if place in alike:
                if values[0] is not None:
                    common[name] = values[0]
            elif values[0] is not None or values.count(None) < len(values):
                own[name] = values
        shared, names, first = tuple(common), tuple(own), list(common.values())
        rows = list(zip(*own.values(), strict=True))
        start = inserted = 0
        for size in SIZES:
            while len(rows) - start >= size:
                text = _statement(self._name, shared, names, size)
                parameters = first + list(chain.from_iterable(rows[start : start + size]))
                inserted += connection.execute(text, parameters).rowcount
                start += size
        return inserted


def _agree(values: _Values) -> bool:
    """Whether all are the same."""
    first = values[0]
    return bool(first == values[-1]) and values.count(first) == len(values)


@lru_cache(TEXTS)
def _statement(table: str, shared: tuple[str, ...], own: tuple[str, ...], rows: int) -> str:
    """Its parameters are what the rows share, and then each row's own values."""
    # Tables and columns are ours. No parameter has a number: Python 3.12 takes that for a name,
    # and looks for each name one by one.
    marks = ", ".join("?" * len(own))
    values = f"VALUES {', '.join([f'({marks})'] * rows)}"
    if shared:
        # "true", so that ON is not taken for a join's.
        alike = ", ".join("?" * len(shared))
        values = f"SELECT {alike}, * FROM ({values}) WHERE true"  # noqa: S608 - see above
    columns = ", ".join(shared + own)
    return f"INSERT INTO {table} ({columns}) {values} ON CONFLICT DO NOTHING"
