"""What `steer doctor` looks at in a SQLite file that has a ledger: the size of its journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from steer_proxy.cli.findings import Finding, warning

if TYPE_CHECKING:
    from steer_proxy.ledger.address import Sqlite


def health(file: Sqlite) -> Iterator[Finding]:
    """Its journal is not out of hand."""
    from steer_proxy.ledger.sqlite_health import LARGE_JOURNAL, journal_size

    if (size := journal_size(Path(file.path))) >= LARGE_JOURNAL:
        yield warning(
            "ledger",
            f"{file}-wal is {size // 2**20} MiB: beside a running Steer it grows while a "
            "transaction of another program that reads it is open",
            f"end that: lsof {file.path} names the program",
        )
