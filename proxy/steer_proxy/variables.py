"""The environment variables by which SDKs on this machine find the sidecar's routes."""

from __future__ import annotations

from dataclasses import dataclass

from steer_proxy.catalogue import PROVIDERS, Provider
from steer_proxy.engine.config import Config, Route


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable with its value, and who reads it."""

    name: str
    value: str
    used_by: str
    route: str


def base_url(host: str, port: int) -> str:
    """The data port's address as a caller on this machine writes it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def settings(config: Config, base: str, wanted: frozenset[str] = frozenset()) -> list[Setting]:
    """Each SDK variable once, pointing at the first route that serves its provider; only those of
    the providers `wanted`, of all when none is named."""
    found: dict[str, Setting] = {}
    for provider in PROVIDERS.values():
        if wanted and provider.name not in wanted:
            continue
        for variable in provider.variables:
            for route in config.routes:
                if serves(route, provider) and route.path.endswith(variable.without):
                    path = route.path.removesuffix(variable.without).rstrip("/")
                    found.setdefault(
                        variable.name,
                        Setting(variable.name, base + path, variable.used_by, route.name),
                    )
                    break
    return list(found.values())


def serves(route: Route, provider: Provider) -> bool:
    """Whether calls of a provider's SDK belong to a route: it leads to that provider, or it speaks
    the provider's own dialect to an upstream that is in no catalogue."""
    if route.home == provider.name:
        return True
    return route.home not in PROVIDERS and provider.name == str(route.policy.dialect)
