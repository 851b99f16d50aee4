"""What comes back from a sidecar: its own words about the call, errors, JSON, and event streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from steer_llm_sdk.errors import ProviderError
from steer_policies.config import DialectName
from steer_policies.dialects.sse import SseSplitter, fields
from steer_policies.retry_after import read_retry_hint

#: The most that is read of an error's body, in bytes, and shown of its message, in characters.
MAX_ERROR: Final = 64 * 1024
MAX_MESSAGE: Final = 500

#: The sidecar's headers about a call, and what they are called in an output's metadata.
_ABOUT: Final = {
    "X-Steer-Request-ID": "request_id",
    "X-Steer-Trace-ID": "trace_id",
    "X-Steer-Upstream": "upstream",
    "X-Steer-Model": "model",
    "X-Steer-Rule": "rule",
    "X-Steer-Attempts": "attempts",
    "Idempotency-Status": "idempotency_status",
}


class SidecarError(ProviderError):
    """An answer that is an error, or that broke off.

    Attributes:
        code: the error's own code, such as `steer_key_in_progress`; None when it has none.
        should_retry: False when the sidecar says that another try is of no use, since it has made
            its own: runs obey that. None when it says nothing.
        about: what the sidecar says of the call: `request_id`, `upstream`, `attempts`, ...
    """

    def __init__(
        self,
        message: str,
        provider: str,
        status_code: int | None = None,
        retry_after: float | None = None,
        *,
        code: str | None = None,
        should_retry: bool | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, provider, status_code, retry_after)
        self.code = code
        self.should_retry = should_retry
        self.about = dict(about or {})


def about(headers: Mapping[str, str]) -> dict[str, Any]:
    """What the sidecar says of a call; `headers` is case-insensitive."""
    found: dict[str, Any] = {
        name: headers[header] for header, name in _ABOUT.items() if header in headers
    }
    if (attempts := found.get("attempts")) is not None and attempts.isdecimal():
        found["attempts"] = int(attempts)
    return found


def error_of(
    tool: str, provider: str, status: int, headers: Mapping[str, str], body: bytes, wall: float
) -> SidecarError:
    """The error that an answer is; `headers` is case-insensitive, `wall` Unix time in seconds."""
    document = _load(body)
    code, message = _words(document)
    hint = read_retry_hint(DialectName.HTTP, headers, wall, document).hint
    asked = headers.get("X-Should-Retry", "").strip().lower()
    told = f"{tool}: HTTP {status}"
    for part in (code, message):
        told += f" {part}" if part else ""
    return SidecarError(
        told,
        provider,
        status,
        None if hint is None else hint.seconds,
        code=code,
        should_retry={"true": True, "false": False}.get(asked),
        about=about(headers),
    )


def error_in_stream(tool: str, provider: str, name: str, data: Any) -> SidecarError | None:
    """The error that an event is; None when it is none."""
    if name != "error" and not (isinstance(data, dict) and data.get("error")):
        return None
    code, message = _words(data)
    told = " ".join(part for part in (f"{tool}: the stream broke off:", code, message) if part)
    return SidecarError(told, provider, code=code)


def _words(document: Any) -> tuple[str | None, str | None]:
    """An error's code and message, in any of the dialects' shapes."""
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, str):
        return None, error[:MAX_MESSAGE]
    if not isinstance(error, dict):
        return None, None
    code = error.get("code") or error.get("type") or error.get("status")
    message = error.get("message")
    return (
        code[:MAX_MESSAGE] if isinstance(code, str) else None,
        message[:MAX_MESSAGE] if isinstance(message, str) else None,
    )


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


class Events:
    """Cuts a stream's bytes, as they come, into its events: their name, and their data.

    Data is JSON or, where it is none, text; events without any (comments that keep a connection
    alive) are passed over. What has no empty line at its end was cut off, and does not count
    (WHATWG HTML, section 9.2.6).
    """

    def __init__(self) -> None:
        self._splitter = SseSplitter()
        self._large = bytearray()

    def feed(self, data: bytes) -> list[tuple[str, Any]]:
        """The events that these bytes completed."""
        found = []
        for piece in self._splitter.feed(data):
            # Of an event too large to be held at once, all pieces but the last end within a line.
            self._large += piece
            if piece.endswith((b"\n", b"\r")):
                whole = bytes(self._large)
                self._large.clear()
                if (event := _event(whole)) is not None:
                    found.append(event)
        return found


def _event(whole: bytes) -> tuple[str, Any] | None:
    name, data = fields(whole)
    if not data:
        return None
    text = data.decode("utf-8", "replace")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return name.decode("utf-8", "replace"), value
