"""`steer serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steer_proxy.settings import ConfigSource
from tests.proxy.cli.conftest import Steer


class App(ModuleType):
    """Stands for the sidecar: remembers its source, and loads it as the real one does."""

    def __init__(self) -> None:
        super().__init__("steer_proxy.app")
        self.sources: list[ConfigSource] = []

    def serve(self, source: ConfigSource) -> int:
        self.sources.append(source)
        return source.load().listen.port % 10


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    module = App()
    monkeypatch.setitem(sys.modules, "steer_proxy.app", module)
    return module


@pytest.mark.parametrize(
    ("arguments", "overrides", "code"),
    [
        ((), {}, 0),
        (("--port", "5001"), {"listen": {"port": 5001}}, 1),
        (
            ("--host", "127.0.0.2", "--admin-port", "5002"),
            {"listen": {"host": "127.0.0.2"}, "admin": {"port": 5002}},
            0,
        ),
        (("--database-url", "memory:"), {"database": {"url": "memory:"}}, 0),
        (
            ("--database-url", "postgresql://db/steer", "--require-ledger"),
            {"database": {"url": "postgresql://db/steer", "required": True}},
            0,
        ),
    ],
)
def test_flags_become_keys(
    steer: Steer, app: App, arguments: tuple[str, ...], overrides: Any, code: int
) -> None:
    """And the exit code is the sidecar's."""
    result = steer("serve", *arguments)
    assert result.exit_code == code, result.output
    assert app.sources == [ConfigSource(path=None, overrides=overrides)]


def test_the_file_by_option_or_variable(steer: Steer, app: App, tmp_path: Path) -> None:
    """The option wins."""
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("listen: {port: 5001}")
    other.write_text("listen: {port: 5002}")
    assert steer("serve", STEER_CONFIG=str(one)).exit_code == 1
    assert steer("serve", "--config", str(other), STEER_CONFIG=str(one)).exit_code == 2
    assert [source.path for source in app.sources] == [one, other]


def test_an_invalid_configuration(steer: Steer, app: App, tmp_path: Path) -> None:
    """Exit code 2, every problem on standard error."""
    path = tmp_path / "steer.yaml"
    path.write_text("listen: {prot: 1}\nadmin: {port: x}")
    result = steer("serve", "-c", str(path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "steer: the configuration has 2 problems",
        f"  {path}:1: listen.prot: unknown key; did you mean port?",
        f"  {path}:2: admin.port: expected a whole number, got 'x'",
    ]
