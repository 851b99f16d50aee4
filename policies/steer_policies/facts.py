"""What a planner may know of a call, and of the world at that moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

from steer_policies.budget import Budget
from steer_policies.dialects.base import RequestFacts
from steer_policies.quality import Quality

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """One call, as its caller sent it.

    `request` is what the dialect read. `path` is relative to the upstream's base URL. `headers` is
    case-insensitive, or its names are lower-case. `body` is the parsed JSON value, None when there
    is none; `body_size` its length in bytes.
    """

    request: RequestFacts
    method: str = "POST"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    budget: Budget | None = None
    quality: Quality | None = None
    body: Any = None
    body_size: int = 0


class LiveContext(Protocol):
    """The state of upstreams, asked for only by rules that mention it; every method is cheap."""

    def breaker(self, upstream: str, model: str | None) -> str:
        """closed, open or half_open: the worse of the model's and the upstream's breaker."""

    def throttled_for(self, upstream: str, model: str | None) -> float:
        """Seconds for which the provider asked not to be called; 0 when it did not."""

    def recent_failures(self, upstream: str) -> int:
        """Consecutive failures, as of now."""

    def latency_ms(self, upstream: str) -> float | None:
        """Smoothed time to commit of successful calls, in milliseconds; None when not known."""


class Calm:
    """A live context in which nothing ever failed: for explaining plans without a running proxy."""

    def breaker(self, upstream: str, model: str | None) -> str:  # noqa: ARG002
        """Every breaker is closed."""
        return "closed"

    def throttled_for(self, upstream: str, model: str | None) -> float:  # noqa: ARG002
        """Nobody asked for patience."""
        return 0.0

    def recent_failures(self, upstream: str) -> int:  # noqa: ARG002
        """Nothing failed."""
        return 0

    def latency_ms(self, upstream: str) -> float | None:  # noqa: ARG002
        """Nothing was measured."""
        return None
