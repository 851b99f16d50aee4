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
import logging
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_exceptions import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientError,
    ConnectionTimeoutError,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from steer_policies.outcome import Failure
from steer_proxy.engine.attempt import Trace
from steer_proxy.engine.trouble import Seldom
from steer_proxy.http.body import ReplayBody
from steer_proxy.http.errors import bare, brief
from steer_proxy.http.resolver import StaleResolver
from steer_proxy.http.response import UpstreamError, UpstreamProtocol, UpstreamResponse

LOGGER: Final = logging.getLogger("steer.upstream")

#: Longest answer head line and field accepted from an upstream, in bytes, and how many of them:
#: as many as of a caller. Providers send long security policies; aiohttp's 8,190 is too small for
#: some.
MAX_FIELD: Final = 64 * 1024
MAX_FIELDS: Final = 256

#: How long an unused connection is kept, in seconds: below the 60 s after which common load
#: balancers close, since a request lost on a dying connection may have been executed.
KEEP_ALIVE: Final = 30.0

#: How much of an answer is read ahead of the caller, in bytes.
READ_AHEAD: Final = 64 * 1024

#: How long the end of an answer is waited for when all of its content is there, in seconds.
RETIRE_TIME: Final = 1.0

#: What this process, or its machine, has run out of when no connection can be opened, and what to
#: do. No upstream is to blame, and no breaker must learn from it.
SHORTAGES: Final = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower limits.max_connections",
    errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
    errno.ENOBUFS: "give the system more memory for sockets",
    errno.ENOMEM: "give the system more memory",
}

_T = TypeVar("_T")


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
        self._short_told = Seldom(loop.time)

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
        trace: Trace,
    ) -> UpstreamResponse:
        """Send a request and wait for the head of its answer.

        `head` is the request's, whole; a body follows it as it is, so its length must be announced.
        `connect` bounds the phase in which nothing was sent, `stall` each wait for the upstream to
        take more of the request, and `patience` the silence after the whole of it was sent, all in
        seconds; `deadline` (loop time) bounds all of it. `trace` learns how far it came, and when.

        Raises:
            UpstreamError: CONNECT when provably nothing was sent, QUEUE when that was for want of
                means of our own; RESET, PROTOCOL,
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
        trace.connected = loop.time()
        trace.reused, protocol.used = protocol.used, True
        protocol.set_response_params(
            skip_payload=head.startswith(b"HEAD "),
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_AHEAD,
            max_line_size=MAX_FIELD,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
        )
        response = UpstreamResponse(connection, protocol, loop)
        try:
            if body.memory is None:
                transport.write(head)
                trace.sent = len(head)
                taken = partial(response.expect_head, stall, deadline)
                taken()
                upload = response.upload = self._own(_upload(body, protocol, taken, trace))
                upload.add_done_callback(lambda _: response.expect_head(patience, deadline))
            else:
                request = head + body.memory
                transport.write(request)
                trace.sent = len(request)
                response.expect_head(patience, deadline)
            await response.start()
            trace.headed = loop.time()
        except (UpstreamError, HttpProcessingError, ClientError, OSError) as error:
            response.close()
            raise _translated(error) from bare(error)
        except BaseException:
            response.close()
            raise
        return response

    async def _connect(self, origin: ClientRequest, connect: float) -> Connection:
        timeout = ClientTimeout(total=None, connect=connect, sock_connect=connect)
        try:
            return await self._connector.connect(origin, traces=[], timeout=timeout)
        except (ClientConnectorError, ConnectionTimeoutError, TimeoutError, OSError) as error:
            if (remedy := SHORTAGES.get(_errno(error) or 0)) is not None:
                if self._short_told.due():
                    LOGGER.warning("no connection can be opened: %s; %s", brief(error), remedy)
                raise UpstreamError(Failure.QUEUE, brief(error), _cause(error)) from bare(error)
            raise UpstreamError(Failure.CONNECT, brief(error), _cause(error)) from bare(error)
        except ClientError as error:
            # A proxy that refused the tunnel, say: the upstream has seen nothing.
            raise UpstreamError(Failure.CONNECT, brief(error), _cause(error)) from bare(error)

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


async def _upload(
    body: ReplayBody, protocol: ResponseHandler, taken: Callable[[], None], trace: Trace
) -> bool:
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
            trace.sent += len(piece)
            taken()
            await protocol._drain_helper()  # noqa: SLF001 - aiohttp's writers do the same
    except (OSError, ClientError) as error:
        # The reader of the answer learns of it, unless an answer is already there.
        if protocol.exception() is None:
            protocol.set_exception(error)
        return False
    finally:
        del taken  # the task keeps this frame, if it is cancelled, and the answer keeps the task
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


def _translated(
    error: UpstreamError | HttpProcessingError | ClientError | OSError,
) -> UpstreamError:
    """The phase error for what the wait for the head raised."""
    match error:
        case UpstreamError():
            return error.again()
        case HttpProcessingError():
            return UpstreamError(Failure.PROTOCOL, brief(error))
        case ClientError() | OSError():
            return UpstreamError(Failure.RESET, brief(error))


def _errno(error: OSError) -> int | None:
    """What the system said, whatever it is wrapped in."""
    return error.os_error.errno if isinstance(error, ClientConnectorError) else error.errno


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
