from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from steer_policies.idempotency import Move, State
from steer_proxy.ledger import sqlite_file
from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sqlite import SqliteLedger
from steer_proxy.ledger.sqlite_locks import Turn, WriterLock
from steer_proxy.ledger.values import Batch, Purge
from tests.ledger_contract.make import (
    LEASE,
    ME,
    alive,
    attempt,
    call,
    chunks,
    claim,
    ending,
    found,
    made,
    ref,
)
from tests.ledger_contract.subject import SqliteSubject, Wall
from tests.support.unprivileged import unprivileged

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def opened(path: Path, busy_timeout: float = 0.05) -> AsyncIterator[SqliteSubject]:
    subject = SqliteSubject(path)
    subject.ledger = SqliteLedger(path, subject.wall, busy_timeout=busy_timeout)
    try:
        await subject.ledger.open()
        yield subject
    finally:
        await subject.ledger.close()


def available(subject: SqliteSubject) -> bool:
    return subject.ledger.available


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steer.db"


@pytest.fixture
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look whether the file is still there before every batch."""
    monkeypatch.setattr(sqlite_file, "LOOK_EVERY", 0.0)


# --- Opening --------------------------------------------------------------------------------------


async def test_the_file_is_made_ready(path: Path) -> None:
    """Write-ahead log, full synchronisation, for its owner only."""
    async with opened(path) as subject:
        writer = subject.ledger._file.writer()
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
        for name in ("steer.db", "steer.db-wal", "steer.db-lock"):
            assert path.with_name(name).stat().st_mode & 0o077 == 0, name
        assert not subject.ledger.shared


async def test_only_keys_wait_for_the_disk(path: Path) -> None:
    """What the log writes is committed without a wait for the disk; whatever speaks of a key, and
    all that came before it, is on the disk when its caller goes on."""
    async with opened(path) as subject:
        await alive(subject, ME)

        def synchronous() -> int:
            found = subject.ledger._file.writer().execute("PRAGMA synchronous").fetchone()
            return int(found[0])

        full, normal = 2, 1
        assert synchronous() == full
        await subject.ledger.write(Batch([call(subject)]))
        assert synchronous() == normal
        record = await made(subject, claim(subject))
        assert synchronous() == full
        await subject.ledger.write(Batch([call(subject)]))
        assert synchronous() == normal
        together = (
            subject.ledger.write(Batch([call(subject)])),
            subject.ledger.mark_sent(ref(record)),
        )
        await asyncio.gather(*together)
        assert synchronous() == full
        subject.ledger._file.lose()
        await subject.ledger.write(Batch([call(subject)]))
        assert synchronous() == normal
        assert len(await subject.rows("requests")) == 5


async def test_one_writer_by_whatever_name(path: Path) -> None:
    """A link to the file is the file: the lock is named after what it leads to."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with opened(link):
        for name in (path, link):
            other = SqliteLedger(name, Wall())
            with pytest.raises(LedgerUnusable, match="another steer"):
                await other.open()
            await other.close()
        assert not path.with_name("link.db-lock").exists()


@pytest.mark.parametrize("guest", [False, True])
async def test_a_file_with_several_names(path: Path, guest: bool) -> None:
    """Neither lock nor journal would be found by another of them: who writes it goes on, nobody
    begins to, and the remedy works."""
    other = path.with_name("other.db")
    async with opened(path) as subject:
        await made(subject, claim(subject))
        other.hardlink_to(path)
        second = SqliteLedger(other, Wall(), guest=guest)
        with pytest.raises(LedgerUnusable, match="has 2 names"):
            await second.open()
        await second.close()
        assert not exists(other.with_name("other.db-wal"))
        subject.ledger._file.lose()
        await made(subject, claim(subject, "scope-2"))
    with pytest.raises(LedgerUnusable) as caught:
        async with opened(path):
            pass
    remedy = str(caught.value).partition("steer runs: ")[2]
    run(remedy)
    async with opened(path) as subject:
        assert (await found(subject, "scope-2")).state is State.CLAIMED
    assert exists(other)


def run(command: str) -> None:
    """Do what a message says to do."""
    subprocess.run(["sh", "-c", command], check=True)


async def test_a_file_behind_a_link_is_for_its_owner_only(path: Path) -> None:
    """It is made behind a link that leads nowhere yet."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with opened(link) as subject:
        await alive(subject)
        for name in ("steer.db", "steer.db-wal", "steer.db-shm"):
            assert path.with_name(name).stat().st_mode & 0o077 == 0, name


@pytest.mark.parametrize("suffix", ["-lock", "-turn"])
async def test_a_lock_is_never_written_through_a_link(path: Path, suffix: str) -> None:
    """Whoever may write the directory could have another file emptied."""
    precious = path.with_name("precious")
    precious.write_text("precious")
    path.with_name(path.name + suffix).symlink_to(precious)
    ledger = SqliteLedger(path, Wall())
    with pytest.raises((LedgerUnusable, LedgerUnavailable), match=rf"steer\.db{suffix}"):
        await ledger.open()
    await ledger.close()
    assert precious.read_text() == "precious"


async def test_a_file_that_others_can_read_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not ours to change: somebody may have wanted it so."""
    async with opened(path):
        pass
    assert caplog.messages == []
    os.chmod(path, 0o644)  # noqa: PTH101 - as below, not an asynchronous path
    async with opened(path):
        pass
    (message,) = caplog.messages
    assert "may be read by other users (mode 644)" in message
    assert os.stat(path).st_mode & 0o777 == 0o644  # noqa: PTH116


async def test_nothing_is_known_before_it_is_open(path: Path) -> None:
    """And nothing works after it was closed, which can be done twice."""
    ledger = SqliteLedger(path, Wall())
    assert (ledger.secret, ledger.available) == (None, False)
    await ledger.open()
    await ledger.close()
    await ledger.close()
    assert not ledger.available
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.find("scope-1")


async def test_a_later_call_opens_what_could_not_be_opened(path: Path) -> None:
    """Whether it reads or writes."""
    for _ in range(2):
        subject = SqliteSubject(path)
        assert await subject.ledger.find("scope-1") is None
        assert subject.ledger.available
        await subject.ledger.close()


async def test_opening_ends_all_leases(path: Path) -> None:
    """We have the writer's lock: whoever held a lease is dead."""
    async with opened(path) as subject:
        await alive(subject)
        await made(subject, claim(subject))
        assert not (await found(subject)).lapsed
    async with opened(path) as subject:
        assert (await found(subject)).lapsed


def _text(path: Path) -> Path:
    path.write_text("this is not a database, whatever its name says\n" * 100)
    return path


def _inside_a_file(path: Path) -> Path:
    return _text(path) / "steer.db"


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _foreign_schema(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('abc')")
        connection.commit()
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "missing" / "steer.db", "there is no directory"),
        (_inside_a_file, "there is no directory"),
        (_folder, "is a directory"),
        (_text, "not a database"),
        (_foreign_schema, "of Steer's own"),
        (lambda _: Path("/proc/steer.db"), "cannot be made"),
    ],
    ids=["no folder", "inside a file", "folder", "text", "foreign", "proc"],
)
async def test_a_file_that_cannot_be_a_ledger(path: Path, make, says: str) -> None:  # type: ignore[no-untyped-def]
    """The message says what to do, and names the file."""
    where = make(path)
    with pytest.raises(LedgerUnusable, match=says) as caught:
        async with opened(where):
            pass
    assert "steer" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
async def test_a_folder_or_a_file_without_permission() -> None:
    """Both need to be writable; afterwards they work."""
    with unprivileged() as folder:
        path = folder / "steer.db"
        folder.chmod(0o555)
        with pytest.raises(LedgerUnusable, match="writable"):
            async with opened(path):
                pass
        folder.chmod(0o755)
        async with opened(path):
            pass
        path.chmod(0o444)
        with pytest.raises(LedgerUnusable, match=r"writable|readonly"):
            async with opened(path):
                pass
        os.chmod(path, 0o644)  # noqa: PTH101 - as below, not an asynchronous path
        async with opened(path) as subject:
            await made(subject, claim(subject))


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
@pytest.mark.parametrize("place", ["steer.db", "deeper/steer.db"])
async def test_a_folder_that_one_may_not_enter(place: str) -> None:
    """Is told as one that is not there, whatever is inside it."""
    with unprivileged() as folder:
        (folder / place).parent.mkdir(exist_ok=True)
        async with opened(folder / place):
            pass
        folder.chmod(0o000)
        with pytest.raises(LedgerUnusable, match="cannot be reached: Permission denied"):
            async with opened(folder / place):
                pass
        folder.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
@pytest.mark.usefixtures("_look_always")
async def test_a_folder_that_one_may_no_longer_enter() -> None:
    """Unavailable until one may again; what was there is there, and no lease has ended."""
    with unprivileged() as folder:
        async with opened(folder / "steer.db") as subject:
            await alive(subject)
            await made(subject, claim(subject))
            folder.chmod(0o000)
            for _ in range(2):
                with pytest.raises(LedgerUnavailable, match="cannot be reached: Permission denied"):
                    await subject.ledger.claim(claim(subject, "scope-2"))
                with pytest.raises(LedgerUnavailable, match="cannot be reached: Permission denied"):
                    await subject.ledger.find("scope-1")
            folder.chmod(0o755)
            await made(subject, claim(subject, "scope-2"))
            assert subject.ledger.available
            assert not (await found(subject)).lapsed


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
async def test_a_lock_of_another_user() -> None:
    """Is told as what it is: there, and not ours."""
    with unprivileged() as folder:
        path = folder / "steer.db"
        async with opened(path):
            pass
        (folder / "steer.db-lock").chmod(0o000)
        with pytest.raises(LedgerUnusable, match=r"steer\.db-lock is there, of user .*: chown"):
            async with opened(path):
                pass


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
async def test_a_turn_of_another_user(caplog: pytest.LogCaptureFixture) -> None:
    """Steer goes on without, which is told once."""
    with unprivileged() as folder:
        path = folder / "steer.db"
        async with opened(path):
            pass
        (folder / "steer.db-turn").chmod(0o000)
        async with opened(path) as subject:
            await made(subject, claim(subject))
            await made(subject, claim(subject, "scope-2"))
        (message,) = caplog.messages
        assert "steer.db-turn is there, of user" in message
        assert "chown it" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
async def test_a_turn_that_root_makes_is_for_the_files_user(path: Path) -> None:
    """A command that root runs leaves nothing behind that Steer, another user, cannot open."""
    async with opened(path):
        pass
    os.chown(path, 65534, 65534)
    remove(path.with_name("steer.db-turn"))
    guest = SqliteLedger(path, Wall(), guest=True)
    await guest.open()
    await guest.close()
    there = os.stat(path.with_name("steer.db-turn"))  # noqa: PTH116 - not an asynchronous path
    assert (there.st_uid, there.st_gid) == (65534, 65534)


@pytest.mark.parametrize("suffix", ["", "-turn"])
async def test_an_error_of_the_system_is_the_ledgers(
    path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """No descriptor is left, say: all who wait are told in the ledger's terms, and go on later."""
    subject = SqliteSubject(path)
    place = path.with_name(path.name + suffix)
    real_open, real_stat = os.open, Path.stat

    def no_open(name: str | Path, *arguments: int) -> int:
        if os.fspath(name) == os.fspath(place):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real_open(name, *arguments)

    def no_stat(name: Path, **options: bool) -> os.stat_result:
        if name == place:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real_stat(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_open)
        patch.setattr(Path, "stat", no_stat)
        with pytest.raises(LedgerUnavailable, match="cannot be reached: Too many open files"):
            await subject.ledger.open()
    await made(subject, claim(subject))
    await subject.ledger.close()


# --- One writer -----------------------------------------------------------------------------------


async def test_a_second_writer_is_refused(path: Path) -> None:
    """In the same process too; the message names who has it, and the remedy."""
    async with opened(path) as subject:
        with pytest.raises(LedgerUnusable) as caught:
            async with opened(path):
                pass
        message = str(caught.value)
        for part in (str(path), f"process {os.getpid()}", "another file", "PostgreSQL"):
            assert part in message
        await made(subject, claim(subject))
    async with opened(path) as subject:
        assert (await found(subject)).state is State.CLAIMED


@pytest.mark.real_time
async def test_kill_minus_nine_loses_nothing_committed(path: Path) -> None:
    """A writer in another process keeps us out; killed, it leaves its claims and no lock."""
    with writer(path) as process:
        assert process.stdout is not None
        claimed = process.stdout.readline().split()
        assert claimed[0] == b"claimed"
        with pytest.raises(LedgerUnusable, match=f"process {process.pid}"):
            async with opened(path):
                pass
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    async with opened(path) as subject:
        scopes = [scope.decode() for scope in claimed[1:]]
        assert len(scopes) == 20
        for scope in scopes:
            record = await found(subject, scope)
            assert (record.state, record.lapsed) == (State.SENT, True)


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that claims, and says what has been committed; then it goes on until killed."""
    script = """
import asyncio, sys
from pathlib import Path
from tests.ledger_contract.make import alive, claim
from tests.ledger_contract.subject import SqliteSubject

async def main():
    subject = SqliteSubject(Path(sys.argv[1]))
    await subject.ledger.open()
    await alive(subject)
    scopes = [f"scope-{n}" for n in range(20)]
    await asyncio.gather(*(subject.ledger.claim(claim(subject, s, sent=True)) for s in scopes))
    print("claimed", *scopes, flush=True)
    n = 0
    while True:
        n += 1
        await subject.ledger.claim(claim(subject, f"more-{n}"))

asyncio.run(main())
"""
    paths = [str(ROOT / name) for name in ("policies", "proxy", "")]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def remove(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_bytes(b"no database" * 10_000)


async def test_a_guest_writes_beside_the_writer(path: Path) -> None:
    """A command settles a record while a proxy serves; the proxy's lease stays."""
    async with opened(path) as subject:
        await alive(subject)
        doubted = await made(subject, claim(subject, "doubted", sent=True))
        assert await subject.ledger.finish(ending(subject, doubted, State.UNCERTAIN))
        await made(subject, claim(subject, "running", sent=True))
        guest = SqliteLedger(path, subject.wall, guest=True)
        await guest.open()
        assert await guest.settle(doubted.row.id, Move.REOPEN)
        await guest.close()
        assert await subject.ledger.find("doubted") is None
        assert not (await found(subject, "running")).lapsed


#: Has the lock, and ends without letting go; its child may let go of what it has of it, and lives
#: on until its input ends.
FORKING = """
import os, sys
from pathlib import Path
from steer_proxy.ledger.protocol import LedgerUnusable
from steer_proxy.ledger.sqlite_locks import WriterLock

lock = WriterLock(Path(sys.argv[1]))
lock.acquire()
ready, tell = os.pipe()
if os.fork() == 0:
    if sys.argv[2] == "release":
        lock.release()
    os.write(tell, b".")
    os.read(0, 1)
    os._exit(0)
os.read(ready, 1)
try:
    WriterLock(Path(sys.argv[1])).acquire()
except LedgerUnusable:
    os.write(1, b"kept\\n")
os._exit(0)
"""


@pytest.mark.parametrize("child", ["release", "keep"])
def test_a_forked_child_has_no_part_in_the_lock(path: Path, child: str) -> None:
    """It neither frees its parent's nor keeps it past its parent's end."""
    command = [sys.executable, "-c", FORKING, str(path), child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"kept\n"
        assert process.wait(60) == 0
        lock = WriterLock(path)
        assert lock.acquire()
        lock.release()


async def test_a_guest_makes_no_file(path: Path) -> None:
    """A mistyped path is no new ledger."""
    guest = SqliteLedger(path, Wall(), guest=True)
    with pytest.raises(LedgerUnusable):
        await guest.open()
    await guest.close()
    assert not exists(path)


async def test_writers_take_turns(path: Path) -> None:
    """Who does not get its turn in time is told so, and gets it once it is given back."""
    async with opened(path) as subject:
        turn = Turn(path, 1.0)
        with turn, pytest.raises(LedgerUnavailable, match="another process has been writing"):
            await subject.ledger.claim(claim(subject))
        await made(subject, claim(subject))
        remove(path.with_name("steer.db-turn"))
        await made(subject, claim(subject, "scope-2"))
        with turn, pytest.raises(LedgerUnavailable):
            await subject.ledger.claim(claim(subject, "scope-3"))
        turn.close()


def exists(path: Path) -> bool:
    return path.exists()


# --- Trouble --------------------------------------------------------------------------------------


async def test_a_locked_file_is_unavailable_until_it_is_free(path: Path) -> None:
    """Another program's transaction keeps us waiting no longer than its time; then all works."""
    async with opened(path) as subject:
        mine = await made(subject, claim(subject))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailable, match="locked"):
                await subject.ledger.claim(claim(subject, "scope-2"))
            assert not available(subject)
            other.execute("ROLLBACK")
        assert (await subject.ledger.find("scope-1")) is not None
        await made(subject, claim(subject, "scope-2"))
        assert available(subject)
        assert (await found(subject)).id == mine.row.id


async def test_a_file_locked_at_the_start_is_opened_later(path: Path) -> None:
    """Being locked is no reason to give up for good."""
    async with opened(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        subject = SqliteSubject(path)
        subject.ledger = SqliteLedger(path, subject.wall, busy_timeout=0.05)
        with pytest.raises(LedgerUnavailable, match="locked"):
            await subject.ledger.open()
        other.execute("ROLLBACK")
    await made(subject, claim(subject))
    assert subject.ledger.available
    assert subject.ledger.secret is not None
    await subject.ledger.close()


async def test_a_full_disk_fails_the_batch_and_nothing_else(path: Path) -> None:
    """What does not fit is not there, what was there stays; with room again all works."""
    async with opened(path) as subject:
        kept = await made(subject, claim(subject, "kept", sent=True))
        writer = subject.ledger._file.writer()
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()
        large = ending(subject, kept, State.COMPLETED, os.urandom(200_000))
        results = await asyncio.gather(
            subject.ledger.claim(claim(subject, "with it")),
            subject.ledger.finish(large),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [LedgerUnavailable] * 2
        assert "full" in str(results[0])
        assert not subject.ledger.available
        assert (await found(subject, "kept")).state is State.SENT
        assert await subject.ledger.find("with it") is None
        writer.execute("PRAGMA max_page_count = 1000000").fetchone()
        assert await subject.ledger.finish(large)
        await made(subject, claim(subject, "with it"))
        assert subject.ledger.available


@pytest.mark.usefixtures("_look_always")
async def test_a_file_that_was_deleted_is_made_anew(path: Path) -> None:
    """With the secret of before: calls that are under way have their scopes by it."""
    async with opened(path) as subject:
        secret = subject.ledger.secret
        mine = await made(subject, claim(subject))
        remove(path)
        assert await subject.ledger.claim(claim(subject, "scope-2")) is None
        assert subject.ledger.secret == secret
        assert await subject.ledger.find("scope-1") is None
        assert not await subject.ledger.finish(ending(subject, mine, State.RELEASED))
        assert [row["idem_scope"] for row in await subject.rows("requests")] == ["scope-2"]
    async with opened(path) as subject:
        assert subject.ledger.secret == secret


@pytest.mark.usefixtures("_look_always")
async def test_a_file_that_was_replaced_is_taken_as_it_is(path: Path, tmp_path: Path) -> None:
    """A restored backup: its records, its secret; our journal is not applied to it."""
    backup = tmp_path / "backup.db"
    async with opened(backup) as subject:
        await alive(subject)
        await made(subject, claim(subject, "of the backup"))
        secret = subject.ledger.secret
    async with opened(path) as subject:
        for n in range(50):
            await made(subject, claim(subject, f"scope-{n}"))
        backup.replace(path)
        await made(subject, claim(subject, "after"))
        assert subject.ledger.secret == secret
        record = await found(subject, "of the backup")
        assert record.lapsed
        assert await subject.ledger.find("scope-1") is None
        assert {row["idem_scope"] for row in await subject.rows("requests")} == {
            "of the backup",
            "after",
        }
        with closing(sqlite3.connect(path)) as check:
            assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.usefixtures("_look_always")
async def test_a_folder_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    """Unavailable in between, saying why; no restart is needed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    async with opened(folder / "steer.db") as subject:
        await made(subject, claim(subject))
        shutil.rmtree(folder)
        with pytest.raises(LedgerUnavailable, match="no directory"):
            await subject.ledger.claim(claim(subject, "scope-2"))
        with pytest.raises(LedgerUnavailable, match="no directory"):
            await subject.ledger.find("scope-2")
        folder.mkdir()
        await made(subject, claim(subject, "scope-2"))
        assert subject.ledger.available


@pytest.mark.usefixtures("_look_always")
async def test_a_deleted_lock_is_taken_anew(path: Path) -> None:
    """Otherwise a second writer would find none."""
    async with opened(path) as subject:
        remove(path.with_name("steer.db-lock"))
        await made(subject, claim(subject))
        with pytest.raises(LedgerUnusable, match="another steer"):
            async with opened(path):
                pass


@pytest.mark.usefixtures("_look_always")
@pytest.mark.parametrize("names", [("-wal", "-shm"), ("-wal",), ("-shm",)])
async def test_a_journal_that_was_removed(
    path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...]
) -> None:
    """What was committed is saved; others, who open the file anew, see it and what follows."""
    async with opened(path) as subject:
        await alive(subject)
        mine = await made(subject, claim(subject))
        await found(subject)  # a reader has it open
        await subject.ledger.purge(Purge(before_us=0))  # and another one
        for name in names:
            remove(path.with_name(path.name + name))
        await made(subject, claim(subject, "scope-2"))
        (message,) = caplog.messages
        assert "was removed while Steer used it; what was in it is saved" in message
        assert (await found(subject)).id == mine.row.id
        assert not (await found(subject)).lapsed
        seen = read_by_another(path)
        assert seen == ["ok", "scope-1", "scope-2"]
        for number in range(3, 6):
            remove(path.with_name("steer.db-lock"))
            await made(subject, claim(subject, f"scope-{number}"))
            await found(subject, f"scope-{number}")
        assert subject.ledger.available
        assert len(caplog.messages) == 1


async def test_a_journal_that_is_removed_before_the_end(path: Path) -> None:
    """Is saved then, however shortly before."""
    async with opened(path) as subject:
        await made(subject, claim(subject))
        remove(path.with_name("steer.db-wal"))
        remove(path.with_name("steer.db-shm"))
    assert read_by_another(path) == ["ok", "scope-1"]


@pytest.mark.usefixtures("_look_always")
async def test_a_journal_in_the_place_of_the_one_removed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program has the file open with it by now: ours is not written past it."""
    async with opened(path) as subject:
        await made(subject, claim(subject))
        await subject.reopen()  # what came before is in the file
        await made(subject, claim(subject, "scope-2"))
        for name in ("-wal", "-shm"):
            remove(path.with_name(path.name + name))
        with another(path) as process:
            await made(subject, claim(subject, "scope-3"))
            process.communicate(timeout=10)
        (message,) = caplog.messages
        assert "may be lost" in message
        assert read_by_another(path) == ["ok", "scope-1", "scope-3"]


_READ = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
print(*connection.execute("PRAGMA integrity_check").fetchone(), flush=True)
for row in connection.execute("SELECT idem_scope FROM requests ORDER BY idem_scope"):
    print(*row, flush=True)
"""


def another(path: Path) -> subprocess.Popen[str]:
    """Another process that has the file open, and has written, until its input ends."""
    script = _READ + 'connection.execute("PRAGMA user_version = 7"); print(flush=True)\n'
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script}sys.stdin.read()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline().strip():
        pass
    return process


def read_by_another(path: Path) -> list[str]:
    """What another process finds: one of this process would share what this one has open."""
    command = [sys.executable, "-c", _READ, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


async def test_a_broken_file_does_not_end_the_process(path: Path) -> None:
    """Overwritten while we use it: unavailable, whatever is asked."""
    async with opened(path) as subject:
        await made(subject, claim(subject))
        await subject.reopen()
        spoil(path)
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                await subject.ledger.claim(claim(subject, "scope-2"))


async def test_a_defect_in_one_operation_is_its_callers(path: Path) -> None:
    """The others of its batch are not concerned."""

    def broken(_: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    async with opened(path) as subject:
        results = await asyncio.gather(
            subject.ledger.claim(claim(subject)),
            subject.ledger._write(broken, atomic=False),
            subject.ledger.claim(claim(subject, "scope-2")),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), ZeroDivisionError, type(None)]
        assert len(await subject.rows("requests")) == 2


async def test_many_callers_share_a_transaction(path: Path) -> None:
    """Group commit: what queues together is synced once."""
    async with opened(path) as subject:
        statements: list[str] = []
        subject.ledger._file.writer().set_trace_callback(statements.append)
        claims = [claim(subject, f"scope-{n}") for n in range(64)]
        await asyncio.gather(*map(subject.ledger.claim, claims))
        assert statements.count("COMMIT") == 1
        subject.ledger._file.writer().set_trace_callback(None)


# --- Speed that does not wear off -----------------------------------------------------------------

_PLANS = {
    "FIND": "requests_live_key",
    "EXPIRED": "requests_expires",
    "OLD_CALLS": "requests_started",
    "STRAY_ATTEMPTS": "attempts_started",
    "DELETE_EVENTS": "breaker_events_at",
    "OLDEST_ANSWERS": "sqlite_autoindex_response_chunks_1",
}


#: Those that read a whole table: it is small, or they are about all of it.
_SMALL_OR_ALL = ("STORED_BYTES", "OLDEST_ANSWERS", "DELETE_OWNERS", "RETIRE_ALL", "KEY_CHECKS")


async def test_no_statement_reads_a_whole_table(path: Path) -> None:
    """Each finds its rows by an index; only measuring all answers reads all of them."""
    from steer_proxy.ledger import statements

    texts = {
        name: value
        for name, value in vars(statements).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("_")
    } | {f"FINISH {state}": text for state, text in statements.FINISH.items()}
    async with opened(path):
        with closing(sqlite3.connect(path)) as reader:
            for name, text in texts.items():
                sql = statements.positional(text)
                plan = reader.execute(
                    f"EXPLAIN QUERY PLAN {sql.text}", [None] * len(sql.names)
                ).fetchall()
                steps = [row[3] for row in plan]
                if name in _PLANS:
                    assert any(_PLANS[name] in step for step in steps), (name, steps)
                scans = {step for step in steps if step.startswith("SCAN")}
                scans -= {"SCAN CONSTANT ROW", "SCAN json_each VIRTUAL TABLE INDEX 1:"}
                if name not in _SMALL_OR_ALL:
                    assert not scans, (name, steps)


async def test_a_purge_lets_others_in_between(path: Path) -> None:
    """A slice is no larger than asked for, whatever of: each step is a transaction of its own."""
    async with opened(path) as subject:
        rows = [call(subject, started_us=n, ended_us=n) for n in range(90)]
        keys = [claim(subject, f"scope-{n}", sent=True, retention=60) for n in range(30)]
        for each in keys:
            await subject.ledger.claim(each)
            done = ending(subject, each, State.COMPLETED, b"one", b"two", retention=60)
            assert await subject.ledger.finish(done)
        await subject.ledger.write(Batch(rows, [attempt(row) for row in rows]))
        await subject.advance(70)
        sizes = []
        more = True
        while more:
            removed = await subject.ledger.purge(Purge(before_us=1_000, limit=16))
            live = [row for row in await subject.rows("requests") if row["idem_live"]]
            left = (len(live), *[len(await subject.rows(name)) for name in _PURGED])
            sizes.append(left)
            assert removed.attempts == removed.requests
            more = removed.more
        assert sizes[-1] == (0, 0, 30, 0)
        steps = [
            sum(before[:3]) - sum(after[:3])  # a call's attempts go with it
            for before, after in itertools.pairwise([(30, 60, 120, 90), *sizes])
        ]
        assert max(steps) <= 16


_PURGED = ("response_chunks", "requests", "attempts")


@pytest.mark.parametrize("what", ["answered", "in doubt", "its owner is back"])
async def test_a_key_that_comes_to_life_before_its_removal_stays(path: Path, what: str) -> None:
    """What to remove is looked up beside the writer: until that gets to it, its owner may have
    ended the call after all, or have renewed its lease. Its key is not free then, and nothing of
    its answer goes."""
    async with opened(path) as subject:
        mine = await made(subject, claim(subject, sent=True, retention=60))
        await subject.ledger.add_chunks(chunks(mine, b"one"))
        await subject.advance(70)
        purger, read = subject.ledger._purger, subject.ledger._purger._read

        async def late(function, *arguments):  # type: ignore[no-untyped-def]
            purger._read = read
            looked_up = await read(function, *arguments)
            assert looked_up == [mine.row.id]
            if what == "answered":
                end = ending(subject, mine, State.COMPLETED, b"one", b"two", written=1)
                assert await subject.ledger.finish(end)
            elif what == "in doubt":
                assert await subject.ledger.finish(ending(subject, mine, State.UNCERTAIN))
            else:
                await alive(subject)
            return looked_up

        purger._read = late
        for _ in range(2):
            removed = await subject.ledger.purge(Purge(subject.now_us() + 10**12))
            assert (removed.keys, removed.requests, removed.chunks) == (0, 0, 0)
        record = await found(subject)
        state = {"answered": State.COMPLETED, "in doubt": State.UNCERTAIN}.get(what, State.SENT)
        assert (record.id, record.state) == (mine.row.id, state)
        bodies = [row.body for row in await subject.ledger.chunks(mine.row.id, -1, 9)]
        assert bodies == ([b"one", b"two"] if what == "answered" else [b"one"])
        assert record.stored is (what == "answered")


async def test_large_answers_go_piece_by_piece(path: Path) -> None:
    """A megabyte at once, and what belongs to a row goes before it: also when a process has died
    in between."""
    async with opened(path) as subject:
        mine = await made(subject, claim(subject, sent=True, retention=60))
        bodies = [bytes([n]) * 60_000 for n in range(40)]
        assert await subject.ledger.finish(
            ending(subject, mine, State.COMPLETED, *bodies, retention=60)
        )
        await subject.advance(70)
        later = Purge(subject.now_us() + 10**12)
        assert (await subject.ledger.purge(later)).chunks == 17
        await subject.reopen()
        slices = [await subject.ledger.purge(later) for _ in range(4)]
        assert [each.chunks for each in slices] == [0, 17, 6, 0]
        assert [each.requests for each in slices] == [0, 0, 1, 0]
        assert [each.more for each in slices] == [True, True, False, False]


async def test_the_search_for_old_calls_goes_on_where_it_was(path: Path) -> None:
    """Live rows, which stay, are passed once in a sweep, not in each of its slices."""
    async with opened(path) as subject:
        for n in range(50):
            await subject.ledger.claim(claim(subject, f"scope-{n}", started_us=n))
        rows = [call(subject, started_us=1_000 + n, ended_us=1_000 + n) for n in range(50)]
        await subject.ledger.write(Batch(rows))
        purge = Purge(subject.now_us(), limit=10)
        begins = []
        for count in (10, 10, 10, 10, 10, 0):
            begins.append(subject.ledger._purger._after)
            assert (await subject.ledger.purge(purge)).requests == count
        assert begins == [0, *(1_000 + n for n in (9, 19, 29, 39, 49))]
        assert subject.ledger._purger._after == 0
        assert len(await subject.rows("requests")) == 50


async def test_a_slice_tells_how_long_the_writer_was_busy(path: Path) -> None:
    """Not how long it waited for its turn."""
    async with opened(path) as subject:
        await subject.ledger.write(Batch([call(subject, started_us=n) for n in range(10)]))

        def slow(_: sqlite3.Connection) -> None:
            time.sleep(0.1)

        purging = subject.ledger.purge(Purge(before_us=1_000))
        other, removed = await asyncio.gather(subject.ledger._write(slow), purging)
        assert other is None
        assert removed.requests == 10
        assert 0 < removed.busy < 0.1


async def test_a_renewal_keeps_what_it_does_not_say(path: Path) -> None:
    """When a process began stays; its version is written."""
    async with opened(path) as subject:
        began = subject.now_us()
        await alive(subject)
        await subject.advance(5)
        await alive(subject)
        (row,) = await subject.rows("owners")
        assert (row["id"], row["started_us"]) == (ME, began)
        assert row["lease_until_us"] == began + int((5 + LEASE) * 1e6)
        assert row["version"]
