"""Whose key a request's idempotency key is, and whether two requests are the same one.

Everything is keyed with the ledger's own secret, so that nobody who reads the ledger can try out
credentials or prompts, and two ledgers have nothing to compare. Lengths go before contents and each
use has a name of its own: no two different things are hashed from the same bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

from steer_policies.canonical import canonical_json, form_digest, pack
from steer_policies.headers import (
    NO_NAMES,
    Field,
    credential_fields,
    is_own,
    listed,
    query_credentials,
    strip_query_credentials,
    subprotocol_credentials,
)

#: The headers that change what a call means, or by whom it is answered. What an SDK changes from
#: try to try (`x-stainless-retry-count`, tracing) is not among them.
MEANINGFUL_HEADERS: Final = frozenset(
    {
        b"accept",
        b"anthropic-beta",
        b"anthropic-version",
        b"content-encoding",
        b"content-type",
        b"openai-beta",
        b"openai-organization",
        b"openai-project",
        b"soapaction",
        b"x-amz-target",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-steer-quality",
        b"x-steer-upstream",
    }
)

# An absent type is how some clients send JSON.
_JSON_TYPES: Final = frozenset({"application/json", "text/json", ""})
_FORM: Final = b"form"


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """The caller's original request, before anything is planned or rewritten.

    `path` is as in `scope_of`; `fields` are the header fields as they stood on the wire.
    """

    method: str
    path: str
    query: str
    fields: Sequence[Field]
    body: bytes


def principal(
    fields: Sequence[Field],
    query: str,
    scope: str = "caller",
    *,
    upgrade: bool = False,
    also: frozenset[str] = NO_NAMES,
) -> bytes:
    """Who asks, by a route's `scope`: the same bytes in every process. They hold the credential
    itself, so they are for hashing only, never for a log.

    `caller` covers every form in which a caller presents a credential: headers, cookies included,
    the query and, with `upgrade`, the subprotocols of a WebSocket; `also` are the lower-case names
    of further headers in which upstreams take a credential. Whose credential changes between
    two tries of a call (a short-lived token) is somebody else by it. `header:NAME` is that header
    alone, its absence a principal of its own; `route` is everybody.
    """
    if scope == "route":
        return pack((b"route",))
    if scope != "caller":
        name = _bytes(scope.removeprefix("header:").lower())
        values = [value.strip(b" \t") for each, value in fields if each.lower() == name]
        return pack((b"header", name, *values))
    credentials = credential_fields(fields, also)
    presented = [(name.lower(), value.strip(b" \t")) for name, value in credentials]
    presented.sort(key=lambda field: field[0])  # lines of one name keep their order
    offered = [
        protocol
        for name, value in (fields if upgrade else ())
        if name.lower() == b"sec-websocket-protocol"
        for protocol in subprotocol_credentials(value.decode("latin-1"))
    ]
    return pack(
        (
            b"caller",
            pack(part for field in presented for part in field),
            pack(map(_bytes, query_credentials(query))),
            pack(map(_bytes, offered)),
        )
    )


def scope_of(secret: bytes, principal: bytes, method: str, path: str, key: str) -> str:
    """What a key is unique in, with the key: 64 hexadecimal digits.

    `path` names the endpoint however the caller spelled it: the route's name (or prefix) followed
    by the dialect's canonical path, given by the caller of this function. So `/v1/v1/messages` and
    `/v1/messages` of one route are one place, and two routes never share a key.
    """
    parts = (b"scope", principal, _bytes(method), _bytes(path), _bytes(key))
    return hmac.digest(secret, pack(parts), "sha256").hex()


def caller_mark(secret: bytes, principal: bytes) -> str:
    """What stands for a caller in the ledger's column `caller`: 32 hexadecimal digits."""
    return hmac.digest(secret, pack((b"caller mark", principal)), "sha256")[:16].hex()


def fingerprint(secret: bytes, request: RequestIdentity) -> str:
    """What is equal for two tries of one request and differs for two requests: 64 hexadecimal
    digits.

    Made of the method, the path, the query (by name, without credentials), `MEANINGFUL_HEADERS` and
    the body: JSON by value (`canonical_json`), a form by its parts (`form_digest`), else its bytes.
    A header that `Connection` lists goes no further than Steer, and counts only where it is read
    here. Takes time linear in the body; a few megabytes are a matter for a thread.
    """
    fields = request.fields
    places, connections = _meaningful(b"\n".join([name for name, _ in fields]))
    if dropped := listed(fields, connections):
        names = [(place, place[1].decode()) for place in places]
        places = tuple(place for place, name in names if name not in dropped or is_own(name))
    headers = _headers(tuple([(name, fields[index][1]) for index, name in places]))
    kind, digest = _body(headers.content_type, request.body)
    parts = (
        b"request",
        _bytes(request.method),
        _bytes(request.path),
        _query(request.query),
        headers.form if kind == _FORM else headers.packed,
        kind,
        digest,
    )
    return hmac.digest(secret, pack(parts), "sha256").hex()


class _Headers(NamedTuple):
    """What the meaningful headers of a request say, for one that is a form without its boundary."""

    content_type: str
    packed: bytes
    form: bytes


@lru_cache(maxsize=64)  # a program's requests say the same
def _headers(fields: tuple[Field, ...]) -> _Headers:
    headers: dict[bytes, bytes] = {}
    for name, line in fields:
        value = line.strip(b" \t")
        # RFC 9110, section 5.3: several lines mean the same as one with their values in a row.
        headers[name] = headers[name] + b", " + value if name in headers else value
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    packed = []
    for but_boundary in (False, True):
        if content_type:
            headers[b"content-type"] = _content_type(content_type, but_boundary=but_boundary)
        packed.append(pack(part for name in sorted(headers) for part in (name, headers[name])))
    return _Headers(content_type, *packed)


# A program's requests all have the same fields: see `steer_policies.headers`.
@lru_cache(maxsize=256)
def _meaningful(names: bytes) -> tuple[tuple[tuple[int, bytes], ...], tuple[int, ...]]:
    """Which fields matter, with their lower-case names, and which are `Connection`."""
    lower = list(enumerate(names.lower().split(b"\n")))
    return (
        tuple((index, name) for index, name in lower if name in MEANINGFUL_HEADERS),
        tuple(index for index, name in lower if name == b"connection"),
    )


def _query(query: str) -> bytes:
    """A query in the order of its parameters' names; those of one name keep theirs."""
    if not query:
        return b""
    parameters = [each for each in strip_query_credentials(query).split("&") if each]
    parameters.sort(key=lambda each: each.partition("=")[0])
    return pack(map(_bytes, parameters))


def _content_type(value: str, *, but_boundary: bool) -> bytes:
    """A content type however it is spelled: its parameters in any order, names in either case."""
    if ";" not in value:
        return value.lower().encode()
    media_type, *rest = value.split(";")
    parameters: list[str] = []
    for parameter in rest:
        name, _, argument = parameter.strip().partition("=")
        name, argument = name.rstrip().lower(), argument.lstrip()
        if name == "charset":  # the one whose value has no case; quotes change nothing
            argument = argument.strip('"').lower()
        if name and not (but_boundary and name == "boundary"):
            parameters.append(f"{name}={argument}")
    head = media_type.rstrip().lower()
    return pack(map(_bytes, (head, *sorted(parameters)))) if parameters else head.encode()


def _body(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """How a body is compared, and a digest of it by that."""
    media_type = content_type.partition(";")[0].rstrip().lower()
    if media_type == "multipart/form-data":
        digest = form_digest(content_type, body)
        if digest is not None:
            return _FORM, digest
    elif media_type in _JSON_TYPES or media_type.endswith("+json"):
        value = canonical_json(body)
        if value is not None:
            return b"json", sha256(value).digest()
    return b"raw", sha256(body).digest()


def _bytes(text: str) -> bytes:
    """Any text as bytes, different for different text."""
    return text.encode("utf-8", "surrogatepass")
