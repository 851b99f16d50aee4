"""Where the upstreams of one configuration revision are."""

from __future__ import annotations

from urllib.request import getproxies, proxy_bypass

from yarl import URL

from steer_proxy.engine.config import Config, Upstream
from steer_proxy.http.wire import Address, Wire


class Addresses:
    """Addresses by upstream name, prepared once per revision. Nothing else can be called."""

    def __init__(self, config: Config, wire: Wire) -> None:
        self.config = config
        self._addresses = {
            name: wire.address(upstream.base_url, _proxy(upstream))
            for name, upstream in config.upstreams.items()
        }

    def __getitem__(self, name: str) -> Address:
        return self._addresses[name]


def _proxy(upstream: Upstream) -> URL | None:
    """The environment's HTTP proxy for an upstream that honours it."""
    if not upstream.trust_env:
        return None
    url = URL(upstream.base_url, encoded=True)
    if url.host is None or proxy_bypass(url.host):
        return None
    proxy = getproxies().get(url.scheme)
    return URL(proxy) if proxy else None
