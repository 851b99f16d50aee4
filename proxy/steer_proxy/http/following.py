"""Giving a caller what a recording holds, and says next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from aiohttp.web_request import BaseRequest

from steer_policies.headers import Field
from steer_policies.idempotency import Status
from steer_proxy.http.call import Call
from steer_proxy.http.caller import WRITE_AHEAD, CallerResponse
from steer_proxy.http.keyed_problems import status_line
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.recording import Reader, Recording, TooSlow
from steer_proxy.http.replies import personal_lines

#: What a provider says to who made a call, and to nobody else: a route's callers may share keys.
_FOR_ONE: Final = frozenset({b"set-cookie", b"set-cookie2"})


class Watched(Protocol):
    """Who looks after calls that last too long."""

    draining: bool

    def overdue_later(self) -> None:
        """See to it that calls are looked at which last longer than they may."""


async def give(
    request: BaseRequest,
    progress: CallProgress,
    call: Call,
    recording: Recording,
    reader: Reader,
    status: Status | None,
    watched: Watched,
    *,
    first: bool,
) -> CallerResponse:
    """Answer a caller from a recording whose head is known; the first one there made the call."""
    head = await reader.head()
    fields = head.fields if first else _for_anyone(head.fields)
    own = [*personal_lines(call), *head.own]
    if status is not None:
        own.append(status_line(status))
    whole = recording.ended and not recording.broken and recording.kept
    whole = whole and recording.size <= WRITE_AHEAD  # more of it is not copied for every reader
    body = b"".join(recording.pieces()) if whole else b""
    response = CallerResponse(
        head.status, head.reason, fields, own, body=body, content_type=head.content_type
    )
    progress.response = response
    if watched.draining:
        response.close_connection()
    longest = call.route.policy.timeouts.max_stream
    progress.until = asyncio.get_running_loop().time() + longest
    watched.overdue_later()
    if whole:
        # Of what was a stream the length is left out, as it was the first time.
        response.began = asyncio.get_running_loop().time()
        await response.prepare(request)
        await response.write_eof()
        return response
    await response.prepare(request)
    try:
        while piece := await reader.read():
            if response.began is None:
                response.began = asyncio.get_running_loop().time()
            await response.write(piece)
    except TooSlow:
        response.abandon()
        return response
    if recording.broken:
        response.abandon()
    else:
        await response.write_eof()
    return response


def _for_anyone(fields: Sequence[Field]) -> Sequence[Field]:
    return [field for field in fields if field[0].lower() not in _FOR_ONE]
