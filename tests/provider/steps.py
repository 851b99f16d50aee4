"""What a scripted answer is made of: small frozen steps, played in order by a connection.

Steps come in two kinds. The *structured* ones (`Head`, `Data`, `Event`, `Part`, `Repeat`,
`Finish`) say what is meant and leave the framing to the player, so that a fault can rewrite an
answer ("drop the terminal event", "promise ten bytes more") without parsing bytes. The *raw* ones
(`Send`, `Pause`, `Close`, `Reset`, ...) say exactly what happens on the socket, right or wrong.

When the steps run out the connection is left open for the next request, whatever was promised:
an answer that is to end the connection says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.provider.websocket import WebSocket

Headers = tuple[tuple[str, str], ...]

Framing = Literal["length", "chunked", "close", "none"]
"""How a body is delimited (RFC 9112 section 6): "close" means by the end of the connection."""

Role = Literal["prelude", "token", "closing", "terminal"]
"""What an event means to its dialect.

"prelude" carries no content yet (role chunk, `message_start`, ping, `response.created`), "token" is
content, "closing" comes after the content (finish reason, usage), "terminal" is the one event
without which the stream is incomplete (`[DONE]`, `message_stop`, `response.completed`, Gemini's
chunk with the finish reason).
"""


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers; the framing header is added from `framing` and `length`."""

    status: int
    headers: Headers = ()
    framing: Framing = "length"
    length: int = 0
    reason: str | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header, looked up without regard to case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    def with_headers(self, *headers: tuple[str, str]) -> Head:
        """This head with headers set: a name given here replaces every earlier line of it."""
        names = {name.lower() for name, _ in headers}
        kept = tuple(pair for pair in self.headers if pair[0].lower() not in names)
        return replace(self, headers=(*kept, *headers))


@dataclass(frozen=True, slots=True)
class Data:
    """Body bytes that are no event of a stream."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: its own chunk, its own write."""

    data: bytes
    role: Role = "token"


@dataclass(frozen=True, slots=True)
class Part:
    """The first bytes of an event whose chunk promised `promised` of them."""

    data: bytes
    promised: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same body bytes `count` times, one at a time, waiting whenever the peer reads slowly."""

    data: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of the body as the framing has it: the last chunk, or a close, or nothing."""


@dataclass(frozen=True, slots=True)
class Send:
    """Raw bytes, whatever the framing."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for some seconds of the loop's time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class WaitUntilClosed:
    """Say nothing more until the peer has gone."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection in order (FIN), after everything sent so far."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection (RST, by SO_LINGER 0), after everything sent so far."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Tell the test that the answer has come this far."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Await:
    """Go on only when the test says so."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Slowly:
    """From here on write in pieces of `size` bytes, `pace` seconds apart; size 0 ends it."""

    size: int
    pace: float = 0.0


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Hand the connection to a WebSocket session (after its 101 head)."""

    session: Callable[[WebSocket], Awaitable[None]]


Content = Head | Data | Event | Part | Repeat | Finish | Send
Control = Pause | Slowly | WaitUntilClosed | Close | Reset | Signal | Await | Upgrade
Step = Content | Control


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole scripted answer, as a value."""

    steps: tuple[Step, ...]

    @property
    def head(self) -> Head:
        """The final head of the answer; raises LookupError when it has none."""
        found = next((step for step in self.steps if isinstance(step, Head)), None)
        if found is None:
            raise LookupError("this answer has no head to work on")
        return found

    @property
    def events(self) -> tuple[Event, ...]:
        """The events of a streamed answer, empty for a plain one."""
        return tuple(step for step in self.steps if isinstance(step, Event))

    @property
    def body(self) -> bytes:
        """The body without its framing (repeated parts excluded)."""
        return b"".join(step.data for step in self.steps if isinstance(step, Data | Event))

    @property
    def size(self) -> int:
        """The length of the body without its framing, repeated parts included."""
        repeated = (step for step in self.steps if isinstance(step, Repeat))
        return len(self.body) + sum(len(step.data) * step.count for step in repeated)

    def with_head(self, head: Head) -> Answer:
        """This answer under another head."""
        return Answer(tuple(head if isinstance(step, Head) else step for step in self.steps))
