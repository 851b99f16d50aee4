"""A temporary file that is written and read in threads, by position.

Every operation names its position, so that two readers (an attempt that is being abandoned and the
next one) cannot move each other's. The file is closed only when no thread is using it: a
descriptor closed under a thread may by then be another file, or a socket.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from typing import IO, Final, TypeVar

T = TypeVar("T")

#: Begins the name of the file, where the system gives it one at all.
PREFIX: Final = "steer-body-"


class Spool:
    """Bytes on disk, in a file without a name: it vanishes with the process."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._using = 0
        self._closed = False
        self.size = 0

    async def append(self, data: bytes | bytearray) -> None:
        """Write at the end.

        Raises:
            OSError: when there is no room, or nowhere to put the file.
        """
        await self._in_thread(lambda: self._write(data))
        self.size += len(data)

    async def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position; fewer only at the end."""
        return await self._in_thread(lambda: self._read(position, size))

    def close(self) -> None:
        """Remove the file, as soon as no thread uses it. Idempotent."""
        self._closed = True
        if self._using == 0 and self._file is not None:
            self._file.close()
            self._file = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise ValueError("the spool is closed")
        self._using += 1
        running = asyncio.get_running_loop().run_in_executor(None, work)
        running.add_done_callback(self._done)
        # Who is cancelled stops waiting; the thread goes on, and the file stays open for it.
        return await asyncio.shield(running)

    def _done(self, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # seen: whoever waited may be gone
        self._using -= 1
        if self._closed:
            self.close()

    def _write(self, data: bytes | bytearray) -> None:
        if self._file is None:
            # Unbuffered: positions and a buffer do not go together.
            self._file = tempfile.TemporaryFile(prefix=PREFIX, buffering=0)  # noqa: SIM115
        view, position = memoryview(data), self.size
        while view:
            written = os.pwrite(self._file.fileno(), view, position)
            view, position = view[written:], position + written

    def _read(self, position: int, size: int) -> bytes:
        if self._file is None:
            return b""
        pieces = []
        while size > 0 and (piece := os.pread(self._file.fileno(), size, position)):
            pieces.append(piece)
            position, size = position + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
