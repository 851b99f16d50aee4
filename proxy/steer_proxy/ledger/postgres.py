"""The ledger in PostgreSQL, which many processes may share.

Each thing it does is one autocommit statement, so that nothing is locked while anybody waits for a
round trip. It connects when it is first needed, and again when it must.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from steer_policies.idempotency import Move, State
from steer_proxy import __version__
from steer_proxy.ledger import postgres_statements as sql
from steer_proxy.ledger.address import Postgres
from steer_proxy.ledger.migrate import WRITER, check, state_of
from steer_proxy.ledger.parameters import Statement
from steer_proxy.ledger.postgres_errors import without_rights
from steer_proxy.ledger.postgres_news import News
from steer_proxy.ledger.postgres_pool import Pool
from steer_proxy.ledger.postgres_purge import purge_slice
from steer_proxy.ledger.postgres_values import arrays, clean, named, text
from steer_proxy.ledger.protocol import LedgerRefused, LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.values import (
    MICROSECONDS,
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

LOGGER: Final = logging.getLogger("steer.ledger")

#: A pooler gives a connection to others after each transaction, with what is set on it.
UNSAFE_COMMIT: Final = (
    "synchronous_commit is off for this role, and cannot be set behind a pooler: after a crash of "
    "the server, keys may be unknown, and their calls paid twice; ALTER ROLE ... SET "
    "synchronous_commit = on"
)

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[Any]


class PostgresLedger:
    """A ledger in a PostgreSQL database; `wall` gives Unix seconds."""

    def __init__(self, address: Postgres, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._pool = Pool(address.dsn, self._greet, pooled=not address.prepared)
        self._news = News(self._pool)
        self._secret: bytes | None = None
        self._available = False
        self._told = False
        """Whether it was said that a crash of the server loses records."""

    @property
    def shared(self) -> bool:
        """Always: other processes may own records."""
        return True

    @property
    def secret(self) -> bytes | None:
        """Read when a connection is made."""
        return self._secret

    @property
    def available(self) -> bool:
        """Whether the last statement worked."""
        return self._available

    async def open(self) -> None:
        """See the protocol; migrating is for `steer db upgrade`."""
        await self._ask(sql.PING)

    async def close(self) -> None:
        """See the protocol; takes some seconds at most."""
        await self._news.close()
        await self._pool.close()
        self._available = False

    async def check_keys(self, checks: Mapping[str, str]) -> dict[str, str]:
        """See the protocol. Nothing is written when all names are known."""
        known = await self._key_checks()
        if checks.keys() <= known.keys():
            return known
        for name, value in checks.items():
            await self._fetch(sql.ADD_KEY_CHECK, name=name, value=value)
        return await self._key_checks()

    async def _key_checks(self) -> dict[str, str]:
        return {row["name"]: row["value"] for row in await self._fetch(sql.KEY_CHECKS)}

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
        """See the protocol. A second statement only after a lapse, or when unsure.

        Whoever takes a record over locks the owner's row first, so the loss is there to be read.
        """
        (row,) = await self._fetch(
            sql.RENEW,
            owner=owner,
            instance=instance,
            version=__version__,
            lease_us=int(lease * MICROSECONDS),
        )
        self._check_writer(row["min_writer"])
        before = row["before_us"]
        lapsed = bool(held) if before is None else before <= row["now_us"]
        if not (lapsed or unsure):
            return Lease(lapsed=False, now_us=row["now_us"])
        kept = await self._fetch(sql.HELD, owner=owner, held=list(held)) if held else []
        lost = frozenset(held) - {each["id"] for each in kept}
        return Lease(lapsed, lost, row["now_us"])

    async def retire(self, owner: str) -> None:
        """See the protocol."""
        await self._fetch(sql.RETIRE, owner=owner)

    # --- Records --------------------------------------------------------------------------------

    async def claim(self, claim: Claim) -> Record | None:
        """See the protocol. One statement, when the key is free."""
        self._news.start()
        arguments = tuple(clean(claim.row))
        # Between the two looks the record that was in the way may be released.
        for _ in range(2):
            if await self._run(sql.CLAIM, arguments):
                return None
            found = await self.find(claim.row.idem_scope or "")
            if found is not None:
                return None if found.made_of(claim.row) else found
        raise await self._lost_claim(claim.row.id)

    async def take_over(self, claim: Claim, found: Record) -> Record | None:
        """See the protocol. All in one statement."""
        self._news.start()
        row = claim.row._replace(idem_epoch=found.epoch + 1)
        old = {
            "old_id": found.id,
            "old_epoch": found.epoch,
            "old_owner": found.owner_id,
            "old_state": found.state.value,
            "old_now_us": found.now_us,
            "wall_us": self._wall_us(),
        }
        arguments = sql.TAKE_OVER.arguments({**named(row), **old})
        for _ in range(2):
            try:
                taken = await self._run(sql.TAKE_OVER, arguments)
            except LedgerRefused:
                if await self._fetch(sql.EXISTS, id=row.id):
                    break
                raise
            if taken:
                self._news.tell(found.id)
                return None
            there = await self.find(row.idem_scope or "")
            if there is not None:
                return None if there.made_of(row) else there
        raise await self._lost_claim(row.id)

    async def mark_sent(self, ref: Ref) -> bool:
        """See the protocol."""
        return bool(await self._fetch(sql.MARK_SENT, id=ref.id, epoch=ref.epoch))

    async def finish(self, finish: Finish) -> bool:
        """See the protocol. One statement, its chunks included."""
        values = named(finish.row)
        values.update(id=finish.ref.id, epoch=finish.ref.epoch)
        kept = finish.row.resp_chunks is not None or finish.chunks
        if finish.state is not State.UNCERTAIN and not kept:
            statement = sql.FINISH_BARE[finish.state]
        else:
            statement = sql.FINISH[finish.state]
            values.update(arrays(ChunkRow, finish.chunks, "chunk_"))
        done = bool(await self._run(statement, statement.arguments(values)))
        self._news.tell(finish.ref.id)
        return done

    async def begin_answer(
        self, ref: Ref, status: int, headers: str, keyring_id: str | None = None
    ) -> bool:
        """See the protocol."""
        done = await self._fetch(
            sql.BEGIN_ANSWER,
            id=ref.id,
            epoch=ref.epoch,
            status=status,
            headers=text(headers),
            keyring_id=keyring_id,
        )
        self._news.tell(ref.id)
        return bool(done)

    async def add_chunks(self, chunks: Sequence[ChunkRow]) -> None:
        """See the protocol. One statement."""
        if chunks:
            await self._fetch(sql.ADD_CHUNKS, **arrays(ChunkRow, chunks))
            for id_ in {chunk.request for chunk in chunks}:
                self._news.tell(id_)

    async def trim_chunks(self, ref: Ref, before: int) -> None:
        """See the protocol."""
        await self._fetch(sql.TRIM_CHUNKS, id=ref.id, epoch=ref.epoch, before=before)

    async def drop_chunks(self, ref: Ref) -> None:
        """See the protocol."""
        await self._fetch(sql.DROP_CHUNKS, id=ref.id, epoch=ref.epoch)
        self._news.tell(ref.id)

    async def find(self, scope: str) -> Record | None:
        """See the protocol."""
        rows = await self._fetch(sql.FIND, scope=scope, wall_us=self._wall_us())
        return _record(rows[0]) if rows else None

    async def answer(self, id: str, first: int = 0) -> StoredAnswer | None:  # noqa: A002
        """See the protocol."""
        rows = await self._fetch(sql.ANSWER, id=id)
        if not rows:
            return None
        (row,) = rows
        return StoredAnswer(
            row["id"],
            row["status"] or 0,
            row["resp_headers"] or "",
            row["resp_bytes"] or 0,
            row["resp_chunks"],
            row["resp_sha256"],
            row["keyring_id"],
            tuple(await self.chunks(id, -1, first)) if first else (),
        )

    async def chunks(self, id: str, after: int, limit: int) -> list[ChunkRow]:  # noqa: A002
        """See the protocol."""
        rows = await self._fetch(sql.CHUNKS, id=id, after=after, limit=limit)
        return [ChunkRow(*row) for row in rows]

    async def follow(self, id: str, after: int, limit: int) -> Following:  # noqa: A002
        """See the protocol. One statement."""
        wall_us = self._wall_us()
        rows = await self._fetch(sql.FOLLOW, id=id, after=after, limit=limit, wall_us=wall_us)
        if not rows:
            return Following(None, None, None)
        head = rows[0]
        chunks = tuple(
            ChunkRow(*(row[name] for name in ChunkRow._fields))
            for row in rows
            if row["seq"] is not None
        )
        return Following(
            _record(head), head["resp_headers"], head["status"], chunks, head["keyring_id"]
        )

    def watch(self, id: str) -> AbstractAsyncContextManager[asyncio.Event]:  # noqa: A002
        """See the protocol."""
        return self._news.watch(id)

    def followed(self, id: str) -> bool:  # noqa: A002 - the column's name
        """See the protocol."""
        return self._news.wanted(id)

    async def settle(self, id: str, move: Move) -> bool:  # noqa: A002
        """See the protocol."""
        done = bool(await self._fetch(sql.SETTLE[move], id=id))
        self._news.tell(id)
        return done

    # --- The log --------------------------------------------------------------------------------

    async def write(self, batch: Batch) -> None:
        """See the protocol. One statement for all tables."""
        if len(batch):
            await self._fetch(
                sql.WRITE,
                **arrays(CallRow, map(clean, batch.calls), "call_"),
                **arrays(AttemptRow, map(clean, batch.attempts), "attempt_"),
                **arrays(BreakerEventRow, map(clean, batch.events), "event_"),
            )

    async def purge(self, purge: Purge) -> Purged:
        """See the protocol. Some short statements."""
        return await purge_slice(self._fetch, purge, self._wall_us())

    # --- Inside ---------------------------------------------------------------------------------

    def _wall_us(self) -> int:
        return int(self._wall() * MICROSECONDS)

    async def _greet(self, connection: Connection) -> None:
        """Look at the ledger that a new connection leads to."""
        try:
            row = await connection.fetchrow(sql.META.sql)
        except asyncpg.UndefinedTableError:
            row = None
        facts: Mapping[str, Any] = row or dict.fromkeys(("revision", "min_writer", "secret"))
        state = state_of(facts["revision"], facts["min_writer"])
        try:
            check(state)
        except LedgerUnusable as error:
            if state.min_writer > WRITER:
                raise
            # Somebody may upgrade it while we run.
            raise LedgerUnavailable(str(error)) from None
        try:
            self._secret = bytes.fromhex(facts["secret"] or "")
        except ValueError:
            self._secret = None
        if not self._secret:
            raise LedgerUnusable("steer_meta has no secret in hexadecimal digits: restore its row")
        if facts["missing"]:
            raise without_rights(facts["missing"])
        if facts["synchronous_commit"] == "off":
            await self._commit_to_disk(connection)

    async def _commit_to_disk(self, connection: Connection) -> None:
        """A claim that a crash of the server takes back is a call that is paid twice."""
        if not self._pool.pooled:
            await connection.execute(sql.COMMIT)
        elif not self._told:
            self._told = True
            LOGGER.warning("%s", UNSAFE_COMMIT)

    def _check_writer(self, min_writer: str | None) -> None:
        """Notice that a newer version has taken the ledger for itself."""
        if min_writer is None or not min_writer.isdecimal() or int(min_writer) > WRITER:
            # The next connection is looked at, and refused.
            self._pool.drop()

    async def _lost_claim(self, id_: str) -> LedgerUnavailable:
        ended = await self._fetch(sql.EXISTS, id=id_)
        return LedgerUnavailable(
            "somebody ended this claim while its reply was lost"
            if ended
            else "the key changes hands too fast"
        )

    async def _fetch(self, statement: Statement, **values: Any) -> list[Any]:
        return await self._run(statement, statement.arguments(values))

    async def _run(self, statement: Statement, arguments: Sequence[Any]) -> list[Any]:
        try:
            return await self._ask(statement, arguments)
        except LedgerUnusable as error:
            # Only who opens a ledger can end because of it.
            raise LedgerUnavailable(str(error)) from None

    async def _ask(self, statement: Statement, arguments: Sequence[Any] = ()) -> list[Any]:
        try:
            rows = await self._pool.fetch(statement, arguments)
        except LedgerRefused:
            self._available = True
            raise
        except (LedgerUnavailable, LedgerUnusable):
            self._available = False
            raise
        self._available = True
        return rows


def _record(row: Any) -> Record:
    return Record(
        row["id"],
        row["idem_epoch"],
        State(row["idem_state"]),
        row["idem_fp"] or "",
        row["owner_id"] or "",
        row["lapsed"],
        row["expired"],
        row["stored"],
        row["cost_nusd"],
        row["status"],
        row["outcome"],
        row["model_answered"],
        row["upstream"],
        row["now_us"],
    )
