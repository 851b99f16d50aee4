"""Whose key a call's is, and which request it stands for."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from steer_policies.fingerprint import RequestIdentity, fingerprint, principal, scope_of
from steer_proxy.http.call import Call

#: A body larger than this is digested in a thread, in bytes: it would hold up all other calls.
AT_ONCE: Final = 128 * 1024
#: So is one with more commas: some microseconds are spent on each number or object between two.
ELEMENTS_AT_ONCE: Final = 4_000


class Identity(NamedTuple):
    """A key's scope, and the fingerprint of the request it was used for."""

    scope: str
    fingerprint: str


async def identify(call: Call, secret: bytes, *, key: str, scope: str = "caller") -> Identity:
    """The identity of a call with this key, of the original request, before anything is planned."""
    path = call.route.name + call.path
    presented = principal_of(call, scope)
    return Identity(
        scope_of(secret, presented, call.method, path, key), await request_print(call, secret)
    )


def principal_of(call: Call, scope: str = "caller") -> bytes:
    """Who makes a call, by a route's `scope`; for hashing and comparing only."""
    also = call.config.credential_headers
    return principal(call.fields, call.query, scope, upgrade=call.upgrade, also=also)


async def request_print(call: Call, secret: bytes) -> str:
    """The fingerprint of a call's request."""
    body = await call.body.read()
    request = RequestIdentity(
        call.method, call.route.name + call.path, call.query, call.fields, body
    )
    if len(body) <= AT_ONCE and body.count(b",") <= ELEMENTS_AT_ONCE:
        return fingerprint(secret, request)
    return await asyncio.to_thread(fingerprint, secret, request)
