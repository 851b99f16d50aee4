"""The ledger of a process that runs tools: opened when first needed, in the loop that needs it.

It ends with `close`, or with its event loop: an asynchronous generator that is still open when a
loop shuts down is closed by it (PEP 525), and this one's end is the ledger's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Final

from steer_llm_sdk.reliability.idempotency_errors import StoreUnavailableError
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.claims import Claims
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.config import LedgerTerms
from steer_proxy.ledger.address import Postgres, Sqlite, parse_address
from steer_proxy.ledger.connect import open_ledger
from steer_proxy.ledger.protocol import LedgerUnusable
from steer_proxy.ledger.sealing import Sealer

#: Rows of a database that may have sidecars too are theirs to remove, by their own terms: never
#: by us, that is after fifty years. Keys are freed and results dropped when they expire all the
#: same.
_THEIRS: Final = LedgerTerms(retention=50 * 365.25 * 86_400.0, max_bytes=None)

#: A file is one process's own: the sidecar's defaults.
_OURS: Final = LedgerTerms()


class OpenLedger:
    """An open ledger: `books` keep it, `claims` are the keys taken; `ended` is told its end."""

    def __init__(
        self,
        url: str,
        encryption: Sequence[tuple[str, bytes]],
        clock: Clock | None,
        ended: Callable[[OpenLedger], None],
    ) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.clock: Final = clock or Clock()
        terms = _THEIRS if isinstance(parse_address(url), Postgres) else _OURS
        self.books: Final = Bookkeeper(
            open_ledger(url, self.clock.wall),
            terms,
            self.clock,
            instance=f"{socket.gethostname()}:{os.getpid()}",
            sealer=Sealer(encryption),
        )
        self.claims: Final = Claims(self.books)
        self._life = self._live()
        self._ended = ended
        self._closed = False

    async def open(self) -> None:
        """Begin to keep it.

        Raises:
            StoreUnavailableError: it cannot be used as it is, and waiting does not mend that.
        """
        try:
            await anext(self._life)
        except LedgerUnusable as error:
            raise StoreUnavailableError(f"database_url: {error}") from error

    async def _live(self) -> AsyncGenerator[None]:
        await self.books.start()
        try:
            yield
        finally:
            await self.claims.close()
            await self.books.stop()
            self._closed = True
            self._ended(self)

    async def close(self) -> None:
        """Write what waits, end the lease, let go of everything."""
        if self.loop is asyncio.get_running_loop():
            await self._life.aclose()
            return
        if self._closed:
            return
        # Its loop ended without a word: what is left is to let go of the file and its lock.
        with contextlib.suppress(Exception):
            await self.books.ledger.close()
        self._closed = True
        self._ended(self)


class Lifetime:
    """Has one ledger open at a time, for whichever loop asks; open while any of its users is.

    `file` is its place, where it is a file.
    """

    def __init__(
        self,
        url: str,
        encryption: Sequence[tuple[str, bytes]],
        clock: Clock | None = None,
        file: Path | None = None,
    ) -> None:
        self._url = url
        self._encryption = encryption
        self._clock = clock
        self._file = file
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._open: OpenLedger | None = None
        self._opening: asyncio.Task[None] | None = None
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def ledger(self, user: object) -> OpenLedger:
        """The ledger, opened by the first who asks.

        It is opened in a task of its own: who asked first may give up, and all share it.

        Raises:
            StoreUnavailableError: see `OpenLedger.open`, or another running loop has it.
        """
        loop = asyncio.get_running_loop()
        while (found := self._mine()) is None:  # it may be closed by others at once
            opening = self._opening
            if opening is None or opening.done() or opening.get_loop() is not loop:
                opening = self._opening = loop.create_task(self._open_in_turn())
                opening.add_done_callback(_seen)
            await asyncio.shield(opening)
        self._users.add(user)
        return found

    async def _open_in_turn(self) -> None:
        async with self._lock():
            if self._mine() is None:
                await self._begin()

    async def close(self, user: object) -> None:
        """Close it, unless others use it; it opens again when it is asked for.

        Raises:
            StoreUnavailableError: another running loop has it.
        """
        opening = self._opening
        if opening is not None and opening.get_loop() is asyncio.get_running_loop():
            await asyncio.wait((opening,))  # it may be about to begin
        async with self._lock():
            opened = self._open
            if opened is not None and all(each is user for each in self._users):
                if opened.loop.is_running() and self._mine() is None:
                    raise StoreUnavailableError(
                        "idempotency_manager: it is in use in another running event loop: close it "
                        "there"
                    )
                self._open = None
                await opened.close()
            self._users.discard(user)

    async def _begin(self) -> None:
        if (old := self._open) is not None:
            if old.loop.is_running():
                raise self._elsewhere()
            self._open = None
            await old.close()
        file = self._file
        if file is not None and (other := _OPEN.get(file)) is not None:
            if other.loop.is_running():
                raise StoreUnavailableError(
                    f"database_url: another manager of this process has {file} open with another "
                    "ring of keys: give them the same encryption, or close that one first"
                )
            await other.close()
        made = OpenLedger(self._url, self._encryption, self._clock, self._ended)
        await made.open()
        self._open = made
        if file is not None:
            _OPEN[file] = made

    def _elsewhere(self) -> StoreUnavailableError:
        if self._file is None:
            return StoreUnavailableError(
                "idempotency_manager: it is in use in another running event loop; give each of "
                "them a manager of its own"
            )
        return StoreUnavailableError(
            f"database_url: another running event loop of this process has {self._file} open, and "
            "a SQLite file serves one event loop at a time: make the runs in one of them, or name "
            "a PostgreSQL database (postgresql://...)"
        )

    def _ended(self, opened: OpenLedger) -> None:
        if self._file is not None and _OPEN.get(self._file) is opened:
            del _OPEN[self._file]

    def _mine(self) -> OpenLedger | None:
        found = self._open
        return found if found is not None and found.loop is asyncio.get_running_loop() else None

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = (loop, asyncio.Lock())
        return self._turn[1]


def _seen(opening: asyncio.Task[None]) -> None:
    """Look at its error: all who waited for it may have given up."""
    if not opening.cancelled():
        opening.exception()


#: Of files, which have one writer: managers of one process share it.
_FILES: Final[weakref.WeakValueDictionary[object, Lifetime]] = weakref.WeakValueDictionary()

#: Those that are open, held until they are closed, or with their loop: a manager may be forgotten
#: without having been closed, and the next one of the same file goes on with it.
_OPEN: Final[dict[Path, OpenLedger]] = {}


def lifetime_of(
    url: str, encryption: Sequence[tuple[str, bytes]], clock: Clock | None = None
) -> Lifetime:
    """The lifetime of the ledger at a database URL; a file's is shared."""
    address = parse_address(url)
    if not isinstance(address, Sqlite) or clock is not None:
        return Lifetime(url, encryption, clock)
    file = Path(address.path).resolve()
    place = (file, tuple(encryption))
    found = _FILES.get(place)
    if found is None:
        found = _FILES[place] = Lifetime(url, encryption, file=file)
    return found
