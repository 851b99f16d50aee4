"""The command line: `steer serve`, `steer check` and the rest.

`main` is what the installed `steer` runs. Commands stand in modules of their own, listed in
`steer_proxy.cli.app`, and import what they need when they run, so that each starts fast.
"""

from __future__ import annotations


def main() -> None:
    """Run the command the arguments name, and exit with its code: 0, 1 (failed), 2 (misused)."""
    from steer_proxy.cli.app import build

    build()(prog_name="steer")


__all__ = ["main"]
