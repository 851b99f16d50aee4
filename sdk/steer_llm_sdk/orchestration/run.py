"""One run: its terms, its identity, and how it tells what happens."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steer_llm_sdk.checks import shown
from steer_llm_sdk.copies import own_copy
from steer_llm_sdk.current import RunTerms
from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.orchestration.config import OrchestrationConfig
from steer_llm_sdk.orchestration.tools import Request
from steer_llm_sdk.streaming.events import Redactor, Told
from steer_llm_sdk.streaming.manager import EventManager
from steer_policies.deadline import Deadline
from steer_proxy.engine.attempt import AttemptRecord
from steer_proxy.engine.clock import Clock


@dataclass(slots=True)
class Run:
    """What all parts of a run need to know of it.

    `request` is a copy that nobody changes. `began` and `deadline` are on the clock's time.
    `events` is None when nobody listens; `tracer` when the process does not trace. `terms` is what
    tools may hand on.
    """

    request: Request
    tool_options: Mapping[str, Any] | None
    options: OrchestrationConfig
    request_id: str
    trace_id: str
    began: float
    deadline: Deadline
    clock: Clock
    redactor: Redactor
    events: EventManager | None
    tracer: Any
    terms: RunTerms
    replayed: bool = False
    under_way: int = 0
    """Executions of tools that have not ended."""
    maybe_executed: bool = False
    """A tool that failed may have had an effect all the same."""
    records: list[AttemptRecord] | None = None
    """What became of each attempt, where somebody keeps it: of runs with a key."""

    @property
    def doubtful(self) -> bool:
        """Whether a tool may have had an effect so far."""
        return self.maybe_executed or self.under_way > 0

    async def tell(self, what: Told, provider: str | None = None, **facts: Any) -> None:
        """Tell a step of the run to whoever listens."""
        if self.events is not None:
            await self.events.delta({"event_type": str(what), **facts}, provider=provider)

    def left(self) -> float:
        """Seconds until the deadline; infinite without one."""
        return self.deadline.left(self.clock.now())

    def elapsed_ms(self) -> float:
        """Milliseconds since the run began."""
        return (self.clock.now() - self.began) * 1000.0


def loop_clock() -> Clock:
    """A clock for objects that are made before any event loop runs.

    Its time is the running loop's own; where none runs, the process's, which loops count by.
    """
    return Clock(now=_now, wall=time.time, jitter=random.Random().random)  # noqa: S311 - spreads waits


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


def request_copy(request: Any) -> Request:
    """A request that its caller cannot change any more.

    Raises:
        InvalidValue: it is no text and no dictionary, or nests too deep.
    """
    if isinstance(request, str):
        return request
    if type(request) is not dict and not isinstance(request, Mapping):
        raise InvalidValue("request", f"must be text or a dictionary, not {shown(request)}")
    return own_copy("request", request)
