"""Splitting an event stream into its events without changing a byte.

The format is the WHATWG HTML standard's, section 9.2.5 ("Parsing an event stream"): lines end with
LF, CR or CRLF, an empty line ends an event. The bytes of each event are kept as they came, for they
are relayed; only a reader's own look at them interprets anything.
"""

from __future__ import annotations

import re
from typing import Any, Final

from steer_policies.dialects.base import MAX_HELD_EVENT
from steer_policies.dialects.pieces import NO_PIECES, Fragment
from steer_policies.dialects.skim import Skimmer
from steer_policies.foreign import load

# Possessive: the CR of a CRLF must never count as a line end of its own.
_BLANK_LINE: Final = re.compile(rb"(?:\n|\r\n?+)(?:\n|\r\n?+)")
HEAD: Final = 16 * 1024
"""Bytes at a stream's start among which its envelope is looked for."""

_STEP: Final = 2 * 1024
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class SseSplitter:
    """Takes bytes as they come and returns them, event by event, each with its empty line.

    What was returned and what is held, put together, is what was fed. An event larger than
    `MAX_HELD_EVENT` is returned in fragments, as it comes.
    """

    __slots__ = ("_after_cr", "_held", "_skimmer")

    def __init__(self) -> None:
        self._held = bytearray()
        self._skimmer: Skimmer | None = None
        self._after_cr = False

    @property
    def held(self) -> int:
        """How many bytes of an incomplete event are held."""
        return len(self._held)

    @property
    def torn(self) -> bool:
        """Whether the beginning of an event was returned, and its end has not come."""
        return self._skimmer is not None

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces that `data` completed, in order; joined, they are what may be relayed."""
        # The usual case, kept free of loops and copies: whole events, nothing held.
        if not self._held and not self._after_cr and self._skimmer is None:
            if data[-2:] == b"\n\n" and b"\r" not in data:
                if data.find(b"\n\n") == len(data) - 2:
                    return [data]
                return self._split(data, b"\n\n")
            if data[-4:] == b"\r\n\r\n":
                lines = data.count(b"\r\n")
                if lines == data.count(b"\n") == data.count(b"\r"):
                    return self._split(data, b"\r\n\r\n")
        return self._feed(data) if data else NO_PIECES

    def finish(self) -> bytes:
        """The stream ended: what is still held, an event without its empty line."""
        held = bytes(self._held)
        self._held.clear()
        if self._skimmer is None:
            return held
        self._skimmer.feed(held)
        skimmer, self._skimmer = self._skimmer, None
        return Fragment(held, skimmer.copy)

    def _split(self, data: bytes, end: bytes) -> list[bytes]:
        """Split a chunk that has only one kind of line end."""
        size = len(end)
        position = data.find(end) + size
        if position == len(data):
            return [data]
        pieces = [data[:position]]
        while (found := data.find(end, position)) >= 0:
            pieces.append(data[position : found + size])
            position = found + size
        # What is left of a run of empty lines begins the next event.
        self._held += data[position:]
        return pieces

    def _feed(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        if self._after_cr:
            # An empty line ended with CR, and its event was returned at once rather than held for
            # an LF that may never come. If it does come it follows at once, too.
            self._after_cr = False
            if data[0] == 10:
                pieces.append(data[:1])
                data = data[1:]
        held = self._held
        # An empty line may have begun in what is held: at most CR LF CR of it.
        position = max(0, len(held) - 3)
        held += data
        start = 0
        while (match := _BLANK_LINE.search(held, position)) is not None:
            position = match.end()
            pieces.append(self._whole(bytes(held[start:position])))
            start = position
        self._after_cr = start == len(held) and held[-1:] == b"\r"
        del held[:start]
        if self._skimmer is not None or len(held) > MAX_HELD_EVENT:
            self._let_go(pieces)
        return pieces

    def _whole(self, event: bytes) -> bytes:
        """An event's last, and nearly always only, piece."""
        if self._skimmer is None:
            return event
        self._skimmer.feed(event)
        skimmer, self._skimmer = self._skimmer, None
        return Fragment(event, skimmer.copy)

    def _let_go(self, pieces: list[bytes]) -> None:
        """Release an event too large to hold, but for what may be the start of its empty line."""
        part = bytes(self._held.rstrip(b"\r\n"))
        if part:
            if self._skimmer is None:
                self._skimmer = Skimmer()
            self._skimmer.feed(part)
            del self._held[: len(part)]
            pieces.append(Fragment(part))


def fields(event: bytes) -> tuple[bytes, bytes]:
    """The `event` and `data` fields of one event, b"" where it has none.

    As the standard has it: several `data` lines are joined with LF, one space after the colon is
    dropped, comments and other fields are passed over, the last `event` counts.
    """
    # The usual case: one line, `data: ...`.
    if event[:6] == b"data: " and event.find(b"\n", 6) == len(event) - 2 and b"\r" not in event:
        return b"", event[6:-2]
    name = b""
    lines: list[bytes] = []
    for line in event.removeprefix(_BYTE_ORDER_MARK).splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            lines.append(value[1:] if value[:1] == b" " else value)
        elif field == b"event":
            name = value[1:] if value[:1] == b" " else value
    return name, b"\n".join(lines)


def is_event_stream(content_type: str) -> bool:
    """Whether a `Content-Type` says event stream, whatever its parameters."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def first_document(stream: bytes, mark: bytes) -> dict[str, Any] | None:
    """The first event's JSON object among those whose bytes contain `mark`.

    Only the first `HEAD` bytes of the stream are searched, and no more of them than need be.
    """
    splitter = SseSplitter()
    for start in range(0, min(len(stream), HEAD), _STEP):
        for event in splitter.feed(stream[start : start + _STEP]):
            if mark in event:
                document = load(fields(event)[1])
                if isinstance(document, dict):
                    return document
    return None
