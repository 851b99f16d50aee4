"""What a ledger does. Every implementation passes the same contract suite.

A ledger never retries and never waits longer than its statement time-out (2 s): it says that it is
unavailable, and its caller decides. It connects, and connects again, by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from steer_policies.idempotency import Move
from steer_proxy.ledger.values import (
    Batch,
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

#: The longest a statement may take, in seconds.
STATEMENT_TIMEOUT: Final = 2.0


class LedgerUnavailable(Exception):
    """The ledger cannot be reached or written now; it may be later. The message says why."""


class LedgerUnusable(Exception):
    """The ledger cannot be used as it is, and waiting does not mend it: the message says what to do
    (a bad path, no permission, another writing process, a schema this version must not write)."""


class LedgerRefused(Exception):
    """The ledger works, but does not take these values: trying again is of no use. The message says
    why. Nothing of what was to be written is there."""


class Ledger(Protocol):
    """Idempotency records and the log of calls.

    Every method that talks to the database raises `LedgerUnavailable` when it cannot. A cancelled
    call may or may not have been carried out.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes may own records: then a running call elsewhere is followed
        through the ledger."""

    @property
    def secret(self) -> bytes | None:
        """The key of scopes, fingerprints and caller marks, made with the schema; None until the
        ledger was reached for the first time."""

    @property
    def available(self) -> bool:
        """Whether the last thing asked of the ledger worked."""

    async def open(self) -> None:
        """Connect, and migrate where that is this ledger's own business (SQLite).

        Raises:
            LedgerUnusable: see there.
            LedgerUnavailable: not now; every later call tries again by itself.
        """

    async def close(self) -> None:
        """Write what is queued and let go of everything. Idempotent, never raises."""

    async def check_keys(self, checks: Mapping[str, str]) -> dict[str, str]:
        """Remember the check values of encryption keys, by name, unless a name has one already.

        Returns those of all names there are.
        """

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
        """Register a process, or extend its lease to `lease` seconds from now, in one statement.

        `held` are the ids of the records it believes to own: after a lapse, those it lost are told.
        So they are when it is `unsure`: the reply to an earlier renewal, which may have told them,
        was lost.
        """

    async def retire(self, owner: str) -> None:
        """End a process's lease now: what it still has, lapses."""

    # --- Records --------------------------------------------------------------------------------

    async def claim(self, claim: Claim) -> Record | None:
        """Make a key's live record; None when that worked, else the live record there is.

        A claim whose reply was lost can be made again: its own row is not in its way.
        """

    async def take_over(self, claim: Claim, found: Record) -> Record | None:
        """Put a claim in the place of a record that is lapsed or expired, with the next epoch.

        In one short transaction: the old row is no longer live (it becomes `released` when it was
        claimed; otherwise it keeps its state), the new one has epoch + 1. None when that
        worked; else the record that is there now (someone else was quicker, or its owner is alive
        after all). The new epoch is `found.epoch + 1`.
        """

    async def mark_sent(self, ref: Ref) -> bool:
        """Move a record from claimed to sent; False when it is no longer the caller's. Repeating it
        is harmless."""

    async def finish(self, finish: Finish) -> bool:
        """Complete, doubt or release a record, with its chunks, in one transaction; False when it
        is no longer the caller's. Repeating it is harmless. Released records are no longer live.
        Where an answer is not stored and no chunks are given, those written before are removed."""

    async def begin_answer(
        self, ref: Ref, status: int, headers: str, keyring_id: str | None = None
    ) -> bool:
        """Make the head of a running call's answer known to other processes (shared ledgers), and
        the key that it and the chunks to come are encrypted with."""

    async def add_chunks(self, chunks: Sequence[ChunkRow]) -> None:
        """Write chunks of running calls; ones that are there already are left alone."""

    async def trim_chunks(self, ref: Ref, before: int) -> None:
        """Remove the chunks of a running call's answer that begin before a byte of it: who follows
        it has had them, and it will not be stored."""

    async def drop_chunks(self, ref: Ref) -> None:
        """Remove the head and the chunks of a call, running or completed, whose answer is not
        stored after all."""

    async def find(self, scope: str) -> Record | None:
        """A key's live record."""

    async def answer(self, id: str, first: int = 0) -> StoredAnswer | None:  # noqa: A002
        """A completed record's answer with its `first` chunks; None when it is gone."""

    async def chunks(self, id: str, after: int, limit: int) -> list[ChunkRow]:  # noqa: A002
        """At most `limit` chunks of an answer with `seq` greater than `after`, in order."""

    async def follow(self, id: str, after: int, limit: int) -> Following:  # noqa: A002
        """How a running call of another process has come along since chunk `after`."""

    def watch(self, id: str) -> AbstractAsyncContextManager[asyncio.Event]:  # noqa: A002
        """An event that is set when there may be news of a record another process owns.

        It may never be set (behind a connection pooler, say): who waits, asks now and then as well.
        """

    def followed(self, id: str) -> bool:  # noqa: A002
        """Whether another process is known to watch a record of this one's. It may be unknown (see
        `watch`), and be known for a while after it is over."""

    async def settle(self, id: str, move: Move) -> bool:  # noqa: A002
        """Move an uncertain or lapsed record by hand, SETTLE or REOPEN; False when its state (or a
        living owner) does not allow it."""

    # --- The log --------------------------------------------------------------------------------

    async def write(self, batch: Batch) -> None:
        """Write rows of the log, all or none; rows that are there already are left alone.

        Raises:
            LedgerRefused: a row holds what cannot be stored (a number beyond 64 bits).
        """

    async def purge(self, purge: Purge) -> Purged:
        """Remove one slice of what is over: in time that no other caller notices."""
