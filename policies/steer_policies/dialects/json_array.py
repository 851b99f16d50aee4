r"""Splitting a JSON array that arrives bit by bit into its elements, without changing a byte.

Gemini streams so when it is not asked for an event stream: `[{...}\n,\r\n{...}]`.
"""

from __future__ import annotations

import re
from typing import Final

from steer_policies.dialects.base import MAX_HELD_EVENT
from steer_policies.dialects.pieces import Fragment
from steer_policies.dialects.skim import Skimmer

# All up to the next bracket, whole strings included, or to a string whose end has not come.
_RUN: Final = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_IN_STRING: Final = re.compile(rb'["\\]')
_OPENING: Final = frozenset(b"{[")


class JsonArraySplitter:
    """Takes bytes as they come and returns them, element by element.

    Each piece ends with an element's last byte and begins with what stands before that element; the
    closing bracket is a piece of its own, and so is what comes after it. A lone object, as an error
    may be, is one piece. What was returned and what is held, put together, is what was fed; what is
    no JSON is held up to `MAX_HELD_EVENT` and then returned as it comes.
    """

    __slots__ = (
        "_depth",
        "_element_depth",
        "_escaped",
        "_held",
        "_in_string",
        "_skimmer",
        "closed",
    )

    def __init__(self) -> None:
        self.closed = False
        self._held = bytearray()
        self._skimmer: Skimmer | None = None
        self._depth = 0
        self._element_depth = -1
        self._in_string = False
        self._escaped = False

    @property
    def held(self) -> int:
        """How many bytes of an incomplete element are held."""
        return len(self._held)

    @property
    def torn(self) -> bool:
        """Whether the beginning of an element was returned, and its end has not come."""
        return self._skimmer is not None

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces that `data` completed, in order; joined, they are what may be relayed."""
        if self.closed:
            return [data] if data else []
        held = self._held
        position = len(held)
        held += data
        pieces: list[bytes] = []
        start = 0
        while position < len(held):
            position, complete = self._scan(position)
            if complete:
                pieces.append(self._whole(bytes(held[start:position])))
                start = position
        del held[:start]
        if held and (self._skimmer is not None or len(held) > MAX_HELD_EVENT):
            self._let_go(pieces)
        return pieces

    def finish(self) -> bytes:
        """The stream ended: what is still held."""
        held = bytes(self._held)
        self._held.clear()
        return self._whole(held)

    def _scan(self, position: int) -> tuple[int, bool]:
        """Go on to the end of the next token; say whether a piece ends there."""
        held = self._held
        if self.closed:
            return len(held), True
        if self._in_string:
            return self._scan_string(position), False
        position = next(_RUN.finditer(held, position)).end()
        if position == len(held):
            return position, False
        byte = held[position]
        if byte == 34:
            self._in_string = True
        elif byte in _OPENING:
            if self._element_depth < 0:
                self._element_depth = 1 if byte == 91 else 0
            self._depth += 1
        else:
            self._depth -= 1
            self.closed = self._depth <= 0
            return position + 1, self._depth <= self._element_depth
        return position + 1, False

    def _scan_string(self, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        match = _IN_STRING.search(self._held, position)
        if match is None:
            return len(self._held)
        self._escaped = match.group() == b"\\"
        self._in_string = self._escaped
        return match.end()

    def _whole(self, element: bytes) -> bytes:
        """An element's last, and nearly always only, piece."""
        if self._skimmer is None:
            return element
        self._skimmer.feed(element)
        skimmer, self._skimmer = self._skimmer, None
        return Fragment(element, skimmer.copy)

    def _let_go(self, pieces: list[bytes]) -> None:
        """Release what there is of an element too large to hold."""
        if self._skimmer is None:
            self._skimmer = Skimmer()
        part = bytes(self._held)
        self._held.clear()
        self._skimmer.feed(part)
        pieces.append(Fragment(part))
