"""From the commit point on: the answer goes to the caller as it comes, and never ends falsely."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.dialects.glimpse import GLIMPSE
from steer_policies.outcome import SUCCESS, Failure, Verdict, failed
from steer_proxy.engine.attempt import Trace
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.attempt import read_event_bytes
from steer_proxy.http.counting import Ends
from steer_proxy.http.outlet import Response
from steer_proxy.http.response import UpstreamError, UpstreamResponse
from steer_proxy.http.resume import Sent


class Broken(Exception):
    """An answer died after its commit point."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict.failure))
        self.verdict = verdict


async def relay_plain(
    caller: Response,
    answer: HttpAnswer,
    alive: Callable[[], None] | None = None,
    ends: Ends | None = None,
) -> Verdict:
    """Relay an answer whose end only its framing tells; `alive` is called as the caller takes it,
    `ends` is given what is compressed. That comes first: who has all of it may hang up at once.

    Relayed to its end, it is what its head has said: a failing one remains one.

    Raises:
        Broken: when it was cut.
    """
    response = answer.response
    if answer.held:
        if ends is not None:
            await ends.take(answer.held)
        await caller.write(answer.held)
    # A provider counts at the end of its answer, and names its model at the beginning.
    counts = "json" in answer.content_type
    witness = answer.witness
    answer.held = answer.held[:GLIMPSE] if counts else b""
    if response is not None and not answer.whole:
        try:
            while chunk := await response.read():
                if ends is not None:
                    await ends.take(chunk)
                if witness is not None:
                    await witness.feed(chunk)  # first: what ends a stream is not given out at once
                await caller.write(chunk)
                if counts:
                    tail = chunk if len(chunk) >= GLIMPSE else answer.tail + chunk
                    answer.tail = tail[-GLIMPSE:]
                if alive is not None:
                    alive()
        except UpstreamError as error:
            raise Broken(failed(error.failure)) from error
        if witness is not None and witness.cut:
            return _told(answer)
    if ends is not None:
        ends.put(answer)
    return answer.verdict


def _told(answer: HttpAnswer) -> Verdict:
    """What a coded stream has said of its failure, in an error event that the caller has.

    Raises:
        Broken: where it says nothing of it, and was cut.
    """
    reader = answer.trace.reader
    if reader is None or reader.error is None:
        raise Broken(failed(Failure.TRUNCATED))
    return reader.error


async def relay_stream(
    caller: Response, answer: HttpAnswer, reader: StreamReader, sent: Sent | None
) -> Verdict:
    """Relay an event stream, whole events at a time; `sent` remembers them for a resume.

    Raises:
        Broken: when it ended before it was finished, whatever its framing said.
    """
    response = answer.response
    if answer.held:
        if sent is not None:
            sent.add(answer.held)
        await caller.write(answer.held)
    answer.held = b""
    if response is not None and not answer.whole:
        try:
            if reader.progress < Progress.CONTENT:
                await _begin(caller, response, reader, sent, answer.trace)
            await _pump(caller, response, reader, sent)
        except UpstreamError as error:
            if reader.progress < Progress.FINISHED:
                raise Broken(failed(error.failure)) from error
    if reader.error is not None:
        if sent is not None:
            raise Broken(reader.error)
        # The provider's own error event: the caller's SDK knows what to make of it.
        await caller.write(reader.error_event)
        return reader.error
    if reader.progress < Progress.FINISHED:
        raise Broken(failed(Failure.TRUNCATED))
    return SUCCESS


async def _begin(
    caller: Response,
    response: UpstreamResponse,
    reader: StreamReader,
    sent: Sent | None,
    trace: Trace,
) -> None:
    """Relay up to the first content of a stream that was committed before it."""
    while reader.error is None and reader.progress < Progress.CONTENT:
        if not (chunk := await response.read()):
            return  # as it is told again to who reads on
        released = reader.feed(chunk)
        if reader.progress >= Progress.CONTENT:
            trace.first_token = asyncio.get_running_loop().time()
        if released:
            if sent is not None:
                sent.add(released)
            await caller.write(released)


async def _pump(
    caller: Response, response: UpstreamResponse, reader: StreamReader, sent: Sent | None
) -> None:
    read, write = response.read, caller.write
    # Nearly all of a stream's life: one read, one look, one write.
    while reader.error is None and reader.progress < Progress.FINISHED:
        chunk = await read()
        if not chunk:
            break
        if released := reader.feed(chunk):
            if sent is not None:
                sent.add(released)
            await write(released)
    while reader.error is None and reader.progress < Progress.COMPLETE:
        chunk = await read_event_bytes(response, reader)
        if not chunk:
            if rest := reader.finish():
                await write(rest)
            return
        if released := reader.feed(chunk):
            if sent is not None:
                sent.add(released)
            await write(released)
