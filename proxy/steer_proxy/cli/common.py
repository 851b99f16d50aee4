"""What commands share: the options that name a configuration, and how its errors are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from steer_proxy.settings import ConfigSource

#: Exit codes: a run that failed, and a use or configuration that cannot work.
FAILED = 1
MISUSED = 2

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="STEER_CONFIG",
        metavar="FILE",
        help="The configuration file; without it, a route per well-known provider.",
        show_default=False,
    ),
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Where to listen (listen.host).", show_default=False)
]
PortOption = Annotated[
    int | None, typer.Option("--port", help="The data port (listen.port).", show_default=False)
]
AdminPortOption = Annotated[
    int | None,
    typer.Option("--admin-port", help="The admin port (admin.port).", show_default=False),
]
DatabaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="Where the ledger is (database.url): sqlite:///PATH, postgresql://..., memory:.",
        show_default=False,
    ),
]
RequireLedgerOption = Annotated[
    bool,
    typer.Option(
        "--require-ledger",
        help="Do not start, and be not ready, without the ledger (database.required).",
    ),
]


def source_of(
    config: Path | None,
    host: str | None = None,
    port: int | None = None,
    admin_port: int | None = None,
    *,
    database_url: str | None = None,
    require_ledger: bool = False,
) -> ConfigSource:
    """Where the configuration comes from: the file, this process's environment, and flags."""
    from steer_proxy.settings import ConfigSource

    listen: dict[str, Any] = {"host": host, "port": port}
    database: dict[str, Any] = {"url": database_url, "required": require_ledger or None}
    blocks = {"listen": listen, "admin": {"port": admin_port}, "database": database}
    given: Mapping[str, Any] = {
        block: {key: value for key, value in keys.items() if value is not None}
        for block, keys in blocks.items()
        if any(value is not None for value in keys.values())
    }
    return ConfigSource(path=config, overrides=given)


@contextmanager
def told() -> Iterator[None]:
    """Tell an invalid configuration on standard error, one line per problem, and exit with 2."""
    from steer_proxy.settings import ConfigurationError

    try:
        yield
    except ConfigurationError as error:
        count = len(error.problems)
        typer.echo(
            f"steer: the configuration has {count} problem{'s' if count > 1 else ''}", err=True
        )
        for line in str(error).splitlines():
            typer.echo(f"  {line}", err=True)
        raise typer.Exit(MISUSED) from None


def fail(message: str) -> typer.Exit:
    """Say why this cannot be done, and give the exit for wrong use; raise it."""
    typer.echo(f"steer: {message}", err=True)
    return typer.Exit(MISUSED)
