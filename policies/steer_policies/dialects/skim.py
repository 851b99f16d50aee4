"""A bounded copy of a JSON text without its long strings, so that a huge event can still be read.

An image arrives as one event of many megabytes, nearly all of it one base64 string. Such an event
is relayed as it comes; what says how the stream went (its type, finish reason and usage) is small
once that string is left out.
"""

from __future__ import annotations

import re
from typing import Final

MAX_STRING: Final = 1024
"""Bytes of the longest string kept: more than any name or reason has."""

MAX_COPY: Final = 256 * 1024
"""Bytes kept in all; a copy that would outgrow this is given up."""

# A raw line end cannot stand inside a JSON string (RFC 8259, section 7), so it ends one: a stray
# quote in an event stream's comment does not turn everything after it inside out.
_STOP: Final = re.compile(rb'["\\\r\n]')


class Skimmer:
    """Takes a text piece by piece; `copy` is JSON where the text is, with "" for long strings."""

    __slots__ = ("_copy", "_dropping", "_escaped", "_in_string", "_start")

    def __init__(self) -> None:
        self._copy = bytearray()
        self._in_string = False
        self._escaped = False
        self._dropping = False
        self._start = 0

    @property
    def copy(self) -> bytes:
        """The text so far without its long strings; b"" when even that is too long."""
        return bytes(self._copy) if len(self._copy) <= MAX_COPY else b""

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        position = 0
        while position < len(data) and len(self._copy) <= MAX_COPY:
            take = self._string if self._in_string else self._bare
            position = take(data, position)

    def _bare(self, data: bytes, position: int) -> int:
        """Take up to and including the next quote."""
        quote = data.find(b'"', position)
        end = len(data) if quote < 0 else quote + 1
        self._copy += data[position : min(end, position + MAX_COPY + 1)]
        self._in_string = quote >= 0
        self._dropping = False
        self._start = len(self._copy)
        return end

    def _string(self, data: bytes, position: int) -> int:
        """Take up to and including the next escape's first byte, or what ends the string."""
        if self._escaped:
            self._escaped = False
            end, last = position + 1, b""
        elif (match := _STOP.search(data, position)) is not None:
            end, last = match.end(), match.group()
        else:
            end, last = len(data), b""
        self._escaped = last == b"\\"
        self._in_string = self._escaped or not last
        if self._dropping:
            if not self._in_string:
                self._copy += last
            return end
        if len(self._copy) - self._start + end - position > MAX_STRING + 1:
            del self._copy[self._start :]
            self._dropping = True
            if not self._in_string:
                self._copy += last
        else:
            self._copy += data[position:end]
        return end
