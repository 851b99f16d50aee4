"""A client that hides nothing: raw requests in, raw bytes and the manner of the end out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from tests.provider import Provider

Ending = Literal["close", "reset"]
ASKED: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "Hello there"}],
}
CHAT = "/v1/chat/completions"


def request(
    path: str = CHAT,
    value: Any = ASKED,
    *,
    method: str = "POST",
    headers: tuple[str, ...] = (),
    body: bytes | None = None,
) -> bytes:
    """A request with a JSON body and a Content-Length."""
    data = json.dumps(value).encode() if body is None else body
    lines = [f"{method} {path} HTTP/1.1", "Host: wall", *headers, f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def streamed(path: str = CHAT, **more: Any) -> bytes:
    """A request for a stream."""
    return request(path, {**ASKED, "stream": True, **more})


class RawClient:
    """One TCP connection to the provider."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        """The next head: its status and its headers, names in lower case."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = [line.split(": ", 1) for line in lines[1:]]
        return int(lines[0].split(" ")[1]), [(name.lower(), value) for name, value in headers]

    async def plain(self) -> tuple[int, bytes]:
        """A whole answer with a Content-Length."""
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(dict(headers)["content-length"]))

    async def chunk(self) -> bytes:
        """The next chunk, empty at the end."""
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size)
        assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def chunks(self) -> list[bytes]:
        """Every chunk of a properly ended body."""
        found = []
        while data := await self.chunk():
            found.append(data)
        return found

    async def rest(self) -> tuple[bytes, Ending]:
        """Everything until the connection ends, and how it ended."""
        data = bytearray()
        try:
            while piece := await self.reader.read(65536):
                data += piece
        except ConnectionResetError:
            return bytes(data), "reset"
        return bytes(data), "close"

    async def silent(self) -> bool:
        """Whether nothing at all comes for some milliseconds."""
        try:
            await asyncio.wait_for(self.reader.read(1), 0.02)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def connected(provider: Provider) -> AsyncIterator[RawClient]:
    """A connection that is closed, and seen to be closed, at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
