"""What `steer doctor --online` looks at: can the upstreams be reached. Nothing is sent to them."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from steer_proxy.cli.findings import Finding, note, ok, warning
from steer_proxy.settings.fields import is_loopback

if TYPE_CHECKING:
    from steer_proxy.engine.config import Config, Upstream

#: How long an upstream is given for name resolution, connection and TLS together, in seconds.
PATIENCE: Final = 5.0


def upstreams(config: Config) -> list[Finding]:
    """Try every upstream that a route leads to, all at once."""
    return asyncio.run(_all(config))


async def _all(config: Config) -> list[Finding]:
    used = {spec.upstream for route in config.routes for spec in route.policy.targets}
    return await asyncio.gather(
        *(_reach(upstream) for name, upstream in config.upstreams.items() if name in used)
    )


async def _reach(upstream: Upstream) -> Finding:
    """Resolve, connect, shake hands, hang up."""
    proxy = _proxy(upstream)
    parts = urlsplit(proxy or upstream.base_url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            context = ssl.create_default_context() if secure else None
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (TimeoutError, OSError) as error:
        return _unreached(upstream, f"{host}:{port}", "its proxy " if proxy else "", error)
    writer.close()
    took = (time.monotonic() - began) * 1000
    shown = f"{host}:{port} answers in {took:.0f} ms{' over TLS' if secure else ''}"
    return ok(f"upstream {upstream.name}", f"its proxy {shown}" if proxy else shown)


def _unreached(upstream: Upstream, address: str, role: str, error: OSError) -> Finding:
    name, host = f"upstream {upstream.name}", address.rpartition(":")[0]
    remedy = "a firewall, a proxy (trust_env), or base_url; calls there will fail"
    match error:
        case ssl.SSLCertVerificationError():
            text = f"the certificate of {role}{host} is not accepted: {error.verify_message}"
            return warning(name, text, "check the clock, SSL_CERT_FILE, and who is in between")
        case socket.gaierror():
            return warning(name, f"{role}{host} cannot be resolved: {error.strerror}", remedy)
        case TimeoutError():
            return warning(name, f"{role}{address} did not answer in {PATIENCE:g} s", remedy)
        case ConnectionRefusedError() if not role and is_loopback(host):
            return note(name, f"nothing listens on {address}, which is fine unless it is used")
    why = os.strerror(error.errno) if error.errno else str(error)
    return warning(name, f"{role}{address} cannot be reached: {why}", remedy)


def _proxy(upstream: Upstream) -> str | None:
    """The environment's proxy for an upstream that honours it: then only the proxy is tried."""
    parts = urlsplit(upstream.base_url)
    if not upstream.trust_env or proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)
