"""Locks between processes that use one SQLite file: advisory ones, on files beside it.

Named after the file itself, whatever link leads to it, and never opened through a link. Not on the
file: closing any descriptor of it would drop SQLite's own locks. The kernel lets
go of them however a process ends; the files stay: removing one would race with who comes next.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
from steer_proxy.ledger.sqlite_place import NAME_ANOTHER, out_of_reach

LOGGER: Final = logging.getLogger("steer.ledger")

#: Errors with which a lock's file cannot be opened where the ledger itself cannot, either.
_WITH_THE_FILE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
)

#: How often to ask again for one's turn, in seconds.
_MOMENT: Final = 0.0005


class Turn:
    """Whose turn it is to change a file or to checkpoint it: a lock on `PATH-turn`, held briefly.

    SQLite itself lets several processes write in turn; but before 3.51.3 (3.50.7, 3.44.6) one that
    commits while another checkpoints can, very rarely, corrupt the file (the WAL-reset bug). With
    this they never do so at the same time, and `steer ledger resolve` need not stop a sidecar.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self._name = path
        self._path = beside(real(path), "-turn")
        self._patience = patience
        self._descriptor: int | None = None
        self._told = False

    def __enter__(self) -> None:
        """Have the turn.

        Raises:
            LedgerUnavailable: another process does not give it back.
        """
        if self._descriptor is None:
            self._open()
        deadline = time.monotonic() + self._patience
        while self._descriptor is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    raise LedgerUnavailable(
                        f"SQLite file {self._name}: another process has been writing it for more "
                        f"than {self._patience:g} s"
                    ) from None
                time.sleep(_MOMENT)
                continue
            if self._there():
                return
            # The file was removed, and others will make another: one's turn is with theirs.
            self.close()
            self._open()

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _open(self) -> None:
        try:
            self._descriptor = _opened(self._path)
            _hand_over(self._descriptor, self._name)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise LedgerUnavailable(
                    f"SQLite file {self._name}: {self._path} is a symbolic link: remove it"
                ) from None
            if error.errno not in _WITH_THE_FILE:
                raise out_of_reach(self._name, error) from None
            # The file cannot be opened, either, and that is told better, unless this one is there.
            if not self._told and (reason := denied(self._path)) is not None:
                self._told = True
                LOGGER.warning(
                    "SQLite file %s is written without taking turns: %s. Until then do not use "
                    "`steer ledger resolve` and `purge` while Steer runs: both can damage the file",
                    self._name,
                    reason,
                )

    def _there(self) -> bool:
        assert self._descriptor is not None  # noqa: S101 - for the type checker
        ours = os.fstat(self._descriptor)
        return identity(self._path) == (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        """Let go of the lock's file, which stays."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _opened(path: Path) -> int:
    """A lock's file, made when it is not there; never what a link points to."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _hand_over(descriptor: int, path: Path) -> None:
    """Give a lock's file that root has made to the user of the file it is for, as SQLite does with
    its own: a command that root runs must not leave behind what Steer cannot open."""
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid == 0:
        with suppress(OSError):
            owner = path.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


class WriterLock:
    """The right to write a file; of one process, not of those it forks."""

    def __init__(self, path: Path) -> None:
        _LOCKS.add(self)
        self._path = beside(real(path), "-lock")
        self._name = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Have the lock; whether it was not ours before.

        Raises:
            LedgerUnusable: another process has it, or it cannot be made.
        """
        if self.held():
            return False
        self.release()
        try:
            descriptor = _opened(self._path)
        except OSError as error:
            if (reason := denied(self._path)) is not None:
                raise LedgerUnusable(f"SQLite file {self._name}: {reason}") from None
            raise LedgerUnusable(
                f"SQLite file {self._name}: {self._path} cannot be made: {error.strerror}; make "
                f"the directory writable to this user, or {NAME_ANOTHER}"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {owner}" if owner.isdecimal() else "another process"
            raise LedgerUnusable(
                f"another steer ({who}) is writing SQLite file {self._name}, and a file has one "
                f"writer: {NAME_ANOTHER}, or let them share PostgreSQL (database.url: postgresql://...)"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise LedgerUnusable(
                f"SQLite file {self._name}: {self._path} cannot be locked: {error.strerror}; put "
                f"it on a local disk, or {NAME_ANOTHER}"
            ) from None
        self._descriptor = descriptor
        with suppress(OSError):  # a full disk: the number only serves the message above
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return True

    def held(self) -> bool:
        """Whether we have the lock, and others would find it."""
        if self._descriptor is None:
            return False
        ours = os.fstat(self._descriptor)
        return identity(self._path) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Let go of it, also where a forked process has its file open still."""
        if self._descriptor is not None:
            with suppress(OSError):  # its file system is gone: closing is what is left
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close its file. The lock stays with who else has that open: a fork shares it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_LOCKS: Final[weakref.WeakSet[WriterLock]] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in _LOCKS:
        lock.forget()


# A child would keep its parent's lock for as long as it lives, whatever became of the parent.
os.register_at_fork(after_in_child=_forget_all)


def has_writer(path: Path) -> bool:
    """Whether a process has the right to write a file now.

    Asking takes it for an instant where nobody has it: to be asked only where somebody should.
    """
    try:
        descriptor = os.open(
            beside(real(path), "-lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        )
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def denied(path: Path) -> str | None:
    """Why a lock's file that is there is not ours to open, and what to do; None when it is not."""
    try:
        there = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(there.st_mode) or may_write(path):
        return None
    return (
        f"{path} is there, of user {there.st_uid}, and not to be opened by this one: chown it to "
        "the user Steer runs as, or remove it while no steer runs"
    )


def may_write(path: Path) -> bool:
    """Whether this user may read and write a file."""
    return os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)


Identity = tuple[int, int]
"""What a file is, whatever its name: its device and its number there."""


def identity(path: Path) -> Identity | None:
    """Which file is at a path; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def real(path: Path) -> Path:
    """The file's own name, whatever links lead to it: SQLite names its journal by it too."""
    return Path(os.path.realpath(path))


def beside(path: Path, suffix: str) -> Path:
    """The path with something appended to its name."""
    return path.with_name(path.name + suffix)
