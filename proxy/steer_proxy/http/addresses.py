"""Where the upstreams of one configuration revision are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.request import getproxies, proxy_bypass

from aiohttp import ClientRequest
from yarl import URL

from steer_proxy.engine.config import Config, Upstream
from steer_proxy.http.lines import line
from steer_proxy.http.wire import Wire

#: Fields of a caller's request that Steer says in its own words, or that are meant for Steer alone.
_OURS: Final = frozenset({"x-request-id", "traceparent", "tracestate"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where an upstream is, and what every request to it has in its head.

    `base_path` is the path its base URL begins with; `proxied_origin` is set when a plain-HTTP
    proxy wants absolute-form targets (RFC 9112 §3.2.2). `lines` are header lines from the
    configuration. `replaced` are lower-case names that Steer says in its own words or keeps to
    itself, `replaced_for_llm` those of a request that LLM providers take.
    """

    origin: ClientRequest
    host_line: bytes
    base_path: str
    proxied_origin: str
    lines: tuple[bytes, ...]
    replaced: frozenset[str]
    replaced_for_llm: frozenset[str]


class Addresses:
    """Addresses by upstream name, prepared once per revision. Nothing else can be called."""

    def __init__(self, config: Config, wire: Wire) -> None:
        self.config = config
        self._addresses = {
            name: _address(upstream, wire, config.credential_headers)
            for name, upstream in config.upstreams.items()
        }

    def __getitem__(self, name: str) -> Address:
        return self._addresses[name]


def _address(upstream: Upstream, wire: Wire, credentials: frozenset[str]) -> Address:
    url = URL(upstream.base_url, encoded=True)
    origin, proxy = url.origin(), _proxy(upstream, url)
    names = {*_OURS, *(name.lower() for name in upstream.headers)}
    if not upstream.passthrough:
        names |= credentials
    if not upstream.policy.forwards_idempotency_key:
        names.add("idempotency-key")
    replaced = frozenset(names)
    return Address(
        origin=wire.origin(origin, proxy),
        host_line=line("Host", url.host_port_subcomponent or ""),
        base_path=url.raw_path.rstrip("/"),
        proxied_origin=str(origin) if proxy is not None and url.scheme == "http" else "",
        lines=tuple(line(name, value) for name, value in upstream.headers.items()),
        replaced=replaced,
        replaced_for_llm=replaced | {"accept-encoding"},
    )


def _proxy(upstream: Upstream, url: URL) -> URL | None:
    """The environment's HTTP proxy for an upstream that honours it."""
    if not upstream.trust_env or url.host is None or proxy_bypass(url.host):
        return None
    proxy = getproxies().get(url.scheme)
    return URL(proxy) if proxy else None
