"""Following WebSocket frames without touching them (RFC 6455 §5.2).

A tunnel forwards bytes as they are; it only has to know where frames end, so that a close frame of
its own can stand in between, how large they claim to be, and whether a side said goodbye.
"""

from __future__ import annotations

import struct
from typing import Final

#: Close codes (RFC 6455 §7.4.1).
GOING_AWAY: Final = 1001
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011

#: Bytes of a close frame's reason: a control frame's payload has at most 125, two are the code's.
MAX_REASON: Final = 123

_CLOSE: Final = 0x8
_FIN: Final = 0x80
_MASKED: Final = 0x80
_LONG: Final = {126: ("!H", 2), 127: ("!Q", 8)}


class FrameTracker:
    """Follows one direction of a WebSocket connection, in which no frame may exceed `limit` bytes.

    `closing` tells whether a close frame went by, `too_big` whether a frame claimed to be larger:
    from its head on nothing is passed any more, though frames are still followed.
    """

    __slots__ = ("_head", "_left", "_limit", "closing", "too_big")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head = b""
        self._left = 0
        self.closing = False
        self.too_big = False

    @property
    def at_boundary(self) -> bool:
        """Whether what was passed so far ends with a whole frame."""
        return self.too_big or self._left == 0

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of this direction; return those to pass on.

        They are the same ones but for the head of a frame that is not complete: it is held, so that
        a frame is only begun when its length is known.
        """
        passes = not self.too_big
        if self._head:
            data = self._head + data
        position = 0
        end = passed = len(data)
        while position < end:
            if self._left:
                step = min(self._left, end - position)
                self._left -= step
                position += step
                continue
            length, size = _read_head(data, position)
            if size > end - position:
                passed = min(passed, position)
                break
            if length > self._limit and not self.too_big:
                self.too_big = True
                passed = position
            self.closing = self.closing or data[position] & 0x0F == _CLOSE
            self._left = length
            position += size
        self._head = data[position:]
        return data[:passed] if passes else b""


def _read_head(data: bytes, position: int) -> tuple[int, int]:
    """A frame's payload length, and the size of its head; a length not there yet counts as 0."""
    if len(data) - position < 2:
        return 0, 2
    second = data[position + 1]
    length = second & 0x7F
    size = 6 if second & _MASKED else 2
    if length in _LONG:
        form, more = _LONG[length]
        size += more
        missing = len(data) - position < 2 + more
        length = 0 if missing else struct.unpack_from(form, data, position + 2)[0]
    return length, size


def close_frame(code: int, reason: str = "", mask: bytes | None = None) -> bytes:
    """A close frame; a client's must be masked with four random bytes (RFC 6455 §5.3)."""
    # Cut after a whole character: the reason must be valid UTF-8.
    text = reason.encode()[:MAX_REASON].decode(errors="ignore").encode()
    payload = struct.pack("!H", code) + text
    head = bytes((_FIN | _CLOSE, len(payload) | (_MASKED if mask else 0)))
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
