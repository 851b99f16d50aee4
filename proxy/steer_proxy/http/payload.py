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

#: Brackets, braces and commas a JSON body may have, those in its texts included. The parser holds
#: the interpreter's lock, and makes some 80 bytes of each: this many cost 150 ms and 80 MB, where
#: 64 MiB of them would stop every other call for seconds. As text they are about as many tokens,
#: more than nearly every model takes. A body of no more bytes than this cannot exceed it, and is
#: parsed on the loop: orjson needs about 2 ms for an ordinary one. Larger ones go to a thread.
MAX_STRUCTURE: Final = 1_000_000

#: A body is counted in pieces of so many bytes, 2 ms each; between them others have their turn.
_COUNTED_AT_ONCE: Final = 1024 * 1024

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


async def parse_body(
    body: ReplayBody, content_type: str, budget: MemoryBudget, *, needed: bool = True
) -> Any:
    """The JSON value of a body, the plain fields of a form, or None when it is neither.

    Large ones are parsed in a thread, one after the other: that bounds the memory, and costs no
    time, since the parser holds the interpreter's lock. What is too complex to be parsed is not
    read where it is not `needed`.

    Raises:
        Refusal: 413 for JSON that is too complex.
    """
    if body.size == 0:
        return None
    form = is_form(content_type)
    if not form and not is_json(content_type):
        return None
    parse = partial(form_fields, content_type) if form else _json
    if body.memory is not None and body.size <= MAX_STRUCTURE:
        return parse(body.memory)
    async with budget.one_large:
        try:
            return await asyncio.to_thread(parse, await body.read())
        except TooComplex:
            if not needed:
                return None
            raise refuse(
                413,
                "steer_body_too_complex",
                f"The body has more than {MAX_STRUCTURE} brackets, braces and commas.",
            ) from None


def is_form(content_type: str) -> bool:
    """Whether a content type says form, files included."""
    return _kind(content_type) == "multipart/form-data"


def is_json(content_type: str) -> bool:
    """Whether a body of this content type is read as JSON."""
    kind = _kind(content_type)
    return kind in _JSON_TYPES or kind.endswith("+json")


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


class TooComplex(Exception):
    """More values than can be parsed while others wait."""


def check_complexity(raw: bytes) -> None:
    """Bound what parsing can take of time and memory, before it begins.

    A body that is no longer than the bound cannot exceed it, and costs nothing.

    Raises:
        TooComplex: for more than `MAX_STRUCTURE` brackets, braces and commas.
    """
    if len(raw) <= MAX_STRUCTURE:
        return
    found = 0
    for start in range(0, len(raw), _COUNTED_AT_ONCE):
        end = start + _COUNTED_AT_ONCE
        found += sum(raw.count(mark, start, end) for mark in (b"[", b"{", b","))
        if found > MAX_STRUCTURE:
            raise TooComplex


def _json(raw: bytes) -> Any:
    check_complexity(raw)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
