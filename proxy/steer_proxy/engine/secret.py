"""A credential known by where it is kept, never by its value.

Configuration holds references only. The value is read when a call needs it, so that a rotated file
is noticed without a reload, and no `repr`, error or log line can show it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

#: A file is asked for changes at most this often, in seconds: a rotation is noticed within it.
CHECK_EVERY: Final = 1.0

#: Largest secret read from a file, in bytes. Bearer tokens are far smaller; a wrong path is not.
MAX_BYTES: Final = 64 * 1024


class SecretUnavailable(Exception):
    """A reference that cannot be resolved; the message names the reference, never a value."""


class Secret:
    """A reference to a secret: an environment variable, or a file read anew when it changes.

    Equality and hash are those of the reference, so that two revisions of a configuration compare
    without touching the value.
    """

    __slots__ = ("_checked", "_clock", "_kind", "_name", "_stamp", "_value")

    def __init__(
        self,
        *,
        env: str | None = None,
        file: str | None = None,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Refer to a secret; nothing is read yet, except that an environment variable is looked up.

        Raises:
            ValueError: unless exactly one of `env` and `file` is given.
        """
        if (env is None) == (file is None):
            raise ValueError("a secret is referred to by exactly one of env and file")
        self._clock = clock
        self._stamp: tuple[int, int, int] | None = None
        self._checked = -1.0
        if env is not None:
            self._kind, self._name = "env", env
            self._value = (os.environ if environ is None else environ).get(env)
        else:
            self._kind, self._name = "file", str(file)
            self._value = None

    @property
    def reference(self) -> str:
        """The reference in words: `environment variable NAME`, or `file PATH`."""
        kind = "environment variable" if self._kind == "env" else "file"
        return f"{kind} {self._name}"

    def read(self) -> str:
        """The value now, without surrounding white space.

        A file that vanishes or turns unreadable after it was read once keeps its last value: during
        a rotation the path may be missing for a moment.

        Raises:
            SecretUnavailable: when there is no value, or it is empty or not one line of text.
        """
        if self._kind == "file":
            self._refresh()
        if self._value is None:
            raise SecretUnavailable(f"{self.reference} is not set")
        return _usable(self._value, self.reference)

    def _refresh(self) -> None:
        now = self._clock()
        if self._value is not None and 0.0 <= now - self._checked < CHECK_EVERY:
            return
        self._checked = now
        try:
            status = Path(self._name).stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            with Path(self._name).open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
        except OSError as error:
            if self._value is None:
                reason = error.strerror or type(error).__name__
                raise SecretUnavailable(f"{self.reference} cannot be read: {reason}") from None
            return
        try:
            value = _usable(content[: MAX_BYTES + 1].decode("utf-8", "replace"), self.reference)
        except SecretUnavailable:
            # Half-written: keep what worked and look again at the next check.
            if self._value is None:
                raise
            return
        self._value, self._stamp = value, stamp

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self._kind, self._name) == (other._kind, other._name)

    def __hash__(self) -> int:
        return hash((self._kind, self._name))

    def __repr__(self) -> str:
        return f"Secret({self._kind}={self._name!r})"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")


def _usable(value: str, reference: str) -> str:
    """Refuse what could not be sent as a header value (RFC 9110 section 5.5); never quote it."""
    text = value.strip()
    if not text:
        raise SecretUnavailable(f"{reference} is empty")
    if len(text) > MAX_BYTES:
        raise SecretUnavailable(f"{reference} holds more than {MAX_BYTES} bytes")
    if not text.isascii() or not text.isprintable():
        raise SecretUnavailable(f"{reference} is not one line of printable ASCII")
    return text
