"""Who may speak to a port at all: loopback is no boundary against browsers or other containers.

A page in a browser can send requests to 127.0.0.1, by a rebound name (wrong `Host`), from a script
(foreign `Origin`) or from a form (`Sec-Fetch-Site: cross-site`). None of them is a caller of Steer.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote_plus, urlsplit

from steer_policies.headers import (
    credential_fields,
    query_credentials,
    subprotocol_credentials,
)
from steer_proxy.engine.config import Admin, Listen
from steer_proxy.engine.secret import Secret, SecretUnavailable
from steer_proxy.http.problems import refuse

LOGGER: Final = logging.getLogger("steer.http")

_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost", "host.docker.internal"})
_SAME_SITE: Final = frozenset({"same-origin", "same-site", "none"})

#: `Host` is a name or an address, and maybe a port (RFC 9110 §7.2).
_HOST: Final = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{0,5})?"
)

#: Values of `Host` that were found good and need no second look, at most.
_REMEMBERED: Final = 64

#: The header by which a caller presents the listen token; it is never forwarded.
TOKEN_HEADER: Final = "X-Steer-Token"  # noqa: S105 - a header's name


class Guard:
    """Checks `Host`, `Origin`, `Sec-Fetch-Site` and the token of every request to one port.

    `block` is the part of the configuration that could allow what is refused, for messages.
    """

    def __init__(
        self, host: str, allowed_hosts: tuple[str, ...], token: Secret | None, block: str
    ) -> None:
        self._token = token
        self._block = block
        self._hosts = _LOOPBACK_NAMES | {name.lower() for name in allowed_hosts} | {host.lower()}
        self._any_name = "*" in allowed_hosts
        # Bound to all our addresses, whichever they are. An address cannot be rebound by a name
        # server, so any of them is as good as the others.
        self._any_address = host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        self._good: set[str] = set()

    @classmethod
    def of_data(cls, listen: Listen) -> Guard:
        """The guard of the data port."""
        return cls(listen.host, listen.allowed_hosts, listen.token, "listen")

    @classmethod
    def of_admin(cls, admin: Admin) -> Guard:
        """The guard of the admin port's open pages."""
        return cls(admin.host, admin.allowed_hosts, None, "admin")

    def check(self, headers: Mapping[str, str], target: str = "") -> bool:
        """Refuse who has no business here; True when the caller's credential is our own token.

        `target` is the request's, whose query may hold an API key.

        Raises:
            Refusal: 401 or 403, saying why; 503 when the token itself cannot be read.
        """
        host = headers.get("Host")
        if host is not None and host not in self._good:
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
        return self._token is not None and self._check_token(self._token, headers, target)

    def _check_host(self, host: str) -> None:
        """A request without `Host` is HTTP/1.0's, which no browser speaks: it is not looked at."""
        match = _HOST.fullmatch(host)
        if match is None or not self._known((match["ipv6"] or match["name"]).lower()):
            raise refuse(
                403,
                "steer_foreign_host",
                f"A request for the Host {host[:128]!r} is refused; add the name to "
                f"{self._block}.allowed_hosts if it is meant to reach Steer.",
            )
        if len(self._good) < _REMEMBERED:
            self._good.add(host)

    def _known(self, name: str) -> bool:
        if self._any_name or name in self._hosts or _is_loopback(name):
            return True
        return self._any_address and _is_address(name)

    def _known_origin(self, origin: str) -> bool:
        """Whether a page is one of ours: loopback's, or that of a name or address we were given.

        Being reachable under any name or address makes no page of any name or address ours.
        """
        try:
            name = (urlsplit(origin).hostname or "").lower()
        except ValueError:
            return False
        return name in self._hosts or _is_loopback(name)

    def _check_token(self, secret: Secret, headers: Mapping[str, str], target: str) -> bool:
        """Whether the token came as an SDK's API key; refuses when it did not come at all.

        Compared in constant time. All places are looked at, by the definition that takes
        credentials off a request: a token that is presented twice must not be forwarded from the
        second.
        """
        try:
            token = secret.read().encode()
        except SecretUnavailable as error:
            LOGGER.error("no call can be accepted: %s", error)  # noqa: TRY400 - names the reference
            raise refuse(
                503, "steer_token_unavailable", "This port's token cannot be read now.", close=True
            ) from None
        as_key = [_same(presented, token) for presented in _keys(headers, target)]
        if any(as_key):
            return True
        if _same(headers.get(TOKEN_HEADER, ""), token):
            return False
        raise refuse(
            401,
            "steer_token_required",
            f"This port wants its token, in {TOKEN_HEADER} or as the SDK's API key.",
        )


def _keys(headers: Mapping[str, str], target: str) -> Iterator[str]:
    """What a caller presents as its API key, in every place where SDKs put one.

    The token is accepted in any of them, so that no code need change.
    """
    fields = [
        (name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
        for name, value in headers.items()
    ]
    for _, field in credential_fields(fields):
        value = field.decode("utf-8", "surrogateescape")
        scheme, _, rest = value.partition(" ")
        yield rest.strip() if scheme.lower() == "bearer" else value
    for pair in query_credentials(target.partition("?")[2]):
        yield unquote_plus(pair.partition("=")[2]).strip()
    for name, value in headers.items():
        if name.lower() == "sec-websocket-protocol":
            for protocol in subprotocol_credentials(value):
                yield protocol.partition(".")[2]


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _same(presented: str, token: bytes) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "surrogateescape"), token)
