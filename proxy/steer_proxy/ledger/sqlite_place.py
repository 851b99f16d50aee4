"""Looking for a SQLite file, and what it means when one may not."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path
from typing import Final

from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable

#: What to do about a file that cannot be used.
NAME_ANOTHER: Final = "name another file in database.url"

#: Errors of the operating system that do not pass by themselves, unlike a lack of descriptors.
_LASTING: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EROFS}
)


def out_of_reach(path: Path, error: OSError) -> LedgerUnavailable | LedgerUnusable:
    """What an error of the operating system means to whoever looks for a file or opens it."""
    told = f"SQLite file {path} cannot be reached: {error.strerror or error}"
    if error.errno in _LASTING:
        return LedgerUnusable(f"{told}; let this user into its directory, or {NAME_ANOTHER}")
    return LedgerUnavailable(told)


def seen(path: Path) -> os.stat_result | None:
    """What is at a path; None when there is nothing. Unlike `Path.exists`, it raises no `OSError`.

    Raises:
        LedgerUnusable, LedgerUnavailable: one cannot look.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise out_of_reach(path, error) from None


def other_names(path: Path, there: os.stat_result) -> str | None:
    """What to say of a file that has several names; None of one that has its own alone.

    Lock and journal are named after the file: who comes by another name finds neither, and both
    write (https://www.sqlite.org/howtocorrupt.html#_unlinking_or_renaming_a_database_file).
    """
    if there.st_nlink <= 1:
        return None
    name, own = shlex.quote(str(path)), shlex.quote(f"{path}.own")
    return (
        f"SQLite file {path} has {there.st_nlink} names (hard links), and a steer by each would "
        "damage it; a copy made so is none, either. Give this name a file of its own, while no "
        f"steer runs: cp -p {name} {own} && mv {own} {name}"
    )
