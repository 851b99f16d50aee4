"""`steer env`: the variables that point SDKs at this sidecar."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from steer_proxy.cli.common import ConfigOption, fail, source_of, told

if TYPE_CHECKING:
    from steer_proxy.catalogue import Provider
    from steer_proxy.engine.config import Config, Route


class Format(StrEnum):
    """How variables are written."""

    SH = "sh"
    DOTENV = "dotenv"
    JSON = "json"
    K8S = "k8s"


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable with its value, and who reads it."""

    name: str
    value: str
    used_by: str
    route: str


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
    with told():
        loaded = source_of(config).load()
    wanted = _providers(provider or [])
    base = (url or base_url(loaded)).rstrip("/")
    typer.echo(write(settings(loaded, base, wanted), others(loaded, base, wanted), output))


def base_url(config: Config) -> str:
    """The data port's address as a caller on this machine writes it."""
    host = config.listen.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return (
        f"http://[{host}]:{config.listen.port}"
        if ":" in host
        else (f"http://{host}:{config.listen.port}")
    )


def settings(config: Config, base: str, wanted: frozenset[str]) -> list[Setting]:
    """Each SDK variable once, pointing at the first route that serves its provider."""
    from steer_proxy.catalogue import PROVIDERS

    found: dict[str, Setting] = {}
    for provider in PROVIDERS.values():
        if wanted and provider.name not in wanted:
            continue
        for variable in provider.variables:
            for route in config.routes:
                if serves(route, provider) and route.path.endswith(variable.without):
                    path = route.path.removesuffix(variable.without).rstrip("/")
                    found.setdefault(
                        variable.name,
                        Setting(variable.name, base + path, variable.used_by, route.name),
                    )
                    break
    return list(found.values())


def others(config: Config, base: str, wanted: frozenset[str]) -> list[tuple[str, str]]:
    """Routes that no variable leads to, with their base URLs."""
    led_to = {setting.route for setting in settings(config, base, frozenset())}
    return [
        (route.name, base + route.path.rstrip("/"))
        for route in config.routes
        if route.name not in led_to and (not wanted or route.home in wanted)
    ]


def serves(route: Route, provider: Provider) -> bool:
    """Whether calls of a provider's SDK belong to a route: it leads to that provider, or it speaks
    the provider's own dialect to an upstream that is in no catalogue."""
    from steer_proxy.catalogue import PROVIDERS

    if route.home == provider.name:
        return True
    return route.home not in PROVIDERS and provider.name == str(route.policy.dialect)


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
