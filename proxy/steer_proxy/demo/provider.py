"""A small scripted provider on a raw socket: what it does with each request is a behaviour."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from steer_proxy.demo import answers
from steer_proxy.demo.story import Line, Story, Tone

#: Connections the kernel may hold for a provider while the loop is busy.
_BACKLOG: Final = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the provider saw it; header names are lower-case."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def dialect(self) -> str:
        """`anthropic` or `openai`."""
        return "anthropic" if self.path.endswith("/messages") else "openai"

    @property
    def stream(self) -> bool:
        """Whether the caller wants a stream."""
        return self.body.get("stream") is True

    @property
    def model(self) -> str:
        """The model asked for."""
        return str(self.body.get("model", ""))

    @property
    def key(self) -> str:
        """The credential presented."""
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self.headers.get("x-api-key", bearer)


@dataclass(slots=True)
class Visit:
    """One request under way: what a behaviour answers with, and where it tells what it does."""

    asked: Asked
    provider: Provider
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    line: Line | None = None
    keep: bool = True
    """Whether the connection serves another request afterwards."""

    def says(self, text: str, tone: Tone = Tone.BAD) -> None:
        """Tell what becomes of the request."""
        if self.line is not None:
            self.line.text, self.line.tone = text, tone

    async def answer(
        self, status: int, document: object, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole JSON answer."""
        body = json.dumps(document).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._head(status, lines | dict(headers or {}))
        self.writer.write(body)
        await self.writer.drain()

    async def refuse(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """An error in the caller's dialect."""
        await self.answer(status, answers.error(self.asked.dialect, code, message), headers)

    async def begin_stream(self) -> None:
        """The head of an event stream."""
        self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        await self.writer.drain()

    async def event(self, data: bytes) -> None:
        """One event, as a chunk of its own."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def end_stream(self) -> None:
        """The proper end of a chunked body: nothing in HTTP says whether events are missing."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with RST, as a crash or a middlebox does."""
        self.keep = False
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()

    async def until_left(self) -> None:
        """Say nothing more until the other side hangs up."""
        self.keep = False
        with contextlib.suppress(OSError):
            await self.reader.read(1)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))


Behaviour = Callable[[Visit], Awaitable[None]]


@dataclass(slots=True)
class Provider:
    """One provider on 127.0.0.1 that takes one key.

    `script` is what it does with its next requests, one after the other; after that, `always`.
    `story` None means that nobody is told. `asked` collects every request; `since` is the loop's
    time of the first.
    """

    name: str
    key: str
    always: Behaviour
    script: deque[Behaviour] = field(default_factory=deque)
    story: Story | None = None
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    since: float = 0.0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, backlog=_BACKLOG
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and end those that are open."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    @property
    def address(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (asked := await _read(reader)) is not None:
                if not self.asked:
                    self.since = asyncio.get_running_loop().time()
                self.asked.append(asked)
                visit = Visit(asked, self, reader, writer)
                if self.story is not None:
                    visit.line = self.story.tell(self.name, "is asked", Tone.OPEN)
                await self._behaviour(asked)(visit)
                if not visit.keep:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side has left
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _behaviour(self, asked: Asked) -> Behaviour:
        if asked.key != self.key:
            return _foreign_key
        return self.script.popleft() if self.script else self.always


async def _foreign_key(visit: Visit) -> None:
    visit.says("401: somebody else's key!")
    await visit.refuse(401, "invalid_api_key", "Incorrect API key provided.")


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    """The next request on a connection; None at its end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(head[0].split(" ")[1].partition("?")[0], headers, json.loads(body or b"{}"))
