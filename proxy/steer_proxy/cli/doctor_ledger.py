"""What `steer doctor` looks at around the ledger: its place, its schema, its keys."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from steer_proxy.cli.doctor_file import health
from steer_proxy.cli.findings import Finding, Level, failure, note, ok, warning

if TYPE_CHECKING:
    from steer_proxy.engine.config import Config, Database
    from steer_proxy.ledger.address import Address, Postgres, Sqlite

_MOUNTS: Final = Path("/proc/self/mounts")

#: File systems on which several machines see a file: SQLite's WAL needs shared memory beside it.
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"})

#: Whoever may read a key's file can read stored answers: nobody else, and a group at most.
_LAX: Final = stat.S_IRWXO | stat.S_IWGRP


def ledger(config: Config, *, online: bool) -> Iterator[Finding]:
    """The ledger can be used, and keeps its secrets. A server is asked only when `online`."""
    from steer_proxy.engine.secret import SecretUnavailable
    from steer_proxy.ledger.address import Postgres, Sqlite

    database = config.database
    try:
        address = database.address()
    except (SecretUnavailable, ValueError) as error:
        yield failure("ledger", f"database.url: {error}", "mend the reference")
        return
    match address:
        case Sqlite():
            yield from file(address, _mount_of(Path(address.path).absolute()))
        case Postgres():
            yield (standing := server(address, online=online, required=database.required))
            if online and standing.level is Level.OK:
                yield from commits(address)
        case _:
            yield note(
                "ledger",
                "in memory: keys and rows are gone when the process ends",
                "set database.url to keep them",
            )
    yield from keys(config)
    if database.encryption and (isinstance(address, Sqlite) or online):
        yield from used_keys(database, address)


def file(address: Sqlite, mount: str | None) -> Iterator[Finding]:
    """A SQLite file can be made or written here; `mount` is the type of its file system."""
    from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
    from steer_proxy.ledger.sqlite_place import other_names, seen

    path = Path(address.path).absolute()
    folder = path.parent
    other = "or set database.url to another place"
    try:
        there, is_folder = seen(path), folder.is_dir()
    except (LedgerUnavailable, LedgerUnusable) as error:
        yield failure("ledger", str(error), "let this user into its directory")
        return
    if not is_folder:
        yield failure("ledger", f"there is no directory {folder}", f"mkdir -p {folder}, {other}")
        return
    for place in (folder,) if there is None else (folder, path):
        if not os.access(place, os.W_OK):
            yield failure("ledger", f"{place} cannot be written by this user", f"chown it, {other}")
            return
    if there is not None and (reason := other_names(path, there)) is not None:
        text, _, remedy = reason.partition(". ")
        yield failure("ledger", text, remedy)
    yield from locks(path)
    if mount in _REMOTE:
        yield warning(
            "ledger",
            f"{folder} is on a network file system ({mount}), where SQLite's WAL is not safe",
            "use a local disk, or PostgreSQL",
        )
    yield (standing := schema(address))
    if path.exists() and standing.level is Level.OK:
        yield from health(address)


def locks(path: Path) -> Iterator[Finding]:
    """The locks beside a SQLite file can be taken by this user."""
    from steer_proxy.ledger.sqlite_locks import beside, denied, real

    for suffix, make in (("-lock", failure), ("-turn", warning)):
        if (reason := denied(beside(real(path), suffix))) is not None:
            text, _, remedy = reason.partition(": ")
            yield make("ledger", text, remedy)


def server(address: Postgres, *, online: bool, required: bool) -> Finding:
    """A PostgreSQL database answers, and has the schema."""
    from steer_proxy.ledger.protocol import LedgerUnavailable

    if not online:
        return note("ledger", f"{address} was not asked", "steer doctor --online asks it")
    try:
        return schema(address)
    except LedgerUnavailable as error:
        if required:
            return failure("ledger", str(error), "database.required: Steer does not start without")
        return warning("ledger", str(error), "unkeyed calls go on without it, keyed ones fail")


def commits(address: Postgres) -> Iterator[Finding]:
    """The server has on disk what it says is committed."""
    from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
    from steer_proxy.ledger.reading import reading

    settings = "current_setting('synchronous_commit') AS commits, current_setting('fsync') AS fsync"
    try:
        with reading(address) as reader:
            (row,) = reader.rows(f"SELECT {settings}", {})
    except (LedgerUnavailable, LedgerUnusable):
        return  # it was there a moment ago
    again = "after a crash of it, keys may be unknown, and their calls paid twice"
    if row["commits"] == "off":
        yield warning(
            "ledger",
            "synchronous_commit is off for this role: Steer sets it on, which is in vain behind a "
            f"pooler of transactions, and there {again}",
            "ALTER ROLE ... SET synchronous_commit = on",
        )
    if row["fsync"] == "off":
        yield warning("ledger", f"the server's fsync is off: {again}", "fsync = on")


def schema(address: Address) -> Finding:
    """Which revision the schema has, and whether this version can use it.

    Raises:
        LedgerUnavailable: a server that cannot be reached.
    """
    from steer_proxy.ledger import migrate
    from steer_proxy.ledger.address import Postgres, Sqlite
    from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable

    own = isinstance(address, Sqlite)
    url = f"sqlite:///{address.path}" if isinstance(address, Sqlite) else ""
    url = address.dsn if isinstance(address, Postgres) else url
    try:
        state = migrate.current(url)
        comes = state.standing in (migrate.Standing.EMPTY, migrate.Standing.BEHIND)
        comes = comes and not state.foreign
        if not (own and comes):
            migrate.check(state)
    except LedgerUnusable as error:
        return failure("ledger", str(error), "see docs/configuration.md, database")
    except LedgerUnavailable as error:
        if not own:
            raise
        return warning("ledger", str(error), "another program has it locked; look again")
    if isinstance(address, Sqlite) and comes and migrate.is_empty(address):
        return warning(
            "ledger",
            f"{address} is empty: as a new ledger it knows no key",
            "if it should have been one, restore a backup",
        )
    if own and comes:
        return ok("ledger", f"{address}: steer serve brings it to revision {migrate.HEAD}")
    return ok("ledger", f"{address}: revision {state.revision}")


def keys(config: Config) -> Iterator[Finding]:
    """Files of the ledger's secrets are not open to everybody."""
    from steer_proxy.engine.secret import Secret

    database = config.database
    named = [(f"encryption key {key.id}", key.secret) for key in database.encryption]
    if isinstance(database.url, Secret):
        named.append(("database.url", database.url))
    for name, secret in named:
        kind, _, place = secret.reference.partition(" ")
        if kind != "file":
            continue
        try:
            mode = Path(place).stat().st_mode
        except OSError:
            continue  # told when the configuration is loaded
        if mode & _LAX:
            yield warning(
                "ledger keys",
                f"{name}: {place} has mode {stat.S_IMODE(mode):04o}: other users can use it",
                f"chmod 600 {place}",
            )
    if database.encryption:
        first, *older = (key.id for key in database.encryption)
        more = f"; {', '.join(older)} still open what they sealed" if older else ""
        yield ok("ledger keys", f"stored answers are encrypted with {first}{more}")


def used_keys(database: Database, address: Address) -> Iterator[Finding]:
    """The keys are those that the ledger's answers were encrypted with."""
    from steer_proxy.engine.key_check import wrong_key
    from steer_proxy.engine.secret import SecretUnavailable
    from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
    from steer_proxy.ledger.reading import reading
    from steer_proxy.ledger.statements import KEY_CHECKS

    try:
        own = database.sealer().checks()
        with reading(address) as reader:
            known = {row["name"]: row["value"] for row in reader.rows(KEY_CHECKS, {})}
    except (SecretUnavailable, ValueError, LedgerUnavailable, LedgerUnusable):
        return  # there is no ledger yet, or what is wrong was told above
    references = {key.id: key.secret.reference for key in database.encryption}
    if (wrong := wrong_key(own, known, references)) is not None:
        yield failure("ledger keys", wrong, "Steer does not start with it")
    for name in sorted(known.keys() - own.keys()):
        yield warning(
            "ledger keys",
            f"the ledger has had answers encrypted with {name!r}, which is not in the ring",
            "keep a key in the ring until its last answers have expired",
        )


def _mount_of(path: Path) -> str | None:
    """The type of the file system a path is on; None where that is not told."""
    try:
        lines = _MOUNTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    best, kind = "", None
    for fields in (line.split(" ") for line in lines):
        if len(fields) > 2 and path.is_relative_to(fields[1]) and len(fields[1]) >= len(best):
            best, kind = fields[1], fields[2]
    return kind
