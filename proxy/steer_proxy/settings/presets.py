"""Presets of routes: YAML files shipped with `steer_policies`, merged under a route's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

from steer_proxy.settings.document import parse_document

NAMES: Final = ("resilient", "cheap-first", "strict-budget", "pass-through")


@cache
def preset(name: str) -> Mapping[str, Any]:
    """The keys a preset sets.

    Raises:
        KeyError: for a name that is no preset.
    """
    if name not in NAMES:
        raise KeyError(name)
    text = files("steer_policies").joinpath("presets", f"{name}.yaml").read_text("utf-8")
    return MappingProxyType(dict(parse_document(text, f"{name}.yaml").values))
