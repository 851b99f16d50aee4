"""What asyncio's debug mode notes of each future, task and callback, at a price tests can pay.

It keeps the stack that each was made on. Of a future that is the whole one, and below the event
loop it is pytest's fifty frames, the same each time; and for every frame it asks the file system
whether the source has changed. Together that was two fifths of the time of tests with servers.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from unittest.mock import patch


@contextmanager
def short_stacks(start: CodeType) -> Iterator[None]:
    """Have stacks end at the function that runs the loop, and their source taken as it was read."""
    walk_stack = traceback.walk_stack

    def walk(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
        for found in walk_stack(frame):
            yield found
            if found[0].f_code is start:
                return

    with (
        # `None` asks for the caller's stack, which is found by counting frames back.
        patch.object(traceback, "walk_stack", lambda f: walk_stack(f) if f is None else walk(f)),
        patch.object(linecache, "checkcache", lambda _=None: None),
    ):
        yield
