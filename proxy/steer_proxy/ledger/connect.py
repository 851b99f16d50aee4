"""The ledger a database URL names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from steer_proxy.ledger.address import Memory, Postgres, Sqlite, parse_address
from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.protocol import Ledger


def open_ledger(url: str, wall: Callable[[], float]) -> Ledger:
    """The ledger at a database URL, not opened yet; `wall` gives Unix seconds.

    A driver is imported only for the ledger that needs it.

    Raises:
        ValueError: the URL is none of a ledger; the message does not quote it.
    """
    match parse_address(url):
        case Memory():
            return MemoryLedger(wall)
        case Sqlite(path):
            from steer_proxy.ledger.sqlite import SqliteLedger

            return SqliteLedger(Path(path), wall)
        case Postgres() as address:
            from steer_proxy.ledger.postgres import PostgresLedger

            return PostgresLedger(address, wall)
