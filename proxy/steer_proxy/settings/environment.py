"""Environment variables as configuration: `STEER_UPSTREAMS__OPENAI__BASE_URL` and the like.

A name is the key path, upper-case, its steps joined by `__`. A step finds an upstream, route, model
or other key that exists whatever its case, with `_` standing for any character a variable's name
cannot have; `azure-eu` is `AZURE_EU`. Routes are found by name. Empty variables are not set.

A variable with `__` that leads nowhere is an error, as an unknown key in the file is. One without
is taken for somebody else's unless it is nearly a key of ours: Kubernetes sets `STEER_PORT`,
`STEER_SERVICE_HOST` and more for a service named steer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Final

from steer_proxy.settings.document import parse_value
from steer_proxy.settings.errors import ConfigurationError, Key, Problem, did_you_mean
from steer_proxy.settings.tree import merge

PREFIX: Final = "STEER_"

#: Variables of the command line, which are no keys.
NOT_KEYS: Final = frozenset({"STEER_CONFIG"})

_UNNAMEABLE: Final = re.compile(r"[^a-z0-9]")


def canonical(name: str) -> str:
    """A name as an environment variable can spell it, in lower case."""
    return _UNNAMEABLE.sub("_", name.lower())


class Overlay:
    """What the environment puts over a file's values; `origins` names the variable of each key."""

    def __init__(
        self, values: Mapping[str, Any], top: Collection[str], upstreams: Collection[str]
    ) -> None:
        self.values: dict[str, Any] = dict(values)
        self.origins: dict[Key, str] = {}
        self.problems: list[Problem] = []
        self._top = tuple(top)
        self._upstreams = tuple(upstreams)

    def read(self, environ: Mapping[str, str]) -> None:
        """Apply every variable that is ours, in the order of their names."""
        for variable in sorted(environ):
            if (
                variable.upper().startswith(PREFIX)
                and variable not in NOT_KEYS
                and environ[variable]
            ):
                self._apply(variable, environ[variable])

    def _apply(self, variable: str, text: str) -> None:
        steps = variable[len(PREFIX) :].lower().split("__")
        if steps[0] not in self._top:
            nearly = get_close_matches(steps[0], self._top, n=1, cutoff=0.8)
            if len(steps) > 1 or nearly:
                hint = did_you_mean(steps[0], self._top)
                self.problems.append(Problem("", f"is no key of the configuration{hint}", variable))
            return
        if not all(steps):
            self.problems.append(Problem("", "has an empty step between its underscores", variable))
            return
        try:
            value = parse_value(text)
        except ConfigurationError:
            self.problems.append(Problem("", "opens a bracket that does not close", variable))
            return
        key: Key = (steps[0],)
        if len(steps) > 1 and steps[0] == "routes":
            index = self._route(steps[1], variable)
            if index is None:
                return
            routes = list(self.values.get("routes") or ())
            path, inner = self._resolve(routes[index], steps[2:], value)
            routes[index] = inner
            self.values["routes"] = routes
            key = ("routes", index, *path)
        else:
            path, inner = self._resolve(self.values, steps, value)
            self.values = inner
            key = path
        self.origins[key] = variable

    def _route(self, step: str, variable: str) -> int | None:
        routes = self.values.get("routes")
        names = [
            str(route.get("name", "")) if isinstance(route, Mapping) else ""
            for route in (routes if isinstance(routes, list) else ())
        ]
        found = [index for index, name in enumerate(names) if canonical(name) == step]
        if not found:
            hint = did_you_mean(step, [name for name in names if name])
            self.problems.append(Problem("", f"names no route of the file{hint}", variable))
            return None
        return found[0]

    def _resolve(
        self, under: Mapping[str, Any], steps: list[str], value: Any
    ) -> tuple[Key, dict[str, Any]]:
        """Put a value at the steps, spelled as the keys that exist: the key path, the result."""
        path: list[str] = []
        level: Any = under
        for step in steps:
            known = list(level) if isinstance(level, Mapping) else []
            if path == ["upstreams"]:
                known += self._upstreams
            name = next((name for name in known if canonical(str(name)) == step), step)
            path.append(name)
            level = level.get(name) if isinstance(level, Mapping) else None
        over: Any = value
        for name in reversed(path):
            over = {name: over}
        return tuple(path), merge(under, over if path else {})
