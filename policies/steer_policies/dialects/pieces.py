"""What a splitter hands out: whole events, or the fragments of one too large to hold."""

from __future__ import annotations

from typing import Final, Self


class Fragment(bytes):
    """A piece of an event too large to hold.

    `event` is what a reader may inspect instead: on the last fragment the whole event without its
    long strings, b"" on the others.
    """

    event: bytes

    def __new__(cls, data: bytes, event: bytes = b"") -> Self:
        """Mark `data` as a fragment."""
        fragment = super().__new__(cls, data)
        fragment.event = event
        return fragment


NO_PIECES: Final[list[bytes]] = []
