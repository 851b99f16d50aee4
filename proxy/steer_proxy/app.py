"""The running sidecar: both ports, reload, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, Self

from aiohttp import http_parser
from aiohttp.helpers import NO_EXTENSIONS

from steer_proxy import open_files
from steer_proxy.admin.health import HealthPages
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.config import Config, Limits, SecretUnavailable
from steer_proxy.engine.costing import Costing
from steer_proxy.engine.events import HealthEvent, log_event
from steer_proxy.engine.registry import Registry
from steer_proxy.http.gateway import Gateway
from steer_proxy.http.guard import Guard
from steer_proxy.http.server import Server
from steer_proxy.http.wire import Wire
from steer_proxy.ledger.connect import open_ledger
from steer_proxy.ledger.protocol import Ledger, LedgerUnusable
from steer_proxy.ledger.redaction import find as find_redaction
from steer_proxy.settings import ConfigurationError, reload_differences
from steer_proxy.variables import base_url, settings
from steer_proxy.watch import Stamp, stamp, watch

LOGGER: Final = logging.getLogger("steer")

#: Connections the kernel may hold for us while the loop is busy.
BACKLOG: Final = 1024

#: A drain is over when nothing was under way for this long, in seconds: a call on a connection that
#: was opened or used again in the last moment is still served.
LULL: Final = 0.1

#: How often that is looked at, in seconds.
LOOK: Final = 0.05

#: How long a drain waits for a ledger that does not take the records of calls that have their
#: answers, in seconds. The last words get as long after it.
RECORD_TIME: Final = 5.0

#: How long calls that are cut get to tell their callers so, in seconds.
CUT_TIME: Final = 1.0

#: What all last writes to the ledger together may take, in seconds, and what those of the log have
#: of it at least.
LAST_WRITES: Final = 5.0
LOG_TIME: Final = 1.5

#: How long a request to the admin port may take to come, and an idle connection stays, in seconds.
ADMIN_PATIENCE: Final = 5.0


class StartError(Exception):
    """Why the sidecar cannot start, in one line."""


class ConfigSource(Protocol):
    """Where the configuration comes from, to be read again on reload."""

    @property
    def path(self) -> Path | None:
        """The file, when there is one."""

    def load(self) -> Config:
        """Read and check it."""


class Sidecar:
    """The data port and the admin port over one engine and one ledger.

    `async with` starts it and, at the end, closes everything at once; `drain` ends it gracefully.
    `ledger` takes the place of the configured one.
    """

    def __init__(
        self, config: Config, clock: Clock | None = None, ledger: Ledger | None = None
    ) -> None:
        self.config = config
        self._clock = clock
        self._ledger = ledger
        self._unready: str | None = "starting"
        self._stack = contextlib.AsyncExitStack()
        self.books: Bookkeeper
        self.gateway: Gateway
        self.place = ""
        """Where the ledger is, for people."""
        self.port = 0
        self.admin_port = 0

    async def __aenter__(self) -> Self:
        """Listen on both ports, with an open ledger.

        Raises:
            StartError: when a port is taken, an address is not ours, or the ledger cannot be used.
        """
        async with contextlib.AsyncExitStack() as stack:
            wire = Wire()
            stack.push_async_callback(wire.close)
            clock = self._clock or Clock()
            costing = Costing(self.config)
            self.books = self._bookkeeper(clock, costing)
            self.gateway = Gateway(
                self.config,
                registry=Registry(clock, self._tell),
                wire=wire,
                clock=clock,
                books=self.books,
                costing=costing,
            )
            listen, admin, limits = self.config.listen, self.config.admin, self.config.limits
            pages = HealthPages(Guard.of_admin(admin), self._why_unready, self.books)
            self._pages = Server(pages.handle, _briefly(limits), gives_way=True)
            room = open_files.room(limits.max_connections)
            self._calls = Server(self.gateway.handle, limits, self.gateway.speaks, room)
            # First, since a migration may take its time: the process is alive meanwhile.
            listener = await _listen(stack, self._pages, admin.host, admin.port, "--admin-port")
            self.admin_port = _port(listener)
            await self._open_books()
            stack.push_async_callback(self._close_books)
            self._listener = await _listen(stack, self._calls, listen.host, listen.port, "--port")
            self.port = _port(self._listener)
            self._stack = stack.pop_all()
        self._unready = None
        return self

    def _bookkeeper(self, clock: Clock, costing: Costing) -> Bookkeeper:
        database, terms = self.config.database, self.config.ledger
        try:
            self.place = str(database.address())
            url = database.url if isinstance(database.url, str) else database.url.read()
            ledger = self._ledger or open_ledger(url, clock.wall)
            sealer = database.sealer()
            redact = None if terms.redact is None else find_redaction(terms.redact)
        except (SecretUnavailable, ValueError, LedgerUnusable) as error:
            raise StartError(f"the ledger: {error}") from error
        return Bookkeeper(
            ledger,
            terms,
            clock,
            instance=f"{socket.gethostname()}:{os.getpid()}",
            sealer=sealer,
            references={key.id: key.secret.reference for key in database.encryption},
            price=costing.priced,
            forget=costing.forget,
            redact=redact,
        )

    async def _open_books(self) -> None:
        """Open the ledger; without one, calls are served all the same unless it is required."""
        try:
            await self.books.start()
        except LedgerUnusable as error:
            raise StartError(f"the ledger cannot be used: {error}") from error
        if self.config.database.required and (trouble := self.books.trouble) is not None:
            await self.books.stop()
            raise StartError(f"the ledger is required and cannot be reached: {trouble}")

    async def _close_books(self) -> None:
        """End what runs without a caller, and write what waits, in a time that both share: the
        platform's patience is the same whether the ledger fails the ones or the other."""
        now = asyncio.get_running_loop().time
        until = now() + LAST_WRITES
        try:
            await self.gateway.close()
        finally:
            await self.books.stop(max(LOG_TIME, until - now()))

    def _tell(self, event: HealthEvent) -> None:
        log_event(event)
        self.books.event(event)

    def _why_unready(self) -> str | None:
        """Why no calls should be sent here, or None."""
        if self._unready is None and self.config.database.required and self.books.trouble:
            return "ledger unavailable"
        return self._unready

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def active(self) -> int:
        """How many calls are under way, or arriving, or not yet wholly answered."""
        return max(self.gateway.active, self._calls.busy)

    def reconfigure(self, config: Config) -> None:
        """Let new calls begin with another configuration; those under way keep theirs.

        What is read once, when the process starts, stays as it is.
        """
        old = self.config
        self.config = replace(
            config,
            listen=old.listen,
            admin=old.admin,
            limits=old.limits,
            database=old.database,
            ledger=old.ledger,
        )
        self.gateway.reconfigure(self.config)

    async def drain(self, timeout: float, hurry: asyncio.Event | None = None) -> bool:
        """Finish what runs, at most `timeout` seconds, then cut the rest; True when all finished.

        Calls that have their answers are finished, though their records may be unwritten: for those
        it waits `RECORD_TIME` at most.

        New calls are still served meanwhile, and every answer closes its connection, so that
        callers move elsewhere without losing one. `hurry` ends the patience early.
        """
        self._unready = "draining"
        self.gateway.draining = True
        finished = await self._quiet(timeout, hurry)
        self._listener.close()
        if not finished:
            self.gateway.cut()
            await self._quiet(CUT_TIME, None)
        return finished

    async def _quiet(self, timeout: float, hurry: asyncio.Event | None) -> bool:
        """Wait until nothing was under way for a moment; whether it came to that in time."""
        now = asyncio.get_running_loop().time
        deadline = now() + timeout
        busy_at = now()
        while True:
            if self.active:
                busy_at = now()
            elif now() - busy_at >= (RECORD_TIME if self.gateway.unwritten else LULL):
                return True
            if now() >= deadline or (hurry is not None and hurry.is_set()):
                return not self.active
            await asyncio.sleep(min(LOOK, max(0.0, deadline - now())))


async def _listen(
    stack: contextlib.AsyncExitStack, server: Server, host: str, port: int, option: str
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        listener = await loop.create_server(server, host, port, backlog=BACKLOG)
    except OSError as error:
        raise StartError(_why_not(host, port, option, error)) from error
    stack.push_async_callback(server.close)
    stack.callback(listener.close)
    return listener


def _port(listener: asyncio.Server) -> int:
    return int(listener.sockets[0].getsockname()[1])


def _why_not(host: str, port: int, option: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what uses it or choose another ({option})"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"listening on port {port} of {host} is not permitted"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"


def serve(source: ConfigSource) -> int:
    """Run the sidecar until SIGTERM or SIGINT; the exit code.

    Raises:
        ConfigurationError: when there is nothing valid to begin with.
    """
    if NO_EXTENSIONS or http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        # Its pure-Python parser is both slow and less strict than the C one.
        print("steer: aiohttp's C extension is not loaded; reinstall aiohttp", file=sys.stderr)  # noqa: T201
        return 1
    _log_to_stderr()
    known = None if source.path is None else stamp(source.path)
    config = source.load()
    open_files.raise_limit(config.limits.max_connections)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(source, config, known))
    except StartError as error:
        print(f"steer: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _briefly(limits: Limits) -> Limits:
    """The limits of the admin port: nobody who lingers there keeps the probes out."""
    patience = min(limits.head_timeout, ADMIN_PATIENCE)
    return replace(
        limits,
        max_connections=open_files.ADMIN_CONNECTIONS,
        head_timeout=patience,
        body_timeout=patience,
        keep_alive=patience,
    )


def _spare_the_collector() -> None:
    """Do not look for garbage among what start-up made: it all stays.

    A proxy makes many short-lived objects and hardly a cycle. With Python's own thresholds the
    collector would walk through every imported module again and again, which took a tenth of a
    call's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _log_to_stderr() -> None:
    """One line for each thing worth telling, unless somebody has set up logging already."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(source: ConfigSource, config: Config, known: Stamp | None) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry, reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
    _on_signals(loop, stop)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with Sidecar(config) as sidecar:
        _spare_the_collector()
        _announce(config, sidecar)
        background = [asyncio.create_task(_keep_current(source, sidecar, reload))]
        if source.path is not None:
            background.append(asyncio.create_task(watch(source.path, known, reload.set)))
        try:
            await stop.wait()
            _on_signals(loop, hurry)  # a second signal ends the patience
            await _drain(sidecar, hurry)
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
    LOGGER.info("stopped")
    return 0


def _on_signals(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)


async def _drain(sidecar: Sidecar, hurry: asyncio.Event) -> None:
    timeout = sidecar.config.drain_timeout
    if sidecar.active:
        LOGGER.info("draining: %d calls are under way, at most %g s", sidecar.active, timeout)
    if not await sidecar.drain(timeout, hurry):
        LOGGER.warning("calls that were not finished have been cut")


def _announce(config: Config, sidecar: Sidecar) -> None:
    """Say where we are and what to do next, on one screen."""
    host = config.listen.host
    LOGGER.info("serving %d routes on http://%s:%d", len(config.routes), host, sidecar.port)
    LOGGER.info("ledger in %s", sidecar.place)
    LOGGER.info("health on http://%s:%d/readyz", config.admin.host, sidecar.admin_port)
    variables = settings(config, base_url(host, sidecar.port))
    if variables:
        first = variables[0]
        more = " (`steer env` prints them all)" if len(variables) > 1 else ""
        LOGGER.info("for %s: export %s=%s%s", first.used_by, first.name, first.value, more)


async def _keep_current(source: ConfigSource, sidecar: Sidecar, reload: asyncio.Event) -> None:
    """Take a changed configuration, and refuse an invalid one without losing the good one."""
    while True:
        await reload.wait()
        reload.clear()
        try:
            config = await asyncio.to_thread(source.load)
        except ConfigurationError as error:
            LOGGER.error("the changed configuration is refused, the old one stays: %s", error)  # noqa: TRY400 - the message says it all
            continue
        except Exception:
            # Whatever it is, it must not end the process that serves calls.
            LOGGER.exception("the changed configuration cannot be read, the old one stays")
            continue
        old = sidecar.config
        if config.revision == old.revision:
            continue
        for key in reload_differences(old, config):
            LOGGER.warning("the change of %s takes effect at the next start", key)
        sidecar.reconfigure(config)
        LOGGER.info("configuration %s is in effect", config.revision)
