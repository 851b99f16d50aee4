"""One upstream answer, read up to its commit point."""

from __future__ import annotations

from typing import Final

from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.outcome import Failure, Verdict, failed
from steer_proxy.engine.attempt import Trace
from steer_proxy.http.response import UpstreamResponse
from steer_proxy.http.witness import Witness

#: How much of an answer is held back before it is committed, in bytes: whole plain answers, and
#: the beginning of a stream until its first token. `complete` holds whole streams, hence more.
HELD_PLAIN: Final = 1024 * 1024
HELD_PRELUDE: Final = 256 * 1024
HELD_COMPLETE: Final = 8 * 1024 * 1024


class HttpAnswer:
    """What one attempt brought back.

    `held` are the bytes that may be relayed as they are; `whole` says that nothing follows them.
    `lesson` is what breakers learn at the commit, None for nothing.
    `reader` is set for a stream the dialect understands. `status` None means that no head came.
    `trace` is what is measured of the attempt; of a plain answer that is not held whole, `tail`
    remembers the last bytes that were relayed. `witness` tells whether an answer was cut where
    nothing else does; `broken` says that this one was. A failing one that was before it could be
    given to anybody holds nothing: its status is all that is told of it.
    """

    __slots__ = (
        "_open",
        "broken",
        "content_type",
        "held",
        "lesson",
        "reader",
        "reason",
        "response",
        "status",
        "tail",
        "trace",
        "verdict",
        "whole",
        "witness",
    )

    def __init__(
        self,
        verdict: Verdict,
        response: UpstreamResponse | None = None,
        *,
        held: bytes = b"",
        whole: bool = True,
        reader: StreamReader | None = None,
        content_type: str = "",
        trace: Trace | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.verdict = verdict
        self.lesson: Verdict | None = verdict
        self.response = response
        self.status: int | None = None if response is None else response.status
        self.reason = "" if response is None else response.reason
        self.held = held
        self.whole = whole
        self._open = not whole
        self.reader = reader
        self.content_type = content_type
        self.tail = b""
        self.witness = witness
        self.broken = False
        self.trace = Trace() if trace is None else trace

    @classmethod
    def without_head(
        cls, failure: Failure, code: str | None = None, trace: Trace | None = None
    ) -> HttpAnswer:
        """An attempt that brought nothing back."""
        return cls(failed(failure, code=code), trace=trace)

    @property
    def streaming(self) -> bool:
        """Whether this is a stream whose end the dialect can tell."""
        return self.reader is not None

    @property
    def finished(self) -> bool:
        """Whether a stream has said all it had to say."""
        return self.reader is not None and self.reader.progress >= Progress.FINISHED

    def end(self, verdict: Verdict | None, now: float) -> None:
        """The answer has ended, one way or the other, at `now` (loop time).

        `verdict` None says that its caller had enough of it before it was known how it would end.
        """
        trace = self.trace
        trace.settle()
        if self._open:
            # One that was there whole had ended long before.
            self._open = False
            trace.ended = now
            if verdict is None and not (self.whole or self.finished):
                verdict = failed(Failure.CANCELLED, executed=self.verdict.executed)
        if trace.verdict is None:
            trace.verdict = verdict

    async def discard(self) -> None:
        """Close what is still open. Idempotent."""
        self.trace.settle()
        response, self.response = self.response, None
        if response is not None:
            response.close()
