"""The life of a call: admit, plan, exchange, commit, relay, and tell what happened."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict
from steer_policies.config import Ambiguous, DialectName
from steer_policies.deadline import call_deadline
from steer_policies.dialects.base import Dialect
from steer_policies.facts import CallFacts
from steer_policies.outcome import SUCCESS, Failure, Verdict
from steer_policies.plan import Plan, Refused
from steer_policies.planner import plan as make_plan

from steer_proxy.engine.attempt import Problem, Terms
from steer_proxy.engine.clock import Clock, new_span_id
from steer_proxy.engine.conclusion import Settled
from steer_proxy.engine.config import Config
from steer_proxy.engine.exchange import Exchange
from steer_proxy.engine.registry import LiveView, Registry
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.attempt import HttpSender
from steer_proxy.http.body import MemoryBudget
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse, abandon
from steer_proxy.http.guard import Guard
from steer_proxy.http.intake import Intake
from steer_proxy.http.outbound import Outbound
from steer_proxy.http.problems import PLAIN, Refusal, problem_response
from steer_proxy.http.replies import answer_headers, own_headers, tell
from steer_proxy.http.relay import Broken, relay_plain, relay_stream
from steer_proxy.http.websocket import Tunnel
from steer_proxy.http.wire import UpstreamResponse, Wire

LOGGER: Final = logging.getLogger("steer.call")

#: Methods that RFC 9110 §9.2.2 calls idempotent: repeating them is safe wherever they go.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


@dataclass(slots=True)
class _Progress:
    """How far a request has come, for whoever must end it early."""

    speaks: Dialect = PLAIN
    call: Call | None = None
    response: CallerResponse | None = None
    tunnel: Tunnel | None = None


class Gateway:
    """Serves the data port. One per process; `reconfigure` swaps the revision new calls begin with."""

    def __init__(self, config: Config, *, registry: Registry, wire: Wire, clock: Clock) -> None:
        self.registry: Final = registry
        self.wire: Final = wire
        self.clock: Final = clock
        self.draining = False
        self.config = config
        self._budget = MemoryBudget(config.limits.body_memory)
        # Instances differ, so that one Steer behind another is not taken for a loop.
        self._pseudonym = f"steer-{new_span_id()}"
        self._scopes: set[asyncio.Timeout] = set()
        self._last_done: asyncio.Event | None = None
        self._install(config)

    @property
    def active(self) -> int:
        """How many calls are being served."""
        return len(self._scopes)

    def _install(self, config: Config) -> None:
        self.config = config
        self._budget.total = config.limits.body_memory
        self._guard = Guard.of(config.listen)
        self._intake = Intake(config, self._budget, self.clock, self._pseudonym)
        self._addresses = Addresses(config, self.wire)

    def reconfigure(self, config: Config) -> None:
        """Let new calls begin with another revision; those under way keep theirs."""
        self._install(config)
        self.registry.forget_all_but(frozenset(config.upstreams))

    def cut(self) -> None:
        """End every call that still runs with its dialect's error: the drain's time is up."""
        now = asyncio.get_running_loop().time()
        for scope in tuple(self._scopes):
            scope.reschedule(now)

    async def quiet(self, timeout: float) -> bool:
        """Wait until no call is being served, at most `timeout` seconds; whether it came to that."""
        if self._scopes:
            self._last_done = asyncio.Event()
            try:
                async with asyncio.timeout(timeout):
                    await self._last_done.wait()
            except TimeoutError:
                return False
            finally:
                self._last_done = None
        return True

    async def handle(self, request: BaseRequest) -> CallerResponse:
        """Serve one request."""
        progress = _Progress()
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    return await self._serve(request, progress)
                except Refusal as refusal:
                    return await self._refused(request, progress, refusal)
                finally:
                    self._scopes.discard(scope)
                    if self._last_done is not None and not self._scopes:
                        self._last_done.set()
        except TimeoutError:
            if not scope.expired():
                raise
            return await self._cut(request, progress)

    async def _serve(self, request: BaseRequest, progress: _Progress) -> CallerResponse:
        addresses = self._addresses
        token_is_key = self._guard.check(request.headers)
        intake = self._intake
        matched = intake.route(request)
        progress.speaks = matched.dialect
        call = await intake.accept(request, matched, token_is_key=token_is_key)
        progress.call = call
        try:
            made = self._plan(call)
            if isinstance(made, Refused):
                raise Refusal(Problem(made.status, made.code, made.message))
            return await self._exchange(request, progress, call, made, addresses)
        finally:
            call.body.close()

    def _plan(self, call: Call) -> Plan | Refused:
        steering = call.steering
        facts = CallFacts(
            request=call.facts,
            method=call.method,
            path=call.path,
            headers=call.headers,
            metadata=steering.metadata,
            budget=steering.budget,
            quality=steering.quality,
            body=call.json,
            body_size=call.body.size,
        )
        policy = call.route.policy
        live = LiveView(self.registry, self.clock, policy.upstreams, call.credentials)
        return make_plan(policy, facts, live, steering.upstream)

    async def _exchange(
        self,
        request: BaseRequest,
        progress: _Progress,
        call: Call,
        made: Plan,
        addresses: Addresses,
    ) -> CallerResponse:
        policy = call.route.policy
        sender = HttpSender(call, made, Outbound(call, addresses), self.wire, self.clock)
        exchange = Exchange(
            made,
            terms(call, made),
            policy.retry,
            upstreams=policy.upstreams,
            credentials=call.credentials,
            registry=self.registry,
            clock=self.clock,
            sender=sender,
        )
        settled = await exchange.run()
        verdict: Verdict | None = None
        try:
            response, verdict = await self._answer(request, progress, call, made, settled)
            return response
        finally:
            hold, answer = settled.hold, settled.answer
            if hold is not None:
                hold.settle(verdict, self.clock.now())
                hold.release()
            if answer is not None:
                await answer.discard()
            tell(call, made, settled, verdict, self.clock.now())

    async def _answer(
        self,
        request: BaseRequest,
        progress: _Progress,
        call: Call,
        made: Plan,
        settled: Settled[HttpAnswer],
    ) -> tuple[CallerResponse, Verdict | None]:
        """Give the caller what the exchange brought; the verdict is the whole answer's."""
        answer = settled.answer
        if answer is None or answer.status is None or answer.headers is None:
            problem = settled.problem or Problem(502, "steer_upstream_broken", "No answer came.")
            headers = own_headers(call, made, settled)
            return problem_response(call.dialect, problem, headers, close=self.draining), None
        headers = answer_headers(call, made, settled, answer)
        if answer.status == 101 and answer.response is not None:
            return await self._tunnel(request, progress, headers, answer.response)
        body = b""
        verdict = answer.verdict
        if answer.whole and (not verdict.ok or answer.reader is None or answer.finished):
            body, answer.held = answer.held, b""
        response = progress.response = CallerResponse(answer.status, answer.reason, headers, body)
        if self.draining:
            response.close_connection()
        if not body and not (answer.whole and not answer.held):
            verdict = await self._relay(request, call, made, response, answer)
        return response, verdict

    async def _tunnel(
        self,
        request: BaseRequest,
        progress: _Progress,
        headers: CIMultiDict[str],
        upstream: UpstreamResponse,
    ) -> tuple[CallerResponse, Verdict | None]:
        """Both sides switch protocols; bytes flow until one of them has had enough."""
        response = progress.response = CallerResponse(101, upstream.reason, headers)
        await response.prepare(request)
        response.send_head()
        tunnel = progress.tunnel = Tunnel(request, upstream)
        await tunnel.run()
        abandon(request)
        return response, SUCCESS

    async def _relay(
        self,
        request: BaseRequest,
        call: Call,
        made: Plan,
        response: CallerResponse,
        answer: HttpAnswer,
    ) -> Verdict:
        """Send a committed answer as it comes."""
        loop = asyncio.get_running_loop()
        await response.prepare(request)
        upstream = answer.response
        unbounded = call.facts.operation == "http" and answer.reader is None
        stuck: asyncio.TimerHandle | None = None
        if upstream is not None and not unbounded:
            upstream.arm(loop.time() + made.timeouts.max_stream, Failure.DEADLINE)
            stuck = loop.call_later(made.timeouts.max_stream + 5.0, cut_off, request)
        try:
            if answer.reader is None:
                verdict = await relay_plain(response, answer)
            else:
                verdict = await relay_stream(response, answer, answer.reader)
                if upstream is not None:
                    answer.response = None
                    self.wire.retire(upstream)
            await response.write_eof()
            return verdict
        except Broken as broken:
            await self._break(request, call, response, answer, broken.verdict)
            return broken.verdict
        finally:
            if stuck is not None:
                stuck.cancel()

    async def _break(
        self,
        request: BaseRequest,
        call: Call,
        response: CallerResponse,
        answer: HttpAnswer,
        verdict: Verdict,
    ) -> None:
        """End a committed answer that broke, so that nobody takes it for complete."""
        if answer.reader is not None:
            message = f"The stream broke before its end ({verdict.failure}); it is not complete."
            event = call.dialect.error_event(
                call.facts, answer.content_type, "steer_stream_broken", message
            )
            if event:
                await response.write(event)
        abandon(request)

    async def _refused(
        self, request: BaseRequest, progress: _Progress, refusal: Refusal
    ) -> CallerResponse:
        headers: CIMultiDict[str] = CIMultiDict()
        if progress.call is not None:
            headers["X-Steer-Request-ID"] = progress.call.request_id
        return problem_response(
            progress.speaks, refusal.problem, headers, close=refusal.close or self.draining
        )

    async def _cut(self, request: BaseRequest, progress: _Progress) -> CallerResponse:
        """The drain's time is up: end this call with its dialect's error."""
        response, call = progress.response, progress.call
        problem = Problem(
            503, "steer_draining", "Steer is shutting down and could not finish this call.",
            retry_after=1.0, sdk_retry=True,
        )
        if response is None or not response.prepared:
            return problem_response(progress.speaks, problem, CIMultiDict(), close=True)
        if progress.tunnel is not None:
            await progress.tunnel.go_away()
        elif call is not None:
            event = call.dialect.error_event(
                call.facts, response.headers.get("Content-Type", ""), problem.code, problem.message
            )
            if event:
                await response.write(event)
        abandon(request)
        return response


def terms(call: Call, made: Plan) -> Terms:
    """What this call allows the exchange to do."""
    policy, steering = call.route.policy, call.steering
    idempotent = call.method in _IDEMPOTENT
    ambiguous = policy.retry.ambiguous
    if ambiguous is None:
        unsure = call.dialect.name is DialectName.HTTP and not idempotent
        ambiguous = Ambiguous.FAIL if unsure else Ambiguous.RETRY
    return Terms(
        deadline=call_deadline(
            call.accepted_at,
            made.timeouts.total,
            steering.timeout,
            None if steering.budget is None else steering.budget.ms,
            call.silence,
        ),
        ambiguous=ambiguous,
        unsent_only=not call.facts.steered and not idempotent,
        fallback_on_refusal=policy.fallback_on_refusal,
    )


def cut_off(request: BaseRequest) -> None:
    """Drop a caller that neither reads nor leaves."""
    transport = request.transport
    if transport is not None:
        transport.abort()
