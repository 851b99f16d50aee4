"""Which headers pass through a proxy, and which it must keep back or add.

Pure functions over `(name, value)` pairs: order, spelling and repetition of what passes is kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final
from urllib.parse import unquote_plus

PSEUDONYM: Final = "steer"
"""How Steer names itself in `Via`, unless an instance has a name of its own."""

# RFC 9110, section 7.6.1, with the older ones that still occur. `Host` and the framing are written
# anew for the next hop, and so is the handshake of a WebSocket.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "content-length",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "sec-websocket-accept",
    }
)

# Expect is answered by Steer itself (RFC 9110, section 10.1.1), before it reads a body.
_REQUEST_DROPPED: Final = _HOP_BY_HOP | {"host", "expect"}

CREDENTIAL_HEADERS: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
        "x-goog-user-project",
        "x-goog-iam-authorization-token",
        "x-amz-security-token",
        "ocp-apim-subscription-key",
        "openai-organization",
        "openai-project",
        "anthropic-workspace-id",
        "anthropic-user-profile-id",
        "cookie",
        "cookie2",
    }
)
"""Every header by which a caller presents, or chooses, an account of its own."""

# Gateways invent names of these forms (`x-portkey-api-key`, `x-litellm-api-key`, `x-auth-token`).
_CREDENTIAL_SUFFIXES: Final = ("api-key", "auth-token", "access-token")

_CREDENTIAL_PARAMETERS: Final = frozenset(
    {
        "key",
        "api_key",
        "api-key",
        "apikey",
        "access_token",
        "oauth_token",
        "bearer_token",
        "subscription-key",
        "$httpheaders",  # Google lets a query carry headers
    }
)

# What a browser cannot say in a header, OpenAI's realtime API takes as subprotocols:
# https://platform.openai.com/docs/guides/realtime-websocket.
_CREDENTIAL_SUBPROTOCOLS: Final = (
    "openai-insecure-api-key.",
    "openai-organization.",
    "openai-project.",
)

_CODINGS: Final = frozenset({"gzip", "deflate", "identity"})
_REFUSED: Final = re.compile(r"q=0(?:\.0{0,3})?")
_MAX_CODINGS: Final = 16

_VIA_HOST: Final = re.compile(r"[^\s,]+[ \t]+([^\s,(]+)")


def is_credential(name: str) -> bool:
    """Whether a header, by its lower-case name, carries a caller's credential."""
    return name in CREDENTIAL_HEADERS or name.endswith(_CREDENTIAL_SUFFIXES)


def request_headers(
    pairs: Sequence[tuple[str, str]],
    *,
    strip_credentials: bool,
    forward_idempotency_key: bool,
    added: Sequence[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """The headers for the next hop.

    Kept back are hop-by-hop headers and those that `Connection` lists (RFC 9110, section 7.6.1),
    `Host` and framing, Steer's own (`X-Steer-*`, and `Idempotency-Key` unless it is forwarded), and
    with `strip_credentials` every form of the caller's credential. Each of `added` replaces the
    caller's header of that name; the exception is `Via`, which is added to.
    """
    dropped = {name.lower() for name, _ in added}
    dropped.discard("via")
    dropped |= _listed(pairs)
    if not forward_idempotency_key:
        dropped.add("idempotency-key")
    passed = [
        pair
        for pair in pairs
        if (name := pair[0].lower()) not in _REQUEST_DROPPED
        and name not in dropped
        and not name.startswith("x-steer-")
        and not (strip_credentials and is_credential(name))
    ]
    passed += added
    return passed


def response_headers(
    pairs: Sequence[tuple[str, str]],
    *,
    strip_cookies: bool = False,
    kept: Collection[str] = (),
) -> list[tuple[str, str]]:
    """The headers of an answer for the caller.

    Kept back are hop-by-hop headers, framing, and `X-Steer-*` of a Steer further on. With
    `strip_cookies`, for answers to Steer's own credential, its cookies are, too. `kept` are
    lower-case names that pass all the same: the length of a body that passes unchanged, say.
    """
    dropped = _listed(pairs)
    if strip_cookies:
        dropped |= {"set-cookie", "set-cookie2"}
    return [
        pair
        for pair in pairs
        if (name := pair[0].lower()) in kept
        or (name not in _HOP_BY_HOP and name not in dropped and not name.startswith("x-steer-"))
    ]


def _listed(pairs: Iterable[tuple[str, str]]) -> set[str]:
    """The lower-case names that `Connection` lists."""
    return {
        token.strip().lower()
        for name, value in pairs
        if len(name) == 10 and name.lower() == "connection"
        for token in value.split(",")
    }


def via(version: str = "1.1", pseudonym: str = PSEUDONYM) -> tuple[str, str]:
    """The `Via` line to add (RFC 9110, section 7.6.3); `version` is the received message's."""
    return ("Via", f"{version} {pseudonym}")


def is_loop(pairs: Iterable[tuple[str, str]], pseudonym: str = PSEUDONYM) -> bool:
    """Whether a request has passed a proxy of that name before."""
    return any(
        pseudonym in value and pseudonym in _VIA_HOST.findall(value)
        for name, value in pairs
        if len(name) == 3 and name.lower() == "via"
    )


def accept_encoding(asked: str | None, *, identity: bool) -> str:
    """The `Accept-Encoding` to send for an LLM call.

    `identity` where Steer must look into the answer (streams, keyed calls). Else what the caller
    asked for, as far as Steer can decode it, weights included.
    """
    if identity or asked is None:
        return "identity"
    kept: list[str] = []
    for item in asked.split(",", _MAX_CODINGS)[:_MAX_CODINGS]:
        coding, _, weight = item.strip().partition(";")
        coding = coding.strip().lower()
        if coding == "*" and not _REFUSED.fullmatch(weight.strip()):
            return "gzip, deflate, identity"
        if coding in _CODINGS:
            kept.append(f"{coding};{weight.strip()}" if weight else coding)
    return ", ".join(kept) or "identity"


def strip_query_credentials(query: str) -> str:
    """The query without parameters that carry a credential, all else as it was."""
    if not query:
        return query
    return "&".join(
        pair
        for pair in query.split("&")
        if unquote_plus(pair.partition("=")[0]).lower() not in _CREDENTIAL_PARAMETERS
    )


def strip_subprotocol_credentials(protocols: Iterable[str]) -> list[str]:
    """WebSocket subprotocols without those that carry a credential."""
    return [name for name in protocols if not name.lower().startswith(_CREDENTIAL_SUBPROTOCOLS)]
