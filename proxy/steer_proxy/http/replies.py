"""What Steer adds to an answer, and what it tells the log about a call."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from multidict import CIMultiDict

from steer_policies.headers import response_headers
from steer_policies.outcome import Verdict
from steer_policies.plan import Plan
from steer_proxy.engine.conclusion import Settled
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call
from steer_proxy.http.outbound import presents_caller
from steer_proxy.http.problems import advise

LOGGER: Final = logging.getLogger("steer.call")

_LENGTH: Final = frozenset({"content-length"})
_SWITCHING: Final = frozenset(
    {
        "connection",
        "upgrade",
        "sec-websocket-accept",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
    }
)


def own_headers(call: Call, made: Plan, settled: Settled[HttpAnswer]) -> CIMultiDict[str]:
    """The headers that say what Steer did."""
    headers: CIMultiDict[str] = CIMultiDict()
    _add_own(headers, call, made, settled)
    return headers


def _add_own(
    headers: CIMultiDict[str], call: Call, made: Plan, settled: Settled[HttpAnswer]
) -> None:
    headers["X-Steer-Request-ID"] = call.request_id
    headers["X-Steer-Trace-ID"] = call.trace.trace_id
    candidate = settled.candidate
    if candidate is not None:
        headers["X-Steer-Upstream"] = candidate.upstream
        if candidate.model is not None and candidate.model != call.facts.model:
            headers["X-Steer-Model"] = candidate.model
    if made.rule is not None:
        headers["X-Steer-Rule"] = made.rule
    headers["X-Steer-Attempts"] = str(len(settled.attempts))


def answer_headers(
    call: Call, made: Plan, settled: Settled[HttpAnswer], answer: HttpAnswer
) -> CIMultiDict[str]:
    """The provider's own headers less what belongs to its connection, and ours."""
    candidate = settled.candidate
    own = candidate is not None and not presents_caller(
        call, call.config.upstreams[candidate.upstream]
    )
    if answer.status == 101:
        # The tunnel is end to end, so the provider's side of the handshake passes whole.
        kept: Collection[str] = _SWITCHING
    else:
        # Of a stream the length is left out: an error event may have to follow what was promised.
        kept = _LENGTH if answer.reader is None else ()
    headers = CIMultiDict(response_headers(_fields(answer), strip_cookies=own, kept=kept))
    _add_own(headers, call, made, settled)
    if settled.hold is None:
        advise(headers, settled.retry_after, settled.sdk_retry)
    return headers


def _fields(answer: HttpAnswer) -> list[tuple[str, str]]:
    """The provider's headers as it wrote them: aiohttp's mapping respells the names it knows."""
    if answer.response is None:
        return list((answer.headers or CIMultiDict[str]()).items())
    return [
        (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
        for name, value in answer.response.raw_headers
    ]


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
        "%s %s%s: %s in %.2f s [%s]%s",
        call.request_id,
        call.route.path,
        call.path,
        end,
        now - call.accepted_at,
        tale,
        f" rule {made.rule}" if made.rule else "",
    )
