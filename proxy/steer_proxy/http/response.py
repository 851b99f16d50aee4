"""An upstream's answer on its connection: its head, its body, and the limits that watch over both.

This and `wire` are the only modules that lean on aiohttp's client beyond its public interface.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from aiohttp.client_exceptions import ClientConnectionError, ClientPayloadError
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import CIMultiDict, CIMultiDictProxy

from steer_policies.outcome import Failure
from steer_proxy.http.errors import bare, brief
from steer_proxy.lateness import after_a_look, is_late

#: A connection older than this is not used again, in seconds, so that a provider's address change
#: or a load balancer's draining is followed.
MAX_AGE: Final = 300.0

_NO_HEADERS: Final = CIMultiDictProxy[str](CIMultiDict())

_INTERIM: Final = range(100, 200)

#: How many interim answers may come before the answer: servers send one or two.
MAX_INTERIM: Final = 100


class UpstreamError(Exception):
    """An exchange with an upstream failed; `failure` names the phase, `code` the cause."""

    def __init__(self, failure: Failure, detail: str = "", code: str | None = None) -> None:
        super().__init__(detail or str(failure))
        self.failure = failure
        self.code = code

    def again(self) -> UpstreamError:
        """The same, to be raised anew: this one is kept by what it has ended."""
        return UpstreamError(self.failure, str(self), self.code)


class UpstreamProtocol(ResponseHandler):
    """aiohttp's protocol, which tells the reader of a body what happened to its connection.

    aiohttp takes a connection that was reset for one that ended, where the end of the connection is
    the end of the body, and tells of a framing error in mid-body only whoever waits for a head.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.born = loop.time()
        #: Whether it has carried a request before.
        self.used = False

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone; a body that was under way was cut, unless it was closed."""
        if exc is not None:
            self._fail_body(ClientPayloadError(f"the connection was lost: {exc}"))
        super().connection_lost(exc)

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        """Nothing more will come: not to who waits for a head, nor to who reads a body."""
        self._fail_body(exc)
        super().set_exception(exc, exc_cause)

    def _fail_body(self, error: BaseException) -> None:
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(error)


class UpstreamResponse:
    """An answer whose head has arrived; its body is read with `read`.

    Two limits watch over it: the moment at which a phase must be over (`arm`), and how long a read
    may wait for a byte (`limit_silence`). One timer serves both. It is set for the earliest moment
    at which either could have passed, and looks again when it fires: moving a limit further away,
    which every byte of a stream does, costs nothing. What has arrived before a limit passed is no
    silence, also where this process was stopped and could not read it.
    """

    __slots__ = (
        "_connection",
        "_content",
        "_due",
        "_failure",
        "_headed",
        "_impatience",
        "_loop",
        "_now",
        "_patience",
        "_protocol",
        "_timer",
        "_waiting_since",
        "_wakes",
        "headers",
        "raw_headers",
        "reason",
        "status",
        "upload",
    )

    def __init__(
        self,
        connection: Connection,
        protocol: UpstreamProtocol,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._connection: Connection | None = connection
        self._protocol = protocol
        self._loop = loop
        self._now = loop.time
        self.upload: asyncio.Task[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakes = math.inf
        self._due = math.inf
        self._failure = Failure.DEADLINE
        self._patience = math.inf
        self._impatience = Failure.IDLE_TIMEOUT
        self._waiting_since: float | None = None
        self._headed = False
        self._content: StreamReader = EMPTY_PAYLOAD
        self.status = 0
        self.reason = ""
        self.headers: CIMultiDictProxy[str]
        self.raw_headers: tuple[tuple[bytes, bytes], ...]

    async def start(self) -> None:
        """Wait for the head, passing over interim answers (RFC 9110 §15.2)."""
        for _ in range(MAX_INTERIM + 1):
            message, content = await self._protocol.read()
            if message.code not in _INTERIM or message.code == 101:
                break
        else:
            raise UpstreamError(Failure.PROTOCOL, "interim answers without end")
        # aiohttp reads answers leniently; what is wrong with a head must not be passed on.
        values = b"".join([value for _, value in message.raw_headers])
        if b"\n" in values or b"\r" in values or b"\0" in values:
            raise UpstreamError(Failure.PROTOCOL, "a control character in a header")
        if not 100 <= message.code <= 599:
            raise UpstreamError(Failure.PROTOCOL, "a status line that is none")
        codings = message.headers.getall("Transfer-Encoding", ())
        if codings and [each.lower() for each in codings] != ["chunked"]:
            raise UpstreamError(Failure.PROTOCOL, "a transfer coding that is not known")
        self._headed = True
        self._due = math.inf
        self.status = message.code
        # A phrase may have tabs and any bytes beyond ASCII, and says nothing (RFC 9112, section 4).
        self.reason = message.reason if message.reason.isprintable() else ""
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        self._content = content
        if message.code != 101:
            content.on_eof(self._ended)

    def arm(self, when: float, failure: Failure) -> None:
        """Fail whatever waits for the upstream at `when` (loop time) with `failure`."""
        self._due, self._failure = when, failure
        self._wake_by(when)

    def arm_sooner(self, when: float, failure: Failure, deadline: float) -> None:
        """Arm a phase's own limit or the call's deadline, whichever comes first."""
        if when < deadline:
            self.arm(when, failure)
        else:
            self.arm(deadline, Failure.DEADLINE)

    def expect_head(self, patience: float, deadline: float) -> None:
        """The whole request was sent: from now on the upstream's silence counts."""
        if not self._headed and self._connection is not None:
            self.arm_sooner(self._now() + patience, Failure.FIRST_BYTE_TIMEOUT, deadline)

    def limit_silence(self, seconds: float, failure: Failure = Failure.IDLE_TIMEOUT) -> None:
        """Fail a read that waits for `seconds`; time in which nobody reads is free."""
        self._patience, self._impatience = seconds, failure
        self._wake_by(self._now() + seconds)

    @property
    def patience(self) -> float:
        """How many seconds a read may wait for a byte."""
        return self._patience

    def disarm(self) -> None:
        """Take back `arm`."""
        self._due = math.inf

    def _wake_by(self, when: float) -> None:
        if self._connection is None or self._wakes <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes = when
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """The earliest moment at which a limit could have passed: has it?"""
        if is_late(self._loop, self._wakes):
            self._timer = after_a_look(self._loop, self._judge)
            self._wakes = self._timer.when()
        else:
            self._judge()

    def _judge(self) -> None:
        if self._connection is None:  # since the timer fired
            return
        now = self._now()
        self._timer, self._wakes = None, math.inf
        waiting_since = now if self._waiting_since is None else self._waiting_since
        silent_until = waiting_since + self._patience
        if now >= self._due:
            self.fail(self._failure)
        elif now >= silent_until:
            self.fail(self._impatience)
        elif (soonest := min(self._due, silent_until)) < math.inf:
            self._wake_by(soonest)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fail(self, failure: Failure) -> None:
        """Make the pending or next read fail with `failure`."""
        error = UpstreamError(failure)
        self._protocol.set_exception(error)
        if self._headed and not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(error)

    @property
    def protocol(self) -> ResponseHandler:
        """The connection's protocol, for who takes it over after 101."""
        return self._protocol

    def forget_head(self) -> None:
        """Let go of the head: a stream may last an hour, and its fields are relayed by then."""
        self.headers, self.raw_headers = _NO_HEADERS, ()

    @property
    def content(self) -> StreamReader:
        """The body, for who counts its bytes."""
        return self._content

    @property
    def ended(self) -> bool:
        """Whether the whole body has arrived, read or not."""
        return self._content.is_eof() and self._content.exception() is None

    @property
    def exhausted(self) -> bool:
        """Whether the whole body has arrived and was read."""
        return self._content.at_eof() and self._content.exception() is None

    async def read(self) -> bytes:
        """The next bytes of the body as they came; b"" at its proper end.

        Raises:
            UpstreamError: TRUNCATED, IDLE_TIMEOUT, RESET, or what `arm` set.
        """
        self._waiting_since = self._now()
        try:
            return await self._content.readany()
        except (ClientPayloadError, HttpProcessingError, ClientConnectionError, OSError) as error:
            raise UpstreamError(Failure.TRUNCATED, brief(error)) from bare(error)
        except UpstreamError as error:  # from `fail`
            raise error.again() from bare(error)
        finally:
            self._waiting_since = None

    def read_ready(self) -> bytes:
        """What has arrived and was not read yet, without waiting."""
        if self._content.exception() is not None:
            return b""
        return self._content.read_nowait(-1)

    def _ended(self) -> None:
        """The body has arrived whole: let another request have the connection."""
        self._stop_watching()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        age = self._now() - self._protocol.born
        if self.uploading:
            # Answered before the request was read: what is left of it must not follow, and nothing
            # else may, as it would be taken for the rest.
            if self.upload is not None:
                self.upload.cancel()
            connection.close()
        elif age > MAX_AGE:
            connection.close()
        else:
            connection.release()

    @property
    def uploading(self) -> bool:
        """Whether the request has not been written to its end, for whatever reason."""
        upload = self.upload
        if upload is None:
            return False
        return not upload.done() or upload.cancelled() or not upload.result()

    def close(self) -> None:
        """Let go of the answer; an unfinished one closes its connection at once. Idempotent."""
        self._stop_watching()
        if self._content is not EMPTY_PAYLOAD:
            self._content._eof_callbacks.clear()  # noqa: SLF001 - it never ends now, and holds us
        if self.upload is not None and not self.upload.done():
            self.upload.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
