"""Giving a caller the answer that the ledger has kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Final

from aiohttp.web_request import BaseRequest

from steer_policies.idempotency import Status
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.trouble import Tally
from steer_proxy.http.call import Call
from steer_proxy.http.caller import BODILESS, CallerResponse, length_in
from steer_proxy.http.following import Watched
from steer_proxy.http.identity import Identity
from steer_proxy.http.keyed_problems import NOT_STORED, UNREADABLE, status_line
from steer_proxy.http.lines import line
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.recording import RecordedHead
from steer_proxy.http.replies import personal_lines
from steer_proxy.http.stored import Whole, read_head
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.sealing import Sealer, Unreadable
from steer_proxy.ledger.values import ChunkRow, Record, StoredAnswer

LOGGER: Final = logging.getLogger("steer.ledger")

#: An answer larger than this, in bytes, or of many parts is written under the eyes of the sweep.
AT_ONCE: Final = 64 * 1024

#: Chunks read from the ledger at once: a megabyte.
PAGE: Final = 16

#: Pages of larger answers that are read and opened at once, all replays together: hundreds of them
#: would wait for the ledger longer than it may take, and be held in memory meanwhile.
PAGES_AT_ONCE: Final = 4


class Damaged(Exception):
    """The stored answer is not what it was."""


class Replays:
    """What the replays of a process share: turns at the pages of large answers, and when to say
    that stored answers cannot be read. `now` is monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.turns = asyncio.Semaphore(PAGES_AT_ONCE)
        self._unreadable = Tally(now)

    def failed(self, call: Call, what: str, record: Record, error: Exception) -> None:
        """A call did not get its answer: one that is damaged may be asked for time and again."""
        if (more := self._unreadable.due(call.id)) is not None:
            LOGGER.error("the stored answer %s %s: %s%s", record.id, what, error, more)


async def replay(
    request: BaseRequest,
    progress: CallProgress,
    call: Call,
    record: Record,
    books: Bookkeeper,
    watched: Watched,
    replays: Replays,
) -> CallerResponse:
    """Answer a caller from the ledger.

    Raises:
        Refusal: 409 when the answer is gone or cannot be read.
        LedgerUnavailable: before anything was sent to the caller.
    """
    stored = await books.ledger.answer(record.id, 1)
    if stored is None:
        raise NOT_STORED.refusal(call)
    async with contextlib.aclosing(_pages(books, stored, replays.turns)) as pages:
        try:
            text = books.sealer.open_head(stored.id, stored.headers, stored.keyring_id)
            head = _vouched(call, record, stored, text)
            _check_length(head, stored.bytes)
            first = await anext(pages, b"")
        except (Unreadable, Damaged, ValueError) as error:
            replays.failed(call, "cannot be read", record, error)
            raise UNREADABLE.refusal(call) from None
        # A stream's chunks are what came in a moment: many of them may be no more than a few bytes.
        small = len(first) <= AT_ONCE and stored.chunks <= PAGE
        response = _response(call, head, first if small else b"")
        progress.response = response
        response.began = asyncio.get_running_loop().time()
        if watched.draining:
            response.close_connection()
        if not small:
            # More than the kernel takes at once: a caller that never reads must not hold it.
            longest = call.route.policy.timeouts.max_stream
            progress.until = asyncio.get_running_loop().time() + longest
            watched.overdue_later()
            try:
                await _send(request, response, first, pages)
            except (Unreadable, Damaged, LedgerUnavailable) as error:
                replays.failed(call, "broke off", record, error)
                response.abandon()
        return response


def _check_length(head: RecordedHead, size: int) -> None:
    """See that a head promises the body that is there: its caller would wait for the rest, and take
    the next answer on the connection for it.

    Raises:
        Damaged: when it does not.
    """
    if head.status in BODILESS:
        return
    length = length_in(head.fields)
    if length is not None and length != size:
        raise Damaged(f"it has {size} bytes of {length}")


def _response(call: Call, head: RecordedHead, body: bytes) -> CallerResponse:
    own = [
        *personal_lines(call),
        *head.own,
        status_line(Status.REPLAYED),
        line("Idempotent-Replayed", "true"),
    ]
    return CallerResponse(
        head.status, head.reason, head.fields, own, body=body, content_type=head.content_type
    )


def _vouched(call: Call, record: Record, stored: StoredAnswer, text: str) -> RecordedHead:
    """An answer's head; an encrypted one says whose it is and what is all of it.

    Raises:
        ValueError: it is damaged, or says otherwise than its record.
    """
    if stored.keyring_id is None:
        return read_head(stored.status, text)
    whose = Identity(call.scope or "", record.fingerprint)
    whole = Whole(stored.status, stored.bytes, stored.chunks, stored.sha256)
    return read_head(stored.status, text, whose, whole)


async def _send(
    request: BaseRequest, response: CallerResponse, first: bytes, pages: AsyncIterator[bytes]
) -> None:
    await response.prepare(request)
    await response.write(first)
    async for page in pages:
        await response.write(page)
    await response.write_eof()


async def _pages(
    books: Bookkeeper, stored: StoredAnswer, turns: asyncio.Semaphore
) -> AsyncGenerator[bytes]:
    """The answer's body, a page at a time, and checked at its end."""
    opening = _Opening(books.sealer, stored)
    if stored.chunks == len(stored.first) and stored.bytes <= AT_ONCE:
        yield opening.page(stored.first)
        return
    while opening.seen < stored.chunks:
        async with turns:
            rows = await books.ledger.chunks(stored.id, opening.seen - 1, PAGE)
            page = await asyncio.to_thread(opening.page, rows)
            del rows  # a slow caller takes its time, and they are not kept for that
        yield page


class _Opening:
    """Opens the chunks of an answer in their order; one thread at a time."""

    def __init__(self, sealer: Sealer, stored: StoredAnswer) -> None:
        self._sealer = sealer
        self._stored = replace(stored, first=())
        self._digest = hashlib.sha256()
        self._size = 0
        self.seen = 0
        """How many there have been."""

    def page(self, rows: Sequence[ChunkRow]) -> bytes:
        """The bytes of the next chunks.

        Raises:
            Damaged: when some are missing, or all of them are not what was stored.
            Unreadable: when one cannot be opened.
        """
        stored = self._stored
        if not rows and self.seen < stored.chunks:
            raise Damaged(f"{self.seen} of {stored.chunks} chunks are there")
        page = opened(self._sealer, rows, self.seen, stored.keyring_id)
        self._digest.update(page)
        self._size += len(page)
        self.seen += len(rows)
        whole = (self._size, self._digest.hexdigest()) if self.seen >= stored.chunks else None
        if whole not in (None, (stored.bytes, stored.sha256)):
            raise Damaged("its bytes are not those that were stored")
        return page


def opened(sealer: Sealer, rows: Sequence[ChunkRow], first: int, keyring_id: str | None) -> bytes:
    """The bytes of chunks that follow one another from number `first` on, encrypted with the key
    that their record names.

    Raises:
        Damaged: when one is missing.
        Unreadable: when one cannot be opened.
    """
    if [row.seq for row in rows] != list(range(first, first + len(rows))):
        raise Damaged("a chunk is missing")
    return b"".join([sealer.open(row, keyring_id) for row in rows])
