"""Fills in, before validation, what a file leaves out: the catalogue's routes and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steer_proxy.catalogue import DEFAULT_ROUTE, PROVIDERS
from steer_proxy.settings.presets import NAMES, preset
from steer_proxy.settings.tree import merge


def catalogue_routes() -> dict[str, dict[str, Any]]:
    """The catalogue's routes by name, as a file would write them."""
    routes = {
        provider.name: {
            "name": provider.name,
            "path": provider.path,
            "candidates": [provider.name],
        }
        for provider in PROVIDERS.values()
    }
    name, path, home = DEFAULT_ROUTE
    routes[name] = {"name": name, "path": path, "candidates": [home]}
    return routes


def expand(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the catalogue's routes and the presets under them.

    Only mappings of the right shape are touched; anything else is left for validation to refuse.
    Keys that begin with `x-` at the top are dropped: a place for YAML anchors.
    """
    result = {key: value for key, value in values.items() if not str(key).startswith("x-")}
    routes = result.get("routes")
    if isinstance(routes, list):
        result["routes"] = [
            _route(route, catalogue=result.get("catalogue", True) is not False)
            if isinstance(route, Mapping)
            else route
            for route in routes
        ]
    return result


def _route(route: Mapping[str, Any], *, catalogue: bool) -> dict[str, Any]:
    under: dict[str, Any] = {}
    known = catalogue_routes() if catalogue else {}
    if isinstance(name := route.get("name"), str) and name in known:
        under = known[name]
    chosen = route.get("preset")
    if isinstance(chosen, str) and chosen in NAMES:
        under = merge(under, preset(chosen))
    result = merge(under, route)
    if isinstance(rules := result.get("rules"), list):
        result["rules"] = [_rule(rule, result) for rule in rules]
    return result


def _rule(rule: Any, route: Mapping[str, Any]) -> Any:
    """A rule that sets one of a route's time-outs keeps the others."""
    if not isinstance(rule, Mapping):
        return rule
    own, outer = rule.get("timeouts"), route.get("timeouts")
    if isinstance(own, Mapping) and isinstance(outer, Mapping):
        return {**rule, "timeouts": merge(outer, own)}
    return rule
