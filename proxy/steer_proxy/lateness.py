"""Time-outs that mean silence: what has arrived by then counts, also where nobody has looked yet.

A process that was stopped, or held up, finds its timers due and its sockets readable at once. The
timers come first; and then an answer that was there in time would be thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

#: How late a timer may be, in seconds, before it is taken that nobody has looked at the sockets.
LATE: Final = 0.05
#: How long they are looked at then, in seconds: what has arrived is in the kernel's buffers.
A_LOOK: Final = 0.05


def is_late(loop: asyncio.AbstractEventLoop, due: float) -> bool:
    """Whether a timer that was due at `due` (loop time) runs only now for want of a turn."""
    return loop.time() - due > LATE


def after_a_look(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any
) -> asyncio.TimerHandle:
    """Call a function when the sockets were looked at, and who waited for them had a turn.

    Cancelling what this returns need not help any more: the function has to see for itself.
    """
    # Ready tasks run in order, but a timer may come before them.
    return loop.call_later(A_LOOK, loop.call_soon, function, *arguments)
