"""Marks: what stands for a credential in the ledger, where no credential is ever written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from steer_policies.canonical import pack
from steer_policies.fingerprint import caller_mark, principal
from steer_proxy.engine.secret import SecretUnavailable
from steer_proxy.http.call import Call
from steer_proxy.http.identity import principal_of

#: Marks remembered; credentials are foreign input.
MAX_MARKS: Final = 1024

_NOBODY: Final = principal((), "")


class Marks:
    """Marks, remembered by numbers that reveal nothing. `secret` is the ledger's own."""

    def __init__(self, secret: Callable[[], bytes | None]) -> None:
        self._secret = secret
        self._made_with: bytes | None = None
        self._known: dict[int, str | None] = {}

    def caller(self, call: Call) -> str | None:
        """The mark of what a caller presented; None when it presented nothing."""
        secret = self._secret()
        if secret is None:
            return None
        if secret is not self._made_with:
            self._renew(secret)
        number = call.credentials.get(call.route.home)
        if number is not None and number in self._known:
            return self._known[number]
        who = principal_of(call)
        return self._mark(secret, hash(who) if number is None else number, who)

    def used(self, call: Call, upstream: str, caller: str | None) -> str | None:
        """The mark of the credential that a call uses at an upstream."""
        if upstream in call.credentials:  # it is the caller's own
            return None if call.token_is_key else caller
        credential = call.config.upstreams[upstream].credential
        if credential is None:
            return None
        secret = self._secret()
        if secret is None:
            return None
        self._renew(secret)
        try:
            value = credential.value()
        except SecretUnavailable:
            return None
        number = hash((credential.header, value))
        if number in self._known:
            return self._known[number]
        parts = (b"own", credential.header.encode(), value.encode())
        return self._mark(secret, number, pack(parts))

    def _renew(self, secret: bytes) -> None:
        """Forget what was made with another secret."""
        if secret != self._made_with:
            self._known.clear()
        self._made_with = secret

    def _mark(self, secret: bytes, number: int, who: bytes) -> str | None:
        mark = None if who == _NOBODY else caller_mark(secret, who)
        if len(self._known) >= MAX_MARKS:
            self._known.clear()
        self._known[number] = mark
        return mark
