"""A running Steer in the test's own loop, configured in a line."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import yaml

from steer_proxy.app import Sidecar
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.config import Config
from steer_proxy.ledger.protocol import Ledger
from steer_proxy.settings import load

#: Wall time at the virtual loop's zero: a fixed, ordinary moment (2026-01-01T00:00:00Z).
EPOCH = 1_767_225_600.0


def configure(settings: Mapping[str, Any], tmp_path: Any, env: Mapping[str, str] = {}) -> Config:
    """A checked configuration from settings as they would stand in the YAML file.

    Both ports are chosen by the system and the ledger is in memory, unless the settings name them.
    """
    whole = {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "database": {"url": "memory:"},
        **settings,
    }
    path = tmp_path / "steer.yaml"
    path.write_text(yaml.safe_dump(whole))
    return load(path, env, {})


class Running:
    """A sidecar and where to reach it."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.url = f"http://127.0.0.1:{sidecar.port}"
        self.admin_url = f"http://127.0.0.1:{sidecar.admin_port}"
        self.gateway = sidecar.gateway


@contextlib.asynccontextmanager
async def running(
    config: Config, clock: Clock | None = None, ledger: Ledger | None = None
) -> AsyncIterator[Running]:
    """Start a sidecar in this loop and stop it at the end."""
    async with Sidecar(config, clock, ledger) as sidecar:
        yield Running(sidecar)
