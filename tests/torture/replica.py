"""Sidecars as processes of their own, on ports that survive them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.ports import free_port

ROOT: Final = Path(__file__).resolve().parents[2]

#: How long a process may take to be ready, or to end, in seconds.
PATIENCE: Final = 30.0

#: How often it is looked at meanwhile, in seconds.
LOOK: Final = 0.01


def _stands_still(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


class Replica:
    """One sidecar: started, killed, paused and started again, always on the same ports.

    It runs `tests.support.crashing` with the variables given, so that its lease can be short and
    its death be timed. What it says goes to `NAME.log` in the folder.
    """

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], **variables: str
    ) -> None:
        self.name = name
        self.port, self.admin_port = free_port(), free_port()
        self.log = folder / f"{name}.log"
        self.config = folder / f"{name}.yaml"
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(settings)

    def configure(self, settings: Mapping[str, Any]) -> None:
        """What holds from the next start on."""
        assert self._process is None
        ports = {"listen": {"port": self.port}, "admin": {"port": self.admin_port}}
        self.config.write_text(yaml.safe_dump({**ports, **settings}))

    def start(self, **variables: str) -> None:
        """Start it, not waiting for anything; `variables` are for this time only."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.support.crashing",
                    "serve",
                    f"--config={self.config}",
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "PYTHONPATH": os.pathsep.join(
                        str(ROOT / name) for name in ("policies", "proxy", "")
                    ),
                    **self._variables,
                    **variables,
                },
            )

    async def ready(self) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + PATIENCE
        while not await self._answers():
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            await asyncio.sleep(LOOK)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
        except OSError:
            return False
        try:
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return b" 200 " in await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @property
    def alive(self) -> bool:
        """Whether the process runs, or stands still."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; what it ended with."""
        process, deadline = self._process, time.monotonic() + PATIENCE
        assert process is not None
        while process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            await asyncio.sleep(LOOK)
        self._process = None
        return process.returncode

    async def kill(self) -> None:
        """End it without a word, whatever it was doing."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            await self.ended()

    async def stopped(self) -> None:
        """Wait until it stands still, by a signal to itself."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while not _stands_still(self._process.pid):
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            await asyncio.sleep(LOOK)

    def close(self) -> None:
        """End it at once, if it still runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def replicas(
    folder: Path, names: str, settings: Mapping[str, Any], **variables: str
) -> Iterator[list[Replica]]:
    """Sidecars of one configuration, not yet started; all are gone at the end."""
    made = [Replica(folder, name, settings, **variables) for name in names.split()]
    try:
        yield made
    finally:
        for each in made:
            each.close()


@contextlib.asynccontextmanager
async def serving(
    folder: Path, names: str, settings: Mapping[str, Any], **variables: str
) -> AsyncIterator[list[Replica]]:
    """Sidecars of one configuration that serve; all are gone at the end."""
    with replicas(folder, names, settings, **variables) as made:
        for each in made:
            each.start()
        for each in made:
            await each.ready()
        yield made
