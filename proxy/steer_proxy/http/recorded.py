"""A response that goes into a recording instead of to a caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aiohttp.web_request import BaseRequest

from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.dialects.sse import is_event_stream
from steer_policies.headers import Field
from steer_proxy.http.recording import RecordedHead, Recording

#: Where nobody asked yet how long a body is: most come whole.
_NOT_LOOKED: Final = -1


class RecordedResponse:
    """Takes what a `CallerResponse` takes, and keeps back the end until the record is committed.

    Of a stream the dialect knows, that is all from the event that finished it on; of a tool's, its
    framing alone, as nobody knows which event is the last; of an answer that comes whole,
    everything; of any other its last part.
    """

    def __init__(
        self,
        recording: Recording,
        began: Callable[[RecordedResponse], None],
        head: RecordedHead,
        *,
        body: bytes = b"",
        reader: StreamReader | None = None,
    ) -> None:
        """`began` is called when the answer goes out before it is whole; `reader` has seen what is
        written when it is, in whatever coding."""
        self._recording = recording
        self._began = began
        self._head = head
        self._rest = body
        self._reader = reader
        self._live = is_event_stream(head.content_type)
        self._length: int | None = _NOT_LOOKED
        self.media_type = head.content_type
        self.status = head.status
        self.prepared = False
        self.whole = False
        """Whether everything was written that there is."""
        self.abandoned = False

    @property
    def head(self) -> RecordedHead:
        """Status and header."""
        return self._head

    @property
    def body(self) -> bytes:
        """The body that was given with the response."""
        return self._rest

    @property
    def tail(self) -> bytes:
        """The last bytes that were written."""
        return self._recording.tail

    def close_connection(self) -> None:
        """A recording has no connection."""

    async def prepare(self, _request: BaseRequest) -> None:
        """Let readers have the head: the answer comes in parts."""
        self.prepared = True
        self._recording.begin(self._head)
        self._began(self)

    async def write(self, data: bytes) -> None:
        """Write a part of the body."""
        recording, reader = self._recording, self._reader
        before = recording.size
        await recording.write(data)
        if reader is not None:
            if reader.progress < Progress.FINISHED:
                recording.release()
        else:
            if self._length == _NOT_LOOKED:
                self._length = _announced(self._head.fields)
            length = self._length
            all_of_it = self._live if length is None else recording.size < length
            recording.release(recording.size if all_of_it else before)

    async def write_eof(self, data: bytes = b"") -> None:
        """All was written; readers learn of it when the recording is ended."""
        rest, self._rest = data or self._rest, b""
        await self._recording.write(rest)
        self.whole = True

    def abandon(self) -> None:
        """The answer broke."""
        self.abandoned = True


def _announced(fields: Sequence[Field]) -> int | None:
    """The length of a body that is announced."""
    for name, value in fields:
        if name.lower() == b"content-length":
            return int(value)
    return None
