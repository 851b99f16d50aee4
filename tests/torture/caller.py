"""Callers: raw requests, and the official SDKs' way of retrying them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tests.torture.history import TERMINAL, Call, End, Marker, Try

_READ: Final = 65_536


@dataclass(frozen=True, slots=True)
class Patience:
    """When a caller goes: after so many seconds, or so many bytes of the answer."""

    seconds: float
    bytes: int | None = None


def request(call: Call, payload: int, padding: int = 0) -> bytes:
    """A keyed chat completion as bytes; `padding` makes its body so much longer."""
    marker = Marker(call.key, call.principal, payload)
    value = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": marker.content}],
        "stream": call.stream,
        "user": "x" * padding,
    }
    body = json.dumps(value).encode()
    lines = (
        f"POST {'/rerun' if call.rerun else ''}/v1/chat/completions HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Accept: application/json",
        f"Authorization: {marker.credential}",
        f"Idempotency-Key: {call.key}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


async def attempt(
    call: Call,
    payload: int,
    replica: str,
    port: int,
    patience: Patience,
    *,
    padding: int = 0,
    final: bool = False,
) -> Try:
    """Make one request and read what comes, until it is whole, or over, or the patience is."""
    began = time.monotonic()
    this = Try(call, payload, replica, began, began, End.REFUSED, final=final)
    data = bytearray()
    end = End.REFUSED
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(patience.seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            end = End.CUT
            writer.write(request(call, payload, padding))
            while True:
                wanted = _READ if patience.bytes is None else patience.bytes - len(data)
                if wanted <= 0:
                    end = End.LEFT
                    break
                if not (piece := await reader.read(min(wanted, _READ))):
                    break
                data += piece
                if parse(bytes(data)).whole:
                    end = End.COMPLETE
                    break
    except TimeoutError:
        end = End.LEFT
    except OSError:
        pass  # refused, or reset: `end` says how far it had come
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    answer = parse(bytes(data))
    if end is End.COMPLETE and call.stream and answer.status == 200:
        end = End.COMPLETE if any(each in answer.body for each in TERMINAL) else End.CUT
    return replace(
        this,
        ended=time.monotonic(),
        end=end,
        status=answer.status,
        fields=answer.fields,
        body=answer.body,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """As much of an answer as has come. `whole` says that its framing has ended."""

    status: int | None = None
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    whole: bool = False


def parse(data: bytes) -> Answer:
    """Read the bytes of an answer, however many there are yet."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return Answer()
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = tuple(
        (name, value.strip()) for name, _, value in (each.partition(":") for each in lines)
    )
    names = {name.lower(): value for name, value in pairs}
    status = int(first.split(" ")[1])
    if names.get("transfer-encoding") == "chunked":
        body, whole = _unframed(rest)
    else:
        length = int(names.get("content-length", 0))
        body, whole = rest[:length], len(rest) >= length
    return Answer(status, pairs, body, whole)


def _unframed(data: bytes) -> tuple[bytes, bool]:
    pieces: list[bytes] = []
    position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        size = int(data[position:end], 16)
        if size == 0:
            return b"".join(pieces), data.startswith(b"\r\n", end + 2)
        pieces.append(data[end + 2 : end + 2 + size])
        position = end + 2 + size + 2
    return b"".join(pieces), False


#: How often an SDK tries again, and its waits in seconds (shorter than theirs: 0.5 to 8).
RETRIES: Final = 3
_FIRST: Final = 0.05
_LONGEST: Final = 0.5

#: The longest a caller lets the server tell it to wait, in seconds.
_ASKED: Final = 2.0


def wait_before_retry(tried: Try, turn: int, dice: random.Random) -> float | None:
    """What an SDK does after an answer: None when it does not try again, else how long it waits."""
    if tried.end is End.COMPLETE and tried.status is not None:
        told = tried.value("x-should-retry")
        retried = tried.status in {408, 409, 429} or tried.status >= 500
        if told == "false" or (told != "true" and not retried):
            return None
        asked = tried.value("retry-after-ms") or tried.value("retry-after")
        if asked is not None and asked.replace(".", "", 1).isdecimal():
            scale = 0.001 if tried.value("retry-after-ms") is not None else 1.0
            return min(float(asked) * scale, _ASKED)
    backoff: float = min(_FIRST * 2**turn, _LONGEST)
    return backoff * dice.uniform(0.75, 1.0)


async def call_like_an_sdk(
    make: Callable[[], tuple[str, int, Patience]],
    call: Call,
    payload: int,
    dice: random.Random,
    record: Callable[[Try], None],
) -> None:
    """One call with all its retries; `make` says for each try where it goes, and how patiently."""
    for turn in range(RETRIES + 1):
        replica, port, patience = make()
        tried = await attempt(call, payload, replica, port, patience)
        record(tried)
        wait = wait_before_retry(tried, turn, dice)
        if wait is None or turn == RETRIES:
            return
        await asyncio.sleep(wait)
