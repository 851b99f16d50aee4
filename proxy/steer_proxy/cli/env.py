"""`steer env`: the variables that point SDKs at this sidecar."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from steer_proxy.cli.common import ConfigOption, fail, source_of, told

if TYPE_CHECKING:
    from steer_proxy.engine.config import Config
    from steer_proxy.variables import Setting


class Format(StrEnum):
    """How variables are written."""

    SH = "sh"
    DOTENV = "dotenv"
    JSON = "json"
    K8S = "k8s"


def command(
    config: ConfigOption = None,
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", "-p", help="Only this provider's; repeatable."),
    ] = None,
    output: Annotated[
        Format, typer.Option("--format", "-f", help="sh, dotenv, json, or k8s (a container's env).")
    ] = Format.SH,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="Where callers reach the data port; by default where it listens.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the variables that point provider SDKs at this sidecar.

    For a shell: eval "$(steer env)".
    """
    from steer_proxy.variables import base_url, settings

    with told():
        loaded = source_of(config).load()
    wanted = _providers(provider or [])
    base = (url or base_url(loaded.listen.host, loaded.listen.port)).rstrip("/")
    typer.echo(write(settings(loaded, base, wanted), others(loaded, base, wanted), output))


def others(config: Config, base: str, wanted: frozenset[str]) -> list[tuple[str, str]]:
    """Routes that no variable leads to, with their base URLs."""
    from steer_proxy.variables import settings

    led_to = {setting.route for setting in settings(config, base)}
    return [
        (route.name, base + route.path.rstrip("/"))
        for route in config.routes
        if route.name not in led_to and (not wanted or route.home in wanted)
    ]


def write(found: list[Setting], rest: list[tuple[str, str]], output: Format) -> str:
    """The variables in one of the formats."""
    if output is Format.JSON:
        return json.dumps({setting.name: setting.value for setting in found}, indent=2)
    if output is Format.K8S:
        return "\n".join(
            line
            for setting in found
            for line in (f"- name: {setting.name}", f"  value: {json.dumps(setting.value)}")
        )
    lines = []
    for setting in found:
        if output is Format.SH:
            lines += [
                f"# {setting.used_by}",
                f"export {setting.name}={shlex.quote(setting.value)}",
            ]
        else:
            lines.append(f"{setting.name}={setting.value}")
    if output is Format.SH and rest:
        lines.append("# Without a variable; give the SDK its base URL in code:")
        lines += [f"#   {name}: {address}" for name, address in rest]
    return "\n".join(lines)


def _providers(names: list[str]) -> frozenset[str]:
    from steer_proxy.catalogue import PROVIDERS
    from steer_proxy.settings.errors import did_you_mean

    for name in names:
        if name not in PROVIDERS:
            raise fail(f"unknown provider {name}{did_you_mean(name, tuple(PROVIDERS))}")
    return frozenset(names)
