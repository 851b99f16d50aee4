"""Noticing that a file has become another one.

By looking at it twice a second, not by asking the kernel to tell: that works alike for a file that
is edited in place, replaced by an editor's rename, swapped behind Kubernetes' symbolic links, and
mounted over a network or into a container, where notifications get lost. One look is one `stat`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: Seconds between looks. A change is reported when the file looks the same twice, so that a
#: half-written one is not read: within a second.
EVERY: Final = 0.5

Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """What changes whenever a file does, symbolic links followed; None while it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def watch(path: Path, known: Stamp | None, changed: Callable[[], None]) -> None:
    """Call `changed` whenever the file has become another one than `known`, for ever.

    A file that vanishes is waited for: whoever replaces it may not do so in one step.
    """
    before = known
    while True:
        await asyncio.sleep(EVERY)
        now = await asyncio.to_thread(stamp, path)
        if now is not None and now == before and now != known:
            known = now
            changed()
        before = now
