"""Which headers pass through a proxy, and which it must keep back or add.

Pure functions over fields as they stood on the wire, pairs of name and value in bytes: order,
spelling and repetition of what passes is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_plus

Field = tuple[bytes, bytes]
"""One header field: name and value, as they stood on the wire."""

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

# Gateways and tools invent names of these forms (`x-portkey-api-key`, `cf-aig-authorization`,
# `helicone-auth`, `x-functions-key`). Not every key or token: some name a page or a partition.
_CREDENTIAL_SUFFIXES: Final = (
    "-auth",
    "-secret",
    "access-key",
    "access-token",
    "api-key",
    "api-token",
    "apikey",
    "auth-key",
    "auth-token",
    "authorization",
    "bearer-token",
    "functions-key",
    "id-token",
    "private-token",
    "refresh-token",
    "secret-key",
    "security-token",
    "session-token",
    "subscription-key",
    "vault-token",
)

# What callers and their gateways call their keys in headers (`X-Token`, `X-User-Key`). In a query
# these are too many: there they name a page, a sorting, an upload. A session is one where it is
# presented (`X-Metabase-Session`); an id of one names a conversation, to LLMs and MCP servers.
_CREDENTIAL_ENDINGS: Final = (
    "token",
    "secret",
    "-key",
    "-credential",
    "-credentials",
    "-session",
)
_CREDENTIAL_WORDS: Final = frozenset({"auth", "key", "session"})

# Anywhere in a header's name: what proxies that authenticate a caller tell about it is such a name
# as well (`X-Auth-Request-Email`, `X-Amzn-Oidc-Identity`, `X-MS-Client-Principal-Id`).
_CREDENTIAL_PARTS: Final = re.compile(
    r"^x-auth-|access-code|access-key|api-?key|authentic|jwt|oidc|passw|principal|signature"
)

# Headers that read like one and name something else.
_NO_CREDENTIAL: Final = (
    "idempotency-key",
    "websocket-key",
    "cache-key",
    "dedup-key",
    "partition-key",
    "routing-key",
    "sort-key",
    "client-token",  # how Amazon calls its idempotency keys
    "continuation-token",
    "continuationtoken",
    "cursor-token",
    "next-token",
    "page-token",
    "pagetoken",
)

# Beside the names of headers, which some providers take in a query, too.
_CREDENTIAL_PARAMETERS: Final = frozenset(
    {
        "auth",
        "bearer-token",
        "jwt",
        "key",
        "oauth-token",
        "password",
        "secret",
        "sig",
        "signature",
        "token",
        "$httpheaders",  # Google lets a query carry headers
    }
)
_SHORTEST_PARAMETER: Final = min(map(len, _CREDENTIAL_PARAMETERS))
_PARAMETER_END: Final = re.compile(r"([&;])")

# What a browser cannot say in a header, OpenAI's realtime API takes as subprotocols:
# https://platform.openai.com/docs/guides/realtime-websocket.
_CREDENTIAL_SUBPROTOCOLS: Final = (
    "openai-insecure-api-key.",
    "openai-organization.",
    "openai-project.",
)

_CODINGS: Final = frozenset({"gzip", "deflate", "identity"})
# RFC 9110, section 12.4.2.
_WEIGHT: Final = re.compile(r"[qQ]=(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_REFUSED: Final = re.compile(r"[qQ]=0(?:\.0{0,3})?")
_MAX_CODINGS: Final = 16

_COOKIES: Final = frozenset({"set-cookie", "set-cookie2"})
NO_NAMES: Final[frozenset[str]] = frozenset()
_USUAL: Final = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close", b""})

#: Not a hop's, so not to be listed (RFC 9110, section 7.6.1): where the provider is to have the
#: key, an attempt is repeated because it has.
_FOR_THE_PROVIDER: Final = frozenset({"idempotency-key"})

_VIA_HOST: Final = re.compile(r"[^\s,]+[ \t]+([^\s,(]+)")


def is_credential(name: str) -> bool:
    """Whether a header, by its lower-case name, carries a caller's credential.

    An underscore is read as a hyphen, as servers in the tradition of CGI do (RFC 3875, section
    4.1.18). In doubt it does: two callers must not be taken for one.
    """
    name = name.replace("_", "-")
    if _is_known_credential(name):
        return True
    if name.endswith(_NO_CREDENTIAL) or name.startswith("x-steer-"):
        return False
    return (
        name in _CREDENTIAL_WORDS
        or name.endswith(_CREDENTIAL_ENDINGS)
        or _CREDENTIAL_PARTS.search(name) is not None
    )


def _is_known_credential(name: str) -> bool:
    """Whether a name, with hyphens, means a credential wherever it stands."""
    return name in CREDENTIAL_HEADERS or name.endswith(_CREDENTIAL_SUFFIXES)


def is_own(name: str) -> bool:
    """Whether a header, by its lower-case name, is Steer's own; underscores as above."""
    return name.replace("_", "-").startswith("x-steer-")


def credential_fields(fields: Sequence[Field], also: frozenset[str] = NO_NAMES) -> list[Field]:
    """The fields that carry a caller's credential, each of them if there are several.

    `also` are further lower-case names of headers in which credentials are presented.
    """
    names = b"\n".join([name for name, _ in fields])
    return [fields[index] for index in _credentials_among(names, also)]


def request_fields(
    fields: Sequence[Field], *, replaced: frozenset[str], strip_credentials: bool
) -> list[Field]:
    """The caller's fields that go on to the next hop.

    Kept back are hop-by-hop fields and those that `Connection` lists (RFC 9110, section 7.6.1),
    `Host` and framing, Steer's own (`X-Steer-*`), and with `strip_credentials` every form of the
    caller's credential. An idempotency key is for the provider, whatever `Connection` says of it.
    `replaced` are further lower-case names to keep back: what the sender puts in its own words, or
    has no use for.
    """
    names = b"\n".join([name for name, _ in fields])
    passing, connections = _passing_on(names, replaced, strip_credentials)
    if also := listed(fields, connections) - _FOR_THE_PROVIDER:
        passing, _ = _passing_on.__wrapped__(names, replaced | also, strip_credentials)
    return [fields[index] for index in passing]


def response_fields(
    fields: Sequence[Field],
    *,
    strip_cookies: bool = False,
    kept: frozenset[str] = NO_NAMES,
    replaced: frozenset[str] = NO_NAMES,
) -> list[Field]:
    """The fields of an answer for the caller.

    Kept back are hop-by-hop fields, framing, and `X-Steer-*` of a Steer further on. With
    `strip_cookies`, for answers to Steer's own credential, its cookies are, too. `kept` are
    lower-case names that pass all the same: the length of a body that passes unchanged, say;
    `replaced` are those that Steer says in its own words.
    """
    names = b"\n".join([name for name, _ in fields])
    passing, connections = _passing_back(names, kept, strip_cookies, replaced)
    if also := listed(fields, connections):
        passing, _ = _passing_back.__wrapped__(names, kept, strip_cookies, replaced | also)
    return [fields[index] for index in passing]


# A program's requests all have the same fields, and so have a provider's answers: which of them
# pass is worked out once. Keys are foreign input, but no longer than a message's head may be.
@lru_cache(maxsize=256)
def _passing_on(
    names: bytes,
    replaced: frozenset[str],
    strip_credentials: bool,  # noqa: FBT001 - a key of the cache
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which fields of a request pass, and which of them are `Connection`."""
    lower = _lower(names)
    return tuple(
        index
        for index, name in enumerate(lower)
        if name not in _REQUEST_DROPPED
        and name not in replaced
        and not is_own(name)
        and not (strip_credentials and is_credential(name))
    ), _connections(lower)


@lru_cache(maxsize=256)
def _passing_back(
    names: bytes,
    kept: frozenset[str],
    strip_cookies: bool,  # noqa: FBT001 - a key of the cache
    also: frozenset[str],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which fields of an answer pass, and which of them are `Connection`."""
    lower = _lower(names)
    dropped = _HOP_BY_HOP | also | (_COOKIES if strip_cookies else NO_NAMES)
    return tuple(
        index
        for index, name in enumerate(lower)
        if name in kept or (name not in dropped and not is_own(name))
    ), _connections(lower)


@lru_cache(maxsize=256)
def _credentials_among(names: bytes, also: frozenset[str]) -> tuple[int, ...]:
    """Which fields of a request carry a credential."""
    return tuple(
        index for index, name in enumerate(_lower(names)) if name in also or is_credential(name)
    )


def _lower(names: bytes) -> list[str]:
    return names.decode("latin-1").lower().split("\n") if names else []


def _connections(lower: Sequence[str]) -> tuple[int, ...]:
    return tuple(index for index, name in enumerate(lower) if name == "connection")


def listed(fields: Sequence[Field], connections: Iterable[int]) -> frozenset[str]:
    """The lower-case names that `Connection`, at these places, lists, but for its own two words."""
    names: set[str] = set()
    for index in connections:
        value = fields[index][1]
        if value not in _USUAL:
            names.update(token.strip().lower() for token in value.decode("latin-1").split(","))
    return frozenset(names)


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
        coding, weight = coding.strip().lower(), weight.strip()
        if coding == "*" and not _REFUSED.fullmatch(weight):
            return "gzip, deflate, identity"
        if coding in _CODINGS:
            kept.append(f"{coding};{weight}" if _WEIGHT.fullmatch(weight) else coding)
    return ", ".join(kept) or "identity"


def strip_query_credentials(query: str) -> str:
    """The query without parameters that carry a credential, all else as it was."""
    if not (names := _credential_names(query)):
        return query
    pieces = _PARAMETER_END.split(query)
    kept: list[str] = []
    for index in range(0, len(pieces), 2):
        if pieces[index].partition("=")[0] not in names:
            kept += (pieces[index - 1] if kept else "", pieces[index])
    return "".join(kept)


def query_credentials(query: str) -> list[str]:
    """The parameters of a query that carry a credential, as they are written: name=value."""
    if not (names := _credential_names(query)):
        return []
    return [pair for pair in _parameters(query) if pair.partition("=")[0] in names]


# One request's query is looked at again and again; and it may be nothing but thousands of names.
@lru_cache(maxsize=64)
def _credential_names(query: str) -> frozenset[str]:
    """The names in a query, as they are written, that mean a credential."""
    names = {pair.partition("=")[0] for pair in set(_parameters(query))}
    return frozenset(name for name in names if is_credential_parameter(name))


def _parameters(query: str) -> list[str]:
    # Some servers end a parameter at a semicolon, too.
    return query.replace(";", "&").split("&")


def is_credential_parameter(pair: str) -> bool:
    """By its name, however that is spelled; `$httpHeaders[authorization]` has an index."""
    name = pair.partition("=")[0]
    if len(name) < _SHORTEST_PARAMETER:  # and spelled in another way it is longer
        return False
    name = unquote_plus(name).strip().lower().replace("_", "-")
    name = name.partition("[")[0]
    return name in _CREDENTIAL_PARAMETERS or _is_known_credential(name)


def strip_subprotocol_credentials(protocols: Iterable[str]) -> list[str]:
    """WebSocket subprotocols without those that carry a credential."""
    return [name for name in protocols if not name.lower().startswith(_CREDENTIAL_SUBPROTOCOLS)]


def subprotocol_credentials(offered: str) -> list[str]:
    """Those of a comma-separated list of subprotocols that carry a credential."""
    protocols = (name.strip() for name in offered.split(","))
    return [name for name in protocols if name.lower().startswith(_CREDENTIAL_SUBPROTOCOLS)]
