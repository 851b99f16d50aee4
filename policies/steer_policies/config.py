"""Configuration as frozen values that cannot exist invalid.

Plain dataclasses, so that policies stay light to import; the proxy's settings validate YAML and
environment straight into them. All durations are seconds. A value out of bounds raises ValueError
naming the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final

_FORBID_UNKNOWN: Final = {"extra": "forbid"}
_UNITS: Final = MappingProxyType(
    {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
)
_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(us|ms|s|m|h|d)")
_SIZES: Final = MappingProxyType({"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}) | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_SIZE: Final = re.compile(r"(\d{1,12})\s*(B|KB|MB|GB|KiB|MiB|GiB)?")


def parse_duration(value: object) -> float:
    """Seconds from a number or from text with a unit: `250ms`, `30s`, `5m`, `24h`, `30d`.

    Raises:
        ValueError: for anything else, negative and non-finite numbers included.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _UNITS[match[2]]
    else:
        raise ValueError("a duration is a number of seconds or text such as 250ms, 30s, 5m, 24h")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a duration is finite and not negative")
    return seconds


def parse_size(value: object) -> int:
    """Bytes from a whole number or from text with a unit: `64KiB`, `10MB`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(match[1]) * _SIZES[match[2] or ""]
    raise ValueError("a size is a whole number of bytes or text such as 64KiB, 10MB")


class _Parsed:
    """Lets pydantic read a field by one of our parsers without policies importing pydantic."""

    def __init__(self, parser: Any, schema: Mapping[str, Any]) -> None:
        self._parser = parser
        self._schema = schema

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._parser, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return dict(self._schema)


def _either(kind: str, text: re.Pattern[str]) -> Mapping[str, Any]:
    """The JSON Schema of a number that may also be written as text with a unit."""
    return {
        "anyOf": [
            {"type": kind, "minimum": 0},
            {"type": "string", "pattern": f"^\\s*{text.pattern}\\s*$"},
        ]
    }


Seconds = Annotated[
    float,
    _Parsed(parse_duration, _either("number", _DURATION)),
]
"""A duration in seconds; in configuration also text with a unit."""

ByteSize = Annotated[
    int,
    _Parsed(parse_size, _either("integer", _SIZE)),
]
"""A number of bytes; in configuration also text with a unit."""


def _check(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise ValueError(message)


class DialectName(StrEnum):
    """The wire dialects Steer speaks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"
    HTTP = "http"


class CommitPoint(StrEnum):
    """When an answer begins to reach the caller; before it, any failure can be hidden."""

    HEADERS = "headers"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a token of text, not a secret
    COMPLETE = "complete"


class OnBreak(StrEnum):
    """What becomes of a stream that dies after its commit point."""

    ERROR = "error"
    RESUME = "resume"


class Ambiguous(StrEnum):
    """What to do with an attempt that may have been executed."""

    RETRY = "retry"
    FAIL = "fail"


class FailureCount(StrEnum):
    """Which failures a breaker's `failure_threshold` counts."""

    CONSECUTIVE = "consecutive"
    WINDOW = "window"


class WhenAllOpen(StrEnum):
    """What to do when every candidate's breaker is open."""

    REJECT = "reject"
    TRY = "try"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits of each phase of one attempt, in seconds.

    `first_byte` bounds the wait for a stream's answer head, `answer` the same for a plain call
    (whose head comes only after generation), `first_token` the wait for a stream's first content,
    counted from the dispatch of the attempt; `idle` any later silence.
    """

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    connect: Seconds = 5.0
    first_byte: Seconds = 60.0
    answer: Seconds = 600.0
    first_token: Seconds = 120.0
    idle: Seconds = 120.0

    def __post_init__(self) -> None:
        for name in ("connect", "first_byte", "answer", "first_token", "idle"):
            _check(getattr(self, name) > 0, f"{name} must be greater than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimeouts:
    """Limits of a whole call in seconds: `total` until commit, `max_stream` for a stream's life."""

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    total: Seconds = 600.0
    max_stream: Seconds = 3600.0

    def __post_init__(self) -> None:
        _check(self.total > 0, "total must be greater than 0")
        _check(self.max_stream > 0, "max_stream must be greater than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, how long and how far apart a call is tried.

    `max_attempts` counts per candidate, the first included; `max_total_attempts` per call. Delays
    are seconds. `max_total_delay` bounds the sum of all waits of a call. A server-asked delay
    longer than `hop_after` moves to the next candidate at once, when there is one.
    `jitter_factor` None means full jitter, U(0, min(max_delay, initial_delay * factor^n)); a number
    j in [0, 1] means the exponential delay times U(1 - j, 1 + j).
    `budget_ratio` and `budget_floor` (per second) bound retries per upstream over `budget_window`
    seconds, as Finagle's retry budget does.
    """

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    max_attempts: int = 3
    max_total_attempts: int = 6
    initial_delay: Seconds = 0.5
    max_delay: Seconds = 30.0
    backoff_factor: float = 2.0
    jitter_factor: float | None = None
    max_total_delay: Seconds = 60.0
    hop_after: Seconds = 5.0
    ambiguous: Ambiguous | None = None
    """None takes the dialect's default: retry for generation, fail for dialect http."""
    budget_ratio: float = 0.2
    budget_floor: float = 10.0
    budget_window: Seconds = 10.0

    def __post_init__(self) -> None:
        _check(1 <= self.max_attempts <= 20, "max_attempts must be from 1 to 20")
        _check(1 <= self.max_total_attempts <= 60, "max_total_attempts must be from 1 to 60")
        _check(self.initial_delay <= self.max_delay, "initial_delay must not exceed max_delay")
        _check(1.0 <= self.backoff_factor <= 10.0, "backoff_factor must be from 1 to 10")
        _check(
            self.jitter_factor is None or 0.0 <= self.jitter_factor <= 1.0,
            "jitter_factor must be from 0 to 1",
        )
        _check(0.0 <= self.budget_ratio <= 10.0, "budget_ratio must be from 0 to 10")
        _check(self.budget_floor >= 0.0, "budget_floor must not be negative")
        _check(self.budget_window > 0, "budget_window must be greater than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a circuit opens and how it closes again.

    It trips after `failure_threshold` failures, consecutive ones or all within the window as
    `failure_count` says, or when at least `min_calls` settled within `window` seconds and the share
    of failures reached `failure_rate`; calls slower than `slow_call` seconds count as failures when
    that is set. It stays open for `open_duration`
    seconds, doubled at each re-opening up to `max_open_duration`, spread by 20 %; half-open admits
    `probes` at a time and closes after `success_threshold` successes.
    """

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    failure_threshold: int = 5
    failure_count: FailureCount = FailureCount.CONSECUTIVE
    failure_rate: float = 0.5
    min_calls: int = 20
    window: Seconds = 60.0
    open_duration: Seconds = 30.0
    max_open_duration: Seconds = 300.0
    success_threshold: int = 1
    probes: int = 1
    slow_call: Seconds | None = None
    when_all_open: WhenAllOpen = WhenAllOpen.REJECT

    def __post_init__(self) -> None:
        _check(self.failure_threshold >= 1, "failure_threshold must be at least 1")
        _check(0.0 < self.failure_rate <= 1.0, "failure_rate must be above 0 and at most 1")
        _check(self.min_calls >= 1, "min_calls must be at least 1")
        _check(self.window > 0, "window must be greater than 0")
        _check(self.open_duration > 0, "open_duration must be greater than 0")
        _check(
            self.max_open_duration >= self.open_duration,
            "max_open_duration must not be below open_duration",
        )
        _check(self.success_threshold >= 1, "success_threshold must be at least 1")
        _check(self.probes >= 1, "probes must be at least 1")
        _check(self.slow_call is None or self.slow_call > 0, "slow_call must be greater than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyLimit:
    """At most `limit` calls at once to an upstream, and `queue` more waiting for a slot."""

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    limit: int = 256
    queue: int = 256

    def __post_init__(self) -> None:
        _check(1 <= self.limit <= 65_536, "limit must be from 1 to 65536")
        _check(0 <= self.queue <= 65_536, "queue must be from 0 to 65536")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is declared of a model at an upstream; None means not known, and excludes nothing.

    `quality` is the operator's own judgement in [0, 1], compared with `min_confidence`;
    `context_tokens` the largest prompt plus completion; prices are US dollars per million tokens
    and override the price list.
    """

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    quality: float | None = None
    context_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None

    def __post_init__(self) -> None:
        _check(self.quality is None or 0.0 <= self.quality <= 1.0, "quality must be from 0 to 1")
        _check(
            self.context_tokens is None or self.context_tokens > 0,
            "context_tokens must be greater than 0",
        )
        for name in ("input_usd_per_mtok", "output_usd_per_mtok"):
            price = getattr(self, name)
            _check(price is None or price >= 0.0, f"{name} must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSpec:
    """One place a call may go: an upstream, and options merged into the request (RFC 7396)."""

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    upstream: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamPolicy:
    """What policies need to know of an upstream; its address and secret stay with the proxy."""

    name: str
    dialect: DialectName
    own_credential: bool = False
    forwards_idempotency_key: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    concurrency: ConcurrencyLimit = field(default_factory=ConcurrencyLimit)
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
