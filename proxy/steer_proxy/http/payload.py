"""A call's body on its way in: asked for, read within limits, kept, and understood."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any, Final

import orjson
from aiohttp.http import HttpVersion11
from aiohttp.web_request import BaseRequest

from steer_policies.dialects.multipart import form_fields
from steer_proxy.engine.config import Limits
from steer_proxy.http.body import (
    EMPTY,
    BodyBroken,
    BodyNotKept,
    BodyTooLarge,
    BodyTooSlow,
    MemoryBudget,
    ReplayBody,
    read_body,
)
from steer_proxy.http.problems import Refusal, refuse

LOGGER: Final = logging.getLogger("steer.http")

#: A body larger than this is parsed in a thread, in bytes: orjson needs about 2 ms for it.
PARSE_IN_THREAD: Final = 1024 * 1024

#: Content types read as JSON; an absent one is how some clients send it.
_JSON_TYPES: Final = frozenset({"application/json", "text/json", ""})


async def read_call_body(request: BaseRequest, limits: Limits, budget: MemoryBudget) -> ReplayBody:
    """The request's whole body; asks for it with 100 Continue where the caller waits for that.

    Raises:
        Refusal: 400, 408, 413 or 503; each ends the connection, as what is left of the body could
            be taken for a request.
    """
    if not request.body_exists:
        return EMPTY
    declared = request.content_length
    if declared is not None and declared > limits.max_body:
        raise _too_large(limits)
    _ask_for_body(request)
    try:
        return await read_body(request.content, declared, limits, budget)
    except BodyTooLarge:
        raise _too_large(limits) from None
    except BodyTooSlow:
        raise refuse(
            408,
            "steer_body_timeout",
            f"The body did not come in time: limits.body_timeout is {limits.body_timeout:g} s.",
            close=True,
        ) from None
    except BodyBroken as error:
        raise refuse(
            400, "steer_bad_request", f"The body is not valid HTTP: {error}.", close=True
        ) from None
    except BodyNotKept as error:
        LOGGER.error("a request body could not be kept on disk: %s", error)  # noqa: TRY400 - the message says it all
        raise refuse(
            503, "steer_overloaded", "Steer has no room for this body now.", close=True
        ) from None


def _ask_for_body(request: BaseRequest) -> None:
    """Send 100 Continue where it is waited for (RFC 9110 §10.1.1).

    Only now, when nothing speaks against the request any more; not to HTTP/1.0, which does not know
    it, nor when the body is there already.
    """
    if (
        request.headers.get("Expect", "").lower() == "100-continue"
        and request.version >= HttpVersion11
        and not request.content.is_eof()
        and request.transport is not None
    ):
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(limits: Limits) -> Refusal:
    return refuse(
        413,
        "steer_body_too_large",
        f"The body is larger than limits.max_body, {limits.max_body} bytes.",
        close=True,
    )


async def parse_body(body: ReplayBody, content_type: str, budget: MemoryBudget) -> Any:
    """The JSON value of a body, the plain fields of a form, or None when it is neither.

    Large ones are parsed in a thread, one after the other: that bounds the memory, and costs no
    time, since the parser holds the interpreter's lock.
    """
    if body.size == 0:
        return None
    kind = content_type.partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    if not form and kind not in _JSON_TYPES and not kind.endswith("+json"):
        return None
    parse = partial(form_fields, content_type) if form else _json
    if body.memory is not None and body.size <= PARSE_IN_THREAD:
        return parse(body.memory)
    async with budget.one_large:
        return await asyncio.to_thread(parse, await body.read())


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
