"""The command line as a user types it, in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from steer_proxy.cli.app import build

Steer = Callable[..., Result]


@pytest.fixture
def steer() -> Steer:
    """Run `steer` with arguments, standard input and environment."""

    def steer(*arguments: str, text: str | None = None, **env: str) -> Result:
        return CliRunner().invoke(build(), list(arguments), input=text, env=env)

    return steer
