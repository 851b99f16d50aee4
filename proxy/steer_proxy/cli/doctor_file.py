"""What `steer doctor` looks at in a SQLite file that has a ledger: its journal, and damage."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Final

from steer_proxy.cli.findings import Finding, failure, note, warning

if TYPE_CHECKING:
    from steer_proxy.ledger.address import Sqlite

#: How long the look for damage may take, in seconds: enough for some 2 GB that are in memory.
PATIENCE: Final = 5.0


def health(file: Sqlite) -> Iterator[Finding]:
    """Its journal is not out of hand, and what it says of itself is true."""
    from steer_proxy.ledger.sqlite_health import LARGE_JOURNAL, RESTORE, journal_size

    if (size := journal_size(Path(file.path))) >= LARGE_JOURNAL:
        yield warning(
            "ledger",
            f"{file}-wal is {size // 2**20} MiB: beside a running Steer it grows while a "
            "transaction of another program that reads it is open",
            f"end that: lsof {file.path} names the program",
        )
    try:
        damage = _damage(file.path, PATIENCE)
    except TimeoutError:
        yield note(
            "ledger",
            f"{file}: no damage was found in {PATIENCE:g} s, which were not enough for all of it",
            f'all of it: sqlite3 -readonly {file.path} "PRAGMA quick_check"',
        )
    except sqlite3.OperationalError:
        pass  # it cannot be read now, such as for a lock: that says nothing of it
    else:
        if damage is not None:
            yield failure("ledger", f"{file} is damaged: {damage}", RESTORE)


def _damage(path: str, patience: float) -> str | None:
    """The first damage of a file, in SQLite's words; None for a sound one.

    Raises:
        TimeoutError: it took longer than so many seconds.
        sqlite3.OperationalError: it cannot be read now.
    """
    from steer_proxy.ledger.reading import open_read_only

    deadline = time.monotonic() + patience
    with closing(open_read_only(path)) as connection:
        # Not a progress handler: older versions of SQLite do not ask it while they walk a tree.
        timer = Timer(patience, connection.interrupt)
        timer.start()
        try:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise TimeoutError from None
            raise
        except sqlite3.DatabaseError as error:
            return str(error)
        finally:
            timer.cancel()
            timer.join()
    if time.monotonic() >= deadline:  # a tree that was left half way looks damaged
        raise TimeoutError
    return None if found == "ok" else " ".join(found.split())
