"""Every test here runs on every ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ledger_contract.postgres import postgres_subjects
from tests.ledger_contract.subject import Subjects, memory_subjects, sqlite_subjects

#: One line per implementation. One whose time is its own, or that lives in another process, is
#: marked `real_time`.
IMPLEMENTATIONS = [
    pytest.param(memory_subjects, id="memory"),
    pytest.param(sqlite_subjects, id="sqlite"),
    pytest.param(None, id="postgres", marks=pytest.mark.real_time),
]


@pytest.fixture(params=IMPLEMENTATIONS)
def subjects(request: pytest.FixtureRequest, tmp_path: Path) -> Subjects:
    """Makes ledgers of one implementation."""
    make: Callable[[Path], Subjects] | None = request.param
    if make is None:
        return postgres_subjects(request.getfixturevalue("postgres_url"))
    return make(tmp_path)
