"""What a reload cannot change while the process runs."""

from __future__ import annotations

from dataclasses import fields
from typing import Final

from steer_proxy.engine.config import Config

#: Blocks whose keys are read once, when the process starts.
AT_START: Final = ("listen", "admin", "limits", "database", "ledger")


def reload_differences(old: Config, new: Config) -> tuple[str, ...]:
    """The key paths that differ and take effect only after a restart, in the file's order."""
    return tuple(
        f"{block}.{field.name}"
        for block in AT_START
        for field in fields(getattr(old, block))
        if getattr(getattr(old, block), field.name) != getattr(getattr(new, block), field.name)
    )
