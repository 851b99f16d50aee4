"""`steer serve`: run the sidecar."""

from __future__ import annotations

import typer

from steer_proxy.cli.common import (
    AdminPortOption,
    ConfigOption,
    DatabaseUrlOption,
    HostOption,
    PortOption,
    RequireLedgerOption,
    source_of,
    told,
)


def command(
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    admin_port: AdminPortOption = None,
    database_url: DatabaseUrlOption = None,
    require_ledger: RequireLedgerOption = False,  # noqa: FBT002 - an option, given by name
) -> None:
    """Run the sidecar until it is told to stop."""
    from steer_proxy.app import serve

    with told():
        source = source_of(
            config,
            host,
            port,
            admin_port,
            database_url=database_url,
            require_ledger=require_ledger,
        )
        raise typer.Exit(serve(source))
