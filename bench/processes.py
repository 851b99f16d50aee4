"""The processes under test: started clean, measured from outside, stopped whatever happens.

Processor time and memory are read from Linux's /proc, so that a server is measured as it is,
without a line of ours inside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.support.ports import free_port

ROOT: Final = Path(__file__).resolve().parent.parent

#: How long a server gets to start, in seconds.
PATIENCE: Final = 30.0

#: Variables that would change what is measured: our own settings, and other people's proxies.
_FOREIGN: Final = (
    "STEER_",
    "OTEL_",
    "PYTHON",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)

_SET_PARENT_DEATH_SIGNAL: Final = 1
_LIBC: Final = ctypes.CDLL(None)


class StartError(Exception):
    """A server did not start."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `started_in` is seconds from its process's start until it was ready."""

    pid: int
    port: int
    started_in: float

    def cpu(self) -> float:
        """Processor seconds so far, all threads, user and kernel."""
        # Nanoseconds of each thread, where /proc/PID/stat counts in hundredths of a second.
        total = 0
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
        return total / 1e9

    def memory(self) -> int:
        """Resident memory now, in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def _die_with_parent() -> None:
    _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


@contextlib.contextmanager
def _process(
    arguments: Sequence[str], folder: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[str]]:
    environment = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)
    }
    # The checkout's code, installed or not; nobody's own files beside it.
    sources = [str(ROOT / name) for name in ("policies", "proxy", "sdk", "")]
    environment |= {
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(sources),
        "PYTHONHASHSEED": "0",  # the order of sets, and with it the cost of some look-ups
    }
    environment |= variables
    log = folder / "log.txt"
    with log.open("a") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, and no threads here
        )
    try:
        yield process
    except StartError as error:
        error.add_note(log.read_text()[-4000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def announced(folder: Path, *arguments: str) -> Iterator[Server]:
    """A server that prints `{"port": N}` when it listens."""
    began = time.perf_counter()
    with _process(arguments, folder) as process:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            raise StartError(f"{' '.join(arguments)} ended before it listened")
        yield Server(process.pid, json.loads(line)["port"], time.perf_counter() - began)


@contextlib.contextmanager
def steer(
    folder: Path,
    upstream: Server,
    *options: str,
    module: str = "steer_proxy",
    more: str = "",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """`steer serve`, configured with nothing but its upstream and room for many streams.

    `options` are further ones of the command, `more` is more of the configuration; `module` is what
    is run instead, with these variables.
    """
    config = folder / "steer.yaml"
    config.write_text(
        "upstreams:\n"
        "  openai:\n"
        f"    base_url: http://127.0.0.1:{upstream.port}/v1\n"
        f"    concurrency: {{limit: 4096, queue: 256}}\n{more}"
    )
    port, admin_port = free_port(), free_port()
    given = (f"--config={config}", f"--port={port}", f"--admin-port={admin_port}", *options)
    began = time.perf_counter()
    with _process(("-m", module, "serve", *given), folder, variables) as process:
        _wait_until_ready(process, f"http://127.0.0.1:{admin_port}/readyz")
        yield Server(process.pid, port, time.perf_counter() - began)


def _wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until:
        if process.poll() is not None:
            raise StartError(f"steer serve ended with {process.returncode} before it was ready")
        with contextlib.suppress(OSError, urllib.error.URLError), opener.open(url, timeout=1.0):
            return
        time.sleep(0.002)
    raise StartError(f"steer serve was not ready within {PATIENCE:g} s")
