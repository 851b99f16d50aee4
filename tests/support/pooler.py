"""What PgBouncer does to its clients in transaction mode, and a relay that loses replies.

`Pooler` gives a server connection to a client for a transaction only, knows nothing of prepared
statements, and refuses settings while connecting, as PgBouncer does before version 1.21.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

_SSL, _CANCEL = 80877103, 80877102

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Front:
    """A server on a port of 127.0.0.1 that closes what it has with it."""

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            # How either side ends is the test's matter.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self.serve(reader, writer)
        except asyncio.CancelledError:
            # asyncio's own callback of such a task takes a cancelled one for an error.
            pass
        finally:
            writer.transport.abort()
            self._clients.discard(task)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class Relay(_Front):
    """Forwards to a server. `lose` cuts a connection when its next reply comes, `lose_one` only
    the first of them; `hold` keeps replies back for as long as it is set."""

    def __init__(self, server_port: int) -> None:
        super().__init__()
        self._server_port = server_port
        self.lose = False
        self.lose_one = False
        self.hold = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            requests = asyncio.create_task(self._forward(reader, forth))
            try:
                await self._reply(back, writer)
            finally:
                requests.cancel()
                await asyncio.gather(requests, return_exceptions=True)
        finally:
            forth.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.transport.abort()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.lose or self.lose_one:
                self.lose_one = False
                return
            if not self.hold:
                writer.write(data)


class Pooler(_Front):
    """A transaction pooler before the database `database`, with so many server connections."""

    def __init__(self, server_port: int, database: str, size: int) -> None:
        super().__init__()
        self._server_port = server_port
        self._database = database
        self._size = size
        self._servers: asyncio.Queue[Streams] = asyncio.Queue()
        self._all: list[Streams] = []
        self._greeting = b""
        self.refused_settings = 0
        self.transactions = itertools.count()

    async def __aenter__(self) -> Self:
        for _ in range(self._size):
            server = await asyncio.open_connection("127.0.0.1", self._server_port)
            names = f"user\0postgres\0database\0{self._database}\0\0".encode()
            server[1].write(struct.pack("!ii", 8 + len(names), 196_608) + names)
            greeting = b"".join([message async for message in _until_ready(server[0])])
            self._greeting = greeting
            self._all.append(server)
            self._servers.put_nowait(server)
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        for _, writer in self._all:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._welcome(reader, writer):
            return
        while True:
            first = await _message(reader)
            if first[:1] == b"X":
                return
            # Round robin: nobody gets the same server connection again, if there is another.
            server = await self._servers.get()
            next(self.transactions)
            try:
                await self._transaction(first, (reader, writer), server)
            finally:
                self._servers.put_nowait(server)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        length, code = struct.unpack("!ii", await reader.readexactly(8))
        rest = await reader.readexactly(length - 8)
        if code == _CANCEL:
            return False
        if code == _SSL:
            writer.write(b"N")
            return await self._welcome(reader, writer)
        names = set(rest.rstrip(b"\0").split(b"\0")[::2])
        unknown = names - {b"user", b"database", b"client_encoding", b"application_name"}
        if unknown:
            self.refused_settings += 1
            text = b"SFATAL\0C08P01\0Munsupported startup parameter: " + unknown.pop() + b"\0\0"
            writer.write(b"E" + struct.pack("!i", 4 + len(text)) + text)
            await writer.drain()
            return False
        writer.write(self._greeting)
        return True

    async def _transaction(self, first: bytes, client: Streams, server: Streams) -> None:
        """Both directions, until the server says that no transaction is open."""
        server[1].write(first)

        async def requests() -> None:
            while True:
                server[1].write(await _message(client[0]))

        sending = asyncio.create_task(requests())
        try:
            async for message in _until_ready(server[0]):
                client[1].write(message)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)


async def _until_ready(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        message = await _message(reader)
        yield message
        if message[:1] == b"Z" and message[5:] == b"I":
            return
