"""Who may speak to a port at all: loopback is no boundary against browsers or other containers.

A page in a browser can send requests to 127.0.0.1, by a rebound name (wrong `Host`), from a script
(foreign `Origin`) or from a form (`Sec-Fetch-Site: cross-site`). None of them is a caller of Steer.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from steer_proxy.engine.config import Listen
from steer_proxy.engine.secret import Secret
from steer_proxy.http.problems import refuse

_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost", "host.docker.internal"})
_SAME_SITE: Final = frozenset({"same-origin", "same-site", "none"})

#: Where the SDKs put their API key; the token is accepted there too, so that no code need change.
_KEY_HEADERS: Final = ("Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key")

#: The header by which a caller presents the listen token; it is never forwarded.
TOKEN_HEADER: Final = "X-Steer-Token"  # noqa: S105 - a header's name


class Guard:
    """Checks `Host`, `Origin`, `Sec-Fetch-Site` and the listen token of every request."""

    def __init__(self, host: str, allowed_hosts: tuple[str, ...], token: Secret | None) -> None:
        self._token = token
        self._hosts = _LOOPBACK_NAMES | {name.lower() for name in allowed_hosts} | {host.lower()}
        self._any = "*" in allowed_hosts
        self._good: set[str] = set()

    @classmethod
    def of(cls, listen: Listen) -> Guard:
        """The guard of the data port."""
        return cls(listen.host, listen.allowed_hosts, listen.token)

    def check(self, headers: Mapping[str, str]) -> bool:
        """Refuse who has no business here; True when the caller's credential is our own token.

        Raises:
            Refusal: 400, 401 or 403, saying why.
        """
        host = headers.get("Host")
        if host not in self._good:
            self._check_host(host)
        origin = headers.get("Origin")
        if origin is not None and not self._known_origin(origin):
            raise refuse(
                403,
                "steer_foreign_origin",
                f"Requests from the origin {origin[:128]!r} are refused.",
            )
        site = headers.get("Sec-Fetch-Site")
        if site is not None and site.lower() not in _SAME_SITE:
            raise refuse(403, "steer_foreign_origin", "Cross-site requests are refused.")
        return self._token is not None and self._check_token(headers, self._token.read())

    def _check_host(self, host: str | None) -> None:
        if host is None or not self._known(_name(host)):
            shown = "no Host" if host is None else f"the Host {host[:128]!r}"
            raise refuse(
                403,
                "steer_foreign_host",
                f"A request for {shown} is refused; add the name to listen.allowed_hosts "
                "if it is meant to reach Steer.",
            )
        if len(self._good) < 64:
            self._good.add(host)

    def _known(self, name: str) -> bool:
        if self._any or name in self._hosts:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        # An address cannot be rebound by a name server. 0.0.0.0 as listen host means any of ours.
        return address.is_loopback or bool(self._hosts & {"0.0.0.0", "::"})  # noqa: S104 - compared

    def _known_origin(self, origin: str) -> bool:
        try:
            return self._known((urlsplit(origin).hostname or "").lower())
        except ValueError:
            return False

    def _check_token(self, headers: Mapping[str, str], token: str) -> bool:
        """Whether the token came as an SDK's API key; refuses when it did not come at all."""
        if hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), token.encode()):
            return False
        for name in _KEY_HEADERS:
            presented = headers.get(name, "").removeprefix("Bearer ")
            if hmac.compare_digest(presented.encode(), token.encode()):
                return True
        raise refuse(
            401,
            "steer_token_required",
            f"This port wants its token, in {TOKEN_HEADER} or as the SDK's API key.",
        )


def _name(host: str) -> str:
    """The name or address in a `Host` value, without port and brackets."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text
