"""The life of a call: admit, plan, exchange, commit, relay, and tell what happened."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp.web_request import BaseRequest

from steer_policies.dialects.base import Dialect
from steer_policies.facts import CallFacts
from steer_policies.plan import Plan, Refused
from steer_policies.planner import plan as make_plan
from steer_policies.planner import plan_at_once
from steer_policies.steering import NONE as NO_STEERING
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.bookkeeper import Bookkeeper
from steer_proxy.engine.clock import Clock, new_span_id
from steer_proxy.engine.conclusion import Spent
from steer_proxy.engine.config import Config
from steer_proxy.engine.costing import Costing
from steer_proxy.engine.exchange import Exchange
from steer_proxy.engine.registry import LiveView, Registry
from steer_proxy.http.addresses import Addresses
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.attempt import HttpSender
from steer_proxy.http.body import MemoryBudget
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse, abandon
from steer_proxy.http.delivery import Delivery
from steer_proxy.http.executions import Executions
from steer_proxy.http.guard import Guard
from steer_proxy.http.intake import Intake
from steer_proxy.http.journal import Journal
from steer_proxy.http.keyed import KeyedCalls
from steer_proxy.http.keyed_problems import DRAINING
from steer_proxy.http.orphans import may_be_adopted
from steer_proxy.http.outbound import Outbound
from steer_proxy.http.outlet import TO_CALLER
from steer_proxy.http.patience import Patience
from steer_proxy.http.problems import INTERNAL, Refusal, problem_response, refuse
from steer_proxy.http.progress import CallProgress
from steer_proxy.http.readable import require_readable
from steer_proxy.http.replies import parting_event, personal_lines
from steer_proxy.http.terms import deadline_of, needs_value, terms, warm_prices
from steer_proxy.http.wire import Wire

LOGGER: Final = logging.getLogger("steer.call")

#: How often calls are looked at which may last too long, in seconds.
SWEEP: Final = 15.0

_NO_LEDGER: Final = Problem(
    503,
    "steer_ledger_unavailable",
    "This Steer keeps no ledger, and so cannot protect a call from being made twice.",
    sdk_retry=False,
)


class Gateway:
    """Serves the data port; `reconfigure` swaps the revision that new calls begin with.

    `books` is the process's ledger; without one nothing is written down, and keyed calls are
    refused. `costing` prices what is written at once.
    """

    def __init__(
        self,
        config: Config,
        *,
        registry: Registry,
        wire: Wire,
        clock: Clock,
        books: Bookkeeper | None = None,
        costing: Costing | None = None,
    ) -> None:
        self._costing = costing or Costing(config)
        self.journal: Journal | None = None
        self._keyed: KeyedCalls | None = None
        if books is not None:
            self.journal = Journal(books, self._costing, clock)
            executions = Executions(self, books, self.journal, clock)
            self._keyed = KeyedCalls(self, books, self.journal, executions)
        self._patience = Patience(self)
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
        """How many calls are being served, or made for callers who may come back."""
        detached = 0 if self._keyed is None else self._keyed.detached
        return len(self._running) + detached

    @property
    def unwritten(self) -> int:
        """How many calls have been answered whose records the ledger does not take."""
        return 0 if self._keyed is None else self._keyed.unwritten

    def _install(self, config: Config) -> None:
        self.config = config
        self._budget.total = config.limits.body_memory
        self._guard = Guard.of_data(config.listen)
        states = self.registry.bind(upstream.policy for upstream in config.upstreams.values())
        self._intake = Intake(config, states, self._budget, self.clock, self._pseudonym)
        self._addresses = Addresses(config, self.wire)

    def reconfigure(self, config: Config) -> None:
        """Let new calls begin with another revision; those under way keep theirs."""
        self._costing.reconfigure(config)
        self._install(config)

    async def close(self) -> None:
        """End what runs without a caller; what may have been executed is marked as uncertain."""
        await self._patience.close()
        if self._keyed is not None:
            await self._keyed.close()

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

    def speaks(self, method: str, target: str) -> Dialect:
        """How a request is answered that is refused before anything else is known of it."""
        return self._intake.speaks(method, target)

    async def handle(self, request: BaseRequest) -> CallerResponse:
        """Serve one request."""
        progress = CallProgress(transport=request.transport, began=self.clock.now())
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is served in a task")
        self._running[task] = progress
        try:
            return await self._serve(request, progress)
        except Refusal as refusal:
            return self._refused(request, progress, refusal)
        except asyncio.CancelledError:
            self._left(progress, DRAINING.problem if progress.cut else None)
            # As asyncio.timeout does: our own cancellation is turned into something else, anybody
            # else's (the caller hung up, say) goes on.
            if not progress.cut or task.uncancel() > 0:
                raise
            return await self._cut(request, progress)
        except Exception:
            self._left(progress, INTERNAL)  # a bug, which the connection answers and logs
            raise
        finally:
            del self._running[task]

    def _left(self, progress: CallProgress, problem: Problem | None) -> None:
        """Write down a call that has ended before its answer began, unless somebody else does."""
        call = progress.call
        if self.journal is not None and call is not None and not progress.told:
            spent = progress.spent or Spent()
            self.journal.left(call, progress.made, spent, problem=problem)

    async def _serve(self, request: BaseRequest, progress: CallProgress) -> CallerResponse:
        addresses = self._addresses
        token_is_key = self._guard.check(request.headers, request.raw_path)
        intake = self._intake
        matched = intake.route(request)
        progress.speaks, progress.route = matched.dialect, matched.route.name
        if self._over:
            raise Refusal(DRAINING.problem, close=True)
        call = await intake.accept(request, matched, token_is_key=token_is_key)
        progress.call = call
        try:
            if call.key is not None:
                if self._keyed is None:
                    raise Refusal(_NO_LEDGER)
                most = self.config.limits.max_connections
                return await self._keyed.serve(request, progress, call, addresses, most=most)
            if call.route.policy.idempotency.require_key and call.facts.steered:
                raise refuse(
                    400,
                    "steer_key_required",
                    f"The route {call.route.name!r} takes calls with an Idempotency-Key only: send "
                    "one, a new one for each call, the same one when you try it again.",
                )
            if may_be_adopted(call):
                return await self._patience.serve(request, progress, call, addresses)
            return await self._exchange(request, progress, call, addresses)
        finally:
            call.body.close()

    async def prepare(self, call: Call) -> Plan:
        """The plan of a call.

        Raises:
            Refusal: when no candidate can take it.
        """
        await warm_prices(call)
        made = self._plan(call)
        if isinstance(made, Refused):
            raise Refusal(Problem(made.status, made.code, made.message))
        require_readable(call, made)
        if not needs_value(call, made):
            call.json = None  # larger than the body, and a first token may take its time
        return made

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
        sender = HttpSender(call, made, Outbound(call, addresses), self.wire, self.clock)
        return Exchange(
            made,
            terms(call, deadline),
            policy.retry,
            credentials=call.credentials,
            states=call.states,
            clock=self.clock,
            spent=spent,
            sender=sender,
        )

    async def _exchange(
        self, request: BaseRequest, progress: CallProgress, call: Call, addresses: Addresses
    ) -> CallerResponse:
        """Serve a call whose caller is all there is to it: when it leaves, nothing goes on."""
        made = progress.made = await self.prepare(call)
        spent = progress.spent = Spent()
        deadline = deadline_of(call, made.timeouts.total)
        settled = await self.exchange(call, made, addresses, deadline, spent).run()
        progress.told = True
        delivery = Delivery(self, request, progress, call, made, addresses, TO_CALLER)
        return await delivery.deliver(settled)

    def _refused(
        self, request: BaseRequest, progress: CallProgress, refusal: Refusal
    ) -> CallerResponse:
        call = progress.call
        own = [] if call is None else personal_lines(call)[:1] + list(call.says)
        closing = refusal.close or self.draining
        response = problem_response(progress.speaks, refusal.problem, own, close=closing)
        if self.journal is not None:
            self.journal.refused(request, progress, refusal, response.given)
        return response

    async def _cut(self, request: BaseRequest, progress: CallProgress) -> CallerResponse:
        """The drain's time is up: end this call with its dialect's error."""
        response, call = progress.response, progress.call
        if response is None or not response.prepared:
            told = problem_response(progress.speaks, DRAINING.problem, close=True)
            if call is None and self.journal is not None:
                self.journal.refused(request, progress, Refusal(DRAINING.problem), told.given)
            return told
        # A tunnel has said goodbye by itself.
        if progress.tunnel is None and call is not None and not response.ended:
            event = parting_event(call, response.media_type, response.tail, DRAINING.problem)
            if event:
                await response.write(event)
        abandon(request)
        return response
