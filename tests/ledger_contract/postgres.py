"""PostgreSQL as a subject of the contract. Its time is its own: instead of it, leases and expiries
are moved."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from steer_proxy.ledger.address import Postgres, parse_address
from steer_proxy.ledger.postgres import PostgresLedger
from steer_proxy.ledger.values import MICROSECONDS
from tests.ledger_contract.subject import Subject, Subjects


class PostgresSubject(Subject):
    """A database of the test's own."""

    ledger: PostgresLedger

    def __init__(self, url: str) -> None:
        self.url = url
        self.ledger = self._made()

    def now_us(self) -> int:
        return time.time_ns() // 1000

    async def advance(self, seconds: float) -> None:
        earlier = int(seconds * MICROSECONDS)
        await self._ask(f"UPDATE owners SET lease_until_us = lease_until_us - {earlier}")
        await self._ask(f"UPDATE requests SET expires_us = expires_us - {earlier}")

    async def reopen(self) -> None:
        await self.ledger.close()
        self.ledger = self._made()
        await self.ledger.open()

    async def rows(self, table: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._ask(f"SELECT * FROM {table}")]

    def _made(self) -> PostgresLedger:
        address = parse_address(self.url)
        assert isinstance(address, Postgres)
        return PostgresLedger(address)

    async def _ask(self, statement: str) -> list[Any]:
        connection = await asyncpg.connect(self.url)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()


def postgres_subjects(url: str) -> Subjects:
    """Makes subjects in a migrated database."""

    @asynccontextmanager
    async def subjects() -> AsyncIterator[Subject]:
        subject = PostgresSubject(url)
        await subject.ledger.open()
        try:
            yield subject
        finally:
            await subject.ledger.close()

    return subjects
