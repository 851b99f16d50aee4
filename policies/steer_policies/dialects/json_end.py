"""Whether a JSON text that arrived bit by bit was cut, where only the connection's end tells.

An answer without a length ends when its connection does (RFC 9112, section 6.3), and so does one
whose server died. Its text is the only witness then.
"""

from __future__ import annotations

import re
from typing import Final

# Whole strings; and all up to one whose end has not come. Both go through a text once.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_UP_TO_OPEN: Final = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_SPACE: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"


class JsonEnd:
    """Takes the bytes of a text as they come; `cut` says whether something is missing at its end.

    It counts brackets and sees open strings, and so says of none that it was cut that is whole, of
    several documents in a row neither. What does not begin as an object or an array is not judged,
    as it may be no JSON in UTF-8 at all. With `needed`, a text that never begins was cut.
    """

    __slots__ = ("_begun", "_depth", "_judged", "_needed", "_open")

    def __init__(self, *, needed: bool) -> None:
        self._needed = needed
        self._begun = False
        self._judged = False
        self._depth = 0
        self._open = b""

    @property
    def cut(self) -> bool:
        """Whether the text so far cannot be all of it."""
        if not self._begun:
            return self._needed
        return self._judged and (self._depth > 0 or bool(self._open))

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if not self._begun:
            data = data.removeprefix(_BOM).lstrip(_SPACE)
            if not data:
                return
            self._begun = True
            # A zero tells of UTF-16, in which a bracket may be half of some other character.
            self._judged = data[:1] in (b"{", b"[") and data[1:2] != b"\0"
        if not self._judged:
            return
        data = self._open + data
        end = next(_UP_TO_OPEN.finditer(data)).end()
        bare = _STRING.sub(b"", data[:end])
        self._depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")
        self._open = b""
        if end < len(data):
            # Of the open string only this matters: whether its last byte escapes the next one.
            escapes = len(data) - len(data.rstrip(b"\\"))
            self._open = b'"\\' if escapes % 2 else b'"'
