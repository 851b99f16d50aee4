"""The ledger without a database: for tests, and for `memory:`, where nothing outlives the process.

It keeps the promises of the other ledgers line by line, so that a test of the proxy may use it in
their place; the contract suite and a state machine that compares it with SQLite hold it to that.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple

from steer_policies.idempotency import Move, State, sources
from steer_proxy.ledger.protocol import LedgerRefused, LedgerUnavailable
from steer_proxy.ledger.values import (
    MICROSECONDS,
    RESULT_COLUMNS,
    AttemptRow,
    Batch,
    BreakerEventRow,
    CallRow,
    ChunkRow,
    Claim,
    Finish,
    Following,
    Lease,
    Purge,
    Purged,
    Record,
    Ref,
    StoredAnswer,
)
from steer_proxy.ledger.watching import Watchers

#: Rows of the log that are kept, of each kind: the oldest make room. Live records do not count.
LOG_ROWS: Final = 10_000

_ANSWER: Final = ("resp_headers", "resp_bytes", "resp_chunks", "resp_sha256")
_NO_ANSWER: Final = dict.fromkeys(("keyring_id", *_ANSWER))
_FINISHED: Final = (*RESULT_COLUMNS, "expires_us", "keyring_id", *_ANSWER)
_FINISHING: Final = {
    State.COMPLETED: Move.COMPLETE,
    State.UNCERTAIN: Move.DOUBT,
    State.RELEASED: Move.RELEASE,
}
_RUNNING: Final = (State.CLAIMED, State.SENT)


class _Owner(NamedTuple):
    instance: str
    lease_until_us: int


class MemoryLedger:
    """A ledger in dicts. `wall` gives Unix seconds; `calls`, `attempts` and `events` are for tests.

    `shared` makes it say that other processes write here too, for tests of following.
    """

    def __init__(self, wall: Callable[[], float], *, shared: bool = False) -> None:
        self._wall = wall
        self._shared = shared
        self._secret: bytes | None = None
        self._keys: dict[str, str] = {}
        self._owners: dict[str, _Owner] = {}
        self._live: dict[str, str] = {}
        """Which row is a scope's live record."""
        self._over: deque[str] = deque()
        """Rows that are not live, as they came to be so."""
        self._chunks: dict[str, dict[int, ChunkRow]] = {}
        self._watchers = Watchers()
        self.calls: dict[str, CallRow] = {}
        self.attempts: OrderedDict[tuple[str, int], AttemptRow] = OrderedDict()
        self.events: OrderedDict[str, BreakerEventRow] = OrderedDict()

    @property
    def shared(self) -> bool:
        """Whether it was made to look like a shared one."""
        return self._shared

    @property
    def secret(self) -> bytes | None:
        """Random, made when it is opened first."""
        return self._secret

    @property
    def available(self) -> bool:
        """Whether it was opened."""
        return self._secret is not None

    async def open(self) -> None:
        """Begin, or go on with what is there; whoever had a lease before is gone."""
        self._secret = self._secret or os.urandom(32)
        if self._shared:
            return
        now = self._now()
        for id_, owner in self._owners.items():
            if owner.lease_until_us > now:
                self._owners[id_] = owner._replace(lease_until_us=now)

    async def close(self) -> None:
        """Nothing to let go of."""

    async def check_keys(self, checks: Mapping[str, str]) -> dict[str, str]:
        """See the protocol."""
        self._keys = {**checks, **self._keys}
        return dict(self._keys)

    # --- Owners ---------------------------------------------------------------------------------

    async def renew(
        self,
        owner: str,
        instance: str,
        lease: float,
        held: Sequence[str],
        *,
        unsure: bool = False,
    ) -> Lease:
        """See the protocol."""
        now = self._now()
        known = self._owners.get(owner)
        lapsed = known.lease_until_us <= now if known else bool(held)
        self._owners[owner] = _Owner(instance, now + int(lease * MICROSECONDS))
        if not (lapsed or unsure):
            return Lease(lapsed=False, now_us=now)
        kept = {
            id_
            for id_ in held
            if (row := self._live_row(id_)) is not None and row.owner_id == owner
        }
        return Lease(lapsed, lost=frozenset(held) - kept, now_us=now)

    async def retire(self, owner: str) -> None:
        """See the protocol."""
        if (known := self._owners.get(owner)) is not None:
            self._owners[owner] = known._replace(lease_until_us=self._now())

    # --- Records --------------------------------------------------------------------------------

    async def claim(self, claim: Claim) -> Record | None:
        """See the protocol."""
        return self._insert(claim.row)

    async def take_over(self, claim: Claim, found: Record) -> Record | None:
        """See the protocol."""
        old = self._mine(Ref(found.id, found.epoch))
        same = old is not None and old.idem_state == found.state  # else it is decided anew
        if old is not None and same and old.id != claim.row.id and self._may_be_taken(old):
            state = State.RELEASED if old.idem_state == State.CLAIMED else old.idem_state
            self._change(old, idem_state=state, idem_live=None, **_NO_ANSWER)
            self._chunks.pop(old.id, None)
        return self._insert(claim.row._replace(idem_epoch=found.epoch + 1))

    def _insert(self, row: CallRow) -> Record | None:
        assert row.idem_scope is not None  # noqa: S101 - see `Claim`
        if (there := self._live.get(row.idem_scope)) is not None:
            record = self._record(self.calls[there])
            return None if record.made_of(row) else record
        if row.id in self.calls:
            raise LedgerUnavailable("somebody ended this claim while its reply was lost")
        self.calls[row.id] = row
        self._live[row.idem_scope] = row.id
        return None

    def _may_be_taken(self, row: CallRow) -> bool:
        if row.idem_state in _RUNNING:
            return self._lapsed(row)
        return row.idem_state == State.UNCERTAIN or self._expired(row)

    async def mark_sent(self, ref: Ref) -> bool:
        """See the protocol."""
        row = self._mine(ref)
        if row is None:
            return False
        if row.idem_state in sources(Move.SEND):
            self._change(row, idem_state=State.SENT, sent_us=self._now())
            return True
        return row.idem_state == State.SENT

    async def finish(self, finish: Finish) -> bool:
        """See the protocol."""
        for each in (finish.row, *finish.chunks):
            _check(each)
        row = self._mine(finish.ref)
        if row is None or row.idem_state not in sources(_FINISHING[finish.state]):
            return self._was_finished(finish)
        known = {name: getattr(finish.row, name) for name in _FINISHED}
        live = None if finish.state is State.RELEASED else 1
        self._change(row, idem_state=finish.state, idem_live=live, **known)
        kept = finish.row.resp_chunks is not None or finish.chunks
        if finish.state is not State.UNCERTAIN and not kept:
            self._chunks.pop(row.id, None)
        else:
            self._add(finish.chunks)
        return True

    def _was_finished(self, finish: Finish) -> bool:
        """Whether this very ending was written before, and its reply lost."""
        row = self.calls.get(finish.ref.id)
        return (
            row is not None
            and (row.idem_epoch, row.idem_state) == (finish.ref.epoch, finish.state)
            and row.ended_us == finish.row.ended_us
            and row.resp_sha256 == finish.row.resp_sha256
        )

    async def begin_answer(
        self, ref: Ref, status: int, headers: str, keyring_id: str | None = None
    ) -> bool:
        """See the protocol."""
        row = self._mine(ref)
        if row is None or row.idem_state not in sources(Move.COMPLETE):
            return False
        self._change(row, status=status, resp_headers=headers, keyring_id=keyring_id)
        return True

    async def add_chunks(self, chunks: Sequence[ChunkRow]) -> None:
        """See the protocol."""
        for chunk in chunks:
            row = self._live_row(chunk.request)
            if row is not None and row.idem_state in sources(Move.COMPLETE):
                self._add((chunk,))

    def _add(self, chunks: Iterable[ChunkRow]) -> None:
        for chunk in chunks:
            self._chunks.setdefault(chunk.request, {}).setdefault(chunk.seq, chunk)
            self._watchers.tell(chunk.request)

    async def trim_chunks(self, ref: Ref, before: int) -> None:
        """See the protocol."""
        row = self._mine(ref)
        if row is not None and row.idem_state in sources(Move.COMPLETE):
            there = self._chunks.get(row.id, {})
            for seq in [seq for seq, chunk in there.items() if chunk.byte_offset < before]:
                del there[seq]

    async def drop_chunks(self, ref: Ref) -> None:
        """See the protocol."""
        row = self._mine(ref)
        if row is None:
            return
        unstored = row.idem_state == State.COMPLETED and row.resp_chunks is None
        if unstored or row.idem_state in sources(Move.COMPLETE):
            self._chunks.pop(row.id, None)
            self._change(row, resp_headers=None, keyring_id=None)

    async def find(self, scope: str) -> Record | None:
        """See the protocol."""
        there = self._live.get(scope)
        return None if there is None else self._record(self.calls[there])

    async def answer(self, id: str, first: int = 0) -> StoredAnswer | None:  # noqa: A002
        """See the protocol."""
        row = self.calls.get(id)
        if row is None or row.idem_state != State.COMPLETED or row.resp_chunks is None:
            return None
        return StoredAnswer(
            row.id,
            row.status or 0,
            row.resp_headers or "",
            row.resp_bytes or 0,
            row.resp_chunks,
            row.resp_sha256,
            row.keyring_id,
            tuple(await self.chunks(id, -1, first)) if first else (),
        )

    async def chunks(self, id: str, after: int, limit: int) -> list[ChunkRow]:  # noqa: A002
        """See the protocol."""
        there = self._chunks.get(id, {})
        return [there[seq] for seq in sorted(there) if seq > after][:limit]

    async def follow(self, id: str, after: int, limit: int) -> Following:  # noqa: A002
        """See the protocol."""
        row = self.calls.get(id)
        if row is None:
            return Following(None, None, None)
        chunks = tuple(await self.chunks(id, after, limit))
        return Following(self._record(row), row.resp_headers, row.status, chunks, row.keyring_id)

    def watch(self, id: str) -> AbstractAsyncContextManager[asyncio.Event]:  # noqa: A002
        """See the protocol."""
        return self._watchers.watch(id)

    def followed(self, id: str) -> bool:  # noqa: A002 - as above
        """See the protocol."""
        return self._watchers.any(id)

    async def settle(self, id: str, move: Move) -> bool:  # noqa: A002
        """See the protocol."""
        row = self._live_row(id)
        if row is None or row.idem_state not in sources(move):
            return False
        if row.idem_state in _RUNNING and not self._lapsed(row):
            return False
        state, live = (State.COMPLETED, 1) if move is Move.SETTLE else (State.RELEASED, None)
        self._change(row, idem_state=state, idem_live=live, **_NO_ANSWER)
        self._chunks.pop(row.id, None)
        return True

    # --- The log --------------------------------------------------------------------------------

    async def write(self, batch: Batch) -> None:
        """See the protocol."""
        for row in (*batch.calls, *batch.attempts, *batch.events):
            _check(row)
        for call in batch.calls:
            if call.id not in self.calls:
                self.calls[call.id] = call
                self._make_room(call.id)
        for attempt in batch.attempts:
            self.attempts.setdefault((attempt.request, attempt.n), attempt)
        for event in batch.events:
            self.events.setdefault(event.id, event)
        for rows in (self.attempts, self.events):
            while len(rows) > LOG_ROWS:
                rows.popitem(last=False)

    async def purge(self, purge: Purge) -> Purged:
        """See the protocol."""
        keys, dropped = self._expire(purge.limit)
        dropped += self._evict(purge)
        calls = [
            row.id
            for row in self.calls.values()
            if not row.idem_live and max(row.started_us, row.ended_us or 0) < purge.before_us
        ]
        gone = set(calls[: purge.limit])
        attempts = [
            key
            for key, row in self.attempts.items()
            if key[0] in gone or (key[0] not in self.calls and row.started_us < purge.before_us)
        ]
        events = [id_ for id_, row in self.events.items() if row.at_us < purge.before_us]
        for id_ in gone:
            dropped += self._chunks.pop(id_, {}).values()
            del self.calls[id_]
        for key in attempts:
            del self.attempts[key]
        for id_ in events:
            del self.events[id_]
        self._over = deque(id_ for id_ in self._over if id_ in self.calls)
        self._forget_owners(purge.before_us)
        return Purged(
            requests=len(gone),
            attempts=len(attempts),
            chunks=len(dropped),
            events=len(events),
            keys=keys,
            stored_bytes=sum(each.raw_bytes for each in dropped),
            more=len(calls) > purge.limit,
        )

    def _expire(self, limit: int) -> tuple[int, list[ChunkRow]]:
        """Free the keys whose time is over: how many, and what was dropped of their answers."""
        over = [
            row
            for id_ in self._live.values()
            if self._expired(row := self.calls[id_]) and self._may_be_taken(row)
        ]
        dropped: list[ChunkRow] = []
        for row in over[:limit]:
            state = State.RELEASED if row.idem_state == State.CLAIMED else row.idem_state
            self._change(row, idem_state=state, idem_live=None, **_NO_ANSWER)
            dropped += self._chunks.pop(row.id, {}).values()
        return len(over[:limit]), dropped

    def _evict(self, purge: Purge) -> list[ChunkRow]:
        """Drop the oldest answers beyond the bytes allowed, and give them; their keys stay used."""
        dropped: list[ChunkRow] = []
        if purge.max_bytes is None:
            return dropped
        sizes = {
            id_: sum(len(each.body) for each in chunks.values())
            for id_, chunks in self._chunks.items()
        }
        excess = sum(sizes.values()) - purge.max_bytes
        # Parts of answers whose calls ended uncertain go first: they are never replayed.
        kinds = {State.UNCERTAIN: 0, State.COMPLETED: 1}
        for _, id_ in sorted(
            (kinds.get(State(self.calls[id_].idem_state or State.RELEASED), 2), id_)
            for id_ in sizes
        ):
            row = self.calls[id_]
            if excess <= 0:
                break
            if row.idem_state in kinds:
                self._change(row, **_NO_ANSWER)
                dropped += self._chunks.pop(id_).values()
                excess -= sizes[id_]
        return dropped

    def _forget_owners(self, before_us: int) -> None:
        until = min(before_us, self._now())
        for id_ in [id_ for id_, each in self._owners.items() if each.lease_until_us < until]:
            del self._owners[id_]

    # --- Rows -----------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self._wall() * MICROSECONDS)

    def _lapsed(self, row: CallRow) -> bool:
        owner = self._owners.get(row.owner_id or "")
        return not row.idem_live or owner is None or owner.lease_until_us <= self._now()

    def _expired(self, row: CallRow) -> bool:
        return row.expires_us is not None and row.expires_us <= self._now()

    def _live_row(self, id_: str) -> CallRow | None:
        row = self.calls.get(id_)
        return row if row is not None and row.idem_live else None

    def _mine(self, ref: Ref) -> CallRow | None:
        row = self._live_row(ref.id)
        return row if row is not None and row.idem_epoch == ref.epoch else None

    def _record(self, row: CallRow) -> Record:
        return Record(
            id=row.id,
            epoch=row.idem_epoch or 1,
            state=State(row.idem_state or ""),
            fingerprint=row.idem_fp or "",
            owner_id=row.owner_id or "",
            lapsed=self._lapsed(row),
            expired=self._expired(row),
            stored=row.resp_chunks is not None,
            cost_nusd=row.cost_nusd,
            status=row.status,
            outcome=row.outcome,
            model_answered=row.model_answered,
            upstream=row.upstream,
            now_us=self._now(),
        )

    def _change(self, row: CallRow, **values: Any) -> None:
        changed = row._replace(**values)
        self.calls[row.id] = changed
        if row.idem_live and not changed.idem_live:
            del self._live[row.idem_scope or ""]
            self._make_room(row.id)
        self._watchers.tell(row.id)

    def _make_room(self, id_: str) -> None:
        self._over.append(id_)
        while len(self._over) > LOG_ROWS:
            oldest = self._over.popleft()
            self._chunks.pop(oldest, None)
            self.calls.pop(oldest, None)


def _check(row: tuple[str | int | bytes | None, ...]) -> None:
    """Refuse what no database takes."""
    for value in row:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise LedgerRefused(f"{value} does not fit into 64 bits")
        if isinstance(value, str) and not _encodable(value):
            raise LedgerRefused("text with a lone surrogate cannot be stored")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
