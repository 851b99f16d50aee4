"""What goes in and out of a run with a key: its request and its result as text."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from steer_llm_sdk import checks
from steer_llm_sdk.reliability.idempotency_errors import NotStorableError
from steer_llm_sdk.reliability.json_text import NotJSON, json_text
from steer_llm_sdk.reliability.once import Identity, Terms
from steer_policies.fingerprint import RequestIdentity, fingerprint

#: A request larger than this is digested in a thread, in characters.
AT_ONCE: Final = 128 * 1024

#: What a run is called in the ledger, and in fingerprints, where a call has its route and method.
ROUTE: Final = "sdk"
METHOD: Final = "RUN"


def request_text(identity: Identity) -> str:
    """What a key is to be bound to, as JSON.

    Raises:
        InvalidValue: the key is none.
        NotStorableError: the request is not JSON.
    """
    checks.idempotency_key(identity.key)
    try:
        return json_text(identity.fingerprint_of)
    except NotJSON as error:
        raise NotStorableError(
            f"a request with an idempotency key must be JSON: {error}", error.path
        ) from None


async def fingerprint_of(secret: bytes, text: str) -> str:
    """What is equal for equal requests: 64 hexadecimal digits, by the rule of the sidecar's."""
    request = RequestIdentity(METHOD, ROUTE, "", (), text.encode())
    if len(text) <= AT_ONCE:
        return fingerprint(secret, request)
    return await asyncio.to_thread(fingerprint, secret, request)


def result_text(value: Any, terms: Terms) -> str:
    """A result as JSON that may be stored.

    Raises:
        NotStorableError: naming the place.
    """
    try:
        text = json_text(value)
    except NotJSON as error:
        raise NotStorableError(
            f"the result cannot be kept for its idempotency key: {error}. The tool was run and is "
            "not run again for this key; `value` holds its result.",
            error.path,
            value=value,
        ) from None
    if len(text) > terms.max_stored or len(text.encode()) > terms.max_stored:
        raise NotStorableError(
            "the result is too large to be kept for its idempotency key: it has more than "
            f"max_stored, {terms.max_stored} bytes. The tool was run and is not run again for this "
            "key; `value` holds its result. For the next ones let the tool return a reference to "
            "what is large, or raise max_stored",
            "",
            value=value,
        )
    return text
