"""An answer as the ledger keeps it: its head as JSON, its body in chunks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from steer_proxy.http.recording import RecordedHead
from steer_proxy.ledger.sealing import Sealer
from steer_proxy.ledger.values import ChunkRow

#: The most bytes of an answer in one chunk.
CHUNK: Final = 64 * 1024

#: A body larger than this is compressed and encrypted in a thread, in bytes.
AT_ONCE: Final = 64 * 1024

#: What is not given again with a stored answer: it was meant for that moment or that connection.
_OF_ITS_MOMENT: Final = frozenset({b"set-cookie", b"set-cookie2", b"date", b"age", b"cf-ray"})
_RATE_LIMITS: Final = (b"x-ratelimit-", b"ratelimit", b"anthropic-ratelimit-", b"retry-after")


class Whole(NamedTuple):
    """All of an answer: what its record says of it."""

    status: int
    bytes: int
    chunks: int
    sha256: str | None


def head_text(
    head: RecordedHead, whose: tuple[str, str] | None = None, whole: Whole | None = None
) -> str:
    """A head as `resp_headers` holds it.

    One that is to be encrypted tells whose answer it is (scope, fingerprint), and at its end what
    all of it is: whoever may write the database, and has no key, could say otherwise in its record.
    """
    value: dict[str, Any] = {
        "reason": None if head.reason is None else _octets(head.reason),
        "fields": [
            [text, value.decode("latin-1")]
            for name, value in head.fields
            if (text := _kept(name)) is not None
        ],
        "own": [each.decode("latin-1").rstrip("\r\n").split(": ", 1) for each in head.own],
        "content_type": _octets(head.content_type),
    }
    if whose is not None:
        value |= {"whose": list(whose), "whole": None if whole is None else list(whole)}
    return orjson.dumps(value).decode()


@lru_cache(256)  # a provider's answers all have the same
def _kept(name: bytes) -> str | None:
    """A field's name as it is stored; None where the field is not."""
    lower = name.lower()
    if lower in _OF_ITS_MOMENT or lower.startswith(_RATE_LIMITS):
        return None
    return name.decode("latin-1")


def read_head(
    status: int, text: str, whose: tuple[str, str] | None = None, whole: Whole | None = None
) -> RecordedHead:
    """A head from what `resp_headers` holds.

    `whose` and `whole` are what its record says, where it is to say the same.

    Raises:
        ValueError: when it holds something else.
    """
    value: Any = orjson.loads(text)
    try:
        if whose is not None and value["whose"] != list(whose):
            raise ValueError("the answer is another key's")
        if whole is not None and value["whole"] != list(whole):
            raise ValueError("its record is not what it was")
        return RecordedHead(
            status,
            None if value["reason"] is None else _text(value["reason"]),
            [(name.encode("latin-1"), text.encode("latin-1")) for name, text in value["fields"]],
            [_line(name, content) for name, content in value["own"]],
            _text(value["content_type"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the stored head is not one") from error


# JSON holds text: every byte of a head is a character of it, whatever it may mean.


def _octets(text: str) -> str:
    """What was read from a head, byte by byte."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _text(octets: str) -> str:
    """What `_octets` was made of."""
    return octets.encode("latin-1").decode("utf-8", "surrogateescape")


def _line(name: str, octets: str) -> bytes:
    """A line of ours as it was: its bytes, and one line still."""
    if "\r" in octets or "\n" in octets or not name.isprintable():
        raise ValueError(f"a control character in {name!r}")
    return f"{name}: {octets}\r\n".encode("latin-1")


class Chunker:
    """Cuts an answer into chunks, in the order its bytes come."""

    def __init__(self, sealer: Sealer, id: str) -> None:  # noqa: A002 - the column's name
        self._sealer = sealer
        self._id = id
        self._digest = hashlib.sha256()
        self.count = 0
        self.size = 0

    @property
    def sha256(self) -> str:
        """The digest of everything cut so far, in hexadecimal."""
        return self._digest.hexdigest()

    async def cut(self, pieces: Sequence[bytes], at_us: int) -> list[ChunkRow]:
        """The next chunks, of these bytes."""
        data = b"".join(pieces)
        if len(data) <= AT_ONCE:
            return self._cut(data, at_us)
        return await asyncio.to_thread(self._cut, data, at_us)

    def end(self, at_us: int) -> ChunkRow:
        """The end of an answer that is not stored, for those who follow it: a chunk of nothing."""
        return self._sealer.seal(self._id, self.count, self.size, at_us, b"")

    def _cut(self, data: bytes, at_us: int) -> list[ChunkRow]:
        rows = []
        for start in range(0, len(data), CHUNK):
            raw = data[start : start + CHUNK]
            rows.append(self._sealer.seal(self._id, self.count, self.size, at_us, raw))
            self._digest.update(raw)
            self.count += 1
            self.size += len(raw)
        return rows
