"""What a call allows its exchange to do, and what has to be there before it can be planned."""

from __future__ import annotations

import asyncio
from typing import Final

from steer_policies.budget import tightest
from steer_policies.config import DialectName
from steer_policies.deadline import call_deadline
from steer_policies.plan import Plan
from steer_policies.retry import when_ambiguous
from steer_proxy.engine.attempt import Terms
from steer_proxy.engine.prices import GenaiPrices
from steer_proxy.http.call import Call

#: Methods that RFC 9110 §9.2.2 calls idempotent: repeating them is safe wherever they go.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


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


def deadline_of(call: Call, total: float) -> float:
    """The loop time by which a caller must have the beginning of its answer; `total` is the time
    its plan or route gives it, in seconds."""
    budget = tightest(call.steering.budget, call.route.policy.ceiling)
    return call_deadline(
        call.accepted_at,
        total,
        call.steering.timeout,
        None if budget is None else budget.ms,
        call.silence,
    )


def terms(call: Call, deadline: float) -> Terms:
    """What this call allows the exchange to do."""
    policy = call.route.policy
    budget = tightest(call.steering.budget, policy.ceiling)
    idempotent = call.method in _IDEMPOTENT
    unsure = call.dialect.name is DialectName.HTTP and not idempotent
    return Terms(
        deadline=deadline,
        ambiguous=when_ambiguous(policy.retry.ambiguous, once=unsure or call.key is not None),
        # A stream that is resumed may be older than a call may become until its commit.
        until=None if call.until is None else max(call.until, deadline),
        unsent_only=not call.facts.steered and not idempotent,
        fallback_on_refusal=policy.fallback_on_refusal,
        keyed="Idempotency-Key" in call.headers,
        budget_usd=None if budget is None else budget.cost_usd,
        budget_tokens=None if budget is None else budget.tokens,
        announcement=call.announcement,
    )
