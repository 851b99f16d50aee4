"""Ports for servers that are started later, or stopped and started again."""

from __future__ import annotations

import random
import socket
from typing import Final

#: Below those that go to outgoing connections (RFC 6335: from 49152 on; Linux: from 32768): one of
#: these could take a server's port while it is down.
_RANGE: Final = range(20_000, 32_000)

#: Not the generator that test runners seed: every process would choose the same.
_CHANCE: Final = random.SystemRandom()

_TRIES: Final = 100


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now, and that no connection gets by chance.

    Raises:
        OSError: when none was found.
    """
    for _ in range(_TRIES):
        port = _CHANCE.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port was found in {_RANGE}")
