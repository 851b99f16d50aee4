"""Steer's own answers, in the caller's dialect."""

from __future__ import annotations

import math
from typing import Final

from multidict import CIMultiDict

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.base import Dialect
from steer_proxy.engine.attempt import Problem
from steer_proxy.http.caller import CallerResponse

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


def advise(
    headers: CIMultiDict[str],
    retry_after: float | None,
    sdk_retry: bool | None,  # noqa: FBT001 - three-valued: yes, no, no opinion
) -> None:
    """Tell the caller's SDK when another try can make sense, and whether it can at all.

    Every official SDK obeys `x-should-retry`; `retry-after` is whole seconds, rounded up, and
    `retry-after-ms` the same more finely.
    """
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
        headers["Retry-After-Ms"] = str(math.ceil(retry_after * 1000))
    if sdk_retry is not None:
        headers["X-Should-Retry"] = "true" if sdk_retry else "false"


def problem_response(
    speaks: Dialect, problem: Problem, headers: CIMultiDict[str], *, close: bool
) -> CallerResponse:
    """The response for one of Steer's own errors."""
    answer = speaks.error(problem.status, problem.code, problem.message)
    headers["Content-Type"] = answer.content_type
    headers["Content-Length"] = str(len(answer.body))
    advise(headers, problem.retry_after, problem.sdk_retry)
    response = CallerResponse(problem.status, None, headers, answer.body)
    if close:
        response.close_connection()
    return response
