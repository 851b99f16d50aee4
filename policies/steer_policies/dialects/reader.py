"""What all stream readers share: relaying bytes exactly, and stopping before an in-band error."""

from __future__ import annotations

from typing import Any, Final, Protocol

from steer_policies.dialects.base import Progress, Usage
from steer_policies.dialects.pieces import Fragment
from steer_policies.dialects.sse import SseSplitter
from steer_policies.outcome import Verdict

MAX_TEXT: Final = 4 * 1024 * 1024
"""Characters of text kept for a resume; a longer answer is not resumed."""


class Splitter(Protocol):
    """Cuts a stream into its events; see `SseSplitter`."""

    @property
    def held(self) -> int:
        """How many bytes of an incomplete event are held."""

    @property
    def torn(self) -> bool:
        """Whether the beginning of an event was returned, and its end has not come."""

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces that `data` completed."""

    def finish(self) -> bytes:
        """What is still held at the end."""


class EventReader:
    """The frame of a stream reader; a dialect says in `_inspect` what an event means.

    `_inspect` gets one whole event's bytes; it calls `_reach`, and sets `_usage`, `model`
    and `error`. It is not called once the stream is COMPLETE: what follows is noise, and relayed.
    """

    __slots__ = (
        "_keep_text",
        "_splitter",
        "_text",
        "_text_size",
        "_usage",
        "error",
        "error_event",
        "model",
        "progress",
    )

    marked = True
    """Whether this kind of stream has a terminal marker."""

    def __init__(self, splitter: Splitter | None = None, *, keep_text: bool = False) -> None:
        self.progress = Progress.PRELUDE
        self.error: Verdict | None = None
        self.error_event = b""
        self.model: str | None = None
        self._splitter: Splitter = splitter or SseSplitter()
        self._keep_text = keep_text
        self._text: list[str] | None = [] if keep_text else None
        self._text_size = 0
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        """The provider's token counts so far."""
        return self._usage

    @property
    def held(self) -> int:
        """How many bytes of an incomplete event are held."""
        return self._splitter.held

    @property
    def torn(self) -> bool:
        """Whether the beginning of an event was returned, and its end has not come."""
        return self._splitter.torn

    @property
    def text(self) -> str | None:
        """All text so far, when it is kept and nothing else was seen."""
        return None if self._text is None else "".join(self._text)

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return those that may be relayed."""
        if self.error is not None:
            return b""
        pieces = self._splitter.feed(data)
        if len(pieces) == 1:
            return pieces[0] if self._take(pieces[0]) else self._stop(pieces, 0)
        for index, piece in enumerate(pieces):
            if not self._take(piece):
                return self._stop(pieces, index)
        return b"".join(pieces)

    def finish(self) -> bytes:
        """The body ended as its framing says: return what is still held."""
        if self.error is not None:
            return b""
        rest = self._splitter.finish()
        if not self._take(rest):
            self.error_event = rest
            return b""
        if self.progress is Progress.FINISHED and not self.marked:
            self.progress = Progress.COMPLETE
        return rest

    def _take(self, piece: bytes) -> bool:
        """Look at a piece; whether it may be relayed."""
        if self.progress is Progress.COMPLETE:
            return True
        event = piece.event if isinstance(piece, Fragment) else piece
        if event:
            self._inspect(event)
        return self.error is None

    def _stop(self, pieces: list[bytes], index: int) -> bytes:
        """Keep back the error event and what came after it."""
        self.error_event = b"".join(pieces[index:]) + self._splitter.finish()
        return b"".join(pieces[:index])

    def _inspect(self, event: bytes) -> None:
        """What an event means; a dialect's own."""

    def _reach(self, progress: Progress) -> None:
        self.progress = max(self.progress, progress)

    def _has_run(self, usage: Usage | None) -> bool:
        """Whether the provider has run the call: content came, or `usage` counts output.

        Thoughts may be counted, and billed, without being shown.
        """
        return self.progress is not Progress.PRELUDE or bool(usage is not None and usage.output)

    def _add_text(self, text: Any) -> None:
        """Keep text for a resume; anything but text ends that."""
        if self._text is None:
            return
        if isinstance(text, str) and self._text_size + len(text) <= MAX_TEXT:
            self._text.append(text)
            self._text_size += len(text)
        else:
            self._text = None
