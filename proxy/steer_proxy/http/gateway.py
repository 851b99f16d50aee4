"""The life of a call: admit, plan, exchange, commit, relay, and tell what happened."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp.web_request import BaseRequest

from steer_policies.budget import tightest
from steer_policies.config import Ambiguous, DialectName
from steer_policies.deadline import call_deadline
from steer_policies.facts import CallFacts
from steer_policies.plan import Plan, Refused
from steer_policies.planner import plan as make_plan
from steer_policies.planner import plan_at_once
from steer_policies.steering import NONE as NO_STEERING
from steer_proxy.engine.attempt import Problem, Terms
from steer_proxy.engine.clock import Clock, new_span_id
from steer_proxy.engine.conclusion import Spent
from steer_proxy.engine.config import Config
from steer_proxy.engine.exchange import Exchange
from steer_proxy.engine.prices import GenaiPrices
from steer_proxy.engine.registry import LiveView, Registry
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.attempt import HttpSender
from steer_proxy.http.body import MemoryBudget
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse, abandon
from steer_proxy.http.delivery import Delivery
from steer_proxy.http.guard import Guard
from steer_proxy.http.intake import Intake
from steer_proxy.http.lines import line
from steer_proxy.http.outbound import Outbound
from steer_proxy.http.problems import Refusal, problem_response
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.readable import require_readable
from steer_proxy.http.wire import Wire

LOGGER: Final = logging.getLogger("steer.call")

#: How often calls are looked at which may last too long, in seconds.
SWEEP: Final = 15.0

#: Methods that RFC 9110 §9.2.2 calls idempotent: repeating them is safe wherever they go.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})

_DRAINING: Final = Problem(
    503,
    "steer_draining",
    "Steer is shutting down and could not finish this call.",
    retry_after=1.0,
    sdk_retry=True,
)


class Gateway:
    """Serves the data port; `reconfigure` swaps the revision that new calls begin with."""

    def __init__(self, config: Config, *, registry: Registry, wire: Wire, clock: Clock) -> None:
        self.registry = registry
        self.wire = wire
        self.clock = clock
        self.draining = False
        self.config = config
        self._budget = MemoryBudget(config.limits.body_memory)
        # Instances differ, so that one Steer behind another is not taken for a loop.
        self._pseudonym = f"steer-{new_span_id()}"
        self._running: dict[asyncio.Task[object], CallProgress] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._over = False
        self._install(config)

    @property
    def active(self) -> int:
        """How many calls are being served."""
        return len(self._running)

    def _install(self, config: Config) -> None:
        self.config = config
        self._budget.total = config.limits.body_memory
        self._guard = Guard.of_data(config.listen)
        states = self.registry.bind(upstream.policy for upstream in config.upstreams.values())
        self._intake = Intake(config, states, self._budget, self.clock, self._pseudonym)
        self._addresses = Addresses(config, self.wire)

    def reconfigure(self, config: Config) -> None:
        """Let new calls begin with another revision; those under way keep theirs."""
        self._install(config)

    def cut(self) -> None:
        """End every call that still runs with its dialect's error, and begin no other.

        The drain's time is up.
        """
        self._over = True
        for task, progress in tuple(self._running.items()):
            progress.cut = True
            task.cancel()

    def overdue_later(self) -> None:
        """See to it that calls are looked at which last longer than they may.

        One timer looks after all of them, now and then: a stream's own would cost half a kilobyte.
        """
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now = asyncio.get_running_loop().time()
        for progress in tuple(self._running.values()):
            if progress.until is None:
                continue
            if now < progress.until:
                self.overdue_later()
            elif progress.transport is not None:
                # It neither reads nor leaves.
                progress.transport.abort()

    async def handle(self, request: BaseRequest) -> CallerResponse:
        """Serve one request."""
        progress = CallProgress(transport=request.transport)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is served in a task")
        self._running[task] = progress
        try:
            return await self._serve(request, progress)
        except Refusal as refusal:
            return self._refused(progress, refusal)
        except asyncio.CancelledError:
            # As asyncio.timeout does: our own cancellation is turned into something else, anybody
            # else's (the caller hung up, say) goes on.
            if not progress.cut or task.uncancel() > 0:
                raise
            return await self._cut(request, progress)
        finally:
            del self._running[task]

    async def _serve(self, request: BaseRequest, progress: CallProgress) -> CallerResponse:
        addresses = self._addresses
        token_is_key = self._guard.check(request.headers, request.raw_path)
        intake = self._intake
        matched = intake.route(request)
        progress.speaks = matched.dialect
        if self._over:
            raise Refusal(_DRAINING, close=True)
        call = await intake.accept(request, matched, token_is_key=token_is_key)
        progress.call = call
        try:
            await warm_prices(call)
            made = self._plan(call)
            if isinstance(made, Refused):
                raise Refusal(Problem(made.status, made.code, made.message))
            require_readable(call, made)
            if not needs_value(call, made):
                call.json = None  # larger than the body, and a first token may take its time
            return await self._exchange(request, progress, call, made, addresses)
        finally:
            call.body.close()

    def _plan(self, call: Call) -> Plan | Refused:
        steering, policy = call.steering, call.route.policy
        if steering is NO_STEERING and (made := plan_at_once(policy, call.facts)) is not None:
            return made
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
        live = LiveView(call.states, self.clock, call.credentials)
        return make_plan(policy, facts, live, steering.upstream)

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
        policy = call.route.policy
        return Exchange(
            made,
            terms(call, deadline),
            policy.retry,
            credentials=call.credentials,
            states=call.states,
            clock=self.clock,
            spent=spent,
            sender=HttpSender(call, made, Outbound(call, addresses), self.wire, self.clock),
        )

    async def _exchange(
        self,
        request: BaseRequest,
        progress: CallProgress,
        call: Call,
        made: Plan,
        addresses: Addresses,
    ) -> CallerResponse:
        settled = await self.exchange(call, made, addresses, deadline_of(call, made)).run()
        delivery = Delivery(self, request, progress, call, made, addresses)
        return await delivery.deliver(settled)

    def _refused(self, progress: CallProgress, refusal: Refusal) -> CallerResponse:
        call = progress.call
        own = [] if call is None else [line("X-Steer-Request-ID", call.request_id)]
        closing = refusal.close or self.draining
        return problem_response(progress.speaks, refusal.problem, own, close=closing)

    async def _cut(self, request: BaseRequest, progress: CallProgress) -> CallerResponse:
        """The drain's time is up: end this call with its dialect's error."""
        response, call = progress.response, progress.call
        if response is None or not response.prepared:
            return problem_response(progress.speaks, _DRAINING, close=True)
        # A tunnel has said goodbye by itself.
        if progress.tunnel is None and call is not None and not response.ended:
            event = call.dialect.error_event(
                call.facts, response.media_type, _DRAINING.code, _DRAINING.message
            )
            if event:
                await response.write(event)
        abandon(request)
        return response


async def warm_prices(call: Call) -> None:
    """Load the price list before the first call that needs it, without stopping all the others."""
    budget, prices = call.steering.budget, call.route.policy.prices
    if (
        budget is not None
        and budget.cost_usd is not None
        and isinstance(prices, GenaiPrices)
        and not prices.loaded
    ):
        await asyncio.to_thread(prices.load)


def needs_value(call: Call, made: Plan) -> bool:
    """Whether the parsed body is needed after planning: to apply options to it."""
    return bool(call.usage_options) or any(each.options for each in made.candidates)


def deadline_of(call: Call, made: Plan) -> float:
    """The loop time by which a call must have committed."""
    budget = tightest(call.steering.budget, call.route.policy.ceiling)
    return call_deadline(
        call.accepted_at,
        made.timeouts.total,
        call.steering.timeout,
        None if budget is None else budget.ms,
        call.silence,
    )


def terms(call: Call, deadline: float) -> Terms:
    """What this call allows the exchange to do."""
    policy = call.route.policy
    budget = tightest(call.steering.budget, policy.ceiling)
    idempotent = call.method in _IDEMPOTENT
    ambiguous = policy.retry.ambiguous
    if ambiguous is None:
        unsure = call.dialect.name is DialectName.HTTP and not idempotent
        ambiguous = Ambiguous.FAIL if unsure else Ambiguous.RETRY
    return Terms(
        deadline=deadline,
        ambiguous=ambiguous,
        unsent_only=not call.facts.steered and not idempotent,
        fallback_on_refusal=policy.fallback_on_refusal,
        keyed="Idempotency-Key" in call.headers,
        budget_usd=None if budget is None else budget.cost_usd,
    )
