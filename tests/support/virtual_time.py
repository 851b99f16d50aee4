"""An event loop whose clock jumps: waits cost nothing, and real sockets keep working.

While any socket is readable or any callback is ready, the loop runs as always. When nothing is left
but timers, the clock moves straight to the next one. As long as every party of a test (client,
proxy, provider) lives in this one loop, a test over real sockets can wait for an hour and finish
in a millisecond, in the same order every time.

Work in threads is waited for in real time: the clock stands still while any runs.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

#: How often the selector is asked again before the clock may jump. A loopback packet is delivered
#: within the sending system call, so once would do; the rest guards against a busy kernel.
LOOKS = 3


class _JumpingSelector(selectors.DefaultSelector):
    """Asks for ready sockets; instead of waiting for them it tells the loop to jump."""

    def __init__(self) -> None:
        super().__init__()
        self.jump: Callable[[float], None] = lambda _: None
        self.busy: Callable[[], bool] = lambda: False
        self.blind = False

    def select(self, timeout: float | None = None) -> Any:
        if self.blind:
            self.blind = False
            return []
        if timeout is not None and timeout <= 0:
            return super().select(0)
        for _ in range(LOOKS):
            if ready := super().select(0):
                return ready
        if timeout is None or self.busy():
            # Nothing to jump to: another thread, a subprocess or a signal must wake us.
            return super().select(0.01 if self.busy() else timeout)
        if ready := super().select(0.0005):
            return ready
        self.jump(timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on jumping time."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        self._offset = 0.0
        self._threads = 0
        super().__init__(selector)
        self._sockets = selector
        selector.jump = self.advance
        selector.busy = lambda: self._threads > 0
        self._start = super().time()

    def time(self) -> float:
        """Virtual seconds: they pass only by jumping."""
        return 1_000.0 + self._offset

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        # A timer fires when it is due; rounding must not leave the clock just short of it.
        self._offset += seconds + 1e-9

    def look_away(self) -> None:
        """Once, let timers come before the sockets."""
        self._sockets.blind = True

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Run in a thread, with the clock standing still meanwhile."""
        self._threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._threads -= 1
