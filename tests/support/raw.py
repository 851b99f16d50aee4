"""A caller on a bare socket: sends any bytes, right or wrong, and reads answers to the byte."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steer_proxy.ledger.protocol import Ledger
from tests.provider import Provider
from tests.support.sidecar import Running, configure, running

End = Literal["close", "reset"]


def settings(provider: Provider, **more: Any) -> dict[str, Any]:
    """Two routes to one provider: `/tool` of dialect http, and `/v1` of dialect openai."""
    return {
        "catalogue": False,
        "upstreams": {
            "tool": {"dialect": "http", "base_url": provider.base_url},
            "llm": {"dialect": "openai", "base_url": f"{provider.base_url}/v1"},
        },
        "routes": [
            {"name": "tool", "path": "/tool", "candidates": ["tool"]},
            {"name": "llm", "path": "/v1", "candidates": ["llm"]},
        ],
        **more,
    }


@dataclass(frozen=True)
class Stage:
    """A provider and Steer in front of it."""

    provider: Provider
    steer: Running

    @property
    def port(self) -> int:
        """The data port."""
        return self.steer.sidecar.port

    @property
    def admin_port(self) -> int:
        """The admin port."""
        return self.steer.sidecar.admin_port

    @property
    def forwarded(self) -> list[tuple[str, str]]:
        """Method and target of every request that reached the provider."""
        return [(attempt.method, attempt.target) for attempt in self.provider.attempts]


@asynccontextmanager
async def stage(
    tmp_path: Path, ledger: Ledger | None = None, /, **more: Any
) -> AsyncIterator[Stage]:
    """Steer over `settings`, its ledger if it is to be a special one, and its provider."""
    async with Provider() as provider:
        config = configure(settings(provider, **more), tmp_path)
        async with running(config, ledger=ledger) as steer:
            yield Stage(provider, steer)


def request(
    method: str,
    target: str,
    *fields: str,
    body: bytes | None = None,
    version: str = "HTTP/1.1",
    host: str | None = "localhost",
) -> bytes:
    """A request as bytes; `fields` are whole lines, a body has a Content-Length."""
    lines = [f"{method} {target} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += fields
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def get(target: str = "/tool/x", *fields: str, **more: Any) -> bytes:
    """A GET."""
    return request("GET", target, *fields, **more)


def post(body: bytes, target: str = "/tool/x", *fields: str, **more: Any) -> bytes:
    """A POST with a Content-Length."""
    return request("POST", target, *fields, body=body, **more)


def chat(*fields: str, stream: bool = False, **more: Any) -> bytes:
    """A chat completion."""
    value = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], **more}
    if stream:
        value["stream"] = True
    kind = "Content-Type: application/json"
    return post(json.dumps(value).encode(), "/v1/chat/completions", kind, *fields)


def chunked(*chunks: bytes, trailers: str = "") -> bytes:
    """A chunked body."""
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return pieces + b"0\r\n" + trailers.encode() + b"\r\n"


@dataclass(frozen=True)
class Reply:
    """An answer, to the byte."""

    first_line: str
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.first_line.split(" ")[1])

    def values(self, name: str) -> list[str]:
        """Every value of a field."""
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        """The only value of a field, None when it is not there."""
        values = self.values(name)
        assert len(values) <= 1, values
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of one of Steer's own errors."""
        return str(self.json["error"]["code"])

    @property
    def message(self) -> str:
        """The message of one of Steer's own errors."""
        return str(self.json["error"]["message"])

    @property
    def closes(self) -> bool:
        """Whether the answer announces the end of the connection."""
        return self.value("Connection") == "close"


class RawCaller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Write, whatever it is."""
        self.writer.write(data)

    async def send_slowly(self, data: bytes, size: int, pace: float = 0.0) -> None:
        """Write piece by piece, each in a segment of its own."""
        for index in range(0, len(data), size):
            self.writer.write(data[index : index + size])
            await self.writer.drain()
            await asyncio.sleep(pace)

    def finish(self) -> None:
        """Send nothing more, and go on reading."""
        with suppress(OSError):  # the other side may have hung up already
            self.writer.write_eof()

    def hang_up(self) -> None:
        """Close without a word."""
        self.writer.close()

    async def head(self) -> Reply:
        """The next head, interim ones included."""
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
        first, *lines = text.split("\r\n")[:-2]
        return Reply(
            first, [(line.split(": ", 1)[0], line.split(": ", 1)[1]) for line in lines], b""
        )

    async def reply(self, method: str = "GET") -> Reply:
        """The next answer, whole."""
        head = await self.head()
        return Reply(head.first_line, head.fields, await self._body(method, head))

    async def _body(self, method: str, head: Reply) -> bytes:
        length = head.value("Content-Length")
        if method == "HEAD" or head.status in {100, 204, 304}:
            return b""
        if head.value("Transfer-Encoding") == "chunked":
            assert length is None
            return b"".join([chunk async for chunk in self.chunks()])
        if length is None:
            return await self.reader.read()
        return await self.reader.readexactly(int(length))

    async def chunk(self) -> bytes:
        """The next chunk; b"" is the proper end."""
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size)
        assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def chunks(self) -> AsyncIterator[bytes]:
        """Chunks up to the proper end."""
        while data := await self.chunk():
            yield data

    async def rest(self) -> tuple[bytes, End]:
        """Everything until the connection ends, and how it ended."""
        data = bytearray()
        try:
            while piece := await self.reader.read(65536):
                data += piece
        except (ConnectionResetError, BrokenPipeError):
            return bytes(data), "reset"
        return bytes(data), "close"

    async def ended(self) -> End:
        """Wait for the end of the connection, and see that nothing else comes before it."""
        data, end = await self.rest()
        assert data == b"", data
        return end

    async def silent(self, seconds: float) -> bool:
        """Whether nothing at all comes for so long."""
        try:
            await asyncio.wait_for(self.reader.read(1), seconds)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def dialled(port: int, *, window: int | None = None) -> AsyncIterator[RawCaller]:
    """A connection that is closed, and seen to be closed, at the end.

    `window` is how many bytes the kernel may hold for a caller that does not read.
    """
    # With the protocol named, asyncio turns off Nagle's algorithm: waits for it are real ones.
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    connection.setblocking(False)
    if window is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        yield RawCaller(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(port: int, data: bytes, method: str = "GET") -> Reply:
    """One answer on a connection of its own."""
    async with dialled(port) as caller:
        caller.send(data)
        return await caller.reply(method)
