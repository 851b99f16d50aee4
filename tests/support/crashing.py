"""`steer serve` that dies or stands still at a chosen moment; for tests only.

`python -m tests.support.crashing serve ...` is `steer serve ...`, but for what these variables say:

- `CRASH_AT`: `before claim 1` or `after finish 2`: the ledger's method, and which call of it.
- `CRASH_WITH`: the signal's name, `SIGKILL` unless given; with `SIGSTOP` the process can go on.
- `CRASH_LEASE`: the lease in seconds; it is renewed three times as often.
- `CRASH_PURGE`: how often the ledger is purged, in seconds.

A signal to oneself is delivered before the next step of the code: nothing runs in between.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

_PARENT_DEATH_SIGNAL = 1

#: What is looked for in the ledger's modules: every class that has both is a ledger.
_METHODS = ("claim", "finish")


def shorten_lease(seconds: float) -> None:
    """Let this process's leases be `seconds` long."""
    from steer_proxy.engine import lease

    lease.LEASE = seconds  # type: ignore[misc]
    lease.RENEW = lease.AGAIN = seconds / 3  # type: ignore[misc]


def purge_often(seconds: float) -> None:
    """Let this process purge the ledger that often."""
    from steer_proxy.engine import purging

    purging.EVERY = seconds  # type: ignore[misc]


def _ledgers() -> Iterator[type[Any]]:
    import steer_proxy.ledger as package

    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if info.name.rpartition(".")[2] in {"protocol", "migrate", "migrations"}:
            continue
        module = importlib.import_module(info.name)
        for each in vars(module).values():
            if (
                isinstance(each, type)
                and each.__module__ == module.__name__
                and all(method in vars(each) for method in _METHODS)
            ):
                yield each


def crash_at(when: str, method: str, turn: int, number: signal.Signals) -> None:
    """Send this process a signal before or after the given call of a ledger's method."""
    calls = 0

    def crashing(real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(real)
        async def wrapper(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            now = calls == turn
            if now and when == "before":
                os.kill(os.getpid(), number)
            result = await real(*arguments, **named)
            if now and when == "after":
                os.kill(os.getpid(), number)
            return result

        return wrapper

    found = False
    for ledger in _ledgers():
        setattr(ledger, method, crashing(getattr(ledger, method)))
        found = True
    assert found, "no ledger to crash in"


def die_with_parent() -> None:
    """Let this process be killed when its parent ends, however that ends; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def prepare(environment: Mapping[str, str]) -> None:
    """Do as the environment says."""
    if lease := environment.get("CRASH_LEASE"):
        shorten_lease(float(lease))
    if purge := environment.get("CRASH_PURGE"):
        purge_often(float(purge))
    if where := environment.get("CRASH_AT"):
        when, method, turn = where.split()
        number = signal.Signals[environment.get("CRASH_WITH", "SIGKILL")]
        crash_at(when, method, int(turn), number)


if __name__ == "__main__":
    die_with_parent()
    prepare(os.environ)
    from steer_proxy.cli import main

    main()
