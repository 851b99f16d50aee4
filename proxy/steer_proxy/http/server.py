"""aiohttp's low-level server with the bounds it lacks.

aiohttp bounds neither the wait for a request's head nor the number of connections, answers
malformed requests in HTML-less plain text without the connection's end, and adds headers of its
own. This module is the only one that leans on the internals of its `RequestHandler`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.config import Limits
from steer_proxy.http.problems import PLAIN, problem_response

#: Longest request line and header field, in bytes. SDK headers are short; prompts do not go there.
MAX_HEAD_FIELD: Final = 32 * 1024
MAX_HEADERS: Final = 256

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


class Connection(RequestHandler):
    """One caller's connection: closed when a request's head does not come in time."""

    __slots__ = ("_head_timeout", "_head_timer", "_server")

    def __init__(self, server: Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self._server = server
        self._head_timeout = server.limits.head_timeout
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._server.full:
            # Too many already: answering would cost more than the caller's immediate retry.
            if isinstance(transport, asyncio.Transport):
                transport.abort()
            return
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._stop_head_timer()
        elif self._head_timer is None and not self._request_in_progress and self._waiter:
            # The beginning of another head on a kept-alive connection.
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        self._head_timer = self._loop.call_later(self._head_timeout, self._head_overdue)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if not self._request_in_progress:
            self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed, or a bug of ours, and close the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun; it can only be cut")
        if status >= 500:
            self.log_exception("Unhandled error in a call", exc_info=exc)
            problem = Problem(500, "steer_internal_error", "Steer failed; its log says why.")
        else:
            too_large = (
                "too large" in (message or "").lower() or "too many" in (message or "").lower()
            )
            status = 431 if too_large else status
            brief = " ".join((message or "").split())[:200]
            problem = Problem(
                status, "steer_bad_request", f"The request is not valid HTTP: {brief}"
            )
        return problem_response(PLAIN, problem, CIMultiDict(), close=True)


class Server(web.Server):
    """Makes a `Connection` for each caller, up to a number."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.limits = limits
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.keep_alive,
            lingering_time=2.0,
            max_line_size=MAX_HEAD_FIELD,
            max_field_size=MAX_HEAD_FIELD,
            max_headers=MAX_HEADERS,
        )

    @property
    def full(self) -> bool:
        """Whether as many connections are open as may."""
        return len(self._connections) >= self.limits.max_connections

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    def close_idle(self) -> None:
        """Close connections on which no request is being served."""
        for connection in self.connections:
            if not connection._request_in_progress and isinstance(connection, Connection):  # noqa: SLF001
                connection.force_close()
