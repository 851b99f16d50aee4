"""From a file, the environment and flags to a `Config`, or to all that is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from steer_proxy.catalogue import PROVIDERS
from steer_proxy.engine.config import Config, Database
from steer_proxy.settings.build import Builder
from steer_proxy.settings.checks import check
from steer_proxy.settings.document import Document, read_document
from steer_proxy.settings.environment import Overlay
from steer_proxy.settings.errors import ConfigurationError, Key
from steer_proxy.settings.expand import expand
from steer_proxy.settings.models import Settings, top_keys
from steer_proxy.settings.origins import Origins
from steer_proxy.settings.storage import by_reference
from steer_proxy.settings.tree import merge
from steer_proxy.settings.validate import validate


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where a configuration comes from; `load` may be called again for a reload.

    `path` None means no file. `env` None means this process's environment. `overrides` are flags,
    as nested keys: `{"listen": {"port": 5000}}`.
    """

    path: Path | None = None
    env: Mapping[str, str] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Config:
        """The configuration as it is now.

        Raises:
            ConfigurationError: listing everything that is wrong.
        """
        return load(self.path, os.environ if self.env is None else self.env, self.overrides)

    def database(self) -> Database:
        """Where the ledger is now.

        Raises:
            ConfigurationError: listing everything that is wrong with that.
        """
        return load_database(
            self.path, os.environ if self.env is None else self.env, self.overrides
        )


def load(
    path: Path | None,
    env: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """One YAML file, the environment over it, flags over both; the catalogue under them.

    Raises:
        ConfigurationError: listing everything that is wrong.
    """
    values, overlay, origins = _read(path, env, overrides or {})
    expanded = expand(values)
    settings, found = validate(expanded)
    broken: set[str] = set()
    if settings is None:
        settings, broken = _without_broken(expanded, [key for key, _ in found])
    problems = [
        *overlay.problems,
        *(origins.placed(problem, key) for key, problem in found),
        *(origins.problem(key, message) for key, message in check(settings, broken)),
    ]
    if problems:
        raise ConfigurationError(origins.in_order(problems))
    builder = Builder(settings, env)
    config = builder.build(expanded)
    if builder.findings:
        raise ConfigurationError(origins.problem(*finding) for finding in builder.findings)
    return config


def load_database(
    path: Path | None,
    env: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
) -> Database:
    """The block `database` alone: who looks into a ledger need not have upstreams' secrets.

    Raises:
        ConfigurationError: listing everything that is wrong with it.
    """
    values, overlay, origins = _read(path, env, overrides or {})
    settings, found = validate({"database": values.get("database", {})})
    problems = [
        *(each for each in overlay.problems if (each.source or "").startswith(_DATABASE)),
        *(origins.placed(problem, key) for key, problem in found),
    ]
    if settings is None:
        raise ConfigurationError(origins.in_order(problems))
    problems += [origins.problem(key, message) for key, message in check(settings)]
    builder = Builder(settings, env)
    database = builder.database(settings.database)
    problems += [origins.problem(*finding) for finding in builder.findings]
    if problems:
        raise ConfigurationError(origins.in_order(problems))
    return database


_DATABASE: Final = "STEER_DATABASE"


def _read(
    path: Path | None, env: Mapping[str, str], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], Overlay, Origins]:
    """The values of all places, merged, with what remembers where each came from."""
    document = Document() if path is None else read_document(path)
    overlay = Overlay(document.values, top_keys(), PROVIDERS)
    overlay.read(env)
    values = merge(by_reference(overlay.values, overlay.origins), overrides)
    return values, overlay, Origins(document, overlay.origins, overrides)


def _without_broken(values: Mapping[str, Any], keys: Iterable[Key]) -> tuple[Settings, set[str]]:
    """The settings without their invalid parts, so that the rest can be checked in the same run.

    Invalid routes are replaced, not removed: the others keep their places.
    """
    rest = dict(values)
    broken: set[str] = set()
    for key in keys:
        match key[:2]:
            case ("upstreams", str(name)) if isinstance(rest["upstreams"], Mapping):
                broken.add(name)
                rest["upstreams"] = {k: v for k, v in rest["upstreams"].items() if k != name}
            case ("routes", int(index)):
                placeholder = f"invalid-{index}"
                broken.add(placeholder)
                rest["routes"] = list(rest["routes"])
                rest["routes"][index] = {
                    "name": placeholder,
                    "path": f"/{placeholder}",
                    "candidates": [placeholder],
                }
            case _:
                rest.pop(str(key[0]), None)
    settings, found = validate(rest)
    assert settings is not None, found  # noqa: S101 - every key at fault was taken out
    return settings, broken
