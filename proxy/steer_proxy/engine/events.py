"""What the engine has to tell: changes of breakers, gates and credentials, as values."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LOGGER: Final = logging.getLogger("steer.engine")


@dataclass(frozen=True, slots=True)
class HealthEvent:
    """A change in what the engine thinks of an upstream.

    `kind` is breaker, gate or credential; `model` None means the upstream as a whole; `until` is
    monotonic seconds, or None when the change has no set end. A breaker tells its `generation` and
    what its window held.
    """

    kind: str
    upstream: str
    model: str | None
    before: str
    after: str
    reason: str
    until: float | None = None
    generation: int | None = None
    window_calls: int | None = None
    window_failures: int | None = None


EventSink = Callable[[HealthEvent], None]


def log_event(event: HealthEvent) -> None:
    """Write an event to the log: losing an upstream is a warning, getting it back is not."""
    level = logging.INFO if event.after in {"closed", "half_open"} else logging.WARNING
    LOGGER.log(
        level,
        "%s of %s%s: %s -> %s (%s)",
        event.kind,
        event.upstream,
        f" model {event.model}" if event.model else "",
        event.before,
        event.after,
        event.reason,
    )
