"""Giving the caller what the exchange brought, to its very end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, Protocol, TypeVar

from aiohttp.web_request import BaseRequest

from steer_policies.config import CommitPoint, OnBreak
from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.outcome import SUCCESS, Failure, Verdict, failed
from steer_policies.plan import Plan
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.engine.exchange import Exchange
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.attempt import read_event_bytes
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.counting import ends_of, unpack
from steer_proxy.http.journal import Journal
from steer_proxy.http.outlet import Outlet, Response
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.relay import Broken, relay_plain, relay_stream
from steer_proxy.http.replies import answer_head, between_events, own_lines, tell
from steer_proxy.http.response import UpstreamError, UpstreamResponse
from steer_proxy.http.resume import Joint, NotTheSame, Sent
from steer_proxy.http.websocket import Tunnel
from steer_proxy.http.wire import Wire

#: An answer larger than this, in bytes, is written under the eyes of the sweep.
AT_ONCE: Final = 64 * 1024

#: How long a caller may take to read what is there when its stream has failed, in seconds.
LAST_WORDS: Final = 5.0


R = TypeVar("R", bound=Response)


class Services(Protocol):
    """What a delivery needs of the gateway it belongs to."""

    clock: Clock
    wire: Wire
    draining: bool
    journal: Journal | None

    def overdue_later(self) -> None:
        """See to it that calls are looked at which last longer than they may."""

    def exchange(
        self,
        call: Call,
        made: Plan,
        addresses: Addresses,
        deadline: float,
        spent: Spent | None = None,
    ) -> Exchange[HttpAnswer]:
        """The attempts of a call by a plan, to commit before `deadline` (loop time).

        `spent` is what earlier attempts of the call took of its limits.
        """


class Delivery(Generic[R]):
    """One call's answer on its way to the caller, or to whoever reads its recording.

    `verdict` is that of the whole answer, once `deliver` is through.
    """

    __slots__ = (
        "_addresses",
        "_call",
        "_made",
        "_outlet",
        "_progress",
        "_request",
        "_resumed",
        "_services",
        "verdict",
    )

    def __init__(
        self,
        services: Services,
        request: BaseRequest,
        progress: CallProgress,
        call: Call,
        made: Plan,
        addresses: Addresses,
        outlet: Outlet[R],
    ) -> None:
        self.verdict: Verdict | None = None
        self._resumed = False
        self._outlet = outlet
        self._services = services
        self._request = request
        self._progress = progress
        self._call = call
        self._made = made
        self._addresses = addresses

    async def deliver(self, settled: Settled[HttpAnswer]) -> R:
        """Answer the caller; slot, permits and upstream connection are given back in any case."""
        clock = self._services.clock
        verdict: Verdict | None = None
        response: R | None = None
        try:
            response, verdict = await self._answer(settled)
            return response
        finally:
            self.verdict = verdict
            if settled.hold is not None:
                settled.hold.settle(verdict)
                settled.hold.release()
            if settled.answer is not None:
                if verdict is None:
                    settled.answer.end(None, clock.now())
                await settled.answer.discard()
            if not self._resumed:  # that was told with the answer that took its place
                tell(self._call, self._made, settled, verdict, clock.now())
            journal = self._services.journal
            if journal is not None and self._outlet.personal:
                # A problem's response is given whole, and nobody may have to end it early.
                shown = response if isinstance(response, CallerResponse) else None
                given = shown or self._progress.response
                cut = self._progress.cut
                journal.answered(self._call, self._made, settled, verdict, given, cut=cut)

    async def _answer(self, settled: Settled[HttpAnswer]) -> tuple[R, Verdict | None]:
        """Begin the answer; the verdict is that of the whole of it."""
        call, made, answer, outlet = self._call, self._made, settled.answer, self._outlet
        closing = self._services.draining
        if answer is None or answer.status is None:
            problem = settled.problem or Problem(502, "steer_upstream_broken", "No answer came.")
            own = own_lines(call, made, settled, personal=outlet.personal)
            return outlet.problem(call.dialect, problem, own, close=closing), None
        if answer.broken:
            problem = _broken_off(answer.status, settled)
            own = own_lines(call, made, settled, personal=outlet.personal)
            return outlet.problem(call.dialect, problem, own, close=closing), answer.verdict
        if answer.status == 101 and answer.response is not None:
            response = self._begun(settled, answer, b"")
            return response, await self._tunnel(response, settled, answer.response)
        verdict = answer.verdict
        given = answer.whole and (answer.reader is None or answer.finished or not verdict.ok)
        body = answer.held if given else b""
        response = self._begun(settled, answer, body)
        if closing:
            response.close_connection()
        if not given:
            verdict = await self._relay(response, settled, answer)
        elif len(body) > AT_ONCE:
            await unpack(call, answer)
            # More than the kernel takes at once: a caller that never reads must not hold it.
            self._alive()
            self._services.overdue_later()
            await response.prepare(self._request)
            await response.write_eof()
        return response, verdict

    def _begun(self, settled: Settled[HttpAnswer], answer: HttpAnswer, body: bytes) -> R:
        """The response with an upstream's head, seen by who may have to end it early."""
        personal = self._outlet.personal
        fields, own = answer_head(self._call, self._made, settled, answer, personal=personal)
        response = self._outlet.answer(answer, fields, own, body)
        if isinstance(response, CallerResponse):
            self._progress.response = response
        return response

    async def _tunnel(
        self, response: R, settled: Settled[HttpAnswer], upstream: UpstreamResponse
    ) -> Verdict | None:
        """Both sides switch protocols; bytes flow until one of them has had enough."""
        await response.prepare(self._request)
        if isinstance(response, CallerResponse):
            response.send_head()
        tunnel = self._progress.tunnel = Tunnel(self._request, upstream)
        verdict = await tunnel.run()
        if settled.hold is not None:
            # Without a time: how long a conversation lasts says nothing of the upstream's speed.
            settled.hold.settle(verdict)
        return verdict

    async def _relay(
        self, response: R, settled: Settled[HttpAnswer], answer: HttpAnswer
    ) -> Verdict:
        """Send a committed answer as it comes."""
        loop = asyncio.get_running_loop()
        await response.prepare(self._request)
        upstream, reader = answer.response, answer.reader
        longest = self._made.timeouts.max_stream
        endless = (
            reader is None
            and self._call.facts.operation == "http"
            and answer.content_type.lower().startswith("text/event-stream")
            # A keyed call goes on without its callers: something must end it.
            and self._outlet.personal
        )
        alive: Callable[[], None] | None = None
        if endless and upstream is not None:
            # An event stream of a tool may last for ever, but not a write that nobody takes.
            upstream.disarm()  # the deadline was that of the commit
            alive = self._alive
            alive()
            self._services.overdue_later()
        elif upstream is not None:
            upstream.arm(loop.time() + longest, Failure.DEADLINE)
            # A caller that does not read holds us in a write, where no upstream's limit ends it.
            self._progress.until = loop.time() + longest + LAST_WORDS
            self._services.overdue_later()
        sent = None if reader is None else self._remembering(settled, reader)
        ends = ends_of(self._call, answer)
        if sent is None:
            self._travel_light(upstream)
        try:
            if reader is None:
                verdict = await relay_plain(response, answer, alive, ends)
            else:
                verdict = await relay_stream(response, answer, reader, sent)
                if upstream is not None:
                    answer.response = None
                    self._services.wire.retire(upstream)
            await response.write_eof()
            return verdict
        except Broken as broken:
            answer.broken = True
            await answer.discard()
            torn = reader is not None and reader.torn
            if sent is None or torn or not await self._resume(response, settled, answer, sent):
                await self._break(response, answer, broken.verdict)
            # Of a failing answer the head has said what it is, however its body ends.
            return broken.verdict if answer.verdict.ok else answer.verdict

    def _alive(self) -> None:
        """The caller took what there was: count anew how long it may take for more."""
        now = asyncio.get_running_loop().time()
        self._progress.until = now + self._made.timeouts.max_stream + LAST_WORDS

    def _travel_light(self, upstream: UpstreamResponse | None) -> None:
        """Let go of what only another attempt would need: there is none after the commit."""
        self._call.json = None
        if upstream is not None:
            upstream.forget_head()
        if upstream is None or not upstream.uploading:
            self._call.body.close()

    def _remembering(self, settled: Settled[HttpAnswer], reader: StreamReader) -> Sent | None:
        """Where to remember what was sent, when the stream may be resumed."""
        call = self._call
        # Asking somebody else for the rest is another execution, which a key forbids.
        once = call.key is not None
        wanted = self._made.on_break is OnBreak.RESUME and call.facts.resumable and not once
        return Sent() if wanted and settled.remaining and reader.text is not None else None

    async def _break(self, response: R, answer: HttpAnswer, verdict: Verdict) -> None:
        """End a committed answer that broke, so that nobody takes it for complete."""
        self._progress.until = asyncio.get_running_loop().time() + LAST_WORDS
        self._services.overdue_later()
        # What came behind half an event would be taken for the rest of it.
        reader = answer.reader
        between = between_events(answer.content_type, response.tail)
        if reader is not None and not reader.torn and between:
            event = reader.error_event or self._call.dialect.error_event(
                self._call.facts,
                answer.content_type,
                "steer_stream_broken",
                f"The stream broke before its end ({verdict.failure}); it is not complete.",
            )
            if event:
                await response.write(event)
        response.abandon()

    async def _resume(
        self,
        response: R,
        settled: Settled[HttpAnswer],
        answer: HttpAnswer,
        sent: Sent,
    ) -> bool:
        """Go on with another candidate's answer, if it says the same; whether that came off."""
        first, text = sent.whole, None if answer.reader is None else answer.reader.text
        if first is None or not text:
            return False
        call, services = self._call, self._services
        made = replace(self._made, candidates=settled.remaining, commit=CommitPoint.FIRST_TOKEN)
        patience = made.timeouts.total
        if call.silence is not None:
            patience = min(patience, call.silence)
        deadline = asyncio.get_running_loop().time() + patience
        again = await services.exchange(call, made, self._addresses, deadline, settled.spent).run()
        verdict: Verdict | None = None
        try:
            if again.hold is None or again.answer is None:
                return False
            verdict = await self._join(response, again.answer, first, text)
            self._resumed = verdict.ok
            return verdict.ok
        finally:
            if again.hold is not None:
                again.hold.settle(verdict)
                again.hold.release()
            if again.answer is not None:
                again.answer.end(verdict, services.clock.now())
                await again.answer.discard()
            tell(call, made, again, verdict, services.clock.now())

    async def _join(self, response: R, answer: HttpAnswer, first: bytes, text: str) -> Verdict:
        """Relay what the caller is still missing of the second answer."""
        call, upstream, second = self._call, answer.response, answer.reader
        reader = call.dialect.read_stream(call.facts, answer.content_type, keep_text=True)
        if upstream is None or second is None or reader is None:
            return failed(Failure.PROTOCOL)
        joint = Joint(call.dialect, call.facts, first, text, reader)
        try:
            missing = joint.feed(answer.held)
            while True:
                if missing:
                    await response.write(missing)
                if (error := reader.error or second.error) is not None:
                    return error
                if answer.whole or reader.progress is Progress.COMPLETE:
                    break
                chunk = await read_event_bytes(upstream, second)
                answer.whole = not chunk
                missing = joint.feed(second.feed(chunk) if chunk else second.finish())
        except NotTheSame:
            # The second answer is none the worse for it: nobody learns anything.
            return failed(Failure.CANCELLED, code="not_the_same")
        except UpstreamError as error:
            return failed(error.failure)
        if rest := joint.finish():
            await response.write(rest)
        if not joint.joined or reader.progress < Progress.FINISHED:
            return failed(Failure.TRUNCATED)
        await response.write_eof()
        return SUCCESS


def _broken_off(status: int, settled: Settled[HttpAnswer]) -> Problem:
    """What to tell in place of a failing answer that was cut: half of it would not pass for one."""
    return Problem(
        status,
        "steer_upstream_broken",
        f"The provider answered {status}, and its answer broke off.",
        settled.retry_after,
        settled.sdk_retry,
    )
