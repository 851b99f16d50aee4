"""A call as it goes to one candidate: address, target, headers and body."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from steer_policies.config import DialectName
from steer_policies.headers import (
    accept_encoding,
    request_fields,
    strip_query_credentials,
    strip_subprotocol_credentials,
)
from steer_policies.plan import Candidate
from steer_policies.route import merged
from steer_proxy.engine.clock import new_span_id
from steer_proxy.engine.config import Upstream
from steer_proxy.http.addresses import Address, Addresses
from steer_proxy.http.body import ReplayBody
from steer_proxy.http.call import Call
from steer_proxy.http.lines import head, line

#: A body larger than this is rewritten in a thread, in bytes.
REWRITE_IN_THREAD: Final = 1024 * 1024

#: Methods whose requests have a body, if an empty one (RFC 9110 §8.6).
_BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})

_HANDSHAKE: Final = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"}
)
_KEY: Final = frozenset({"idempotency-key"})
_PROTOCOL: Final = b"sec-websocket-protocol"


@lru_cache(maxsize=256)
def _coding_line(asked: str | None, identity: bool) -> bytes:  # noqa: FBT001 - a key of the cache
    return line("Accept-Encoding", accept_encoding(asked, identity=identity))


def presents_caller(call: Call, upstream: Upstream) -> bool:
    """Whether a call goes to an upstream in its caller's own name: to the home upstream alone.

    If not, every form of the caller's credential is taken off the request, and the cookies by which
    the provider knows Steer are taken off the answer.
    """
    return upstream.passthrough and upstream.name == call.route.home and not call.token_is_key


@dataclass(slots=True, repr=False)  # a credential is in it
class OutboundRequest:
    """One request, ready to be written."""

    upstream: Upstream
    address: Address
    head: bytes
    body: ReplayBody


class Outbound:
    """Makes the requests of one call; what a candidate's options change is worked out once."""

    def __init__(self, call: Call, addresses: Addresses) -> None:
        self._call = call
        self._addresses = addresses
        self._rewritten: dict[int, tuple[str, str, ReplayBody]] = {}

    async def request(self, candidate: Candidate) -> OutboundRequest:
        """The request for a candidate, with a span id and credential of its own.

        Raises:
            SecretUnavailable: when the upstream's credential cannot be read now.
        """
        call = self._call
        upstream = call.config.upstreams[candidate.upstream]
        address = self._addresses[candidate.upstream]
        path, query, body = await self._effective(candidate)
        strip = not presents_caller(call, upstream)
        if strip and query:
            query = strip_query_credentials(query)
        target = f"{address.proxied_origin}{address.base_path}{path}" or "/"
        if query:
            target = f"{target}?{query}"
        start = self._head(upstream, address, target, body, strip=strip)
        return OutboundRequest(upstream, address, start, body)

    async def _effective(self, candidate: Candidate) -> tuple[str, str, ReplayBody]:
        """Path, query and body with the candidate's options applied."""
        call = self._call
        options = merged(candidate.options, call.usage_options)
        if not options:
            return call.path, call.query, call.body
        key = id(candidate)
        if (made := self._rewritten.get(key)) is None:
            raw = await call.body.read()
            arguments = (call.facts, call.path, call.query, call.content_type, raw, call.json)
            if len(raw) > REWRITE_IN_THREAD:
                changed = await asyncio.to_thread(call.dialect.rewrite, *arguments, options)
            else:
                changed = call.dialect.rewrite(*arguments, options)
            body = call.body
            if changed.body is not None:
                body = ReplayBody(changed.body, len(changed.body))
            made = self._rewritten[key] = (changed.path, changed.query, body)
        return made

    def _head(
        self, upstream: Upstream, address: Address, target: str, body: ReplayBody, *, strip: bool
    ) -> bytes:
        call = self._call
        own = [
            address.host_line,
            line("X-Request-ID", call.request_id),
            *(line(name, value) for name, value in call.trace.headers(new_span_id())),
            call.via_line,
        ]
        if body.size or call.method in _BODY_METHODS:
            own.append(b"Content-Length: %d\r\n" % body.size)
        replaced = address.replaced
        if call.upgrade:
            own += self._handshake(strip=strip)
        elif call.dialect.name is not DialectName.HTTP:
            # Steer looks into a stream, and a kept answer must suit whoever asks for it again.
            plain = call.facts.stream or call.key is not None
            own.append(_coding_line(call.headers.get("Accept-Encoding"), plain))
            replaced = address.replaced_for_llm
        if strip and upstream.policy.forwards_idempotency_key:
            # Callers that Steer keeps apart are one to the provider: so must their keys be kept.
            replaced |= _KEY
            if call.scope is not None:
                own.append(line("Idempotency-Key", call.scope))
        credential = upstream.credential
        if credential is not None:
            own.append(line(credential.header, credential.value()))
        own += address.lines
        fields = request_fields(call.fields, replaced=replaced, strip_credentials=strip)
        return head(f"{call.method} {target} HTTP/1.1", fields, own)

    def _handshake(self, *, strip: bool) -> list[bytes]:
        """The caller's WebSocket handshake as it is, key and extensions too: it is end to end."""
        lines = [b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n"]
        for name, value in self._call.fields:
            if name.lower() in _HANDSHAKE:
                lines.append(b"%b: %b\r\n" % (name, value))
            elif name.lower() == _PROTOCOL and (offered := _protocols(value) if strip else value):
                lines.append(b"%b: %b\r\n" % (name, offered))
        return lines


def _protocols(value: bytes) -> bytes:
    """The subprotocols of one line without those that are credentials."""
    offered = value.decode("utf-8", "surrogateescape").split(",")
    kept = strip_subprotocol_credentials(protocol.strip() for protocol in offered)
    return ", ".join(kept).encode("utf-8", "surrogateescape")
