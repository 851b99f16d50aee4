"""Where an answer goes: to a caller, or into a recording that callers read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from aiohttp.web_request import BaseRequest

from steer_policies.dialects.base import Dialect
from steer_policies.headers import Field
from steer_proxy.engine.attempt import Problem
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.coding import content_coding
from steer_proxy.http.problems import problem_lines, problem_response
from steer_proxy.http.recorded import RecordedResponse
from steer_proxy.http.recording import RecordedHead, Recording


class Response(Protocol):
    """What a delivery writes to."""

    media_type: str

    @property
    def tail(self) -> bytes:
        """The last bytes that were written."""

    async def prepare(self, request: BaseRequest) -> object:
        """Begin it: the answer comes in parts."""

    async def write(self, data: bytes) -> None:
        """Write a part of the body."""

    async def write_eof(self, data: bytes = b"") -> None:
        """End it properly."""

    def abandon(self) -> None:
        """End it in the middle, so that nobody takes it for whole."""

    def close_connection(self) -> None:
        """Ask for the connection to be closed after it."""


R_co = TypeVar("R_co", bound=Response, covariant=True)


class Outlet(Protocol[R_co]):
    """Makes the responses of one call. `personal`: with what identifies the request."""

    personal: bool

    def answer(
        self, answer: HttpAnswer, fields: Sequence[Field], own: Sequence[bytes], body: bytes
    ) -> R_co:
        """The response for a provider's answer."""

    def problem(
        self, speaks: Dialect, problem: Problem, own: Sequence[bytes], *, close: bool
    ) -> R_co:
        """The response for one of Steer's own errors."""


class ToCaller:
    """Straight to who asked."""

    personal = True

    def answer(
        self, answer: HttpAnswer, fields: Sequence[Field], own: Sequence[bytes], body: bytes
    ) -> CallerResponse:
        """The response for a provider's answer."""
        return CallerResponse(
            answer.status or 502,
            answer.reason,
            fields,
            own,
            body=body,
            content_type=_plain_type(answer),
        )

    def problem(
        self, speaks: Dialect, problem: Problem, own: Sequence[bytes], *, close: bool
    ) -> CallerResponse:
        """The response for one of Steer's own errors."""
        return problem_response(speaks, problem, own, close=close)


TO_CALLER: Final = ToCaller()


def _plain_type(answer: HttpAnswer) -> str:
    """What an event of our own may be written into; "" where a coding hides the answer's."""
    response = answer.response
    coded = response is not None and content_coding(response.headers)
    return "" if coded else answer.content_type


class ToRecording:
    """Into a recording; `began` is called when an answer goes out before it is whole."""

    personal = False

    def __init__(self, recording: Recording, began: Callable[[RecordedResponse], None]) -> None:
        self._recording = recording
        self._began = began

    def answer(
        self, answer: HttpAnswer, fields: Sequence[Field], own: Sequence[bytes], body: bytes
    ) -> RecordedResponse:
        """The response for a provider's answer."""
        reader = answer.reader
        if reader is None and answer.witness is not None:
            reader = answer.trace.reader  # a coded stream's
        return RecordedResponse(
            self._recording,
            self._began,
            RecordedHead(
                answer.status or 502,
                answer.reason,
                tuple(fields),
                tuple(own),
                _plain_type(answer),
            ),
            body=body,
            reader=reader,
        )

    def problem(
        self,
        speaks: Dialect,
        problem: Problem,
        own: Sequence[bytes],
        *,
        close: bool = False,  # noqa: ARG002 - a recording has no connection
    ) -> RecordedResponse:
        """The response for one of Steer's own errors."""
        body, lines = problem_lines(speaks, problem, own)
        length = (b"Content-Length", b"%d" % len(body))
        head = RecordedHead(problem.status, None, (length,), tuple(lines))
        return RecordedResponse(self._recording, self._began, head, body=body)
