"""`steer demo`: see what Steer does when providers misbehave. No key, no network."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from steer_proxy.cli.common import FAILED, fail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steer_proxy.demo.stage import Scenario


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCENARIO", help="Play only these; see --list.", show_default=False),
    ] = None,
    plain: Annotated[  # noqa: FBT002 - an option, given by name
        bool,
        typer.Option("--plain", help="Plain lines, as where the output is no terminal."),
    ] = False,
    listing: Annotated[  # noqa: FBT002
        bool, typer.Option("--list", help="Name the scenarios and do nothing.")
    ] = False,
) -> None:
    """Watch Steer at work: a provider that misbehaves, the real SDKs, no key, no network.

    Exits with 1 when a scenario does not go as promised.
    """
    from steer_proxy.demo.scenarios import SCENARIOS

    if listing:
        for scenario in SCENARIOS:
            typer.echo(f"{scenario.name:<18}{scenario.title}")
        return
    chosen = _chosen(names or [], SCENARIOS)
    from steer_proxy.demo.callers import NotInstalled, require

    try:
        require()
    except NotInstalled as error:
        typer.echo(f"steer: {error}", err=True)
        raise typer.Exit(FAILED) from None
    if not _show(chosen, plain=plain):
        raise typer.Exit(FAILED)


def _chosen(names: Sequence[str], known: Sequence[Scenario]) -> Sequence[Scenario]:
    from steer_proxy.settings.errors import did_you_mean

    known_names = [scenario.name for scenario in known]
    for name in names:
        if name not in known_names:
            raise fail(f"unknown scenario {name}{did_you_mean(name, known_names)}")
    return [scenario for scenario in known if not names or scenario.name in names]


def _show(scenarios: Sequence[Scenario], *, plain: bool) -> bool:
    from rich.console import Console

    from steer_proxy.demo.plain import PlainScreen
    from steer_proxy.demo.run import Screen, play
    from steer_proxy.demo.screen import RichScreen

    console = Console(highlight=False)
    with contextlib.ExitStack() as stack:
        screen: Screen = PlainScreen(typer.echo)
        if not plain and console.is_terminal and not console.is_dumb_terminal:
            screen = stack.enter_context(RichScreen(console))
        return asyncio.run(play(screen, scenarios))
