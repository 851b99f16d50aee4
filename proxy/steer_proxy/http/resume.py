"""Going on with a broken stream from another candidate's answer, when it says the same.

The second answer is read silently until it has said everything that the caller already has, word
for word; from there on its text goes to the caller in the first stream's envelope. If it says
anything else, there is no honest way to join the two, and the caller gets the error.
"""

from __future__ import annotations

from typing import Final

from steer_policies.dialects.base import Dialect, Progress, RequestFacts, StreamReader
from steer_policies.dialects.sse import SseSplitter

#: Most bytes of a stream remembered for a resume; a longer one ends with the error instead.
MAX_SENT: Final = 16 * 1024 * 1024


class Sent:
    """What the caller has of a stream, remembered so that another answer can be joined to it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Remember bytes that were sent; beyond a bound nothing is remembered any more."""
        self._size += len(data)
        if self._size <= MAX_SENT:
            self._pieces.append(data)
        else:
            self._pieces.clear()

    @property
    def whole(self) -> bytes | None:
        """Everything sent, or None when it was too much."""
        return b"".join(self._pieces) if self._size <= MAX_SENT else None


class NotTheSame(Exception):
    """The second answer differs from what the caller already has."""


class Joint:
    """Turns the second answer's bytes into what the caller is still missing."""

    def __init__(
        self, speaks: Dialect, facts: RequestFacts, sent: bytes, text: str, reader: StreamReader
    ) -> None:
        self._speaks = speaks
        self._facts = facts
        self._sent = sent
        self._text = text
        self._reader = reader
        self._splitter = SseSplitter()
        self._joined = False

    @property
    def joined(self) -> bool:
        """Whether the second answer has said all that the caller has."""
        return self._joined

    def feed(self, data: bytes) -> bytes:
        """Take the second answer's next bytes; return what goes to the caller.

        Raises:
            NotTheSame: when the answers differ, or cannot be joined faithfully.
        """
        return b"".join([self._event(event) for event in self._splitter.feed(data)])

    def finish(self) -> bytes:
        """The second answer has ended: return what its last, unterminated event brings."""
        rest = self._splitter.finish()
        return self._event(rest) if rest else b""

    def _event(self, event: bytes) -> bytes:
        reader = self._reader
        reader.feed(event)
        if reader.error is not None:
            return b""
        if self._joined:
            return self._checked(self._speaks.adopted(self._facts, self._sent, event))
        said = reader.text
        if said is None or not (self._text.startswith(said) or said.startswith(self._text)):
            raise NotTheSame
        if len(said) < len(self._text):
            if reader.progress >= Progress.FINISHED:
                raise NotTheSame
            return b""
        self._joined = True
        missing = said[len(self._text) :]
        if reader.progress >= Progress.FINISHED:
            # One event with both text and the end: it cannot be cut in two without inventing.
            if missing:
                raise NotTheSame
            return self._checked(self._speaks.adopted(self._facts, self._sent, event))
        if not missing:
            return b""
        return self._checked(self._speaks.resumed(self._facts, self._sent, missing))

    @staticmethod
    def _checked(event: bytes | None) -> bytes:
        if event is None:
            raise NotTheSame
        return event
