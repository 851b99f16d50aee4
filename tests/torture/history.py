"""What callers asked and what they saw."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

#: The header in which the provider says which execution an answer comes from: its marker, a space,
#: the number of the request.
EXECUTION: Final = "X-Execution"

#: By what a stream of chat completions is known to be whole, if it ends properly, too: its end
#: marker, or the reason it finished, where the provider forgets the marker.
TERMINAL: Final = (b"data: [DONE]\n\n", b'"finish_reason":"stop"')

_BEARER: Final = "Bearer sk-"
_CODE: Final = re.compile(rb'"code":\s*"(steer_\w+)"')


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """A keyed call: at most one execution is paid for it.

    Two principals with one key make two calls. `rerun` says that its route runs a call again whose
    outcome is uncertain, and says so.
    """

    key: str
    principal: str
    stream: bool = False
    rerun: bool = False


@dataclass(frozen=True, slots=True)
class Marker:
    """What a request says about itself: which call it is of, with which payload."""

    key: str
    principal: str
    payload: int

    def __str__(self) -> str:
        return f"{self.key}/{self.principal}/{self.payload}"

    @property
    def content(self) -> str:
        """What the request's body says: the same for all principals."""
        return f"{self.key}/{self.payload}"

    @property
    def credential(self) -> str:
        """What its Authorization field says."""
        return f"{_BEARER}{self.principal}"

    @classmethod
    def parse(cls, content: str, credential: str) -> Marker | None:
        """The marker that `content` and `credential` come from."""
        key, found, payload = content.partition("/")
        if not found or not payload.isdecimal() or not credential.startswith(_BEARER):
            return None
        return cls(key, credential.removeprefix(_BEARER), int(payload))


class End(StrEnum):
    """How a try ended, as its caller saw it."""

    COMPLETE = "complete"
    """A whole answer, well framed; of a stream of events: with its terminal marker."""
    CUT = "cut"
    """The other side ended it early, or ended it without a stream's terminal marker."""
    LEFT = "left"
    """The caller hung up, or waited no longer."""
    REFUSED = "refused"
    """Nobody listened."""


@dataclass(frozen=True, slots=True)
class Try:
    """One request of a caller. Times are the harness's monotonic clock, in seconds."""

    call: Call
    payload: int
    replica: str
    began: float
    ended: float
    end: End
    status: int | None = None
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    final: bool = False
    """Whether it was made at the end of the run, when all was well again."""

    @property
    def marker(self) -> Marker:
        """What its request said."""
        return Marker(self.call.key, self.call.principal, self.payload)

    def value(self, name: str) -> str | None:
        """The first value of a field of the answer."""
        wanted = name.lower()
        return next((value for field, value in self.fields if field.lower() == wanted), None)

    @property
    def succeeded(self) -> bool:
        """Whether the caller has a complete 2xx."""
        return self.end is End.COMPLETE and self.begun_well

    @property
    def begun_well(self) -> bool:
        """Whether the caller has at least the head of a 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def code(self) -> str | None:
        """The code of one of Steer's own errors."""
        found = _CODE.search(self.body) if self.status is not None and self.status >= 400 else None
        return found[1].decode() if found else None

    def __str__(self) -> str:
        how = self.code or self.value("Idempotency-Status") or "-"
        return (
            f"{self.marker} at {self.replica} {self.began:.3f}-{self.ended:.3f}: {self.end}, "
            f"{self.status or '-'} {how}, {len(self.body)} bytes, "
            f"execution {self.value(EXECUTION)}"
        )


@dataclass(slots=True)
class History:
    """Everything callers saw, and what was done to the system meanwhile."""

    tries: list[Try] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
