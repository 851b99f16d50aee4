"""The commands and how they are put together."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

import steer_proxy
from steer_proxy.cli import app as cli_app
from tests.proxy.cli.conftest import Steer


def test_the_version(steer: Steer) -> None:
    """For bug reports: ours and Python's."""
    result = steer("--version")
    assert result.exit_code == 0
    assert result.output.startswith(f"steer {steer_proxy.__version__} (Python 3.")


def test_the_help_lists_the_commands(steer: Steer) -> None:
    """Each with a sentence."""
    result = steer("--help")
    assert result.exit_code == 0
    for name in ("serve", "check", "plan", "env"):
        assert f"  {name} " in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("chek",), "Did you mean 'check'?"),
        (("check", "--nothing"), "No such option: --nothing"),
        (("plan",), "Missing option '--route'"),
        (("serve", "--port", "x"), "Invalid value for '--port'"),
        (("env", "--format", "xml"), "Invalid value for '--format'"),
    ],
)
def test_wrong_use_exits_with_2(steer: Steer, arguments: tuple[str, ...], expected: str) -> None:
    """And says what was wrong."""
    result = steer(*arguments)
    assert result.exit_code == 2
    assert expected in result.output


def test_a_command_of_each_kind(monkeypatch: pytest.MonkeyPatch, steer: Steer) -> None:
    """A module with a function, one with an application of its own, and one that is not there."""
    nested = typer.Typer()

    @nested.command()
    def one() -> None:
        typer.echo("nested one")

    @nested.command()
    def two() -> None:
        typer.echo("nested two")

    class Module:
        app = nested

    real: Callable[..., object] = importlib.import_module
    monkeypatch.setattr(cli_app, "COMMANDS", ("check", "plan", "missing"))
    monkeypatch.setattr(
        cli_app, "import_module", lambda name: Module if name.endswith("plan") else real(name)
    )
    assert steer("plan", "two").output == "nested two\n"
    assert steer("check").exit_code == 0
    assert steer("missing").exit_code == 2


def test_as_a_process() -> None:
    """`python -m steer_proxy` is `steer`; help loads nothing heavy."""
    script = (
        "import sys, runpy\n"
        "sys.argv = ['steer', '--help']\n"
        "try:\n"
        "    runpy.run_module('steer_proxy', run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        "heavy = {'aiohttp', 'pydantic', 'rich', 'yaml', 'genai_prices'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: steer [OPTIONS] COMMAND")
