"""Spans of a run, for processes that trace with OpenTelemetry; and every name that they use.

Nothing is imported for it. A process that traces has loaded `opentelemetry.trace` to set a tracer
provider up; where it has not, there is nobody to tell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

TRACER: Final = "steer_llm_sdk"

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


class Span:
    """A span that is recorded; the one of a process that does not trace does nothing."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def note(self, **attributes: Any) -> None:
        """Set attributes; what is None is left out. Keywords are names of this module."""
        if self._span is None:
            return
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(globals()[name], value)

    def fail(self, kind: str) -> None:
        """Mark it as failed; `kind` is a failure's or an exception's name, never its text."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute(ERROR, kind)
        self._span.set_status(Status(StatusCode.ERROR))


NO_SPAN: Final = Span()


def tracing() -> Any:
    """The tracer of this process; None when it does not trace."""
    trace = sys.modules.get("opentelemetry.trace")
    return None if trace is None else trace.get_tracer(TRACER)


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
