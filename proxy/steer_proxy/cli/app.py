"""Puts the commands together.

A command is a module of this package with a function `command`, whose signature is its arguments
and whose docstring is its help; it is named as the module is. Add its name to `COMMANDS`. A module
with subcommands has a `typer.Typer` named `app` instead.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Final

import typer

#: The commands in the order of the help.
COMMANDS: Final = ("serve", "demo", "check", "plan", "db", "ledger", "env", "doctor")


def build() -> typer.Typer:
    """The application with every command whose module is there."""
    app = typer.Typer(
        name="steer",
        help="A sidecar for LLM provider calls: plans, retries, breakers, one base URL.",
        no_args_is_help=True,
        add_completion=False,
        # Plain text: rich would be loaded for a help page, and traces are for bug reports.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in COMMANDS:
        module_name = f"{__package__}.{name}"
        if find_spec(module_name) is None:
            continue
        module = import_module(module_name)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return app


def _version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        import steer_proxy

        typer.echo(f"steer {steer_proxy.__version__} (Python {sys.version.split()[0]})")
        raise typer.Exit


def _options(
    version: Annotated[  # noqa: FBT002 - acted upon by its callback
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """What stands before the command."""
