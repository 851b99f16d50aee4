"""What a splitter hands out: whole events, or what is relayed of those that are not."""

from __future__ import annotations

from typing import Final, Self


class Fragment(bytes):
    """What is relayed of an event, where that is not the whole of it.

    `event` is what a reader may inspect instead: for an event too large to hold the whole of it
    without its long strings on the last fragment, b"" on the others; for one that is taken out of
    the stream the event itself.
    """

    event: bytes

    def __new__(cls, data: bytes, event: bytes = b"") -> Self:
        """Mark `data` as a fragment."""
        fragment = super().__new__(cls, data)
        fragment.event = event
        return fragment


NO_PIECES: Final[list[bytes]] = []
