"""One request as the provider saw it, and what became of its answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qs

from tests.provider.multipart import FormPart, parse_multipart


class Attempt:
    """A request that reached the provider: every byte of it, and how its answer ended.

    Times are the loop's (`loop.time()`). `headers` are the raw pairs in order, decoded as Latin-1
    so that every byte survives. `body` is complete, and free of chunked framing, once `received`
    is set.
    """

    def __init__(
        self,
        *,
        number: int,
        at: float,
        connection: int,
        first_on_connection: bool,
        method: str,
        target: str,
        version: str,
        headers: list[tuple[str, str]],
    ) -> None:
        self.number = number
        """1 for the first request this provider received."""
        self.at = at
        """When the head was complete."""
        self.connection = connection
        """Number of the connection it came on, from 1."""
        self.first_on_connection = first_on_connection
        self.method = method
        self.target = target
        """The raw request target."""
        self.version = version
        self.headers = headers
        self.path, _, self.query = target.partition("?")
        self.body = b""
        self.trailers: list[tuple[str, str]] = []
        self.received = asyncio.Event()
        """Set when the body is complete."""
        self.closed_by_peer_at: float | None = None
        """When the client closed or reset while the answer was under way; None otherwise."""
        self.bytes_written = 0
        """Bytes of the answer handed to the socket so far."""
        self.finished = asyncio.Event()
        """Set when the answer has been played to its end, or can no longer be."""
        self.status: int | None = None
        """The status sent, None when no head was."""
        self.behaviour = "healthy"
        """What the script chose, for readable assertion messages."""
        self.messages: list[str | bytes] = []
        """What a WebSocket client sent after the handshake."""
        self.text = ""
        """The text this provider answers with."""
        self._json: Any = _UNREAD

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first value of a header, looked up without regard to case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), default)

    def header_values(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        wanted = name.lower()
        return [value for key, value in self.headers if key.lower() == wanted]

    @property
    def json(self) -> Any:
        """The body as JSON; raises ValueError when it is none."""
        if self._json is _UNREAD:
            self._json = json.loads(self.body)
        return self._json

    @property
    def object(self) -> dict[str, Any]:
        """The body as a JSON object, empty when it is anything else."""
        try:
            value = self.json
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def form(self) -> list[FormPart]:
        """The parts of a multipart body, empty when it is none."""
        return parse_multipart(self.header("content-type", "") or "", self.body)

    def field(self, name: str, default: str = "") -> str:
        """A text field of a multipart body."""
        found = next((part for part in self.form if part.name == name), None)
        return default if found is None else found.data.decode("utf-8", "replace")

    @property
    def query_parameters(self) -> dict[str, list[str]]:
        """The query, decoded."""
        return parse_qs(self.query, keep_blank_values=True)

    @property
    def reads(self) -> bool:
        """Whether this is a GET, or a HEAD: the same answer without its body."""
        return self.method in ("GET", "HEAD")

    @property
    def is_websocket(self) -> bool:
        """Whether this asks for a WebSocket (RFC 6455 section 4.1)."""
        return (self.header("upgrade", "") or "").lower() == "websocket"

    def __repr__(self) -> str:
        return (
            f"<Attempt {self.number} {self.method} {self.target} on connection {self.connection}"
            f" at {self.at:.3f}: {self.behaviour}, status {self.status}>"
        )


_UNREAD: Any = object()
