"""Looking for a SQLite file, and what it means when one may not."""

from __future__ import annotations

import errno
import os
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
