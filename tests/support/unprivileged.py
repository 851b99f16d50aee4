"""Being an ordinary user: root, whom containers run tests as, may go and write everywhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import steer_proxy
from steer_proxy.ledger import migrate


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Be an ordinary user for a while, with a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="steer-test-"))
    folder.chmod(0o755)
    # What is imported only when it is needed may be where an ordinary user may not look.
    migrate.upgrade(f"sqlite:///{folder}/other.db")
    assert steer_proxy.__version__
    try:
        if os.geteuid() != 0:
            yield folder
        else:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
            try:
                yield folder
            finally:
                os.seteuid(0)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
