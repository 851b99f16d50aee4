"""How `steer ledger` prints rows: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import typer

from steer_proxy.ledger.reports import DATES

_DOLLARS: Final = "_usd"
_MILLISECONDS: Final = "_ms"

#: As wide as it takes, when nobody looks: a program cuts its own columns.
_WIDE: Final = 100_000


def iso(us: int) -> str:
    """Unix microseconds as ISO 8601 in UTC, cut to milliseconds, as in the views."""
    try:
        when = datetime.fromtimestamp(us // 1_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(us)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{us % 1_000_000 // 1000:03d}Z"


def as_data(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it is printed as JSON: dates as text, labels as an object."""
    data: dict[str, Any] = {}
    for name, value in row.items():
        if name in DATES and value is not None:
            data[name] = iso(value)
        elif name == "labels" and isinstance(value, str):
            data[name] = _object(value)
        elif isinstance(value, bytes):
            data[name] = None
        else:
            data[name] = value
    return data


def print_json(rows: Sequence[Mapping[str, Any]]) -> None:
    """One object per line."""
    for row in rows:
        typer.echo(json.dumps(as_data(row)))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table with a heading; ids whole, so that they can be copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=None)
    for name in columns:
        numbers = all(isinstance(row[name], (int, float, type(None))) for row in rows)
        table.add_column(
            name,
            justify="right" if numbers and name not in DATES else "left",
            no_wrap=True,
            min_width=36 if name == "id" and rows else None,
        )
    for row in rows:
        table.add_row(*(Text(cell(name, row[name])) for name in columns))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def print_fields(title: str, row: Mapping[str, Any], names: Sequence[str]) -> None:
    """What is known of a row, a line each."""
    known = [name for name in names if row.get(name) is not None]
    if not known:
        return
    typer.echo(title)
    width = max(len(name) for name in known)
    for name in known:
        typer.echo(f"  {name:<{width}}  {cell(name, row[name])}")


def cell(name: str, value: Any) -> str:
    """A value in a line: nothing in it can move the cursor of a terminal."""
    if value is None:
        return "-"
    if name in DATES and isinstance(value, int):
        return iso(value)
    if isinstance(value, float):
        if name.endswith(_DOLLARS):
            return f"{value:.6f}".rstrip("0").rstrip(".") if value else "0"
        if name.endswith(_MILLISECONDS):
            return f"{value:.1f}"
        return f"{value:.3f}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
