"""Identifiers: they differ, in whatever process they are made."""

from __future__ import annotations

import subprocess
import sys

#: Four forks of a process that has made identifiers; each tells its next ones, made at one moment.
FORKS = """
import os
from steer_proxy.engine.clock import new_id, new_span_id
new_id(0.0)
for _ in range(4):
    if (child := os.fork()) == 0:
        os.write(1, f"{new_id(0.0)} {new_span_id()}\\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_forked_processes_do_not_share_their_dice() -> None:
    """Two that made the same identifier would each take the other's claim for its own."""
    told = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert len(told) == 8
    assert len(set(told)) == 8
