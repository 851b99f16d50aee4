"""Taking turns at a SQLite file, and writing it as a guest."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steer_policies.idempotency import Move
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.sqlite_locks import Turn


def test_one_at_a_time(tmp_path: Path) -> None:
    """Who does not get a turn in time is told, and can ask again."""
    one, two = Turn(tmp_path / "a.db", 0.01), Turn(tmp_path / "a.db", 0.01)
    with one, pytest.raises(LedgerUnavailable, match="another process has been writing"), two:
        pass
    with two, pytest.raises(LedgerUnavailable), one:
        pass
    one.close()
    two.close()


def test_the_next_gets_it(tmp_path: Path) -> None:
    """As soon as it is given back: also by the death of who had it."""
    path = tmp_path / "a.db"
    code = (
        "import sys; from pathlib import Path; from steer_proxy.ledger.sqlite_locks import Turn\n"
        "with Turn(Path(sys.argv[1]), 1): print('mine', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    turn = Turn(path, 5.0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        other.kill()
        with turn:
            pass
    turn.close()


def test_where_there_can_be_no_turn(tmp_path: Path) -> None:
    """The file cannot be opened either, and that error says more."""
    with Turn(tmp_path / "no" / "a.db", 0.01):
        pass


@pytest.mark.real_time
async def test_the_writer_waits_for_its_turn(tmp_path: Path) -> None:
    """And goes on when it has it."""
    ledger = SqliteLedger(tmp_path / "a.db", time.time, busy_timeout=0.05)
    await ledger.open()
    descriptor = os.open(tmp_path / "a.db-turn", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(LedgerUnavailable, match="another process has been writing"):
        await ledger.renew("o", "i", 1.0, ())
    os.close(descriptor)
    await ledger.renew("o", "i", 1.0, ())
    await ledger.close()


@pytest.mark.real_time
async def test_a_guest_makes_no_ledger(tmp_path: Path) -> None:
    """Neither a file nor a schema."""
    guest = SqliteLedger(tmp_path / "a.db", time.time, guest=True)
    with pytest.raises(LedgerUnusable):
        await guest.open()
    await guest.close()
    assert not (tmp_path / "a.db").exists()
    (tmp_path / "a.db").touch()
    guest = SqliteLedger(tmp_path / "a.db", time.time, guest=True)
    with pytest.raises(LedgerUnusable, match="no ledger yet"):
        await guest.open()
    await guest.close()


@pytest.mark.real_time
async def test_a_guest_beside_the_writer(tmp_path: Path) -> None:
    """It needs no lock and ends no lease; a second writer is still refused."""
    ledger = SqliteLedger(tmp_path / "a.db", time.time)
    await ledger.open()
    await ledger.renew("o", "i", 60.0, ())
    guest = SqliteLedger(tmp_path / "a.db", time.time, guest=True)
    await guest.open()
    assert not await guest.settle("nothing", Move.REOPEN)
    second = SqliteLedger(tmp_path / "a.db", time.time)
    with pytest.raises(LedgerUnusable, match="has one writer"):
        await second.open()
    await second.close()
    await guest.close()
    assert not (await ledger.renew("o", "i", 60.0, ("x",))).lapsed
    await ledger.close()
