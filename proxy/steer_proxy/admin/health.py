"""`/healthz` and `/readyz`: is the process alive, and should it be sent new calls."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from aiohttp.web_request import BaseRequest
from steer_proxy.http.guard import Guard
from steer_proxy.http.problems import Refusal


class HealthPages:
    """Answers the probes of an orchestrator; both are open without a token and say nothing else.

    `ready` answers why not, or None when the proxy may be sent calls.
    """

    def __init__(self, guard: Guard, ready: Callable[[], str | None]) -> None:
        self._guard = guard
        self._ready = ready

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """Serve one request of the admin port."""
        try:
            self._guard.check(request.headers)
        except Refusal as refusal:
            return _text(refusal.problem.status, refusal.problem.message)
        if request.method not in {"GET", "HEAD"}:
            return _text(405, "The admin port answers GET and HEAD.")
        match request.path:
            case "/healthz":
                return _text(200, "ok")
            case "/readyz":
                reason = self._ready()
                return _text(200, "ready") if reason is None else _text(503, reason)
            case _:
                return _text(404, "The admin port has /healthz and /readyz.")


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers={"Cache-Control": "no-store"})
