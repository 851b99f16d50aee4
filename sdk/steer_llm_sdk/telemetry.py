"""Spans of a run, for processes that trace with OpenTelemetry; and every name that they use.

Nothing is imported for it. A process that traces has loaded `opentelemetry.trace` to set a tracer
provider up; where it has not, there is nobody to tell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

RUN: Final = "steer.run"
PLAN: Final = "steer.plan"
ATTEMPT: Final = "steer.attempt"
FALLBACK: Final = "steer.fallback"

REQUEST_ID: Final = "steer.request_id"
TRACE_ID: Final = "steer.trace_id"
TOOL: Final = "steer.tool"
PROVIDER: Final = "steer.provider"
RULE: Final = "steer.rule"
CONFIDENCE: Final = "steer.plan.confidence"
NUMBER: Final = "steer.attempt.number"
WAITED: Final = "steer.attempt.wait_seconds"
OUTCOME: Final = "steer.outcome"
ATTEMPTS: Final = "steer.attempts"
REPLAYED: Final = "steer.replayed"
ERROR: Final = "error.type"
FALLBACK_FROM: Final = "steer.fallback.from"


class Span:
    """A span that is being recorded."""

    __slots__ = ("_span",)

    def __init__(self, span: Any) -> None:
        self._span = span

    def note(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes; what is None is left out."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)

    def fail(self, kind: str) -> None:
        """Mark it as failed; `kind` is an exception's name, never its text."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute(ERROR, kind)
        self._span.set_status(Status(StatusCode.ERROR))


_TRACER: Final = "steer_llm_sdk"


@lru_cache(maxsize=1)
def _made(provider: Any) -> Any:
    """A provider's tracer; making one costs more than a span."""
    return provider.get_tracer(_TRACER)


def tracer() -> Any:
    """The tracer of a process that has set a tracer provider up; None in any other."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return _made(provider)


@contextmanager
def span(tracer: Any, name: str, attributes: Mapping[str, Any]) -> Iterator[Span]:
    """A span around a block, under the current one; an exception that leaves it marks it."""
    with tracer.start_as_current_span(
        name,
        attributes={key: value for key, value in attributes.items() if value is not None},
        record_exception=False,
        set_status_on_exception=False,
    ) as found:
        made = Span(found)
        try:
            yield made
        except BaseException as error:
            made.fail(type(error).__name__)
            raise
