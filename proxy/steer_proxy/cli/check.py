"""`steer check`: is this configuration valid, and what does it amount to?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer_proxy.cli.common import source_of, told

if TYPE_CHECKING:
    from steer_proxy.engine.config import Config, Database, Route, Upstream


def command(
    config: Annotated[
        Path | None,
        typer.Argument(
            envvar="STEER_CONFIG",
            metavar="[CONFIG]",
            help="The configuration file; without it, what holds by default.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[  # noqa: FBT002 - an option, given by name
        bool,
        typer.Option("--schema", help="Print the JSON Schema of the configuration instead."),
    ] = False,
) -> None:
    """Check a configuration, with the environment over it, and say what it amounts to."""
    if schema:
        from steer_proxy.settings.schema import schema_text

        typer.echo(schema_text(), nl=False)
        return
    with told():
        loaded = source_of(config).load()
    name = "The configuration without a file" if config is None else str(config)
    typer.echo(f"{name} is valid (revision {loaded.revision}).")
    for line in summary(loaded):
        typer.echo(line)


def summary(config: Config) -> list[str]:
    """What a configuration amounts to, in lines."""
    lines = [
        "",
        f"data plane   http://{config.listen.host}:{config.listen.port}"
        + (" (token required)" if config.listen.token else ""),
        f"admin plane  http://{config.admin.host}:{config.admin.port}",
        f"ledger       {_ledger(config.database)}",
        "",
    ]
    lines += _table([("route", "path", "dialect", "goes to", "rules"), *map(_row, config.routes)])
    own = [each for each in config.upstreams.values() if not each.passthrough]
    if own:
        lines += ["", *_table([("upstream", "address", "credential"), *map(_upstream, own)])]
    lines += ["", *_notes(config)] if _notes(config) else []
    return lines


def _ledger(database: Database) -> str:
    from steer_proxy.engine.secret import Secret
    from steer_proxy.ledger.address import parse_address

    url = database.url
    shown = f"by {url.reference}" if isinstance(url, Secret) else str(parse_address(url))
    if database.encryption:
        shown += f", encrypted with {database.encryption[0].id}"
    return shown + (", required" if database.required else "")


def _row(route: Route) -> tuple[str, ...]:
    policy = route.policy
    targets = list(dict.fromkeys(spec.upstream for spec in policy.candidates))
    return (
        route.name,
        route.path,
        str(policy.dialect),
        " > ".join(targets),
        str(len(policy.rules)) if policy.rules else "-",
    )


def _upstream(upstream: Upstream) -> tuple[str, ...]:
    credential = upstream.credential
    told_as = "none is sent"
    if credential is not None:
        told_as = f"{credential.secret.reference} as {credential.header}"
    return upstream.name, upstream.base_url, told_as


def _notes(config: Config) -> list[str]:
    """What is valid and yet worth a second look."""
    from urllib.parse import urlsplit

    from steer_proxy.settings.fields import is_loopback

    notes = [
        f"note: the credential of {each.name} travels unencrypted to {each.base_url}"
        for each in config.upstreams.values()
        if each.credential is not None
        and each.base_url.startswith("http://")
        and not is_loopback(urlsplit(each.base_url).hostname or "")
    ]
    for route in config.routes:
        always = None
        for rule, _ in route.policy.choices:
            if always is not None:
                notes.append(
                    f"note: route {route.name} never asks rule {rule.name}: {always} always matches"
                )
            elif rule.always:
                always = rule.name
    return notes


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
