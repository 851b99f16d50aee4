"""Following a call that another process makes, through the ledger they share."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from steer_policies.idempotency import State, TakeOver
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.claims import Found
from steer_proxy.http import keyed_problems as problems
from steer_proxy.http.keyed_problems import KeyedProblem
from steer_proxy.http.replay import PAGE, Damaged, opened
from steer_proxy.http.run import Run
from steer_proxy.http.stored import read_head
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.sealing import Unreadable
from steer_proxy.ledger.values import Following, Record

#: How often is looked, in seconds, even when nothing was heard.
EVERY: Final = 0.25

#: How long the ledger may be away meanwhile, in seconds.
PATIENCE: Final = 30.0


async def shadow(run: Run, record: Record, books: Bookkeeper) -> None:
    """Fill a run's recording from the ledger until the call it follows has ended."""
    async with books.ledger.watch(record.id) as news:
        problem = await _Shadow(run, record, books).follow(news)
        if problem is not None:
            run.say(problem)
        else:
            run.recording.end()


class _Shadow:
    def __init__(self, run: Run, record: Record, books: Bookkeeper) -> None:
        self._run = run
        self._record = record
        self._books = books
        self._seen = 0
        self._looked_again = False
        self._whole = False
        """Whether all of an answer has come that is not stored."""

    async def follow(self, news: asyncio.Event) -> KeyedProblem | None:
        """Copy what comes; None when it came to its proper end."""
        now = asyncio.get_running_loop().time
        heard = now()
        while self._run.joiners:
            news.clear()
            try:
                following = await self._books.ledger.follow(self._record.id, self._seen - 1, PAGE)
                heard = now()
                if self._passed(following):
                    # Parts may also be left of a call that came to nothing.
                    end = self._end(following)
                    return problems.NOT_STORED if isinstance(end, bool) else end
                await self._take(following)
                end = self._end(following)
                if self._whole:
                    return None
                if len(following.chunks) == PAGE:
                    continue
                if end is not True:
                    if end is not False:
                        return end
                elif await self._complete(following):
                    return None
                else:
                    continue
            except LedgerUnavailable:
                if now() - heard > PATIENCE:
                    return problems.no_ledger("it went away while a call was followed")
            except (Unreadable, Damaged, ValueError):
                return problems.UNREADABLE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await news.wait()
        return problems.IN_PROGRESS

    def _passed(self, following: Following) -> bool:
        """Whether the answer is too large to be stored, and has gone on without this one."""
        record, chunks = following.record, following.chunks
        if not chunks or (record is not None and record.stored):
            return False
        headless = self._run.recording.head is None and following.headers is None
        return headless or chunks[0].seq > self._seen

    async def _take(self, following: Following) -> None:
        recording, sealer = self._run.recording, self._books.sealer
        if recording.head is None and following.headers is not None:
            text = sealer.open_head(self._record.id, following.headers, following.keyring_id)
            whose = None if following.keyring_id is None else self._run.identity
            recording.begin(read_head(following.status or 200, text, whose))
        if following.chunks:
            rows, before = list(following.chunks), recording.size
            await recording.write(opened(sealer, rows, self._seen, following.keyring_id))
            self._seen += len(rows)
            self._whole = rows[-1].raw_bytes == 0
            if not self._whole:
                # The last bytes come with the end: who has them may hang up, and has not left.
                done = following.record is not None and following.record.state is State.COMPLETED
                recording.release(before if done else None)

    def _end(self, following: Following) -> KeyedProblem | bool:
        """True when the call is completed, False while it runs, else what went wrong."""
        record = following.record
        self._run.row = record
        if record is None or record.state is State.RELEASED:
            return problems.FAILED_ELSEWHERE
        if record.state is State.COMPLETED:
            return True if record.stored else problems.NOT_STORED
        record = self._books.judged(record)
        if record.state is not State.UNCERTAIN and not record.lapsed:
            # Its head is taken back when it has become too large.
            gone = self._run.recording.head is not None and following.headers is None
            return problems.NOT_STORED if gone else False
        # Nobody makes it any more. Where it may be made again, the caller's next try does that.
        again = Found(record).decision(record.fingerprint, self._run.policy)
        if isinstance(again, TakeOver):
            return problems.FAILED_ELSEWHERE
        return problems.uncertain(record.id)

    async def _complete(self, following: Following) -> bool:
        """Whether all of a completed answer was copied."""
        answer = await self._books.ledger.answer(self._record.id)
        if answer is None or (self._looked_again and not following.chunks):
            raise Damaged("the answer is gone")
        self._looked_again = True
        return self._seen >= answer.chunks
