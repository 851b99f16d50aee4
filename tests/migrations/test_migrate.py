"""Upgrading and downgrading: with data in place, all or nothing, and one at a time."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from steer_proxy.ledger import migrate, sqlite_new
from steer_proxy.ledger.__main__ import main
from steer_proxy.ledger.migrate import HEAD, REVISIONS, WRITER, Standing, State
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.schema import NAMES
from tests.migrations.places import Place, PostgresPlace, SqlitePlace
from tests.migrations.versions import ADDITIVE, FAILING, NextVersion
from tests.support.ledger_data import made_up
from tests.support.postgres import Server

ROOT: Final = Path(__file__).resolve().parents[2]

# --- What there is


def test_the_constants_are_the_scripts() -> None:
    """A ledger at the newest revision is recognised without Alembic, so the list must be right."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrate.scripts()))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == HEAD
    assert tuple(each.revision for each in scripts.walk_revisions())[::-1] == REVISIONS


def test_neither_a_new_file_nor_a_current_one_needs_alembic(sqlite_place: SqlitePlace) -> None:
    """Importing the ledger, making one and opening one load neither Alembic nor SQLAlchemy."""
    code = f"""
import sys
from steer_proxy.ledger import migrate, protocol, values
for _ in range(2):
    migrate.upgrade({sqlite_place.url!r})
    assert migrate.current({sqlite_place.url!r}).standing == "current"
print(sorted({{"alembic", "sqlalchemy", "asyncpg"}} & set(sys.modules)))
"""
    paths = ":".join(str(ROOT / name) for name in ("policies", "proxy"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_sql_of_a_new_file_is_current() -> None:
    """`make schema` was run after the last change of a revision."""
    assert sqlite_new.REVISION == HEAD
    made = sqlite_new.written(migrate.rendered("sqlite", None, HEAD))
    assert sqlite_new.TEXT.read_text("utf-8") == made


def test_a_new_file_is_what_the_revisions_make(sqlite_place: SqlitePlace) -> None:
    """Each table, index and view of it, and the rows they begin with."""

    def told(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
        schema = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name")
        rows = [(kind, name, " ".join((sql or "").split())) for kind, name, sql in schema]
        facts = connection.execute("SELECT name FROM steer_meta ORDER BY name")
        revision = connection.execute("SELECT version_num FROM alembic_version")
        return [*rows, *facts, *revision]

    migrate.upgrade(sqlite_place.url)
    with closing(sqlite3.connect(sqlite_place.path)) as new, closing(sqlite3.connect("")) as old:
        for statement in migrate.rendered("sqlite", None, HEAD):
            old.execute(statement)
        assert told(new) == told(old)


def test_the_sql_of_a_new_file_is_written_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or to its place in the package."""
    text = sqlite_new.TEXT.read_text("utf-8")
    main([str(tmp_path / "asked.sql")])
    assert (tmp_path / "asked.sql").read_text("utf-8") == text
    monkeypatch.setattr(sqlite_new, "TEXT", tmp_path / "place.sql")
    main([])
    assert (tmp_path / "place.sql").read_text("utf-8") == text


def test_the_sql_can_be_printed() -> None:
    """Who writes a revision reads its SQL with Alembic's own command."""
    command = [
        sys.executable, "-m", "alembic", "-c", "migrations/alembic.ini", "-x",
        "dialect=postgresql", "upgrade", "head",
    ]  # fmt: skip
    printed = subprocess.run(
        [*command, "--sql"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "labels JSONB" in printed.stdout
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode
    assert "steer db upgrade" in refused.stderr


# --- Up and down


def test_upgrade_makes_the_ledger_once(place: Place) -> None:
    """From nothing to the newest revision; again, nothing changes."""
    assert migrate.current(place.url) == State(Standing.EMPTY)
    migrate.upgrade(place.url)
    assert migrate.current(place.url) == State(Standing.CURRENT, HEAD, WRITER)
    secret = place.secret()
    assert len(bytes.fromhex(secret)) == 32
    migrate.upgrade(place.url)
    assert place.secret() == secret


def test_the_names_are_what_there_is(sqlite_place: SqlitePlace) -> None:
    """Those that may stand in the way: all but what may be there before."""
    migrate.upgrade(sqlite_place.url)
    kinds = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
    made = {name for (name,) in sqlite_place.run(kinds)}
    assert made - set(NAMES) == {"alembic_version", "steer_meta"}
    assert set(NAMES) < made


def test_every_ledger_has_its_own_secret(tmp_path: Path) -> None:
    """It is made with the schema, not shipped with it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    places = [SqlitePlace(tmp_path / name) for name in ("a", "b")]
    for each in places:
        migrate.upgrade(each.url)
    assert len({each.secret() for each in places}) == 2


def test_downgrade_to_base_leaves_nothing(place: Place) -> None:
    """And the way up is open again."""
    migrate.upgrade(place.url)
    place.fill(made_up())
    migrate.downgrade(place.url, "base")
    assert place.names() == set()
    migrate.downgrade(place.url, "base")
    migrate.upgrade(place.url)
    assert place.run("SELECT COUNT(*) FROM requests") == [(0,)]


def test_a_secret_can_be_carried_over(place: Place) -> None:
    """A `steer_meta` that is there already keeps its secret: the same keys are known."""
    place.run(
        "CREATE TABLE steer_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        f"INSERT INTO steer_meta VALUES ('secret', '{'ab' * 32}')",
    )
    migrate.upgrade(place.url)
    assert place.secret() == "ab" * 32
    assert migrate.current(place.url) == State(Standing.CURRENT, HEAD, 1)


def test_rows_survive_a_revision_up_and_down(place: Place, next_version: NextVersion) -> None:
    """With data in place: what was there stays, the secret too."""
    migrate.upgrade(place.url)
    place.fill(made_up())
    before, secret = place.everything(), place.secret()
    next_version(ADDITIVE)
    assert migrate.current(place.url) == State(Standing.BEHIND, HEAD, 1)
    migrate.upgrade(place.url)
    assert migrate.current(place.url) == State(Standing.CURRENT, "next", 1)
    regions = place.run("SELECT region, COUNT(*) FROM requests GROUP BY region ORDER BY 2")
    assert {region for region, _ in regions} == {None, "here"}
    migrate.downgrade(place.url, HEAD)
    migrate.downgrade(place.url, "next")
    assert migrate.current(place.url) == State(Standing.BEHIND, HEAD, 1)
    assert place.everything() == before
    assert place.secret() == secret


def test_the_previous_version_works_on_the_next_schema(
    place: Place, next_version: NextVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expand and contract: after an additive revision this version writes and reads as before, and
    leaves the schema alone."""
    migrate.upgrade(place.url)
    next_version(ADDITIVE)
    migrate.upgrade(place.url)
    monkeypatch.undo()
    state = migrate.current(place.url)
    assert state == State(Standing.AHEAD, "next", 1)
    migrate.check(state)
    migrate.upgrade(place.url)
    assert migrate.current(place.url) == state
    place.fill(made_up())
    assert place.run("SELECT COUNT(*) FROM v_spend") == [(len(made_up().calls),)]
    with pytest.raises(LedgerUnusable, match="downgrade it with the newer version"):
        migrate.downgrade(place.url, "base")


def test_a_failing_revision_changes_nothing(place: Place, next_version: NextVersion) -> None:
    """All or nothing, also of what comes before the failure, on SQLite too."""
    migrate.upgrade(place.url)
    place.fill(made_up())
    before = place.everything()
    next_version(FAILING)
    with pytest.raises(LedgerUnusable, match="no_such_table"):
        migrate.upgrade(place.url)
    assert place.everything() == before
    assert migrate.current(place.url) == State(Standing.BEHIND, HEAD, 1)


def test_two_upgraders_make_one_ledger(place: Place) -> None:
    """The second waits for the first, and finds nothing left to do."""
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate.upgrade, place.url) for _ in range(4)]:
            done.result(60)
    assert migrate.current(place.url).standing is Standing.CURRENT
    assert len(place.run("SELECT value FROM steer_meta WHERE name = 'secret'")) == 1


def test_a_ledger_in_memory_needs_nothing() -> None:
    """There is no schema."""
    migrate.upgrade("memory:")
    migrate.downgrade("memory:", "base")
    assert migrate.current("memory:").standing is Standing.CURRENT


def test_a_sqlite_file_is_its_owners_only(sqlite_place: SqlitePlace) -> None:
    """It will hold what prompts were answered."""
    migrate.upgrade(sqlite_place.url)
    assert stat.S_IMODE(sqlite_place.path.stat().st_mode) == 0o600


def test_a_migration_is_one_line_of_the_log(
    sqlite_place: SqlitePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """Alembic has much more to tell, at every start of a new ledger."""
    with caplog.at_level("INFO"):
        migrate.upgrade(sqlite_place.url)
        migrate.upgrade(sqlite_place.url)
    assert caplog.messages == [f"the ledger's schema goes from nothing to {HEAD}"]


def test_looking_makes_no_file(sqlite_place: SqlitePlace) -> None:
    """Asking where a schema stands changes nothing."""
    assert migrate.current(sqlite_place.url) == State(Standing.EMPTY)
    assert not sqlite_place.path.exists()


# --- Refusals


def test_a_ledger_for_newer_writers_is_refused(place: Place) -> None:
    """`min_writer` says from which version on writing is safe: this one must not."""
    migrate.upgrade(place.url)
    place.run(
        "UPDATE steer_meta SET value = '2' WHERE name = 'min_writer'",
        "UPDATE alembic_version SET version_num = 'later'",
    )
    state = migrate.current(place.url)
    assert state == State(Standing.AHEAD, "later", 2)
    with pytest.raises(LedgerUnusable, match="use the newer version"):
        migrate.check(state)
    with pytest.raises(LedgerUnusable, match="use the newer version"):
        migrate.upgrade(place.url)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (State(Standing.CURRENT, HEAD), None),
        (State(Standing.AHEAD, "later", WRITER), None),
        (State(Standing.EMPTY), "has no ledger yet: run `steer db upgrade`"),
        (State(Standing.BEHIND, "older"), f"older, this version needs {HEAD}: run `steer db upgr"),
        (State(Standing.AHEAD, "later", WRITER + 1), "use the newer version"),
    ],
    ids=str,
)
def test_who_may_write_is_told_with_the_remedy(state: State, told: str | None) -> None:
    """A ledger at this version's revision or beyond, as long as it allows this writer."""
    if told is None:
        migrate.check(state)
        return
    with pytest.raises(LedgerUnusable) as refused:
        migrate.check(state)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "statements",
    [
        (
            "CREATE TABLE alembic_version (version_num TEXT NOT NULL)",
            "INSERT INTO alembic_version VALUES ('ab12cd34')",
        ),
        ("CREATE TABLE requests (id INTEGER PRIMARY KEY)",),
    ],
    ids=["migrated by something else", "a table of the same name"],
)
def test_somebody_elses_database_is_left_alone(statements: tuple[str, ...], place: Place) -> None:
    """Nothing of it is changed, and the message says what to do."""
    place.run(*statements)
    before = place.names()
    with pytest.raises(LedgerUnusable, match=r"own$|of Steer's own in"):
        migrate.upgrade(place.url)
    assert place.names() == before


def test_another_programs_file_is_left_alone(sqlite_place: SqlitePlace) -> None:
    """Whatever its tables are called: a file has one owner, a server's database may have many."""
    sqlite_place.run(*(f"CREATE TABLE users{n} (name TEXT)" for n in range(7)))
    before = sqlite_place.path.read_bytes()
    told = r"has users0, users1, users2, users3, users4 and 2 more already, not made by Steer"
    with pytest.raises(LedgerUnusable, match=told):
        migrate.upgrade(sqlite_place.url)
    assert sqlite_place.path.read_bytes() == before


def test_a_servers_database_may_be_others_too(postgres_place: PostgresPlace) -> None:
    """One schema for all of an application's tables is common there."""
    postgres_place.run("CREATE TABLE users (name TEXT)")
    migrate.upgrade(postgres_place.url)
    assert migrate.current(postgres_place.url).standing is Standing.CURRENT


def test_what_sqlite_keeps_for_itself_is_nobodys(sqlite_place: SqlitePlace) -> None:
    """Its statistics are in tables, too."""
    sqlite_place.run("CREATE TABLE t (x INTEGER PRIMARY KEY AUTOINCREMENT)", "ANALYZE")
    sqlite_place.run("DROP TABLE t")
    assert "sqlite_sequence" in sqlite_place.names()
    migrate.upgrade(sqlite_place.url)


def test_an_empty_file_is_told(sqlite_place: SqlitePlace, caplog: pytest.LogCaptureFixture) -> None:
    """It becomes a ledger, but may have been one: cut by a full disk, or by a shell's `>`."""
    sqlite_place.path.touch()
    migrate.downgrade(sqlite_place.url, "base")
    assert caplog.messages == []
    migrate.upgrade(sqlite_place.url)
    migrate.upgrade(sqlite_place.url)
    (message,) = caplog.messages
    assert message == (
        f"SQLite file {sqlite_place.path} was there, and empty: it is a new ledger now, which "
        "knows no key; if it should have been one, restore a backup"
    )


def test_an_unknown_revision_is_refused(sqlite_place: SqlitePlace) -> None:
    """One can only go back to a revision that there is."""
    with pytest.raises(ValueError, match="no revision '0815'; there are base, 0001"):
        migrate.downgrade(sqlite_place.url, "0815")


def test_a_sqlite_file_that_cannot_be_made(tmp_path: Path) -> None:
    """The folder is missing: said with the key that names it."""
    url = f"sqlite:///{tmp_path}/nowhere/steer.db"
    with pytest.raises(
        LedgerUnusable, match=r"No such file or directory; name a file .* in database\.url"
    ):
        migrate.upgrade(url)


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    """It is no file, and does not become one."""
    with pytest.raises(LedgerUnusable, match=r"unable to open.*in database\.url"):
        migrate.upgrade(f"sqlite:///{tmp_path}")


def test_a_file_that_is_no_database(sqlite_place: SqlitePlace) -> None:
    """It is not overwritten."""
    content = b"To whom it may concern: this is a letter. " * 30
    sqlite_place.path.write_bytes(content)
    with pytest.raises(LedgerUnusable, match="file is not a database"):
        migrate.upgrade(sqlite_place.url)
    assert sqlite_place.path.read_bytes() == content


def test_a_locked_sqlite_file_is_unavailable(
    sqlite_place: SqlitePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be free later."""
    monkeypatch.setattr(migrate, "FILE_PATIENCE", 0.01)
    with closing(sqlite3.connect(sqlite_place.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            migrate.upgrade(sqlite_place.url)


def test_a_current_sqlite_file_opens_beside_its_writer(sqlite_place: SqlitePlace) -> None:
    """Looking takes no lock: in WAL mode, a transaction under way is no hindrance."""
    migrate.upgrade(sqlite_place.url)
    with closing(sqlite3.connect(sqlite_place.path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM owners")
        migrate.upgrade(sqlite_place.url)
        other.execute("ROLLBACK")


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """It may be up later; the message names it, without the password."""
    url = "postgresql://steer:hush-hush@127.0.0.1:1/ledger"
    for work in (migrate.upgrade, migrate.current):
        with pytest.raises(LedgerUnavailable, match="1:1/ledger cannot be reached") as told:
            work(url)
        assert "hush" not in str(told.value)


@pytest.mark.parametrize(
    ("user", "password", "database", "told"),
    [
        ("strict", "wrong-one", "postgres", "password authentication failed"),
        ("postgres", "", "no_such_database", "does not exist"),
        ("nobody-we-know", "", "postgres", "does not exist"),
    ],
)
def test_an_address_that_cannot_work_is_unusable(
    user: str, password: str, database: str, told: str, postgres_server: Server
) -> None:
    """Waiting does not mend it."""
    url = f"postgresql://{user}:{password}@127.0.0.1:{postgres_server.port}/{database}"
    with pytest.raises(LedgerUnusable, match=told) as refused:
        migrate.upgrade(url)
    assert "database.url" in str(refused.value)
    assert "wrong-one" not in str(refused.value)


def test_a_role_that_may_not_create_is_told_so(
    postgres_place: PostgresPlace, postgres_server: Server
) -> None:
    """The server runs with a lesser role than migrations need."""
    postgres_server.sql("CREATE ROLE lesser LOGIN")
    try:
        with pytest.raises(LedgerUnusable, match="needs a role that may create tables"):
            migrate.upgrade(postgres_place.url.replace("postgres@", "lesser@"))
    finally:
        postgres_server.sql("DROP ROLE lesser")
    assert postgres_place.names() == set()


def test_a_role_that_may_not_look_is_told_so(
    postgres_place: PostgresPlace, postgres_server: Server
) -> None:
    """Not even where the schema stands."""
    migrate.upgrade(postgres_place.url)
    postgres_server.sql("CREATE ROLE stranger LOGIN")
    try:
        with pytest.raises(LedgerUnusable, match="permission denied for table"):
            migrate.current(postgres_place.url.replace("postgres@", "stranger@"))
    finally:
        postgres_server.sql("DROP ROLE stranger")


def _held_up(monkeypatch: pytest.MonkeyPatch, place: PostgresPlace, patience: float) -> None:
    """A schema that an upgrade would change, and little patience."""
    migrate.upgrade(place.url)
    migrate.downgrade(place.url, migrate.REVISIONS[-2])
    monkeypatch.setattr(migrate, "PATIENCE", patience)
    monkeypatch.setattr(migrate, "LOCK_TIME", 0.05)
    monkeypatch.setattr(migrate, "PAUSE", 0.1)


@pytest.mark.real_time
def test_who_is_in_the_way_of_an_upgrade_is_named(
    postgres_place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server's process that reads, and for as long as the upgrade was worth waiting."""
    _held_up(monkeypatch, postgres_place, 0.2)

    async def beside(reader: asyncpg.Connection[asyncpg.Record]) -> None:
        async with reader.transaction():
            pid = await reader.fetchval(
                "SELECT pg_backend_pid() FROM requests RIGHT JOIN (VALUES (1)) AS v ON TRUE"
            )
            with pytest.raises(LedgerUnavailable, match=rf"is locked by another: .*\b{pid}\b"):
                await asyncio.to_thread(migrate.upgrade, postgres_place.url)

    postgres_place._with(beside)
    assert migrate.current(postgres_place.url).standing is migrate.Standing.BEHIND


@pytest.mark.real_time
def test_an_upgrade_that_waits_stops_nobody(
    postgres_place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody reads, it asks for its locks now and then: others queue behind it briefly."""
    _held_up(monkeypatch, postgres_place, 60.0)

    async def beside(reader: asyncpg.Connection[asyncpg.Record]) -> None:
        transaction = reader.transaction()
        await transaction.start()
        await reader.execute("SELECT 1 FROM requests")
        upgrading = asyncio.create_task(asyncio.to_thread(migrate.upgrade, postgres_place.url))
        other = await asyncpg.connect(postgres_place.url)
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
        for _ in range(3):
            async with asyncio.timeout(20):
                while not await other.fetchval(waits):
                    assert not upgrading.done()
                await other.execute("SET statement_timeout = '5s'")
                await other.execute("SELECT 1 FROM requests")
        await other.close()
        await transaction.rollback()
        await upgrading

    postgres_place._with(beside)
    assert migrate.current(postgres_place.url).standing is migrate.Standing.CURRENT


def test_a_locked_schema_is_unavailable(
    postgres_place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another upgrader that does not come to an end is waited for in bounded time."""
    monkeypatch.setattr(migrate, "PATIENCE", 0.05)

    async def beside(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        await connection.execute(f"SELECT pg_advisory_lock({migrate._ADVISORY_LOCK})")
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(migrate.upgrade, postgres_place.url)
            with pytest.raises(LedgerUnavailable, match="is locked by another"):
                done.result(30)

    postgres_place._with(beside)
