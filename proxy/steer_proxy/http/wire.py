"""One request to one upstream over aiohttp's connector, phase by phase.

aiohttp's `ClientSession` is left out on purpose: it hides in which phase a request failed, resends
some methods by itself, follows redirects and keeps cookies, and costs about a third of a call's
processor time. The connector (pool, TLS, name resolution, proxies), the writer and the C parser
below it are aiohttp's own. What this leans on beyond aiohttp's public interface is all in this
module.

Errors leave here as `UpstreamError`, named by the phase that failed.
"""

from __future__ import annotations

import asyncio
import errno
import math
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_exceptions import (
    ClientConnectionError,
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientError,
    ClientPayloadError,
    ConnectionTimeoutError,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from steer_policies.outcome import Failure
from steer_proxy.http.body import ReplayBody
from steer_proxy.http.resolver import StaleResolver

#: Longest answer head line and field accepted from an upstream, in bytes. Providers send long
#: security policies; aiohttp's 8,190 is too small for some.
MAX_FIELD: Final = 64 * 1024

#: A connection older than this is not used again, in seconds, so that a provider's address change
#: or a load balancer's draining is followed.
MAX_AGE: Final = 300.0

#: How long an unused connection is kept, in seconds: below the 60 s after which common load
#: balancers close, since a request lost on a dying connection may have been executed.
KEEP_ALIVE: Final = 30.0

#: How much of an answer is read ahead of the caller, in bytes.
READ_AHEAD: Final = 64 * 1024

#: How long the end of an answer is waited for when all of its content is there, in seconds.
RETIRE_TIME: Final = 1.0

_NO_HEADERS: Final = CIMultiDictProxy[str](CIMultiDict())

_INTERIM: Final = range(100, 200)


_T = TypeVar("_T")


class UpstreamError(Exception):
    """An exchange with an upstream failed; `failure` names the phase, `code` the cause."""

    def __init__(self, failure: Failure, detail: str = "", code: str | None = None) -> None:
        super().__init__(detail or str(failure))
        self.failure = failure
        self.code = code


class UpstreamProtocol(ResponseHandler):
    """aiohttp's protocol, which tells the reader of a body what happened to its connection.

    aiohttp takes a connection that was reset for one that ended, where the end of the connection is
    the end of the body, and tells of a framing error in mid-body only whoever waits for a head.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.born = loop.time()

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
    which every byte of a stream does, costs nothing.
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
        while True:
            message, content = await self._protocol.read()
            if message.code not in _INTERIM or message.code == 101:
                break
        # aiohttp reads answers leniently; what is wrong with a head must not be passed on.
        values = b"".join([value for _, value in message.raw_headers])
        if b"\n" in values or b"\r" in values or b"\0" in values:
            raise UpstreamError(Failure.PROTOCOL, "a control character in a header")
        if not 100 <= message.code <= 599 or not message.reason.isprintable():
            raise UpstreamError(Failure.PROTOCOL, "a status line that is none")
        coding = message.headers.get("Transfer-Encoding")
        if coding is not None and coding.lower() != "chunked":
            raise UpstreamError(Failure.PROTOCOL, "a transfer coding that is not known")
        self._headed = True
        self._due = math.inf
        self.status = message.code
        self.reason = message.reason
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
            raise UpstreamError(Failure.TRUNCATED, _brief(error)) from error
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
        if self.upload is not None and not self.upload.done():
            self.upload.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Wire:
    """The pool of connections to all upstreams."""

    def __init__(self) -> None:
        # No limit here: each upstream has its own, with a bounded queue, in the engine.
        self._connector = TCPConnector(
            limit=0,
            keepalive_timeout=KEEP_ALIVE,
            ttl_dns_cache=60,
            resolver=StaleResolver(),
        )
        # aiohttp has no public way to name the protocol.
        loop = asyncio.get_running_loop()
        factory: Any = partial(UpstreamProtocol, loop)
        self._connector._factory = factory  # noqa: SLF001
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Close every connection and wait for what still runs."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await self._connector.close()

    def origin(self, origin: URL, proxy: URL | None) -> ClientRequest:
        """What the connector wants to know of an origin, and of the HTTP proxy to reach it by."""
        return ClientRequest("GET", origin, loop=asyncio.get_running_loop(), proxy=proxy, ssl=True)

    async def send(
        self,
        origin: ClientRequest,
        head: bytes,
        body: ReplayBody,
        *,
        connect: float,
        patience: float,
        stall: float,
        deadline: float,
    ) -> UpstreamResponse:
        """Send a request and wait for the head of its answer.

        `head` is the request's, whole; a body follows it as it is, so its length must be announced.
        `connect` bounds the phase in which nothing was sent, `stall` each wait for the upstream to
        take more of the request, and `patience` the silence after the whole of it was sent, all in
        seconds; `deadline` (loop time) bounds all of it.

        Raises:
            UpstreamError: CONNECT when provably nothing was sent; RESET, PROTOCOL,
                FIRST_BYTE_TIMEOUT or DEADLINE when the upstream may have seen the request.
        """
        loop = asyncio.get_running_loop()
        connection = await self._connect(origin, connect)
        while connection.protocol is not None and connection.protocol.should_close:
            # Kept alive, but something came that nobody asked for: it is no answer to this request.
            connection.close()
            connection = await self._connect(origin, connect)
        protocol = connection.protocol
        transport = None if protocol is None else protocol.transport
        if (
            not isinstance(protocol, UpstreamProtocol)
            or transport is None
            or transport.is_closing()
        ):
            connection.close()
            raise UpstreamError(Failure.CONNECT, "the connection was closed at once")
        protocol.set_response_params(
            skip_payload=head.startswith(b"HEAD "),
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_AHEAD,
            max_line_size=MAX_FIELD,
            max_field_size=MAX_FIELD,
        )
        response = UpstreamResponse(connection, protocol, loop)
        try:
            if body.memory is None:
                transport.write(head)
                taken = partial(response.expect_head, stall, deadline)
                taken()
                upload = response.upload = self._own(_upload(body, protocol, taken))
                upload.add_done_callback(lambda _: response.expect_head(patience, deadline))
            else:
                transport.write(head + body.memory)
                response.expect_head(patience, deadline)
            await response.start()
        except BaseException as error:
            response.close()
            if (translated := _translated(error)) is None:
                raise
            raise translated from error
        return response

    async def _connect(self, origin: ClientRequest, connect: float) -> Connection:
        timeout = ClientTimeout(total=None, connect=connect, sock_connect=connect)
        try:
            return await self._connector.connect(origin, traces=[], timeout=timeout)
        except (ClientConnectorError, ConnectionTimeoutError, TimeoutError, OSError) as error:
            raise UpstreamError(Failure.CONNECT, _brief(error), _cause(error)) from error
        except ClientError as error:
            # A proxy that refused the tunnel, say: the upstream has seen nothing.
            raise UpstreamError(Failure.CONNECT, _brief(error), _cause(error)) from error

    def _own(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def retire(self, response: UpstreamResponse) -> None:
        """Read on to the end of an answer that nobody needs any more.

        So its connection can serve again; after a short while or a few bytes it is closed instead.
        """
        if response.ended or response.uploading:
            response.close()
        else:
            _ = self._own(_retire(response))


async def _upload(body: ReplayBody, protocol: ResponseHandler, taken: Callable[[], None]) -> bool:
    """Send a spooled body while the answer is awaited: a provider may answer before its end.

    `taken` is called whenever the upstream took a piece of it. Returns whether all was written.
    """
    written = 0
    try:
        async for piece in body.pieces():
            if protocol.transport is None or protocol.transport.is_closing():
                return False  # the reader of the answer learns of it
            protocol.transport.write(piece)
            written += len(piece)
            taken()
            await protocol._drain_helper()  # noqa: SLF001 - aiohttp's writers do the same
    except (OSError, ClientError) as error:
        # The reader of the answer learns of it, unless an answer is already there.
        if protocol.exception() is None:
            protocol.set_exception(error)
        return False
    return written == body.size


async def _retire(response: UpstreamResponse) -> None:
    response.arm(asyncio.get_running_loop().time() + RETIRE_TIME, Failure.IDLE_TIMEOUT)
    size = 0
    try:
        while size < READ_AHEAD and (chunk := await response.read()):
            size += len(chunk)
    except UpstreamError:
        pass  # Nobody is waiting: closing is all that is left to do.
    finally:
        response.close()


def _translated(error: BaseException) -> UpstreamError | None:
    """The phase error for what the wait for the head raised; None for what is no upstream's."""
    match error:
        case UpstreamError():
            return UpstreamError(error.failure, str(error), error.code)
        case HttpProcessingError():
            return UpstreamError(Failure.PROTOCOL, _brief(error))
        case ClientError() | OSError():
            return UpstreamError(Failure.RESET, _brief(error))
        case _:
            return None


def _cause(error: BaseException) -> str:
    """Why connecting failed, in a word or two for people."""
    match error:
        case ClientConnectorDNSError():
            return "name not resolved"
        case ClientConnectorCertificateError() | ClientConnectorSSLError() | ssl.SSLError():
            return "TLS"
        case TimeoutError():
            return "no answer in time"
        case ConnectionRefusedError():
            return "refused"
        case ClientConnectorError():
            return _cause(error.os_error)
        case OSError(errno=number) if number is not None:
            return errno.errorcode.get(number, "unknown")
        case _:
            return type(error).__name__


def _brief(error: BaseException) -> str:
    """An error in one short line: it goes into messages for people."""
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:200]
