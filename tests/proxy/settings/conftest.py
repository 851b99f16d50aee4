"""A configuration from text, as if it stood in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.engine.config import Config
from steer_proxy.settings import ConfigurationError, load

Load = Callable[..., Config]
Refusals = Callable[..., list[str]]


@pytest.fixture
def configure(tmp_path: Path) -> Load:
    """Load a YAML text, with an environment and flags over it."""

    def configure(text: str = "", env: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        path = tmp_path / "steer.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, env or {}, overrides)

    return configure


@pytest.fixture
def refusals(configure: Load, tmp_path: Path) -> Refusals:
    """The problems of a YAML text that must be refused, with the file's name cut short."""

    def refusals(
        text: str = "", env: Mapping[str, str] | None = None, **overrides: Any
    ) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            configure(text, env, **overrides)
        return [str(each).replace(f"{tmp_path}/", "") for each in caught.value.problems]

    return refusals
