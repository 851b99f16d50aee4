"""Name resolution that survives a resolver's bad minute."""

from __future__ import annotations

import logging
import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

LOGGER: Final = logging.getLogger("steer.upstream")

#: Names remembered; upstreams come from the configuration, so this is never reached in practice.
MAX_NAMES: Final = 1024


class StaleResolver(AbstractResolver):
    """Resolves by the system and answers with the last good addresses when that fails.

    Serving stale addresses on error is RFC 8767's advice: an upstream rarely moves in the minute
    in which the resolver is down.
    """

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = ThreadedResolver() if inner is None else inner
        self._last: dict[tuple[str, int, int], list[ResolveResult]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a host.

        Raises:
            OSError: when the name was never resolved before and cannot be now.
        """
        key = (host, port, family)
        try:
            addresses = await self._inner.resolve(host, port, family)
        except OSError as error:
            if (stale := self._last.get(key)) is None:
                raise
            LOGGER.warning("resolving %s failed (%s); using its last addresses", host, error)
            return stale
        if len(self._last) < MAX_NAMES or key in self._last:
            self._last[key] = addresses
        return addresses

    async def close(self) -> None:
        """Release the inner resolver."""
        await self._inner.close()
