"""A run's result as the ledger keeps answers: a head and chunks, as a call's through the sidecar.

So `steer ledger show` and the cookbook's queries see both alike. The head is the JSON of
`resp_headers` that the proxy writes; the body is the result's JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from steer_proxy.ledger.protocol import Ledger
from steer_proxy.ledger.sealing import MAX_CHUNK, Sealer, Unreadable
from steer_proxy.ledger.values import ChunkRow, StoredAnswer

#: The status of a run that gave a result, for those who look at the ledger's rows.
STATUS: Final = 200

#: Results larger than this are compressed and encrypted in a thread, in bytes.
AT_ONCE: Final = 64 * 1024

#: Chunks read from the ledger at once: a megabyte.
PAGE: Final = 16

_TYPE: Final = "application/json"
_HEAD: Final = {
    "reason": "OK",
    "fields": [["Content-Type", _TYPE]],
    "own": [],
    "content_type": _TYPE,
}


#: The scope and the fingerprint of the key that an answer was given to.
Whose: TypeAlias = tuple[str, str]


class Damaged(Exception):
    """A stored result is not what it was, or cannot be opened; the message says why."""


class Sealed(NamedTuple):
    """A result ready to be stored."""

    head: str
    bytes: int
    sha256: str
    chunks: tuple[ChunkRow, ...]


async def seal(sealer: Sealer, row: str, whose: Whose, text: str, at_us: int) -> Sealed:
    """Cut, compress and encrypt a result for the record with this id."""
    data = text.encode()
    if len(data) <= AT_ONCE:
        return _seal(sealer, row, whose, data, at_us)
    return await asyncio.to_thread(_seal, sealer, row, whose, data, at_us)


def _seal(sealer: Sealer, row: str, whose: Whose, data: bytes, at_us: int) -> Sealed:
    chunks = tuple(
        sealer.seal(row, seq, start, at_us, data[start : start + MAX_CHUNK])
        for seq, start in enumerate(range(0, len(data), MAX_CHUNK))
    )
    digest = hashlib.sha256(data).hexdigest()
    vouched = _vouched(whose, STATUS, len(data), len(chunks), digest)
    head = _HEAD if sealer.key_id is None else {**_HEAD, **vouched}
    return Sealed(sealer.seal_head(row, json.dumps(head)), len(data), digest, chunks)


def _vouched(
    whose: Whose, status: int, size: int, chunks: int, digest: str | None
) -> dict[str, list[object]]:
    """What an encrypted head says of its record, which somebody may have changed."""
    return {"whose": list(whose), "whole": [status, size, chunks, digest]}


async def read(ledger: Ledger, sealer: Sealer, row: str, whose: Whose) -> str | None:
    """The result that a completed record holds; None when it is no longer there.

    Raises:
        Damaged: it is there, and cannot be given back.
        LedgerUnavailable: not now.
    """
    stored = await ledger.answer(row)
    if stored is None:
        return None
    if stored.keyring_id is not None:
        _compare(sealer, stored, whose)
    rows: list[ChunkRow] = []
    while len(rows) < stored.chunks:
        page = await ledger.chunks(row, len(rows) - 1, PAGE)
        if not page:
            raise Damaged(f"{len(rows)} of its {stored.chunks} chunks are there")
        rows += page
    if stored.bytes <= AT_ONCE:
        data = _open(sealer, rows, stored.keyring_id)
    else:
        data = await asyncio.to_thread(_open, sealer, rows, stored.keyring_id)
    if len(data) != stored.bytes or hashlib.sha256(data).hexdigest() != stored.sha256:
        raise Damaged("its bytes are not those that were stored")
    return data.decode()


def _compare(sealer: Sealer, stored: StoredAnswer, whose: Whose) -> None:
    try:
        head = json.loads(sealer.open_head(stored.id, stored.headers, stored.keyring_id))
    except (Unreadable, ValueError) as error:
        raise Damaged(str(error)) from None
    vouched = _vouched(whose, stored.status, stored.bytes, stored.chunks, stored.sha256)
    if any(head.get(name) != value for name, value in vouched.items()):
        raise Damaged("its record is not what it was")


def _open(sealer: Sealer, rows: Sequence[ChunkRow], keyring_id: str | None) -> bytes:
    if [row.seq for row in rows] != list(range(len(rows))):
        raise Damaged("a chunk is missing")
    try:
        return b"".join([sealer.open(row, keyring_id) for row in rows])
    except Unreadable as error:
        raise Damaged(str(error)) from None
