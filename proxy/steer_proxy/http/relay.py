"""From the commit point on: the answer goes to the caller as it comes, and never ends falsely."""

from __future__ import annotations

from collections.abc import Callable

from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.outcome import SUCCESS, Failure, Verdict, failed
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.attempt import read_event_bytes
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.response import UpstreamError, UpstreamResponse
from steer_proxy.http.resume import Sent


class Broken(Exception):
    """An answer died after its commit point."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict.failure))
        self.verdict = verdict


async def relay_plain(
    caller: CallerResponse, answer: HttpAnswer, alive: Callable[[], None] | None = None
) -> Verdict:
    """Relay an answer whose end only its framing tells; `alive` is called as the caller takes it.

    Raises:
        Broken: when it was cut.
    """
    response = answer.response
    if answer.held:
        await caller.write(answer.held)
    answer.held = b""
    if response is not None and not answer.whole:
        try:
            while chunk := await response.read():
                await caller.write(chunk)
                if alive is not None:
                    alive()
        except UpstreamError as error:
            raise Broken(failed(error.failure)) from error
    return SUCCESS


async def relay_stream(
    caller: CallerResponse, answer: HttpAnswer, reader: StreamReader, sent: Sent | None
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


async def _pump(
    caller: CallerResponse, response: UpstreamResponse, reader: StreamReader, sent: Sent | None
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
