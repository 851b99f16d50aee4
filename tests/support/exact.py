"""A caller that hides nothing: what is sent is what stands here, what came is kept to the byte."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

Framing = Literal["length", "chunked", "close", "none"]
Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Asked:
    """A request. A `{id}` in the path stands for the `id` of the answer before."""

    method: str
    path: str
    fields: Fields = ()
    body: bytes | None = None

    def bytes(self, path: str, host: str) -> bytes:
        """The request as it goes over the wire; a body has a length."""
        lines = [f"{self.method} {path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.fields]
        if self.body is not None:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "".join(f"{line}\r\n" for line in (*lines, ""))
        return head.encode("utf-8", "surrogateescape") + (self.body or b"")


def post(path: str, value: Any, *fields: tuple[str, str]) -> Asked:
    """A JSON request."""
    body = json.dumps(value).encode()
    return Asked("POST", path, (("content-type", "application/json"), *fields), body)


def form(path: str, *parts: tuple[str, str | None, bytes], boundary: str = "steer") -> Asked:
    """A multipart form of (name, file name, content)."""
    pieces = []
    for name, filename, content in parts:
        disposition = f'Content-Disposition: form-data; name="{name}"'
        if filename is not None:
            disposition += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
        pieces.append(f"--{boundary}\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n")
    body = b"".join(pieces) + f"--{boundary}--\r\n".encode()
    kind = ("Content-Type", f"multipart/form-data; boundary={boundary}")
    return Asked("POST", path, (kind,), body)


@dataclass(frozen=True)
class Got:
    """An answer: its first line, its fields in order, how its body was framed, its body."""

    first_line: bytes
    fields: Fields
    framing: Framing
    body: bytes
    chunks: tuple[bytes, ...] = ()

    @property
    def status(self) -> int:
        return int(self.first_line.split(b" ")[1])

    def values(self, name: str) -> list[str]:
        """Every value of a field, by its name in any case."""
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def value(self, name: str) -> str:
        """The only value of a field."""
        (value,) = self.values(name)
        return value

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ExactClient:
    """One connection; use as an asynchronous context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def ask(self, asked: Asked, *, path: str | None = None, host: str = "localhost") -> Got:
        """Send a request and read its answer to the end."""
        self.writer.write(asked.bytes(asked.path if path is None else path, host))
        return await self.answer(asked.method)

    async def head(self) -> tuple[bytes, Fields]:
        """The next head: its first line and its fields as they are spelled."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        text = [line.decode("utf-8", "surrogateescape") for line in lines]
        pairs = [line.partition(":") for line in text]
        return first, tuple((name, value.strip(" ")) for name, _, value in pairs)

    async def answer(self, method: str) -> Got:
        """The next final answer."""
        while True:
            first, fields = await self.head()
            status = int(first.split(b" ")[1])
            if status >= 200 or status == 101:
                break
        known = {name.lower(): value for name, value in fields}
        if method == "HEAD" or status in (101, 204, 304):
            return Got(first, fields, "none", b"")
        if "transfer-encoding" in known:
            chunks = [chunk async for chunk in self.chunks()]
            return Got(first, fields, "chunked", b"".join(chunks), tuple(chunks))
        if "content-length" in known:
            body = await self.reader.readexactly(int(known["content-length"]))
            return Got(first, fields, "length", body)
        return Got(first, fields, "close", await self.reader.read())

    async def chunks(self) -> Any:
        """The chunks of a body, as they come, to its proper end."""
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readline() == b"\r\n"


async def ask(port: int, asked: Asked, *, path: str | None = None, host: str = "localhost") -> Got:
    """One request on a connection of its own."""
    async with ExactClient(port) as client:
        return await client.ask(asked, path=path, host=host)
