"""Upstreams written by hand, byte by byte: for what no provider should ever do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.raw import post
from tests.support.sidecar import Running, configure, running

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = chunk(LAST) + b"0\r\n\r\n"


def delta(text: str) -> bytes:
    """One event of a chat completion."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


def answer(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    """A whole JSON answer."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *fields]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """A request's head."""
    return await reader.readuntil(b"\r\n\r\n")


def length_of(head: bytes) -> int:
    """The length that a head announces."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A whole request."""
    head = await read_head(reader)
    return head, await reader.readexactly(length_of(head))


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def chat(*fields: str, stream: bool = False, **members: Any) -> bytes:
    """A chat request to the route `/r`, with a caller's key."""
    messages = [{"role": "user", "content": "Hi"}]
    value = {"model": "gpt-4o", "messages": messages, **members}
    if stream:
        value["stream"] = True
    kind = "Content-Type: application/json"
    body = json.dumps(value).encode()
    return post(body, "/r/chat/completions", kind, "Authorization: Bearer mine", *fields)


@contextlib.asynccontextmanager
async def handmade(talk: Talk) -> AsyncIterator[int]:
    """A server that talks as told; its port."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await talk(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def before(
    tmp_path: Path,
    *ports: int,
    dialect: str = "openai",
    upstream: Mapping[str, Any] | None = None,
    route: Mapping[str, Any] | None = None,
) -> AsyncIterator[Running]:
    """Steer with a route `/r` over upstreams `a`, `b` on these ports; the first is home."""
    upstreams: dict[str, Any] = {}
    for name, port in zip("ab", ports, strict=False):
        base = f"http://127.0.0.1:{port}" + ("/v1" if dialect == "openai" else "")
        upstreams[name] = {"dialect": dialect, "base_url": base, **(upstream or {})}
        if name != "a":
            upstreams[name]["credential"] = {"env": "OTHER_KEY"}
    only = {"name": "r", "path": "/r", "candidates": list(upstreams), **(route or {})}
    settings = {"catalogue": False, "upstreams": upstreams, "routes": [only]}
    async with running(configure(settings, tmp_path, {"OTHER_KEY": "theirs"})) as steer:
        yield steer
