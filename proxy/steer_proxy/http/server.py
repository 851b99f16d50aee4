"""aiohttp's low-level server, made strict: which connections and which messages are served at all.

The parser below accepts more than a proxy may pass on: other protocols' methods and versions,
transfer codings nobody will decode. `web.Server` gives one place through which every message goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.web_request import BaseRequest

from steer_policies.dialects.base import Dialect
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.config import Limits
from steer_proxy.http.connection import MAX_FIELD, MAX_HEADERS, Connection, Speaks
from steer_proxy.http.problems import PLAIN, problem_response

LOGGER: Final = logging.getLogger("steer.http")

#: How long a caller whose body is not wanted may go on sending it after the answer, in seconds.
LINGER: Final = 2.0

#: How long calls that are dropped have to let go of what they hold, in seconds.
LETTING_GO: Final = 1.0

#: How far a body may run ahead of its reader, in bytes, twice.
READ_AHEAD: Final = 64 * 1024

#: What may be forwarded: the registered methods but CONNECT (this is no forward proxy) and TRACE,
#: whose answer would show the caller the credential Steer adds (RFC 9110 §9.3.8). The parser knows
#: those of RTSP and Icecast, too.
METHODS: Final = frozenset(
    """
    GET HEAD POST PUT DELETE OPTIONS PATCH QUERY
    ACL BIND CHECKOUT COPY LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE PROPFIND PROPPATCH
    REBIND REPORT SEARCH UNBIND UNLINK UNLOCK
    """.split()
)

_VERSIONS: Final = (HttpVersion11, HttpVersion10)

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


def _plain(_method: str, _target: str) -> Dialect:
    return PLAIN


class Server(web.Server):
    """Makes a `Connection` for each caller, up to a number, and admits messages."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        speaks: Speaks = _plain,
        most: int | None = None,
        *,
        gives_way: bool = False,
    ) -> None:
        """`speaks` tells the shape of refusals; `most` connections are open at once, or as many as
        the limits say. Where it `gives_way`, one that is not served makes room for a new one."""
        self.limits: Final = limits
        self._most = limits.max_connections if most is None else most
        self._gives_way = gives_way
        self._handler = handler
        self._speaks = speaks
        super().__init__(
            self._admit,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.keep_alive,
            lingering_time=LINGER,
            max_line_size=MAX_FIELD,
            max_field_size=MAX_FIELD,
            max_headers=MAX_HEADERS,
            read_bufsize=READ_AHEAD,
            logger=LOGGER,
        )

    def __call__(self) -> Connection:
        """A new connection's protocol."""
        return Connection(
            self, self.limits, self.full, self._speaks, loop=self._loop, **self._kwargs
        )

    def full(self) -> bool:
        """Whether as many connections are open as may, and none makes room."""
        if len(self._connections) < self._most:
            return False
        return not (self._gives_way and any(each.give_way() for each in self._open()))

    @property
    def busy(self) -> int:
        """How many connections have a request or an answer under way."""
        return sum(connection.busy for connection in self._open())

    def _open(self) -> Iterator[Connection]:
        return (each for each in self.connections if isinstance(each, Connection))

    def _admit(self, request: BaseRequest) -> Awaitable[web.StreamResponse]:
        """Hand a message to the handler if it is one a proxy can pass on."""
        if (fault := fault_of(request)) is not None:
            return self._refused(request, fault)
        if "Upgrade" in request.headers and request.headers["Upgrade"].lower() != "websocket":
            # The parser loses what follows such a request.
            protocol = request.protocol
            if isinstance(protocol, Connection):
                protocol.reusable = False
        return self._handler(request)

    async def _refused(self, request: BaseRequest, fault: str) -> web.StreamResponse:
        LOGGER.debug("a request was refused: %s", fault)
        problem = Problem(400, "steer_bad_request", f"The request is refused: {fault}.")
        speaks = self._speaks(request.method, request.raw_path)
        return problem_response(speaks, problem, close=True)

    async def close(self) -> None:
        """Drop every connection and what is being done for it."""
        tasks = [task for connection in self._open() if (task := connection.abort()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=LETTING_GO)
        self._connections.clear()


def fault_of(request: BaseRequest) -> str | None:
    """What is wrong with a message that the parser let pass; None when nothing is.

    A coding that is not undone here would be passed on without its name, and in HTTP/1.0 there are
    none (RFC 9112 §6.1: such framing is faulty).
    """
    if request.version not in _VERSIONS:
        return f"HTTP/{request.version.major}.{request.version.minor} is not spoken here"
    if request.method not in METHODS:
        return f"the method {request.method} is not taken"
    coding = request.headers.get("Transfer-Encoding")
    if coding is not None:
        if request.version < HttpVersion11:
            return "HTTP/1.0 knows no Transfer-Encoding"
        if coding.lower() != "chunked":
            return "the only Transfer-Encoding taken is chunked"
    return None
