"""Following WebSocket frames without touching them (RFC 6455 §5.2).

A tunnel forwards bytes as they are; it only has to know where frames end, so that it can say
goodbye in between, and how large they claim to be.
"""

from __future__ import annotations

import struct
from typing import Final

#: Close codes (RFC 6455 §7.4.1).
GOING_AWAY: Final = 1001
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011

_CLOSE: Final = 0x8
_FIN: Final = 0x80
_MASKED: Final = 0x80


class FrameTracker:
    """Follows one direction of a WebSocket connection.

    `at_boundary` tells whether a frame of our own could stand here; `largest` is the greatest
    payload length claimed so far, in bytes; `closing` whether a close frame went by.
    """

    __slots__ = ("_head", "_left", "closing", "largest")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self.largest = 0
        self.closing = False

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end with a whole frame."""
        return self._left == 0 and not self._head

    def feed(self, data: bytes) -> None:
        """Take the next bytes of this direction."""
        position = 0
        end = len(data)
        while position < end:
            if self._left:
                step = min(self._left, end - position)
                self._left -= step
                position += step
                continue
            # A frame's head has at most 14 bytes; more are never held.
            piece = data[position : position + 14 - len(self._head)]
            head = self._head + piece
            size = _head_size(head)
            if size is None or len(head) < size:
                self._head = head
                return
            position += size - len(self._head)
            self._head = b""
            self._begin(head)

    def _begin(self, head: bytes) -> None:
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack_from("!H", head, 2)
        elif length == 127:
            (length,) = struct.unpack_from("!Q", head, 2)
        self._left = length
        self.largest = max(self.largest, length)
        self.closing = self.closing or head[0] & 0x0F == _CLOSE


def _head_size(head: bytes) -> int | None:
    """How many bytes the frame's head has; None while that cannot be told."""
    if len(head) < 2:
        return None
    extended = {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
    return 2 + extended + (4 if head[1] & _MASKED else 0)


def close_frame(code: int, reason: str, mask: bytes | None = None) -> bytes:
    """A close frame; a client's must be masked with four random bytes."""
    payload = struct.pack("!H", code) + reason.encode()[:123]
    head = bytes((_FIN | _CLOSE, len(payload) | (_MASKED if mask else 0)))
    if mask is None:
        return head + payload
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return head + mask + masked
