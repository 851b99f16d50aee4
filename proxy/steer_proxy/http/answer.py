"""One upstream answer, read up to its commit point."""

from __future__ import annotations

from typing import Final

from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.outcome import Failure, Verdict, failed
from steer_proxy.http.response import UpstreamResponse

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
    """

    __slots__ = (
        "content_type",
        "held",
        "lesson",
        "reader",
        "reason",
        "response",
        "status",
        "verdict",
        "whole",
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
    ) -> None:
        self.verdict = verdict
        self.lesson: Verdict | None = verdict
        self.response = response
        self.status: int | None = None if response is None else response.status
        self.reason = "" if response is None else response.reason
        self.held = held
        self.whole = whole
        self.reader = reader
        self.content_type = content_type

    @classmethod
    def without_head(cls, failure: Failure, code: str | None = None) -> HttpAnswer:
        """An attempt that brought nothing back."""
        return cls(failed(failure, code=code))

    @property
    def streaming(self) -> bool:
        """Whether this is a stream whose end the dialect can tell."""
        return self.reader is not None

    @property
    def finished(self) -> bool:
        """Whether a stream has said all it had to say."""
        return self.reader is not None and self.reader.progress >= Progress.FINISHED

    async def discard(self) -> None:
        """Close what is still open. Idempotent."""
        response, self.response = self.response, None
        if response is not None:
            response.close()
