"""Tells other processes that a call they wait for has come along, and hears it from them.

Every commit that notifies waits for every other one that does, so nobody is told who has not asked:
a process that waits for a record says so (`steer_want`), again and again while it waits, and the
record's owner, which hears that, tells of its writes (`steer_news`) for a while.

All of this is only to wake up sooner. Who waits asks the ledger now and then as well, and nothing
fails when a notification does, or when there is no connection of our own to listen on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from steer_proxy.ledger.postgres_errors import DRIVER_ERRORS
from steer_proxy.ledger.postgres_pool import FAREWELL, Pool
from steer_proxy.ledger.postgres_statements import NOTIFY
from steer_proxy.ledger.protocol import STATEMENT_TIMEOUT, LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.watching import Watchers

if TYPE_CHECKING:
    import asyncpg

WANT: Final = "steer_want"
NEWS: Final = "steer_news"

#: How often a wish is repeated, and how long it is granted, in seconds.
REPEAT: Final = 5.0
GRANTED: Final = 3 * REPEAT
#: Wishes granted at a time; more are not, and are served by their own asking.
MAX_WANTED: Final = 4_096
#: The pause after losing the connection, or not getting one.
PAUSE: Final = 5.0


class News:
    """What is wanted, here and elsewhere; the connection to listen on is made on first use."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._watchers = Watchers()
        self._watched: Counter[str] = Counter()
        self._wanted: dict[str, float] = {}
        """Until when on the loop's clock others want to hear of a record."""
        self._listener: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Listen, from now on."""
        if self._listener is None and not self._pool.pooled and not self._closed:
            self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def close(self) -> None:
        """Stop listening."""
        self._closed = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait((self._listener,), timeout=FAREWELL)

    @contextlib.asynccontextmanager
    async def watch(self, id: str) -> AsyncIterator[asyncio.Event]:  # noqa: A002 - the column's name
        """An event that is set when there may be news of a record."""
        self.start()
        self._watched[id] += 1
        try:
            async with self._watchers.watch(id) as event:
                if not self._pool.pooled:
                    self._pool.post(NOTIFY, (WANT, id))
                yield event
        finally:
            self._watched[id] -= 1
            if not self._watched[id]:
                del self._watched[id]

    def wanted(self, id: str) -> bool:  # noqa: A002 - the column's name
        """Whether others have said lately that they wait for a record."""
        until = self._wanted.get(id)
        if until is None:
            return False
        if until > asyncio.get_running_loop().time():
            return True
        del self._wanted[id]
        return False

    def tell(self, id: str) -> None:  # noqa: A002 - the column's name
        """Say that a record has changed, to whoever wants to know."""
        self._watchers.tell(id)
        if self.wanted(id):
            self._pool.post(NOTIFY, (NEWS, id))

    # --- Listening ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        while not self._pool.pooled:
            with contextlib.suppress(LedgerUnavailable, LedgerUnusable, *DRIVER_ERRORS):
                await self._listen_once()
            await asyncio.sleep(PAUSE)

    async def _listen_once(self) -> None:
        """Listen until the connection is lost; whether it is, the repeated wishes find out."""
        connection = await self._pool.connect()
        lost = asyncio.Event()
        try:
            if self._pool.pooled:
                return
            connection.add_termination_listener(lambda _: lost.set())
            async with asyncio.timeout(STATEMENT_TIMEOUT):
                await connection.add_listener(WANT, self._hear_wish)
                await connection.add_listener(NEWS, self._hear_news)
            while not lost.is_set():
                async with asyncio.timeout(STATEMENT_TIMEOUT):
                    await self._wish(connection)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPEAT):
                        await lost.wait()
        finally:
            connection.terminate()

    async def _wish(self, connection: asyncpg.Connection[Any]) -> None:
        now = asyncio.get_running_loop().time()
        self._wanted = {id_: until for id_, until in self._wanted.items() if until > now}
        await connection.execute(
            "SELECT pg_notify($1, id) FROM unnest($2::text[]) AS id", WANT, list(self._watched)
        )

    def _hear_wish(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        id_ = str(payload)
        if id_ in self._wanted or len(self._wanted) < MAX_WANTED:
            self._wanted[id_] = asyncio.get_running_loop().time() + GRANTED

    def _hear_news(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._watchers.tell(str(payload))
