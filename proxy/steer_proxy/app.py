"""The running sidecar: both ports, reload, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from aiohttp import http_parser
from aiohttp.helpers import NO_EXTENSIONS

from steer_proxy.admin.health import HealthPages
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.config import Config
from steer_proxy.engine.registry import Registry
from steer_proxy.http.gateway import Gateway
from steer_proxy.http.guard import Guard
from steer_proxy.http.server import Server
from steer_proxy.http.wire import Wire
from steer_proxy.settings import ConfigurationError, reload_differences

LOGGER: Final = logging.getLogger("steer")

#: Connections the kernel may hold for us while the loop is busy.
BACKLOG: Final = 1024

#: How long calls that are cut get to tell their callers so, in seconds.
CUT_TIME: Final = 1.0


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
    """The data port and the admin port over one engine.

    `async with` starts it and, at the end, closes everything at once; `drain` ends it gracefully.
    """

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.config = config
        self._clock = clock
        self._draining = False
        self._stack = contextlib.AsyncExitStack()
        self.gateway: Gateway
        self.port = 0
        self.admin_port = 0

    async def __aenter__(self) -> Sidecar:
        """Listen on both ports.

        Raises:
            StartError: when a port is taken or an address is not ours.
        """
        async with contextlib.AsyncExitStack() as stack:
            wire = Wire()
            stack.push_async_callback(wire.close)
            clock = self._clock or Clock()
            registry = Registry(clock)
            self.gateway = Gateway(self.config, registry=registry, wire=wire, clock=clock)
            self._data = Server(self.gateway.handle, self.config.limits)
            pages = HealthPages(
                Guard(self.config.admin.host, self.config.admin.allowed_hosts, None),
                self._unready,
            )
            self._admin = Server(pages.handle, self.config.limits)
            self.admin_port = await self._listen(
                stack, self._admin, self.config.admin.host, self.config.admin.port
            )
            self.port = await self._listen(
                stack, self._data, self.config.listen.host, self.config.listen.port
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _listen(
        self, stack: contextlib.AsyncExitStack, server: Server, host: str, port: int
    ) -> int:
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(server, host, port, backlog=BACKLOG)
        except OSError as error:
            raise StartError(_why_not(host, port, error)) from error
        stack.push_async_callback(server.shutdown, 0.0)
        stack.callback(listener.close)
        return int(listener.sockets[0].getsockname()[1])

    def _unready(self) -> str | None:
        return "draining" if self._draining else None

    def reconfigure(self, config: Config) -> None:
        """Let new calls begin with another configuration; those under way keep theirs."""
        self.config = config
        self.gateway.reconfigure(config)

    async def drain(self, timeout: float) -> bool:
        """Finish what runs, at most `timeout` seconds, then cut the rest; True when all finished.

        New calls are still served meanwhile, and every answer closes its connection, so that
        callers move elsewhere without losing one.
        """
        self._draining = self.gateway.draining = True
        self._data.close_idle()
        finished = await self.gateway.quiet(timeout)
        if not finished:
            self.gateway.cut()
            await self.gateway.quiet(CUT_TIME)
        return finished


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what uses it or choose another (--port)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine"
    if error.errno == errno.EACCES:
        return f"listening on port {port} of {host} is not permitted"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"


def serve(source: ConfigSource) -> int:
    """Run the sidecar until SIGTERM or SIGINT; the exit code."""
    if NO_EXTENSIONS or http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        # Its pure-Python parser is both slow and less strict than the C one.
        print("steer: aiohttp's C extension is not loaded; reinstall aiohttp", file=sys.stderr)  # noqa: T201
        return 1
    config = source.load()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(source, config))
    except StartError as error:
        print(f"steer: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(source: ConfigSource, config: Config) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry, reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
    _on_signals(loop, stop)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with Sidecar(config) as sidecar, asyncio.TaskGroup() as group:
        _announce(config, sidecar)
        background = [group.create_task(_keep_current(source, sidecar, reload))]
        if source.path is not None:
            background.append(group.create_task(_watch(source.path, reload)))
        await stop.wait()
        # A second signal ends the patience.
        _on_signals(loop, hurry)
        drain = group.create_task(sidecar.drain(sidecar.config.drain_timeout))
        impatience = group.create_task(hurry.wait())
        await asyncio.wait({drain, impatience}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*background, drain, impatience):
            task.cancel()
    LOGGER.info("stopped")
    return 0


def _on_signals(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)


def _announce(config: Config, sidecar: Sidecar) -> None:
    """Say where we are and what to do next, on one screen."""
    host = config.listen.host
    LOGGER.info("serving %d routes on http://%s:%d", len(config.routes), host, sidecar.port)
    LOGGER.info("health on http://%s:%d/readyz", config.admin.host, sidecar.admin_port)
    LOGGER.info("for the OpenAI SDK: export OPENAI_BASE_URL=http://%s:%d/openai/v1 "
                "(`steer env` prints them all)", host, sidecar.port)


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
        old = sidecar.config
        if config.revision == old.revision:
            continue
        for key in reload_differences(old, config):
            LOGGER.warning("the change of %s takes effect at the next start", key)
        sidecar.reconfigure(config)
        LOGGER.info("configuration %s is in effect", config.revision)


async def _watch(path: Path, reload: asyncio.Event) -> None:
    """Notice changes of a file by watching its folder: editors and Kubernetes replace files."""
    from watchfiles import awatch  # noqa: PLC0415 - only where there is a file to watch

    async for _ in awatch(path.parent, recursive=False, step=200, debounce=400):
        reload.set()
