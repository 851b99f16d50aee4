"""`steer ledger purge` and `resolve`, on both databases and beside a running sidecar."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from steer_proxy.engine.purging import Pace
from steer_proxy.ledger.postgres import PostgresLedger
from steer_proxy.ledger.protocol import LedgerUnavailable
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.values import CallRow, ChunkRow, Claim, Purge, Purged, Record
from tests.proxy.cli.conftest import Steer
from tests.support.filled import Filled, FilledPostgres, FilledSqlite, fill
from tests.support.ledger_data import BASE_US, DAY, LedgerData

ORDER_2 = "00000000-0000-7000-8000-000000000025"

Run = Callable[..., Result]


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Filled:
    """The made-up ledger, to be changed."""
    if request.param == "sqlite":
        return FilledSqlite(tmp_path / "steer.db")
    return FilledPostgres(request.getfixturevalue("postgres_url"))


@pytest.fixture
def run(steer: Steer, ledger: Filled) -> Run:
    """Run a command of `steer ledger` on it."""
    url = f"sqlite:///{ledger.path}" if isinstance(ledger, FilledSqlite) else None
    url = ledger.url if isinstance(ledger, FilledPostgres) else url

    def run(*arguments: str) -> Result:
        return steer("ledger", *arguments, "--database-url", str(url))

    return run


def record(ledger: Filled, id_: str) -> tuple[Any, ...]:
    """A row's state, whether it is live, and what is stored of its answer."""
    (found,) = ledger.rows(
        f"SELECT idem_state, idem_live, resp_chunks FROM requests WHERE id = '{id_}'"
    )
    return found


# --- resolve


@pytest.mark.real_time
@pytest.mark.parametrize("name", ["order-2", ORDER_2])
def test_a_key_is_freed(run: Run, ledger: Filled, name: str) -> None:
    """By its key or its call's id; a second time there is nothing to do."""
    result = run("resolve", name, "--rerun")
    assert (result.exit_code, result.stdout) == (
        0,
        (
            f"key 'order-2' (call {ORDER_2}): uncertain -> released: the next call with it is "
            "made.\n"
        ),
    )
    assert record(ledger, ORDER_2) == ("released", None, None)
    again = run("resolve", name, "--rerun")
    assert (again.exit_code, again.stderr) == (
        1,
        f"steer: the key of call {ORDER_2} is free already: its next call is made\n",
    )


@pytest.mark.real_time
def test_a_call_counts_as_made(run: Run, ledger: Filled) -> None:
    """The key stays used; its answer is not stored."""
    result = run("resolve", "order-5", "--discard")
    assert result.exit_code == 0
    assert "uncertain -> completed without an answer" in result.stdout
    assert record(ledger, "00000000-0000-7000-8000-000000000028") == ("completed", 1, None)


@pytest.mark.real_time
@pytest.mark.parametrize(("how", "to_state"), [("--rerun", "released"), ("--discard", "completed")])
def test_who_settled_a_key(
    run: Run, ledger: Filled, monkeypatch: pytest.MonkeyPatch, how: str, to_state: str
) -> None:
    """An event says who, when and how; `show` prints it with the call."""
    monkeypatch.setenv("LOGNAME", "alice")
    began = int(time.time() * 1_000_000)
    assert run("resolve", "order-2", how).exit_code == 0
    ((at_us, *event),) = ledger.rows(
        "SELECT at_us, upstream, from_state, to_state, reason, request, actor FROM breaker_events"
        " WHERE kind = 'manual'"
    )
    actor = f"alice@{socket.gethostname()}"
    reason = f"steer ledger resolve {how}"
    assert event == ["openai", "uncertain", to_state, reason, ORDER_2, actor]
    assert began <= at_us <= time.time() * 1_000_000
    (settled,) = json.loads(run("show", ORDER_2, "--json").stdout)["settled"]
    assert settled.pop("settled_at").startswith("20")
    assert settled == {
        "actor": actor,
        "from_state": "uncertain",
        "to_state": to_state,
        "reason": reason,
    }
    shown = run("show", ORDER_2).stdout.partition("\nsettled by hand\n")[2]
    assert re.search(rf"Z +{re.escape(actor)} +uncertain +{to_state} +{reason}\n", shown)
    assert "settled by hand" not in run("show", "order-1").stdout


@pytest.mark.real_time
def test_a_settled_key_is_settled_whoever_is_not_told(
    run: Run, ledger: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger went away in between: exit code 0, and a word of what is missing."""

    async def away(*_: Any) -> None:
        raise LedgerUnavailable("the test says so")

    for kind in (SqliteLedger, PostgresLedger):
        monkeypatch.setattr(kind, "write", away)
    result = run("resolve", "order-2", "--rerun")
    assert (result.exit_code, record(ledger, ORDER_2)) == (0, ("released", None, None))
    assert "could not be written down: the test says so" in result.stderr


@pytest.mark.real_time
def test_nobody_settled_what_could_not_be(run: Run, ledger: Filled) -> None:
    """What was refused has changed nothing, and is no event."""
    assert run("resolve", "order-1", "--rerun").exit_code == 1
    assert ledger.rows("SELECT id FROM breaker_events WHERE kind = 'manual'") == []


@pytest.mark.real_time
def test_a_claim_that_was_abandoned(run: Run, ledger: Filled) -> None:
    """Nothing was sent: it can be freed, and does not count as made."""
    result = run("resolve", "order-3", "--discard")
    assert (result.exit_code, "nothing was sent: use --rerun" in result.stderr) == (1, True)
    assert run("resolve", "order-3", "--rerun").exit_code == 0
    assert record(ledger, "00000000-0000-7000-8000-000000000026") == ("released", None, None)


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("order-1", "is completed: there is nothing to settle"),
        ("req-22", "is completed: there is nothing to settle"),
        ("order-4", "is in use: its call is running at steer-1"),
        ("order-6", "is free already"),
        ("req-1", "has no key"),
        ("no-such", "no call has the id, the key or the request id 'no-such'"),
    ],
)
def test_nothing_to_settle(run: Run, name: str, expected: str) -> None:
    """Exit code 1, and why; a duplicate stands for the call that served it."""
    for how in ("--rerun", "--discard"):
        result = run("resolve", name, how)
        assert (result.exit_code, result.stdout) == (1, "")
        assert expected in result.stderr


def test_a_key_of_two_callers(steer: Steer, tmp_path: Path) -> None:
    """They are listed, to be named by their ids: exit code 2."""
    ledger = FilledSqlite(tmp_path / "steer.db")
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        connection.execute("UPDATE requests SET idem_key = 'order-2' WHERE idem_key = 'order-5'")
    url = f"sqlite:///{ledger.path}"
    for command in (("show", "order-2"), ("resolve", "order-2", "--rerun")):
        result = steer("ledger", *command, "--database-url", url)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "'order-2' names 2 calls; name one by its id:" in result.stderr
        assert re.findall(r"-0000000000(\d\d) ", result.stderr) == ["28", "25"]
    assert steer("ledger", "resolve", ORDER_2, "--rerun", "--database-url", url).exit_code == 0


def claim_of(id_: str) -> Claim:
    """A wish to run a call, that begins as sent."""
    now = int(time.time() * 1_000_000)
    return Claim(
        CallRow(
            id=id_,
            request_id=id_,
            started_us=now,
            idem_key="k",
            idem_scope="s",
            idem_fp="f",
            idem_role="owner",
            idem_state="sent",
            idem_live=1,
            idem_epoch=1,
            owner_id="dead",
            sent_us=now,
            expires_us=now + 10**12,
        )
    )


@pytest.mark.real_time
async def test_beside_a_running_sidecar(steer: Steer, tmp_path: Path) -> None:
    """Its file's one writer goes on; nobody is asked to stop anything."""
    running = SqliteLedger(tmp_path / "steer.db", time.time)
    await running.open()
    try:
        await running.renew("alive", "here", 60.0, ())
        assert await running.claim(claim_of("first")) is None
        found = await running.find("s")
        assert isinstance(found, Record)
        assert found.lapsed

        async def command(*arguments: str) -> Result:
            url = f"sqlite:///{tmp_path}/steer.db"
            return await asyncio.to_thread(steer, "ledger", *arguments, "--database-url", url)

        result = await command("resolve", "k", "--rerun")
        assert result.exit_code == 0, result.output
        assert await running.find("s") is None
        assert await running.claim(claim_of("second")) is None
        purged = await command("purge", "--before", "0s", "--json")
        assert json.loads(purged.stdout)["requests"] == 1
        # It has left the leases alone: what runs still runs.
        assert not (await running.renew("alive", "here", 60.0, ("second",))).lapsed
    finally:
        await running.close()


@pytest.mark.real_time
@pytest.mark.parametrize("lives", [True, False])
async def test_a_lease_that_the_clock_has_ended(
    steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """The file's writer is there: it has the time to renew it before its call counts as over."""
    running = SqliteLedger(tmp_path / "steer.db", time.time)
    await running.open()
    loop = asyncio.get_running_loop()
    waited = []

    def renew() -> None:
        waited.append(lives)
        if lives:
            renewal = running.renew("dead", "here", 60.0, ("first",))
            asyncio.run_coroutine_threadsafe(renewal, loop).result(10)

    monkeypatch.setattr("steer_proxy.cli.ledger_change._let_renew", renew)
    try:
        await running.renew("dead", "here", 0.0, ())
        assert await running.claim(claim_of("first")) is None
        url = f"sqlite:///{tmp_path}/steer.db"
        result = await asyncio.to_thread(
            steer, "ledger", "resolve", "k", "--rerun", "--database-url", url
        )
        assert waited == [lives]
        assert ("is in use" in result.output) is lives
        assert (await running.find("s") is None) is not lives
    finally:
        await running.close()


def test_a_lease_of_a_process_that_is_gone(
    steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is waited for."""
    monkeypatch.delattr("steer_proxy.cli.ledger_change._let_renew")
    ledger = FilledSqlite(tmp_path / "steer.db")
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        connection.execute("DELETE FROM owners")
        connection.execute("INSERT INTO owners VALUES ('last', 'here', '1', 0, 1)")
        sent = f"SET idem_state = 'sent', owner_id = 'last' WHERE id = '{ORDER_2}'"
        connection.execute(f"UPDATE requests {sent}")
    url = f"sqlite:///{ledger.path}"
    assert steer("ledger", "resolve", ORDER_2, "--rerun", "--database-url", url).exit_code == 0


def test_a_free_key_that_was_refused_before(steer: Steer, tmp_path: Path) -> None:
    """A duplicate that was refused has the key in its row, and is not what is meant."""
    ledger = FilledSqlite(tmp_path / "steer.db")
    url = f"sqlite:///{ledger.path}"
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        connection.execute("UPDATE requests SET idem_key = 'order-2' WHERE id LIKE '%01'")
    assert steer("ledger", "resolve", "order-2", "--rerun", "--database-url", url).exit_code == 0
    shown = steer("ledger", "show", "order-2", "--json", "--database-url", url)
    assert json.loads(shown.stdout)["call"]["id"] == ORDER_2


# --- purge


@pytest.mark.real_time
def test_what_would_go_and_what_goes(run: Run, ledger: Filled) -> None:
    """The dry run changes nothing, is right, and tells what the purge does; what is live stays."""
    dry = json.loads(run("purge", "--before", "2026-03-05", "--dry-run", "--json").stdout)
    assert dry == {
        "requests": 33,
        "attempts": 18,
        "events": 7,
        "keys": 1,
        "chunks": 0,
        "stored_bytes": 0,
    }
    assert ledger.rows("SELECT COUNT(*) FROM requests") == [(39,)]
    told = run("purge", "--before", "2026-03-05", "--dry-run").stdout
    assert told == (
        "Would remove 33 calls, 18 attempts, 7 events, 0 pieces of answers (0 bytes); would free "
        "1 expired keys.\n"
    )
    done = run("purge", "--before", "2026-03-05")
    assert done.stdout == (
        "Removed 33 calls, 18 attempts, 7 events, 0 pieces of answers (0 bytes); freed 1 expired "
        "keys.\n"
    )
    assert sorted(ledger.rows("SELECT idem_key, idem_live FROM requests")) == [
        (key, 1) for key in ("order-1", "order-2", "order-3", "order-4", "order-5", "order-7")
    ]
    assert run("purge", "--before", "2026-03-05").stdout.startswith("Removed 0 calls, 0 attempts,")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_purge_that_is_interrupted(
    steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """It tells what has gone by then."""
    ledger = FilledSqlite(tmp_path / "steer.db")
    purge = SqliteLedger.purge

    async def in_part(self: SqliteLedger, what: Purge) -> Purged:
        return dataclasses.replace(await purge(self, what), more=True)

    def interrupted(self: Pace, busy: float, *, behind: bool = False) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(SqliteLedger, "purge", in_part)
    monkeypatch.setattr(Pace, "rest", interrupted)
    how = ("--json",) if as_json else ()
    url = f"sqlite:///{ledger.path}"
    result = steer("ledger", "purge", "--before", "2026-03-05", *how, "--database-url", url)
    assert result.exit_code == 130
    if as_json:
        assert json.loads(result.stdout)["requests"] == 33
    else:
        assert result.stdout.startswith("Removed 33 calls, 18 attempts,")
    assert "interrupted" in result.stderr


@pytest.mark.real_time
def test_expired_answers(steer: Steer, tmp_path: Path, postgres_url: str) -> None:
    """A dry run and the purge after it tell the same fields with the same figures."""
    for url in (f"sqlite:///{tmp_path}/steer.db", postgres_url):
        data = LedgerData()
        over = data.keyed("over", 0, expires_us=BASE_US + DAY, resp_bytes=700, resp_chunks=2)
        old = data.keyed("old", 1, idem_live=None, idem_state="uncertain")
        live = data.keyed("live", 2, resp_bytes=9, resp_chunks=1)
        for call, seq, size in ((over, 0, 400), (over, 1, 300), (old, 0, 50), (live, 0, 9)):
            data.chunks.append(ChunkRow(call, seq, 0, 0, "zstd", None, size, b"less"))
        fill(url, data)

        def purge(*how: str, url: str = url) -> dict[str, int]:
            result = steer("ledger", "purge", *how, "--json", "--database-url", url)
            found: dict[str, int] = json.loads(result.stdout)
            return found

        nothing = dict.fromkeys(("requests", "attempts", "events"), 0)
        expired = {**nothing, "keys": 1, "chunks": 2, "stored_bytes": 700}
        assert purge("--keys", "expired", "--dry-run") == expired
        everything = purge("--before", "2026-04-01", "--dry-run")
        assert everything == {**expired, "requests": 2, "chunks": 3, "stored_bytes": 750}
        assert purge("--keys", "expired") == expired
        left = {"keys": 0, "requests": 2, "chunks": 1, "stored_bytes": 50}
        assert purge("--before", "2026-04-01", "--dry-run") == nothing | left
        assert purge("--before", "2026-04-01") == nothing | left


@pytest.mark.real_time
def test_only_expired_keys(run: Run, ledger: Filled) -> None:
    """Are freed; every row stays."""
    assert run("purge", "--keys", "expired").exit_code == 0
    assert ledger.rows("SELECT COUNT(*) FROM requests") == [(39,)]
    assert ledger.rows("SELECT idem_live FROM requests WHERE idem_key = 'order-8'") == [(None,)]
