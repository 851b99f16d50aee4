"""What befalls a SQLite file in use: a journal that grows, and damage."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from steer_proxy.ledger.sqlite_locks import beside, real

LOGGER: Final = logging.getLogger("steer.ledger")

#: Bytes of a journal that are told: four times what it is cut to once it can be used again
#: (`journal_size_limit`), and more than a report of a minute or two lets it grow to.
LARGE_JOURNAL: Final = 256 * 2**20
#: The same large journal is told again after so many seconds.
TELL_EVERY: Final = 3600.0

#: What to do about a file that is damaged.
RESTORE: Final = (
    "stop Steer, move it away together with its -wal and -shm, and start with a new one, which "
    "knows no key, or restore a backup"
)
#: What to do about a file that is none of Steer's.
OWN_FILE: Final = "name a file of Steer's own in database.url"

# --- The journal ----------------------------------------------------------------------------------


def journal_size(path: Path) -> int:
    """Bytes of the journal beside a file."""
    try:
        return beside(real(path), "-wal").stat().st_size
    except OSError:
        return 0


class JournalWatch:
    """Tells, seldom, of a journal that has grown large; `now` is monotonic seconds.

    SQLite writes it from its beginning again only when no reader needs what is in it, so an open
    transaction of another program makes it grow until the disk is full
    (https://www.sqlite.org/wal.html#avoiding_excessively_large_wal_files).
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._next = float("-inf")

    def look(self, *_: object) -> None:
        """Tell of the journal if it is large, and has not been told lately."""
        size = journal_size(self._path)
        if size < LARGE_JOURNAL or self._now() < self._next:
            return
        self._next = self._now() + TELL_EVERY
        LOGGER.warning(
            "SQLite file %s: %s-wal has grown to %d MiB, and grows on while a transaction of "
            "another program that reads it is open: end that (`lsof` on it names the program)",
            self._path,
            self._path.name,
            size // 2**20,
        )


# --- Damage ---------------------------------------------------------------------------------------


def remedy(error: sqlite3.Error) -> str | None:
    """What to do when an error says that the file is damaged; None when it says something else."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_CORRUPT:
            return RESTORE
        case sqlite3.SQLITE_NOTADB:
            # Its first bytes are others': it may be some file that database.url names by mistake.
            return f"{OWN_FILE}, or if it has been a ledger: {RESTORE}"
        case _:
            return None


def told(error: sqlite3.Error) -> str:
    """An error's words, with what to do about damage."""
    return f"{error}; {found}" if (found := remedy(error)) else str(error)
