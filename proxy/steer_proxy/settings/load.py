"""From a file, the environment and flags to a `Config`, or to all that is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer_proxy.catalogue import PROVIDERS
from steer_proxy.engine.config import Config
from steer_proxy.settings.build import Builder
from steer_proxy.settings.checks import check
from steer_proxy.settings.document import Document, read_document
from steer_proxy.settings.environment import Overlay
from steer_proxy.settings.errors import ConfigurationError, Key, Problem, key_text
from steer_proxy.settings.expand import expand
from steer_proxy.settings.models import Settings, top_keys
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


def load(
    path: Path | None,
    env: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """One YAML file, the environment over it, flags over both; the catalogue under them.

    Raises:
        ConfigurationError: listing everything that is wrong.
    """
    document = Document() if path is None else read_document(path)
    overlay = Overlay(document.values, top_keys(), PROVIDERS)
    overlay.read(env)
    values = merge(overlay.values, overrides or {})
    origins = _Origins(document, overlay.origins, overrides or {})
    expanded = expand(values)
    settings, found = validate(expanded)
    problems = list(overlay.problems)
    problems += [origins.placed(problem, key) for key, problem in found]
    if settings is None:
        settings, broken = _without_broken(expanded, [key for key, _ in found])
    else:
        broken = set()
    if settings is not None:
        problems += origins.all(check(settings, broken))
    if problems or settings is None:
        raise ConfigurationError(origins.sorted(problems))
    builder = Builder(settings, env)
    config = builder.build(expanded)
    if builder.findings:
        raise ConfigurationError(origins.all(builder.findings))
    return config


def _without_broken(
    values: Mapping[str, Any], keys: Iterable[Key]
) -> tuple[Settings | None, set[str]]:
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
    settings, _ = validate(rest)
    return settings, broken


@dataclass(frozen=True, slots=True)
class _Origins:
    """Knows where each value came from: the file's line, a variable, or a flag."""

    document: Document
    variables: Mapping[Key, str]
    overrides: Mapping[str, Any]

    def placed(self, problem: Problem, key: Key | None = None) -> Problem:
        if problem.source is not None:
            return problem
        return Problem(problem.key, problem.message, self._source(key or _key_of(problem.key)))

    def all(self, findings: Iterable[tuple[Key, str]]) -> list[Problem]:
        return [
            Problem(key_text(key), message, self._source(_key_of(key_text(key))))
            for key, message in findings
        ]

    def sorted(self, problems: Iterable[Problem]) -> list[Problem]:
        """The environment's and the command line's first, then the file's from top to bottom."""

        def line(problem: Problem) -> int:
            name, _, number = (problem.source or "").rpartition(":")
            return int(number) if name == self.document.name and number.isdigit() else 0

        return sorted(problems, key=line)

    def _source(self, key: Key) -> str | None:
        if self._flagged(key):
            return "command line"
        for length in range(len(key), 0, -1):
            if (variable := self.variables.get(key[:length])) is not None:
                return variable
        if key[:2] not in self.document.lines:
            # An entry the environment alone made: any of its variables leads there.
            for made, variable in self.variables.items():
                if len(key) > 1 and made[:2] == key[:2]:
                    return variable
        return self.document.source(key)

    def _flagged(self, key: Key) -> bool:
        here: Any = self.overrides
        for step in key:
            if not isinstance(here, Mapping) or step not in here:
                return False
            here = here[step]
        return bool(key)


def _key_of(text: str) -> Key:
    """A key path from its text; names contain neither dots nor brackets, or lose some precision."""
    key: list[str | int] = []
    for step in text.replace("[", ".[").split("."):
        if step.startswith("[") and step[1:-1].isdigit():
            key.append(int(step[1:-1]))
        elif step:
            key.append(step)
    return tuple(key)
