"""`/healthz` and `/readyz`: is the process alive, and should it be sent new calls."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from aiohttp.web_request import BaseRequest

from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.guard import Guard
from steer_proxy.http.lines import line
from steer_proxy.http.problems import Refusal


class HealthPages:
    """Answers the probes of an orchestrator; both are open without a token and say little else.

    `unready` answers why the proxy should not be sent calls, or None when it should.
    """

    def __init__(self, guard: Guard, unready: Callable[[], str | None], books: Bookkeeper) -> None:
        self._guard = guard
        self._unready = unready
        self._books = books

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """Serve one request of the admin port."""
        try:
            self._guard.check(request.headers)
        except Refusal as refusal:
            return _text(refusal.problem.status, refusal.problem.message)
        path = request.raw_path.partition("?")[0]
        if path not in {"/healthz", "/readyz"}:
            return _text(404, "The admin port has /healthz and /readyz.")
        if request.method not in {"GET", "HEAD"}:
            return _text(405, "This page answers GET and HEAD.", ("Allow", "GET, HEAD"))
        if path == "/healthz":
            return _text(200, "ok")
        reason = self._unready()
        lines = [reason or "ready", *self._ledger()]
        return _text(200 if reason is None else 503, "\n".join(lines))

    def _ledger(self) -> list[str]:
        """What is wrong with the ledger; why, is in the log: it may name places."""
        said = []
        if self._books.trouble is not None:
            said.append(f"ledger: unavailable, {self._books.queued} rows of the log wait")
        if self._books.dropped:
            said.append(f"ledger: {self._books.dropped} rows of the log were dropped")
        return said


def _text(status: int, text: str, *headers: tuple[str, str]) -> CallerResponse:
    body = f"{text}\n".encode()
    fields = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *headers,
    ]
    own = [line(name, value) for name, value in fields]
    return CallerResponse(status, None, own=own, body=body, length=len(body))
