"""How many files may be open at once, and how many connections that allows."""

from __future__ import annotations

import logging
from typing import Final

LOGGER: Final = logging.getLogger("steer")

#: How many connections the admin port has at once, whoever asks there: probes, and those who look.
ADMIN_CONNECTIONS: Final = 32
#: Open files besides callers' connections: the admin port's, listeners, logs, the ledger, spooled
#: bodies, name resolution. So many are needed, and so many are had where the system lets us.
OTHER_FILES: Final = 64 + ADMIN_CONNECTIONS
FILES_TO_SPARE: Final = 512


def needed(connections: int) -> int:
    """The open files that so many callers' connections need: a call has one on each side."""
    return 2 * connections + OTHER_FILES


def limits() -> tuple[int | None, int | None]:
    """The soft and the hard limit of open files; None where there is none."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None, None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    return (None if soft == infinite else soft), (None if hard == infinite else hard)


def room(connections: int) -> int:
    """How many of so many callers' connections there are open files for now, one at the least."""
    soft, _ = limits()
    return connections if soft is None else max(1, min(connections, (soft - OTHER_FILES) // 2))


def raise_limit(connections: int) -> None:
    """Have as many open files as the connections need, and some to spare; a warning when the system
    does not let us.

    The usual soft limit of 1,024 is for programs that use `select`; the hard one is the system's
    word.
    """
    soft, hard = limits()
    wanted = 2 * connections + FILES_TO_SPARE
    if hard is not None:
        wanted = min(wanted, hard)
    if soft is not None and soft < wanted:
        import resource

        most = resource.RLIM_INFINITY if hard is None else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    if (fitting := room(connections)) < connections:
        LOGGER.warning(
            "at most %d callers' connections are served, as %s files may be open: raise the hard "
            "limit to %d (ulimit -Hn, LimitNOFILE), or set limits.max_connections to %d",
            fitting,
            hard,
            needed(connections),
            fitting,
        )
