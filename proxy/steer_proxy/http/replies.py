"""What Steer adds to an answer, and what it tells the log about a call."""

from __future__ import annotations

import logging
from typing import Final

from steer_policies.config import DialectName
from steer_policies.deadline import retry_count
from steer_policies.dialects.sse import is_event_stream
from steer_policies.headers import NO_NAMES, Field, response_fields
from steer_policies.outcome import Verdict
from steer_policies.plan import Plan
from steer_policies.shown_path import shown_path
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.conclusion import Settled
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call
from steer_proxy.http.lines import line
from steer_proxy.http.outbound import presents_caller
from steer_proxy.http.problems import advice

LOGGER: Final = logging.getLogger("steer.call")

_LENGTH: Final = frozenset({"content-length"})

#: An empty line, with whichever line ends, as the last bytes of a stream.
_EVENT_ENDS: Final = (b"\n\n", b"\n\r\n", b"\r\r\n", b"\n\r", b"\r\r")

_STATUS: Final = frozenset({"idempotency-status", "idempotent-replayed"})
_SWITCHING: Final = frozenset(
    {
        "connection",
        "upgrade",
        "sec-websocket-accept",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
    }
)


def personal_lines(call: Call) -> list[bytes]:
    """The header lines that identify a request, and what else is said to it alone."""
    return [
        line("X-Steer-Request-ID", call.request_id),
        line("X-Steer-Trace-ID", call.trace.trace_id),
        *call.says,
    ]


def between_events(content_type: str, tail: bytes) -> bool:
    """Whether a stream whose last bytes so far are `tail` may be told something more: what comes
    behind half an event would be taken for the rest of it."""
    if is_event_stream(content_type):
        return not tail or tail.endswith(_EVENT_ENDS)
    return tail.rstrip().endswith(b"}")  # an array of objects


def parting_event(call: Call, content_type: str, tail: bytes, problem: Problem) -> bytes:
    """What tells of a problem in the middle of an answer that is then broken off.

    Nothing but in a stream that the dialect reads, whose last bytes so far are `tail`: it could
    take the place of what is missing, and make a whole answer of it where a length was promised.
    """
    if not between_events(content_type, tail):
        return b""
    if call.dialect.read_stream(call.facts, content_type) is None:
        return b""
    return call.dialect.error_event(call.facts, content_type, problem.code, problem.message)


def own_lines(
    call: Call, made: Plan, settled: Settled[HttpAnswer], *, personal: bool = True
) -> list[bytes]:
    """The header lines that say what Steer did."""
    lines = personal_lines(call) if personal else []
    candidate = settled.candidate
    if candidate is not None:
        lines.append(line("X-Steer-Upstream", candidate.upstream))
        if candidate.model is not None and candidate.model != call.facts.model:
            lines.append(line("X-Steer-Model", _shown(candidate.model)))
    if made.rule is not None:
        lines.append(line("X-Steer-Rule", _shown(made.rule)))
    lines.append(b"X-Steer-Attempts: %d\r\n" % len(settled.attempts))
    return lines


def _shown(text: str) -> str:
    """Free text from the configuration as far as a header can show it."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def answer_head(
    call: Call,
    made: Plan,
    settled: Settled[HttpAnswer],
    answer: HttpAnswer,
    *,
    personal: bool = True,
) -> tuple[list[Field], list[bytes]]:
    """The provider's own fields less what belongs to its connection, and our lines."""
    candidate, response = settled.candidate, answer.response
    own = candidate is not None and not presents_caller(
        call, call.config.upstreams[candidate.upstream]
    )
    if answer.status == 101:
        # The tunnel is end to end, so the provider's side of the handshake passes whole.
        kept = _SWITCHING
    else:
        # Of a stream the length is left out: an error event may have to follow what was promised.
        kept = _LENGTH if answer.reader is None and answer.status != 204 else NO_NAMES
    told = {} if settled.hold is not None else advice(settled.retry_after, settled.sdk_retry)
    fields = response_fields(
        () if response is None else response.raw_headers,
        strip_cookies=own,
        kept=kept,
        replaced=frozenset(told) if call.key is None else _STATUS.union(told),
    )
    return fields, [*own_lines(call, made, settled, personal=personal), *told.values()]


def tell(
    call: Call, made: Plan, settled: Settled[HttpAnswer], verdict: Verdict | None, now: float
) -> None:
    """Log a call that was not plain sailing, in one line; the healthy ones are left in peace."""
    failure = verdict.failure if verdict is not None else None
    problem = settled.problem
    if len(settled.attempts) <= 1 and failure is None and problem is None:
        return
    tale = ", ".join(
        f"{record.upstream} {record.verdict.failure or 'ok'}"
        f"{'' if record.status is None else f' {record.status}'}"
        f"{f' after {record.waited:.1f} s of {record.wait_source}' if record.waited else ''}"
        for record in settled.attempts
    )
    end = problem.code if problem is not None else str(failure or "answered")
    LOGGER.log(
        logging.INFO if problem is None and failure is None else logging.WARNING,
        "%s %s: %s in %.2f s [%s]%s%s",
        call.request_id,
        shown_path(call.route.path + call.path, strict=call.dialect.name is DialectName.HTTP),
        end,
        now - call.accepted_at,
        tale,
        f" rule {made.rule}" if made.rule else "",
        f" (retry {again} of the caller's SDK)" if (again := retry_count(call.headers)) else "",
    )
