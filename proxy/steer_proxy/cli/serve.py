"""`steer serve`: run the sidecar."""

from __future__ import annotations

import typer

from steer_proxy.cli.common import (
    AdminPortOption,
    ConfigOption,
    HostOption,
    PortOption,
    source_of,
    told,
)


def command(
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    admin_port: AdminPortOption = None,
) -> None:
    """Run the sidecar until it is told to stop."""
    from steer_proxy.app import serve

    with told():
        raise typer.Exit(serve(source_of(config, host, port, admin_port)))
