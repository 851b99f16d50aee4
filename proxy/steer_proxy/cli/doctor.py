"""`steer doctor`: is everything in place for Steer here, and if not, what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Annotated

import typer

from steer_proxy.cli.common import (
    FAILED,
    AdminPortOption,
    ConfigOption,
    HostOption,
    PortOption,
    source_of,
)
from steer_proxy.cli.findings import Finding, Level

_SHOWN = {Level.OK: "ok", Level.NOTE: "note", Level.WARNING: "WARN", Level.FAILURE: "FAIL"}


def command(
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    admin_port: AdminPortOption = None,
    online: Annotated[  # noqa: FBT002 - an option, given by name
        bool,
        typer.Option(
            "--online",
            help="Connect to the upstreams, too (no request is sent to them), and the database.",
        ),
    ] = False,
    as_json: Annotated[  # noqa: FBT002
        bool, typer.Option("--json", help="Print JSON.")
    ] = False,
) -> None:
    """Check this machine, the configuration and the environment, and say what to mend.

    Nothing leaves this machine without --online. Exits with 1 when something keeps Steer from its
    work; warnings do not count.
    """
    from steer_proxy.cli import doctor_ledger, doctor_machine, doctor_online, doctor_settings
    from steer_proxy.engine.config import Limits

    source = source_of(config, host, port, admin_port)
    found, loaded = doctor_settings.configuration(source)
    findings = [*doctor_machine.machine(Limits() if loaded is None else loaded.limits), *found]
    if loaded is not None:
        findings += doctor_settings.settings(loaded, os.environ)
        findings += doctor_ledger.ledger(loaded, online=online)
        if online:
            findings += doctor_online.upstreams(loaded)
    typer.echo(as_data(findings) if as_json else as_text(findings))
    if any(finding.level is Level.FAILURE for finding in findings):
        raise typer.Exit(FAILED)


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for people, each remedy below its finding, and the sum."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_SHOWN[finding.level]:<4}  {finding.name:<{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.remedy}")
    return "\n".join([*lines, "", _sum(findings)])


def _sum(findings: Sequence[Finding]) -> str:
    failures = sum(finding.level is Level.FAILURE for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    if failures:
        return f"{failures} of {len(findings)} checks failed, {warnings} warned."
    if warnings:
        return f"Steer can run here; {warnings} of {len(findings)} checks warned."
    return f"Everything is in place: {len(findings)} checks."


def as_data(findings: Sequence[Finding]) -> str:
    """The findings as JSON."""
    return json.dumps(
        {
            "ok": not any(finding.level is Level.FAILURE for finding in findings),
            "findings": [
                {
                    "name": finding.name,
                    "level": str(finding.level),
                    "text": finding.text,
                    "remedy": finding.remedy or None,
                }
                for finding in findings
            ],
        },
        indent=2,
    )
