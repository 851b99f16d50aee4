"""Steer's own answers, in the caller's dialect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.base import Dialect
from steer_proxy.engine.attempt import Problem
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.lines import line

#: The shape of an error when no route, and so no dialect, is known.
PLAIN: Final[Dialect] = dialect(DialectName.HTTP)


class Refusal(Exception):
    """A call that is answered before any attempt; `close` ends the connection too."""

    def __init__(self, problem: Problem, *, close: bool = False) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.close = close


def refuse(status: int, code: str, message: str, *, close: bool = False) -> Refusal:
    """A refusal to raise, with no word about trying again."""
    return Refusal(Problem(status, code, message), close=close)


def advice(
    retry_after: float | None,
    sdk_retry: bool | None,  # noqa: FBT001 - three-valued: yes, no, no opinion
) -> dict[str, bytes]:
    """Header lines, by lower-case name, that tell the caller's SDK when and whether to try again.

    Every official SDK obeys `x-should-retry`; `retry-after` is whole seconds, rounded up, and
    `retry-after-ms` the same more finely.
    """
    lines: dict[str, bytes] = {}
    if retry_after is not None:
        lines["retry-after"] = line("Retry-After", str(math.ceil(retry_after)))
        lines["retry-after-ms"] = line("Retry-After-Ms", str(math.ceil(retry_after * 1000)))
    if sdk_retry is not None:
        lines["x-should-retry"] = line("X-Should-Retry", "true" if sdk_retry else "false")
    return lines


def problem_lines(
    speaks: Dialect, problem: Problem, own: Sequence[bytes] = ()
) -> tuple[bytes, list[bytes]]:
    """The body and the header lines of one of Steer's own errors, with further lines of ours."""
    answer = speaks.error(problem.status, problem.code, problem.message)
    lines = [
        *own,
        line("Content-Type", answer.content_type),
        *advice(problem.retry_after, problem.sdk_retry).values(),
    ]
    return answer.body, lines


#: What a caller is told when Steer has a bug.
INTERNAL: Final = Problem(500, "steer_internal_error", "Steer failed; its log says why.")


def problem_response(
    speaks: Dialect, problem: Problem, own: Sequence[bytes] = (), *, close: bool
) -> CallerResponse:
    """The response for one of Steer's own errors, with further header lines of ours."""
    body, lines = problem_lines(speaks, problem, own)
    response = CallerResponse(problem.status, None, own=lines, body=body, length=len(body))
    if close:
        response.close_connection()
    return response
