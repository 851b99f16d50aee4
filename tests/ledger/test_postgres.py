"""What is PostgreSQL's own: connections that come and go, poolers, notifications, plans."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
import uvloop

from steer_policies.idempotency import Move, State
from steer_proxy.ledger import migrate, postgres_news, postgres_pool
from steer_proxy.ledger import postgres_statements as sql
from steer_proxy.ledger.address import Postgres, parse_address
from steer_proxy.ledger.parameters import Statement
from steer_proxy.ledger.postgres import PostgresLedger
from steer_proxy.ledger.protocol import LedgerRefused, LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.values import (
    AttemptRow,
    Batch,
    BreakerEventRow,
    CallRow,
    Finish,
    Purge,
    Purged,
    Ref,
)
from tests.ledger_contract.make import call, chunks, claim, ref
from tests.ledger_contract.postgres import PostgresSubject
from tests.support.pooler import Pooler, Relay
from tests.support.postgres import PASSWORD, Server
from tests.support.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.real_time


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresSubject]:
    """A ledger that is open and will be closed."""
    subject = PostgresSubject(url)
    try:
        await subject.ledger.open()
        yield subject
    finally:
        await subject.ledger.close()


async def until(ready: Callable[[], Awaitable[bool]], patience: float = 10.0) -> None:
    """Ask again and again, as long as is reasonable."""
    async with asyncio.timeout(patience):
        while not await ready():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.01)


def works(subject: PostgresSubject) -> Callable[[], Awaitable[bool]]:
    """Whether the ledger answers by now."""

    async def asked() -> bool:
        try:
            await subject.ledger.find("scope-1")
        except LedgerUnavailable:
            return False
        return True

    return asked


def ended(subject: PostgresSubject, row: CallRow) -> CallRow:
    """The row of a call that ended well, with a stored answer of one chunk."""
    now = subject.now_us()
    return row._replace(
        ended_us=now, status=200, resp_headers="{}", resp_bytes=4, resp_chunks=1, resp_sha256="00"
    )


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every attempt to connect."""
    connect, tried = asyncpg.connect, []

    async def counting(dsn: str, **options: Any) -> Any:
        tried.append(dsn)
        return await connect(dsn, **options)

    monkeypatch.setattr(asyncpg, "connect", counting)
    return tried


def through(url: str, port: int) -> str:
    """The same database by way of another port."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()


# --- A server that comes and goes -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_it_survives_the_server(
    postgres_server: Server, postgres_url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped server is an unavailable ledger, quickly; when it is back, the ledger is too."""
    async with opened(postgres_url) as subject:
        ledger = subject.ledger
        secret = ledger.secret
        assert len(secret or b"") == 32
        await asyncio.to_thread(postgres_server.stop, how)
        try:
            for _ in range(3):
                with pytest.raises(LedgerUnavailable):
                    await ledger.claim(claim(subject))
            assert [ledger.available, ledger.secret] == [False, secret]
            tried = counted(monkeypatch)
            for _ in range(100):
                with pytest.raises(LedgerUnavailable, match="cannot be reached"):
                    await ledger.find("scope-1")
            assert len(tried) < 20, "each caller tries for itself"
        finally:
            await asyncio.to_thread(postgres_server.start)
        await until(works(subject))
        assert await ledger.claim(claim(subject)) is None
        assert [subject.ledger.available, subject.ledger.secret] == [True, secret]


async def test_a_server_may_come_later(postgres_server: Server, postgres_url: str) -> None:
    """Opening without a server fails for now; nothing has to be opened again."""
    subject = PostgresSubject(postgres_url)
    await asyncio.to_thread(postgres_server.stop)
    try:
        with pytest.raises(LedgerUnavailable, match="cannot be reached"):
            await subject.ledger.open()
        assert [subject.ledger.secret] == [None]
    finally:
        await asyncio.to_thread(postgres_server.start)
    await until(works(subject))
    assert subject.ledger.secret is not None
    await subject.ledger.close()


async def test_a_killed_connection_is_replaced(postgres_server: Server, postgres_url: str) -> None:
    """A claim whose connection is killed while it waits is made on another one, once more."""
    other = await asyncpg.connect(postgres_url)
    async with opened(postgres_url) as subject:
        wish = claim(subject)
        transaction = other.transaction()
        await transaction.start()
        await other.execute(sql.CLAIM.sql, *claim(subject).row)
        claiming = asyncio.create_task(subject.ledger.claim(wish))
        kill = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE wait_event_type = 'Lock' AND datname = current_database()"""
        await until(lambda: other.fetchval(kill))
        await transaction.rollback()
        assert await claiming is None
        assert len(await subject.rows("requests")) == 1
    await other.close()


async def test_idle_connections_that_were_closed_are_not_used(
    postgres_server: Server, postgres_url: str
) -> None:
    """Closed by the server, or by something between: the ledger is not away for that."""
    other = await asyncpg.connect(postgres_url)
    async with opened(postgres_url) as subject:
        ledger = subject.ledger
        for turn in range(3):
            wishes = [claim(subject, f"scope-{turn}-{number}") for number in range(4)]
            assert await asyncio.gather(*map(ledger.claim, wishes)) == [None] * 4
            await until(lambda: all_closed(other))
            await ledger.renew("owner-1", "here", 15, [])
            assert ledger.available
    await other.close()


async def all_closed(other: asyncpg.Connection[Any]) -> bool:
    """End the others' connections, one that is only just being opened too; whether none is left."""
    count = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND backend_type = 'client backend'"""
    return bool(await other.fetchval(count) == 0)


async def test_a_lost_reply_costs_nobody_anything(
    postgres_server: Server, postgres_url: str
) -> None:
    """What may be asked twice is, on another connection; what tells what it did is not."""
    async with (
        Relay(postgres_server.port) as relay,
        opened(through(postgres_url, relay.port)) as subject,
    ):
        ledger = subject.ledger
        ledger._pool.size = 1
        await ledger.renew("owner-1", "here", 15, [])
        assert await ledger.claim(claim(subject, "scope-a")) is None  # it is prepared by then
        wish = claim(subject, "scope-b", sent=True)
        relay.lose_one = True
        assert await ledger.claim(wish) is None
        over = Finish(ref(wish), State.COMPLETED, ended(subject, wish.row), chunks(wish, b"body"))
        relay.lose_one = True
        assert await ledger.finish(over) is True
        relay.lose_one = True
        assert await ledger.find("scope-b") is not None
        for once in (
            lambda: ledger.renew("owner-1", "here", 15, []),
            lambda: ledger.settle(wish.row.id, Move.REOPEN),
        ):
            relay.lose_one = True
            with pytest.raises(LedgerUnavailable, match="lost"):
                await once()
        assert not relay.lose_one


async def test_lost_replies_are_settled(postgres_server: Server, postgres_url: str) -> None:
    """A claim, an ending and a take-over that were carried out unheard succeed when repeated."""
    async with (
        Relay(postgres_server.port) as relay,
        opened(through(postgres_url, relay.port)) as subject,
    ):
        ledger = subject.ledger
        ledger._pool.size = 1
        await ledger.renew("owner-1", "here", 15, [])

        async def repeated(what: Callable[[], Awaitable[Any]]) -> Any:
            relay.lose = True
            try:
                with pytest.raises(LedgerUnavailable, match=r"lost|reached"):
                    await what()
            finally:
                relay.lose = False
            await until(works(subject))
            return await what()

        async def once_before(scope: str) -> None:
            """Statements are prepared by now: what is lost next is their result."""
            wish = claim(subject, scope)
            assert await ledger.claim(wish) is None
            found = await ledger.find(scope)
            assert found is not None
            assert await ledger.take_over(claim(subject, scope), found) is not None
            over = Finish(Ref("none", 1), State.COMPLETED, ended(subject, wish.row))
            assert not await ledger.finish(over)

        await once_before("scope-a")
        wish = claim(subject, "scope-b", sent=True)
        assert await repeated(lambda: ledger.claim(wish)) is None
        await once_before("scope-c")
        over = Finish(ref(wish), State.COMPLETED, ended(subject, wish.row), chunks(wish, b"body"))
        assert await repeated(lambda: ledger.finish(over)) is True
        assert [each.body for each in await ledger.chunks(wish.row.id, -1, 9)] == [b"body"]
        await once_before("scope-d")
        await subject.advance(100_000)
        found = await ledger.find("scope-b")
        assert found is not None
        successor = claim(subject, "scope-b")
        assert await repeated(lambda: ledger.take_over(successor, found)) is None
        live = await ledger.find("scope-b")
        assert live is not None
        assert (live.id, live.epoch) == (successor.row.id, 2)


async def test_a_silent_server_costs_its_time_once(
    postgres_server: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a reply that does not come is told in time, and the connection is given up."""
    monkeypatch.setattr(postgres_pool, "PATIENCE", 0.1)
    async with (
        Relay(postgres_server.port) as relay,
        opened(through(postgres_url, relay.port)) as subject,
    ):
        subject.ledger._pool.size = 1
        relay.hold = True
        with pytest.raises(LedgerUnavailable, match="did not answer within 2 s"):
            await subject.ledger.find("scope-1")
        relay.hold = False
        await until(works(subject))


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_reply_that_came_while_nobody_looked(arrived: bool) -> None:
    """A process that was stopped finds a statement's time over, and perhaps its reply there."""
    loop = VirtualTimeLoop()

    async def stopped() -> list[Any]:
        job = postgres_pool._Job(sql.NOTIFY, (), loop.create_future())
        job.expire_at(loop, loop.time() + postgres_pool.PATIENCE)
        loop.advance(10 * postgres_pool.PATIENCE)
        if arrived:
            loop.call_later(0.01, job.answer.set_result, [])
        return await job.answer

    def run() -> list[Any]:
        with contextlib.closing(loop):
            return loop.run_until_complete(stopped())

    if arrived:
        assert await asyncio.to_thread(run) == []
    else:
        with pytest.raises(LedgerUnavailable, match="did not answer within 2 s"):
            await asyncio.to_thread(run)


async def test_a_driver_that_stumbles_has_lost_its_connection(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended while it prepares, it fails over its own remains: the statement runs on another one."""
    prepare = asyncpg.Connection.prepare
    ended_one: list[Any] = []

    async def ending(self: asyncpg.Connection[Any], *args: Any, **options: Any) -> Any:
        if not ended_one:
            ended_one.append(self)
            self.terminate()
            raise AttributeError("'NoneType' object has no attribute 'get_settings'")
        return await prepare(self, *args, **options)

    async with opened(postgres_url) as subject:
        monkeypatch.setattr(asyncpg.Connection, "prepare", ending)
        assert await subject.ledger.claim(claim(subject)) is None
        assert ended_one


async def test_a_bug_shows_no_values(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its statement fails at once, the others go on, and the log has neither values nor address."""
    prepare, asked = asyncpg.Connection.prepare, []
    value = "hunter2"

    async def stumbling(self: asyncpg.Connection[Any], *args: Any, **options: Any) -> Any:
        asked.append(args)
        if len(asked) == 1:
            raise KeyError(value)
        return await prepare(self, *args, **options)

    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    url = postgres_url + "?password=hunter2"
    async with opened(url) as subject:
        subject.ledger._pool.size = 1
        subject.ledger._pool.drop()
        monkeypatch.setattr(asyncpg.Connection, "prepare", stumbling)
        async with asyncio.timeout(2):
            first, second = await asyncio.gather(
                subject.ledger.find("hunter2"), subject.ledger.find("x"), return_exceptions=True
            )
        assert isinstance(first, LedgerUnavailable)
        assert [str(first), second] == ["the ledger failed: KeyError", None]
        assert "hunter2" not in repr(subject.ledger._pool)
    assert failures == []
    assert "by KeyError" in caplog.text
    assert "hunter2" not in caplog.text


async def test_the_server_ends_long_statements(
    postgres_server: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that waits for a lock is ended by the server; its connection stays."""
    settings = {**postgres_pool._SETTINGS, "statement_timeout": "50"}
    monkeypatch.setattr(postgres_pool, "_SETTINGS", settings)
    other = await asyncpg.connect(postgres_url)
    async with opened(postgres_url) as subject, other.transaction():
        await other.execute("LOCK TABLE requests")
        with pytest.raises(LedgerUnavailable, match="longer than 2 s"):
            await subject.ledger.find("scope-1")
        pids = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'steer'"
        assert await other.fetchval(pids) == 1
    await other.close()


# --- Why it cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda url: url.replace("/test_", "/missing_"), "does not exist"),
        (lambda url: url.replace("postgres@", "strict:hunter2@"), "password authentication failed"),
        (lambda url: url.replace("postgres@", "strict@"), "password"),
        (lambda url: through(url, 1).replace("postgres@", "u:hunter2@"), "reached"),
        (lambda url: url.replace("127.0.0.1", "127.0.0.1:x:hunter2@h"), "not understood"),
        (lambda url: f"{url}?sslmode=hunter2", "not understood"),
        (lambda url: f"{url}?target_session_attrs=standby", "cannot be reached"),
        (
            lambda url: f"{url}?nosuchoption=hunter2",
            "not the server's: unrecognized .*nosuchoption",
        ),
    ],
)
async def test_reasons_are_told_without_secrets(
    postgres_url: str, change: Callable[[str], str], reason: str
) -> None:
    """What is wrong with an address is said, and no password with it."""
    ledger = PostgresLedger(Postgres(change(postgres_url)))
    with pytest.raises((LedgerUnavailable, LedgerUnusable), match=reason) as told:
        await ledger.open()
    with pytest.raises(LedgerUnavailable, match=reason):
        await ledger.find("scope-1")
    assert "hunter2" not in str(told.value)
    assert not ledger.available
    await ledger.close()


async def test_a_password_may_hold_anything(postgres_server: Server, postgres_url: str) -> None:
    """Escaped in the URL, any password is one."""
    grant = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO strict"
    postgres_server.sql(grant, urlsplit(postgres_url).path[1:])
    url = postgres_url.replace("postgres@", f"strict:{quote(PASSWORD, '')}@")
    ledger = PostgresLedger(Postgres(url))
    with pytest.raises(LedgerUnavailable, match="its role may not write it") as told:
        await ledger.open()
    assert PASSWORD not in str(told.value)
    await ledger.close()


async def test_a_role_without_a_right_is_unavailable(
    postgres_server: Server, postgres_url: str
) -> None:
    """From the start, also where it could claim keys; it is named what is missing."""
    name = urlsplit(postgres_url).path[1:]
    grant = (
        f"CREATE ROLE part_{name} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO part_{name}"
    )
    revoke = f"REVOKE DELETE ON owners, response_chunks FROM part_{name}"
    postgres_server.sql(f"{grant}; {revoke}", name)
    ledger = PostgresLedger(Postgres(postgres_url.replace("postgres@", f"part_{name}@")))
    missing = r"may not write it \(DELETE on owners, DELETE on response_chunks\): use one that may"
    with pytest.raises(LedgerUnavailable, match=missing):
        await ledger.open()
    await ledger.close()
    postgres_server.sql(f"DROP OWNED BY part_{name}; DROP ROLE part_{name}", name)


async def test_a_standby_is_unavailable(postgres_server: Server, postgres_url: str) -> None:
    """A server that only reads is left: the next connection may find the one that writes."""
    name = urlsplit(postgres_url).path[1:]
    async with opened(postgres_url) as subject:
        await subject.ledger.find("scope-1")
        for value, reason in (("on", "only reads"), ("off", None)):
            setting = f"ALTER DATABASE {name} SET default_transaction_read_only = {value}"
            postgres_server.sql(setting)
            if reason is None:
                assert await subject.ledger.claim(claim(subject)) is None
                continue
            subject.ledger._pool.drop()
            with pytest.raises(LedgerUnavailable, match=reason):
                await subject.ledger.claim(claim(subject))


async def test_of_several_servers_one_will_do(postgres_server: Server, postgres_url: str) -> None:
    """An address may name several servers, dead ones among them."""
    several = f"127.0.0.1:1,127.0.0.1:{postgres_server.port}"
    parts = urlsplit(postgres_url)
    async with opened(parts._replace(netloc=f"postgres@{several}").geturl()) as subject:
        subject.url = postgres_url
        assert await subject.ledger.claim(claim(subject)) is None


async def test_a_ledger_without_its_secret_is_unusable(
    postgres_server: Server, postgres_url: str
) -> None:
    """Keys could not be recognised without the secret."""
    postgres_server.sql(
        "UPDATE steer_meta SET value = 'no' WHERE name = 'secret'", urlsplit(postgres_url).path[1:]
    )
    ledger = PostgresLedger(Postgres(postgres_url))
    with pytest.raises(LedgerUnusable, match="secret"):
        await ledger.open()
    await ledger.close()


async def test_fewer_connections_will_do(postgres_server: Server, postgres_url: str) -> None:
    """Where the server gives only some connections, statements wait for these."""
    name = urlsplit(postgres_url).path[1:]
    postgres_server.sql(
        f"CREATE ROLE few_{name} LOGIN CONNECTION LIMIT 2; GRANT ALL ON ALL TABLES "
        f"IN SCHEMA public TO few_{name}",
        name,
    )
    async with opened(postgres_url.replace("postgres@", f"few_{name}@")) as subject:
        wishes = [claim(subject, f"scope-{number}") for number in range(40)]
        assert not any(await asyncio.gather(*map(subject.ledger.claim, wishes)))


async def test_a_schema_may_come_later(postgres_empty_url: str) -> None:
    """Without a schema the remedy is named; once it is there, everything works."""
    ledger = PostgresLedger(Postgres(postgres_empty_url))
    subject = PostgresSubject(postgres_empty_url)
    subject.ledger = ledger
    with pytest.raises(LedgerUnavailable, match="steer db upgrade"):
        await ledger.open()
    await asyncio.to_thread(migrate.upgrade, postgres_empty_url)
    await until(works(subject))
    assert await ledger.claim(claim(subject)) is None
    await ledger.close()


async def test_a_newer_ledger_is_not_written(postgres_server: Server, postgres_url: str) -> None:
    """One that only newer versions may write cannot be opened; one that becomes so is left."""
    name = urlsplit(postgres_url).path[1:]
    async with opened(postgres_url) as subject:
        postgres_server.sql("UPDATE steer_meta SET value = '2' WHERE name = 'min_writer'", name)
        other = PostgresLedger(Postgres(postgres_url))
        with pytest.raises(LedgerUnusable, match="newer version"):
            await other.open()
        await other.close()
        await subject.ledger.renew("owner-1", "here", 15, [])
        with pytest.raises(LedgerUnavailable, match="newer version"):
            await subject.ledger.claim(claim(subject))
    assert postgres_server.sql("SELECT count(*) FROM requests", name) == "0"


async def test_refused_values_are_not_quoted(postgres_url: str) -> None:
    """A value that does not fit is named by its column; nothing is written, the rest goes on."""
    async with opened(postgres_url) as subject:
        good = call(subject)
        for bad in (
            call(subject, tokens_in=2**70),
            call(subject, labels="{hunter2}"),
            call(subject, id="hunter2" * 9),
            call(subject, path="hunter2 \ud800"),
        ):
            with pytest.raises(LedgerRefused) as told:
                await subject.ledger.write(Batch(calls=[good, bad]))
            assert "hunter2" not in str(told.value)
            assert str(2**70) not in str(told.value)
        assert subject.ledger.available
        assert await subject.rows("requests") == []


async def test_null_characters_are_replaced(postgres_url: str) -> None:
    """PostgreSQL cannot store a null character; the rest of its text is kept."""
    async with opened(postgres_url) as subject:
        row = call(subject, model_requested="a\0b", labels='{"team": "x\\u0000y"}')
        await subject.ledger.write(Batch(calls=[row]))
        (stored,) = await subject.rows("requests")
        assert stored["model_requested"] == "a\N{REPLACEMENT CHARACTER}b"
        assert stored["labels"] == '{"team": "x\N{REPLACEMENT CHARACTER}y"}'


# --- Many processes -------------------------------------------------------------------------------


async def test_of_twelve_takers_one_takes(postgres_url: str) -> None:
    """A lapsed record that several processes want at once is taken by one of them, once."""
    async with (
        opened(postgres_url) as first,
        opened(postgres_url) as second,
        opened(postgres_url) as third,
    ):
        old = claim(first, sent=True)
        assert await first.ledger.claim(old) is None
        found = await first.ledger.find("scope-1")
        assert found is not None
        assert found.lapsed
        takers = [(each, claim(each)) for each in (first, second, third) for _ in range(4)]
        there = await asyncio.gather(*(each.ledger.take_over(wish, found) for each, wish in takers))
        (winner,) = [wish for (_, wish), record in zip(takers, there, strict=True) if not record]
        assert {record.id for record in there if record} == {winner.row.id}
        live = [row for row in await first.rows("requests") if row["idem_live"]]
        assert [(row["id"], row["idem_epoch"]) for row in live] == [(winner.row.id, 2)]
        zombie = Finish(ref(old), State.COMPLETED, ended(first, old.row), chunks(old, b"late"))
        assert not await first.ledger.finish(zombie)
        assert await first.rows("response_chunks") == []


async def test_a_taker_and_a_renewal_see_each_other(postgres_url: str) -> None:
    """A lease renewed while a take-over waits for it saves the record."""
    other = await asyncpg.connect(postgres_url)
    async with opened(postgres_url) as subject:
        ledger = subject.ledger
        await ledger.renew("owner-1", "here", 15, [])
        assert await ledger.claim(claim(subject)) is None
        await subject.advance(20)
        found = await ledger.find("scope-1")
        assert found is not None
        assert found.lapsed
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE owners SET lease_until_us = lease_until_us + 60000000")
        taking = asyncio.create_task(ledger.take_over(claim(subject), found))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        await until(lambda: other.fetchval(waits))
        await transaction.commit()
        there = await taking
        assert there is not None
        assert (there.id, there.lapsed) == (found.id, False)
    await other.close()


async def test_a_taker_counts_by_the_time_it_was_told(postgres_url: str) -> None:
    """The database's clock is set after it was asked: that ends no lease for a take-over either."""
    async with opened(postgres_url) as subject:
        ledger = subject.ledger
        told = (await ledger.renew("owner-1", "here", 15, [])).now_us
        assert told is not None
        assert await ledger.claim(claim(subject)) is None
        await subject.advance(20)
        found = await ledger.find("scope-1")
        assert found is not None
        assert found.lapsed
        assert found.now_us is not None
        assert abs(found.now_us - told) < 5_000_000
        earlier = dataclasses.replace(found, now_us=found.now_us - 20_000_000)
        assert await ledger.take_over(claim(subject), earlier) == found
        assert await ledger.take_over(claim(subject), found) is None


@pytest.mark.parametrize("told", [True, False], ids=["by settings", "behind a pooler"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_database_may_have_another_isolation(
    postgres_server: Server, postgres_url: str, level: str, told: bool
) -> None:
    """Claims that meet are decided as ever; where it cannot be set, refusals are asked again."""
    name = urlsplit(postgres_url).path[1:]
    postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    url = postgres_url if told else f"{postgres_url}?prepared=off"
    async with opened(url) as first, opened(url) as second:
        first.url = postgres_url
        for turn in range(20):
            wishes = [claim(first, f"scope-{turn}") for _ in range(8)]
            there = await asyncio.gather(
                *(
                    each.ledger.claim(wish)
                    for each, wish in zip([first, second] * 4, wishes, strict=True)
                )
            )
            (winner,) = [w for w, record in zip(wishes, there, strict=True) if record is None]
            assert {record.id for record in there if record} == {winner.row.id}


@pytest.mark.parametrize(
    ("level", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")]
)
async def test_a_commit_is_on_disk(
    postgres_server: Server, postgres_url: str, level: str, used: str
) -> None:
    """Where a database would answer before that, it does not here; other levels are its own."""
    name = urlsplit(postgres_url).path[1:]
    postgres_server.sql(f"ALTER DATABASE {name} SET synchronous_commit = {level}")
    async with opened(postgres_url) as subject:
        (row,) = await subject.ledger._pool.fetch(_SYNCHRONOUS)
        assert row["level"] == used


_SYNCHRONOUS = Statement("SELECT current_setting('synchronous_commit') AS level", (), "level")


async def test_a_commit_that_may_be_lost_behind_a_pooler_is_told(
    postgres_server: Server, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: what is set there, others would have too."""
    name = urlsplit(postgres_url).path[1:]
    postgres_server.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    async with opened(f"{postgres_url}?prepared=off") as subject:
        (row,) = await subject.ledger._pool.fetch(_SYNCHRONOUS)
        assert row["level"] == "off"
        subject.ledger._pool.drop()
        assert await subject.ledger.find("scope-1") is None
    (record,) = (each for each in caplog.records if "synchronous_commit" in each.message)
    assert "ALTER ROLE" in record.message


async def test_a_take_over_that_comes_late_leaves_the_key_alone(postgres_url: str) -> None:
    """Given up by its taker, who has written down its call since: nothing is ended without it."""
    async with opened(postgres_url) as subject:
        old = claim(subject, sent=True)
        assert await subject.ledger.claim(old) is None
        found = await subject.ledger.find("scope-1")
        assert found is not None
        late = claim(subject)
        await subject.ledger.write(Batch(calls=[call(subject, id=late.row.id)]))
        with pytest.raises(LedgerUnavailable, match="ended this claim"):
            await subject.ledger.take_over(late, found)
        assert await subject.ledger.find("scope-1") == found
        assert await subject.ledger.take_over(claim(subject), found) is None


async def test_two_may_purge_at_once(postgres_url: str) -> None:
    """Nobody waits for the other, everything that is over goes once, and live rows stay."""
    async with opened(postgres_url) as first, opened(postgres_url) as second:
        now = first.now_us()
        old = [call(first, started_us=1_000 + number, ended_us=2_000) for number in range(300)]
        await first.ledger.write(Batch(calls=old))
        living = claim(first)
        assert await first.ledger.claim(living) is None
        purge = Purge(now - 10_000_000, max_bytes=0, limit=20)

        async def all_of(subject: PostgresSubject) -> int:
            removed = 0
            while (done := await subject.ledger.purge(purge)).more:
                removed += done.requests
            return removed + done.requests

        counts = await asyncio.gather(all_of(first), all_of(second))
        assert sum(counts) == 300
        assert [row["id"] for row in await first.rows("requests")] == [living.row.id]


async def test_a_purge_tells_how_long_the_server_worked(postgres_url: str) -> None:
    """By the server's own clock, for the statement that took longest."""
    async with opened(postgres_url) as subject:
        rows = [call(subject, started_us=1_000, ended_us=2_000) for _ in range(300)]
        await subject.ledger.write(Batch(calls=rows))
        began = time.perf_counter()
        removed = await subject.ledger.purge(Purge(3_000, max_bytes=0))
        assert removed.requests == 300
        assert 0 < removed.busy < time.perf_counter() - began


async def test_a_process_with_a_wrong_clock_purges_nothing(postgres_url: str) -> None:
    """Two months ahead of the database, it counts what is old by the database's clock."""
    async with opened(postgres_url) as subject:
        now, day = subject.now_us(), 86_400_000_000
        done = call(subject, ended_us=now)
        stray = AttemptRow("gone", 1, "primary", started_us=now)
        event = BreakerEventRow("event", now, "here", "manual", "primary", None, None, "open", "")
        await subject.ledger.renew("owner-1", "here", 15, [])
        await subject.advance(20)
        await subject.ledger.write(Batch(calls=[done], attempts=[stray], events=[event]))
        wrong = Purge(now + 60 * day, age_us=30 * day)
        for tables in (["requests", "attempts", "breaker_events", "owners"], []):
            await subject.ledger.purge(wrong)
            kept = ("requests", "attempts", "breaker_events", "owners")
            assert [name for name in kept if await subject.rows(name)] == tables
            wrong = Purge(now + 60 * day, age_us=0)


async def test_a_server_with_a_wrong_clock_frees_no_key(postgres_url: str) -> None:
    """A key whose time is over only by the server's clock, 25 hours ahead, keeps its answer."""
    async with opened(postgres_url) as subject:
        right, wish, later = subject.ledger, claim(subject, sent=True), claim(subject)
        assert await right.claim(wish) is None
        row = ended(subject, wish.row)
        done = Finish(ref(wish), State.COMPLETED, row, chunks(wish, b"answer"))
        assert await right.finish(done)
        await subject.advance(25 * 3_600)
        behind = PostgresLedger(Postgres(postgres_url), lambda: time.time() - 25 * 3_600)
        purge = Purge(subject.now_us() - 86_400_000_000)
        try:
            found = await behind.find("scope-1")
            assert found is not None
            assert not found.expired
            followed = (await behind.follow(wish.row.id, -1, 1)).record
            assert followed is not None
            assert not followed.expired
            assert await behind.purge(purge) == Purged()
            assert await behind.take_over(later, found) == found
        finally:
            await behind.close()
        found = await right.find("scope-1")
        assert found is not None
        assert found.expired
        assert (await right.purge(purge)).keys == 1


async def test_a_purge_waits_for_nobody(postgres_url: str) -> None:
    """A row that somebody else has locked is left for the next time."""
    other = await asyncpg.connect(postgres_url)
    async with opened(postgres_url) as subject:
        rows = [call(subject, started_us=1_000, ended_us=2_000) for _ in range(3)]
        await subject.ledger.write(Batch(calls=rows))
        purge = Purge(subject.now_us() - 10_000_000)
        async with other.transaction():
            await other.execute("SELECT 1 FROM requests WHERE id = $1 FOR UPDATE", rows[1].id)
            assert (await subject.ledger.purge(purge)).requests == 2
        assert (await subject.ledger.purge(purge)).requests == 1
    await other.close()


# --- News -----------------------------------------------------------------------------------------


async def test_who_waits_is_woken(postgres_url: str) -> None:
    """A chunk written by one process wakes who watches in another, soon."""
    async with opened(postgres_url) as owner, opened(postgres_url) as joiner:
        wish = claim(owner, sent=True)
        assert await owner.ledger.claim(wish) is None
        id_ = wish.row.id

        async def granted() -> bool:
            return id_ in owner.ledger._news._wanted

        async with joiner.ledger.watch(id_) as event:
            await until(granted)
            delays = []
            for number in range(3):
                event.clear()
                before = time.monotonic()
                await owner.ledger.add_chunks(chunks(wish, b"body", start=number))
                async with asyncio.timeout(5):
                    await event.wait()
                delays.append(time.monotonic() - before)
            assert min(delays) < 0.2
        following = await joiner.ledger.follow(id_, 0, 10)
        assert [chunk.seq for chunk in following.chunks] == [1, 2]


async def test_nobody_is_told_who_did_not_ask(postgres_url: str) -> None:
    """Without anybody waiting for them, whole calls notify nobody."""
    heard: list[object] = []
    listener = await asyncpg.connect(postgres_url)
    await listener.add_listener(postgres_news.NEWS, lambda *_: heard.append(_[-1]))
    async with opened(postgres_url) as owner:
        for number in range(3):
            wish = claim(owner, f"scope-{number}", sent=True)
            assert await owner.ledger.claim(wish) is None
            await owner.ledger.begin_answer(ref(wish), 200, "{}")
            await owner.ledger.add_chunks(chunks(wish, b"body"))
            over = Finish(ref(wish), State.COMPLETED, ended(owner, wish.row))
            assert await owner.ledger.finish(over)
    # What was notified before this is heard before it.
    await listener.execute("SELECT pg_notify($1, 'end')", postgres_news.NEWS)

    async def told() -> bool:
        return "end" in heard

    await until(told)
    assert heard == ["end"]
    await listener.close()


async def test_news_that_cannot_be_sent_harm_nobody(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing notification is not a failing write."""
    refused = Statement("SELECT 1/0 FROM (SELECT $1::text, $2::text) AS t", ("a", "b"), "broken")
    monkeypatch.setattr(postgres_news, "NOTIFY", refused)
    async with opened(postgres_url) as owner:
        wish = claim(owner, sent=True)
        assert await owner.ledger.claim(wish) is None
        owner.ledger._news._wanted[wish.row.id] = asyncio.get_running_loop().time() + 60
        await owner.ledger.add_chunks(chunks(wish, b"body"))
        assert await owner.ledger.finish(Finish(ref(wish), State.COMPLETED, ended(owner, wish.row)))
        assert len(await owner.rows("response_chunks")) == 1


# --- Poolers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["", "?prepared=off"])
async def test_it_works_behind_a_transaction_pooler(
    postgres_server: Server, postgres_url: str, option: str
) -> None:
    """With a connection that changes after each transaction, everything works but notifications."""
    name = urlsplit(postgres_url).path[1:]
    async with Pooler(postgres_server.port, name, size=3) as pooler:
        url = through(postgres_url, pooler.port) + option
        async with opened(url) as subject, opened(url) as joiner:
            subject.url = postgres_url

            async def whole(number: int) -> None:
                wish = claim(subject, f"scope-{number}", sent=True)
                assert await subject.ledger.claim(wish) is None
                async with joiner.ledger.watch(wish.row.id):
                    await subject.ledger.add_chunks(chunks(wish, b"body"))
                    followed = await joiner.ledger.follow(wish.row.id, -1, 10)
                assert [chunk.body for chunk in followed.chunks] == [b"body"]
                over = Finish(ref(wish), State.COMPLETED, ended(subject, wish.row))
                assert await subject.ledger.finish(over)

            await asyncio.gather(*(whole(number) for number in range(20)))
            states = [row["idem_state"] for row in await subject.rows("requests")]
            assert states == ["completed"] * 20
            assert subject.ledger._pool.pooled
            assert next(pooler.transactions) >= 80
            assert bool(pooler.refused_settings) is not bool(option)


async def test_unprepared_statements_are_noticed(
    postgres_server: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler that takes our settings and loses our statements is noticed by that."""
    monkeypatch.setattr(postgres_pool, "_SETTINGS", {"application_name": "steer"})
    name = urlsplit(postgres_url).path[1:]
    async with (
        Pooler(postgres_server.port, name, size=2) as pooler,
        opened(through(postgres_url, pooler.port)) as subject,
    ):
        scopes = (f"scope-{number}" for number in range(200))
        while not subject.ledger._pool.pooled:
            assert await subject.ledger.claim(claim(subject, next(scopes))) is None


@pytest.mark.parametrize(
    ("url", "dsn", "prepared"),
    [
        ("postgresql://h/d", "postgresql://h/d", True),
        ("postgresql://h/d?prepared=off", "postgresql://h/d", False),
        ("postgresql+asyncpg://h/d?a=1&prepared=on&b=2", "postgresql://h/d?a=1&b=2", True),
        ("postgresql://h/d?a=prepared=off", "postgresql://h/d?a=prepared=off", True),
    ],
)
def test_our_option_is_not_the_drivers(url: str, dsn: str, prepared: bool) -> None:
    """The URL that the driver gets does not hold it."""
    assert parse_address(url) == Postgres(dsn, prepared=prepared)


# --- How it does it -------------------------------------------------------------------------------


async def test_updates_touch_no_index(postgres_server: Server, postgres_url: str) -> None:
    """From its claim to its end a row's versions stay in its page (HOT)."""
    async with opened(postgres_url) as subject:
        for number in range(5):
            wish = claim(subject, f"scope-{number}")
            assert await subject.ledger.claim(wish) is None
            assert await subject.ledger.mark_sent(ref(wish))
            assert await subject.ledger.begin_answer(ref(wish), 200, "{}")
            row = ended(subject, wish.row)
            retention = (row.expires_us or 0) - row.started_us
            row = row._replace(expires_us=(row.ended_us or 0) + retention)
            assert await subject.ledger.finish(
                Finish(ref(wish), State.COMPLETED, row, chunks(wish, b"body"))
            )
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'requests'"
    name = urlsplit(postgres_url).path[1:]
    assert postgres_server.sql(counts, name) == "15|15"


async def test_plans_made_on_empty_tables_go_by_the_right_index(postgres_url: str) -> None:
    """Plans are kept while tables grow, so they must not count on these being small."""
    connection = await asyncpg.connect(postgres_url, server_settings=postgres_pool._SETTINGS)

    async def plan(statement: Statement) -> str:
        prepared = await connection.prepare(statement.sql, name=statement.label)
        nothing = ", ".join(["NULL"] * len(statement.names))
        rows = await connection.fetch(f"EXPLAIN EXECUTE {statement.label}({nothing})")
        del prepared
        # What decides a conflict is not searched for.
        lines = (row[0] for row in rows)
        return "\n".join(line for line in lines if "Conflict Arbiter" not in line)

    assert "requests_live_key" in await plan(sql.FIND)
    by_id = (
        sql.TAKE_OVER,
        sql.MARK_SENT,
        sql.BEGIN_ANSWER,
        sql.ADD_CHUNKS,
        sql.DROP_CHUNKS,
        sql.FOLLOW,
        *sql.FINISH.values(),
        *sql.FINISH_BARE.values(),
        *sql.SETTLE.values(),
    )
    for statement in by_id:
        text = await plan(statement)
        assert "Seq Scan" not in text
        assert "requests_pkey" in text
        assert not any(name in text for name in ("requests_live_key", "requests_expires"))
    await connection.close()


async def test_a_cancelled_caller_costs_no_connection(postgres_url: str) -> None:
    """A statement whose caller is gone is carried out, on a connection that stays."""
    async with opened(postgres_url) as subject:
        subject.ledger._pool.size = 1
        waiting = [
            asyncio.create_task(subject.ledger.claim(claim(subject, f"scope-{number}")))
            for number in range(20)
        ]
        await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        pids = set()
        for _ in range(3):
            (row,) = await subject.ledger._pool.fetch(_PID)
            pids.add(row["pid"])
        assert len(pids) == 1


_PID = Statement("SELECT pg_backend_pid() AS pid", (), "pid")


async def test_idle_connections_are_closed(
    postgres_server: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that nobody uses goes; the next statement makes another."""
    monkeypatch.setattr(postgres_pool, "IDLE", 0.01)
    async with opened(postgres_url) as subject:

        async def gone() -> bool:
            return not subject.ledger._pool._workers

        await until(gone)
        assert await subject.ledger.find("scope-1") is None


async def test_it_can_be_closed_at_any_time(postgres_url: str) -> None:
    """What is under way is finished, what comes later is refused, and closing again is nothing."""
    async with opened(postgres_url) as subject:
        claims = [
            asyncio.create_task(subject.ledger.claim(claim(subject, f"scope-{number}")))
            for number in range(30)
        ]
        await asyncio.sleep(0)
        await subject.ledger.close()
        assert await asyncio.gather(*claims) == [None] * 30
        with pytest.raises(LedgerUnavailable, match="closed"):
            await subject.ledger.find("scope-1")
        await subject.ledger.close()


async def test_it_can_be_closed_while_it_connects(postgres_url: str) -> None:
    """Wherever in its making a connection is, closing leaves nothing of it behind."""
    for steps in range(30):
        ledger = PostgresLedger(Postgres(postgres_url))
        ledger._news.start()
        for _ in range(steps):
            await asyncio.sleep(0)
        await ledger.close()


def test_it_works_on_uvloop(postgres_url: str) -> None:
    """The loop that `steer serve` runs on does as well."""

    async def main() -> None:
        async with opened(postgres_url) as subject:
            wish = claim(subject, sent=True)
            assert await subject.ledger.claim(wish) is None
            async with subject.ledger.watch(wish.row.id):
                over = Finish(ref(wish), State.COMPLETED, ended(subject, wish.row))
                assert await subject.ledger.finish(over)

    with asyncio.Runner(debug=True, loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
