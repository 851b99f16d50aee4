"""Read-only connections to a SQLite file, each used in a thread of its own.

Connections of one process to a file share the index of its journal for as long as one of them is
open, whether that index has been deleted or not: a writer that opens the file anew beside an old
reader gets a new journal with an old index. So no reader is open while the file is opened.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from steer_proxy.ledger.protocol import LedgerUnavailable

#: How long a reader may go on when the file is to be opened, and how long it may then take to
#: stop, in seconds.
GRACE: Final = 0.25
PATIENCE: Final = 1.0


class Reading:
    """A connection that one thread reads with, and the writer's takes away; made by `connect`."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """The connection, opened when there is none; after an error it is closed.

        Raises:
            sqlite3.Error, LedgerUnavailable: it cannot be had.
        """
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            try:
                yield self._connection
            except sqlite3.Error:
                self.drop()
                raise

    def take(self) -> bool:
        """Whether nobody reads, nor will until `give_back`; a reader that takes long is stopped."""
        if self._lock.acquire(timeout=GRACE):
            return True
        if (connection := self._connection) is not None:
            with suppress(sqlite3.Error):
                connection.interrupt()
        return self._lock.acquire(timeout=PATIENCE)

    def give_back(self) -> None:
        """Let others read again."""
        self._lock.release()

    def drop(self) -> None:
        """Close the connection, which nobody else uses."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


@contextmanager
def away(readings: Sequence[Reading]) -> Iterator[None]:
    """Have nobody read for a while, and no reader's connection open.

    Raises:
        LedgerUnavailable: one does not stop.
    """
    with ExitStack() as taken:
        for reading in readings:
            if not reading.take():
                raise LedgerUnavailable("a reader of the SQLite file has not stopped yet")
            taken.callback(reading.give_back)
        for reading in readings:
            reading.drop()
        yield
