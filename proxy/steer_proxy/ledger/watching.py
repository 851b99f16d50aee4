"""Who waits for news of a record in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Watchers:
    """Events by record id, each set when that record has changed."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    @asynccontextmanager
    async def watch(self, id: str) -> AsyncIterator[asyncio.Event]:  # noqa: A002 - the column's name
        """An event of the caller's own, for as long as it is watched."""
        event = asyncio.Event()
        self._events.setdefault(id, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._events[id]
            waiting.discard(event)
            if not waiting:
                del self._events[id]

    def any(self, id: str) -> bool:  # noqa: A002 - as above
        """Whether somebody watches a record."""
        return id in self._events

    def tell(self, id: str) -> None:  # noqa: A002 - as above
        """Say that a record has changed."""
        for event in self._events.get(id, ()):
            event.set()
