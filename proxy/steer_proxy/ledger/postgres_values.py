"""Rows as PostgreSQL's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from steer_proxy.ledger.values import CallRow, ChunkRow, Row

_LABELS: Final = CallRow._fields.index("labels")


def text(value: str) -> str:
    """Text without the one character that PostgreSQL cannot store."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in value else value


def clean(row: Row) -> Sequence[Any]:
    """A row's values without what PostgreSQL cannot store."""
    values = [text(value) if type(value) is str else value for value in row]
    if isinstance(row, CallRow) and row.labels is not None and "\\u0000" in row.labels:
        values[_LABELS] = row.labels.replace("\\u0000", "\\ufffd")
    return values


def named(row: CallRow) -> dict[str, Any]:
    """A call's values by their columns' names."""
    return dict(zip(CallRow._fields, clean(row), strict=True))


def arrays(
    row: type[Row | ChunkRow], rows: Iterable[Iterable[Any]], prefix: str = ""
) -> dict[str, Sequence[Any]]:
    """Rows as one array for each column."""
    columns: Iterable[Sequence[Any]] = zip(*rows, strict=True)
    filled = list(columns) or [()] * len(row._fields)
    return {f"{prefix}{name}": array for name, array in zip(row._fields, filled, strict=True)}
