"""Time, dice and identifiers: the one place where the engine meets them."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Clock:
    """What the engine knows of time and chance; tests give their own.

    `now` is monotonic seconds on the running event loop's clock, so that waiting and reckoning
    agree: make a `Clock` where a loop runs.
    `wall` is Unix time in seconds; `jitter` draws from [0, 1).
    """

    now: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = field(default_factory=lambda: random.Random().random)  # noqa: S311 - spreads waits, guards nothing

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` on the event loop's clock."""
        await asyncio.sleep(seconds)


#: Identifiers must differ, not be secret; the system's own source costs a system call each time.
_dice: Final = random.Random(os.urandom(32))  # noqa: S311
# Forked processes would all go on with the same numbers, and give one identifier to many things.
os.register_at_fork(after_in_child=lambda: _dice.seed(os.urandom(32)))


def new_id(wall: float) -> str:
    """A UUIDv7 (RFC 9562 §5.7) as 36 characters: sorts by time, 74 random bits."""
    milliseconds = int(wall * 1000) & 0xFFFF_FFFF_FFFF
    tail = _dice.getrandbits(80)
    value = (
        milliseconds << 80
        | 0x7 << 76
        | (tail >> 68 & 0xFFF) << 64
        | 0b10 << 62
        | tail & 0x3FFF_FFFF_FFFF_FFFF
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_span_id() -> str:
    """A random, non-zero W3C span id: 16 hexadecimal digits."""
    return f"{_dice.getrandbits(64) or 1:016x}"
