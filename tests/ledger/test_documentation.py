"""docs/ledger.md describes the ledger as it is, column by column."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from steer_policies.idempotency import MOVES, Role, State
from steer_policies.outcome import Executed, Outcome
from steer_policies.retry import WaitSource
from steer_proxy.engine.tariff import CostSource
from steer_proxy.ledger.address import Sqlite
from steer_proxy.ledger.reading import reading
from steer_proxy.ledger.reports import Filters, sums
from tests.support.filled import (  # noqa: F401 - fixtures
    Filled,
    FilledSqlite,
    filled_sqlite,
)

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
TEXT: Final = (DOCS / "ledger.md").read_text("utf-8")

TABLES: Final = (
    "requests",
    "attempts",
    "response_chunks",
    "breaker_events",
    "owners",
    "steer_meta",
)
VIEWS: Final = ("v_attempts", "v_idempotency", "v_spend", "v_wasted", "v_upstream_health")

#: What the second column of a description may say, by how a name ends.
UNITS: Final = {
    "_us": {"time", "µs"},
    "_nusd": {"nano-USD"},
    "_usd": {"USD"},
    "_ms": {"ms"},
    "_s": {"s"},
    "_at": {"date"},
    "_bytes": {"bytes"},
}


def described(name: str) -> dict[str, tuple[str, str]]:
    """Unit and meaning of each column in the table below a heading."""
    section = re.search(rf"^### {name}\n(.*?)(?=^##)", TEXT, re.DOTALL | re.MULTILINE)
    assert section, f"no heading {name}"
    found = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", section[1], re.MULTILINE)
    return {column: (unit.strip(), meaning.strip()) for column, unit, meaning in found}


@pytest.mark.parametrize("name", [*TABLES, *VIEWS])
def test_every_column_is_described(name: str, filled_sqlite: Filled) -> None:  # noqa: F811
    """In the order of the table; steer_meta's are its two columns."""
    assert list(described(name)) == filled_sqlite.ask(f"SELECT * FROM {name}")[0]


@pytest.mark.parametrize("name", [*TABLES, *VIEWS])
def test_units_are_those_of_the_names(name: str) -> None:
    """A name that ends in its unit is described with it, and every column has a meaning."""
    for column, (unit, meaning) in described(name).items():
        assert unit, column
        assert meaning, column
        for ending, units in UNITS.items():
            if column.endswith(ending):
                assert unit in units, f"{name}.{column}"


def test_nothing_is_left_out(filled_sqlite: Filled) -> None:  # noqa: F811
    """All tables and views there are."""
    there = filled_sqlite.rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    assert {name for (name,) in there} == {*TABLES, *VIEWS, "alembic_version"}


def test_the_columns_of_stats_are_described(filled_sqlite: Filled) -> None:  # noqa: F811
    """In their order, with the units of their names."""
    assert isinstance(filled_sqlite, FilledSqlite)
    with reading(Sqlite(str(filled_sqlite.path))) as reader:
        (row,) = sums(reader, Filters(), None, 1)
    table = described("Columns of stats")
    assert list(table) == list(row)
    for column, (unit, _) in table.items():
        assert unit in next((UNITS[end] for end in UNITS if column.endswith(end)), {unit})


def test_the_diagrams_show_the_moves() -> None:
    """The same in both documents: every move of a record, and where lives begin and end."""
    documents = (TEXT, (DOCS / "idempotency.md").read_text("utf-8"))
    (ours,), (theirs,) = (
        re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL) for text in documents
    )
    assert ours == theirs
    edges = re.findall(r"^ +(\S+) --> (\S+) : ", ours, re.MULTILINE)
    begins = {("[*]", "claimed"), ("[*]", "sent")}
    ends = {(state, "[*]") for state in ("completed", "uncertain", "released")}
    # A lapsed record is settled by hand, too: others see it as uncertain.
    moves = {(str(state), str(to)) for (state, _), to in MOVES.items()}
    assert set(edges) == moves | begins | ends


@pytest.mark.parametrize(
    ("table", "column", "words"),
    [
        ("requests", "idem_state", State),
        ("requests", "idem_role", Role),
        ("requests", "cost_source", CostSource),
        ("attempts", "outcome", Outcome),
        ("attempts", "executed", Executed),
        ("attempts", "wait_source", WaitSource),
    ],
)
def test_words_are_those_of_the_code(table: str, column: str, words: type[State]) -> None:
    """Every value a column can have is told."""
    meaning = described(table)[column][1]
    assert {word.value for word in words} <= set(re.findall(r"`(\w+)`", meaning))
