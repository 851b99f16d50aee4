"""Where a call goes: `plan(route, facts, live)` answers with a `Plan` or with `Refused`.

The first rule that matches, or else the route's own order, gives the candidates. Then the call's
budget and quality demands take candidates out, and a prompt that looks too large for a candidate's
context moves it behind the others. The order is otherwise the user's: a plan does not look at
breakers or throttling (unless a rule asks), since the engine passes over what is open and must
still probe a preferred upstream that may have recovered.

A call without rules, budget or quality costs one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from steer_policies.attributes import Scope, declared_of
from steer_policies.budget import Budget, Estimate, UnknownPrice, estimate, estimate_usd, tightest
from steer_policies.config import CandidateSpec
from steer_policies.dialects.base import RequestFacts
from steer_policies.facts import CallFacts, Calm, LiveContext
from steer_policies.plan import Candidate, Plan, Refused
from steer_policies.quality import Quality
from steer_policies.route import Choice, Order, RoutePolicy

__all__ = ["CallFacts", "Calm", "LiveContext", "RoutePolicy", "plan"]

UNKNOWN_UPSTREAM: Final = "steer_unknown_upstream"
PINNED: Final = "steer_pinned"
BUDGET_EXCEEDED: Final = "steer_budget_exceeded"
QUALITY_UNMET: Final = "steer_quality_unmet"


def plan(
    route: RoutePolicy, facts: CallFacts, live: LiveContext, override: str | None = None
) -> Plan | Refused:
    """Candidates for a call in order of preference, or why there is none.

    `override` names the upstream that the caller chose by hand: rules and quality are then not
    asked, the budget still is. A call that is not steered goes to the home upstream, unchanged, and
    can be sent nowhere else by hand.
    """
    request = facts.request
    if override is not None:
        return _by_hand(route, facts, override)
    if not request.steered:
        return route.plan_of(route.pinned, request.model)
    choice = _choose(route, facts, live) if route.choices else route.own
    made = route.plan_of(choice, request.model)
    if (
        facts.budget is None
        and facts.quality is None
        and route.ceiling is None
        and route.order is Order.LISTED
        and not _crowded(route, made, facts)
    ):
        return made
    return _Narrowing(route, facts, made).result(facts.quality, route.order)


def plan_at_once(route: RoutePolicy, request: RequestFacts) -> Plan | None:
    """The plan of a call that brings no budget, quality or override, where it needs no thought.

    The same as `plan` would make; None where that has to be asked.
    """
    if not request.steered:
        return route.plan_of(route.pinned, request.model)
    return route.plan_of(route.own, request.model) if route.static else None


def _choose(route: RoutePolicy, facts: CallFacts, live: LiveContext) -> Choice:
    scope = Scope(facts, live, route.home)
    for rule, choice in route.choices:
        if rule.matches(scope):
            return choice
    return route.own


def _by_hand(route: RoutePolicy, facts: CallFacts, upstream: str) -> Plan | Refused:
    spec = next((spec for spec in route.targets if spec.upstream == upstream), None)
    if spec is None:
        known = ", ".join(dict.fromkeys(target.upstream for target in route.targets))
        return Refused(
            400,
            UNKNOWN_UPSTREAM,
            f"Route {route.name} has no upstream {upstream[:64]!r}; it has: {known}.",
        )
    if not facts.request.steered:
        home = route.home.upstream
        if upstream != home:
            return Refused(
                400,
                PINNED,
                f"This call is not generation, and goes to {home} alone: what is stored at one "
                f"provider is not at another. Leave out X-Steer-Upstream, or give {upstream} a "
                "route of its own.",
            )
        spec = CandidateSpec(upstream=home)
    made = Plan(
        (route.candidate(spec, facts.request.model),),
        route.own.commit,
        route.own.on_break,
        route.own.timeouts,
        None,
        (f"{upstream} was chosen by the caller",),
    )
    if not facts.request.steered or (facts.budget is None and route.ceiling is None):
        return made
    return _Narrowing(route, facts, made).result(None, Order.LISTED)


def _crowded(route: RoutePolicy, made: Plan, facts: CallFacts) -> bool:
    """Whether the call looks too large for one of several candidates."""
    if len(made.candidates) == 1:
        return False
    for candidate in made.candidates:
        if candidate.context_tokens is not None:
            tokens = _tokens(route, facts, candidate)
            if tokens is not None and tokens.total_tokens > candidate.context_tokens:
                return True
    return False


def _tokens(route: RoutePolicy, facts: CallFacts, candidate: Candidate) -> Estimate | None:
    return estimate(
        facts.request, facts.body_size, candidate.options, route.budget.completion_tokens
    )


@dataclass(slots=True)
class _Narrowing:
    """Takes candidates out of a plan, or moves them, and remembers why."""

    route: RoutePolicy
    facts: CallFacts
    made: Plan
    left: list[Candidate] = field(init=False)
    reasons: list[str] = field(init=False)
    code: str | None = None

    def __post_init__(self) -> None:
        self.left = list(self.made.candidates)
        self.reasons = list(self.made.reasons)

    def result(self, quality: Quality | None, order: Order) -> Plan | Refused:
        budget = tightest(self.facts.budget, self.route.ceiling)
        if order is Order.CHEAPEST or (budget is not None and budget.cost_usd is not None):
            self.left = [replace(each, estimated_usd=self._usd(each)) for each in self.left]
        if budget is not None and budget.tokens is not None:
            self.left = [replace(each, estimated_tokens=self._billed(each)) for each in self.left]
        if budget is not None:
            self._drop(lambda each: self._too_dear(each, budget), BUDGET_EXCEEDED)
        if quality is not None:
            self._drop(lambda each: self._unfit(each, quality), QUALITY_UNMET)
        if not self.left:
            return self._refused()
        if order is Order.CHEAPEST:
            self._cheapest_first()
        self._roomy_first()
        return replace(self.made, candidates=tuple(self.left), reasons=tuple(self.reasons))

    def _drop(self, why: Callable[[Candidate], str | None], code: str) -> None:
        kept = []
        for each in self.left:
            if (reason := why(each)) is None:
                kept.append(each)
            else:
                self.code = self.code or code
                self.reasons.append(f"{_named(each)} left out: {reason}")
        self.left = kept

    def _too_dear(self, each: Candidate, budget: Budget) -> str | None:
        tokens = _tokens(self.route, self.facts, each)
        if tokens is not None and tokens.free:
            return None
        if budget.tokens is not None and tokens is not None and tokens.total_tokens > budget.tokens:
            return (
                f"about {tokens.prompt_tokens} prompt and {tokens.completion_tokens} completion "
                f"tokens exceed the budget of {budget.tokens}"
            )
        if budget.cost_usd is None:
            return None
        if each.estimated_usd is None:
            if self.route.budget.unknown_price is UnknownPrice.REFUSE:
                return "its price is not known"
            return None
        if each.estimated_usd > budget.cost_usd:
            return (
                f"about {_dollars(each.estimated_usd)} exceed the budget of "
                f"{_dollars(budget.cost_usd)}"
            )
        return None

    def _unfit(self, each: Candidate, quality: Quality) -> str | None:
        return quality.shortfall(
            declared_of(self.route.upstreams[each.upstream].models, each.model)
        )

    def _usd(self, each: Candidate) -> float | None:
        declared = declared_of(self.route.upstreams[each.upstream].models, each.model)
        tokens = _tokens(self.route, self.facts, each)
        return estimate_usd(tokens, each.upstream, each.model, declared, self.route.prices)

    def _billed(self, each: Candidate) -> int | None:
        tokens = _tokens(self.route, self.facts, each)
        return None if tokens is None or tokens.free else tokens.total_tokens

    def _cheapest_first(self) -> None:
        # A stable sort: equal and unknown prices keep the user's order, unknown ones last.
        def key(each: Candidate) -> tuple[bool, float]:
            return each.estimated_usd is None, each.estimated_usd or 0.0

        ordered = sorted(self.left, key=key)
        if ordered != self.left:
            self.reasons.append(
                "cheapest first: "
                + ", ".join(
                    f"{_named(each)} "
                    + ("unknown" if each.estimated_usd is None else _dollars(each.estimated_usd))
                    for each in ordered
                )
            )
        self.left = ordered

    def _roomy_first(self) -> None:
        roomy: list[Candidate] = []
        tight: list[Candidate] = []
        for each in self.left:
            tokens = _tokens(self.route, self.facts, each)
            fits = (
                each.context_tokens is None
                or tokens is None
                or tokens.total_tokens <= each.context_tokens
            )
            (roomy if fits else tight).append(each)
        if roomy and tight:
            self.reasons += [
                f"{_named(each)} moved back: about "
                f"{_tokens_of(self.route, self.facts, each)} tokens may not fit its context of "
                f"{each.context_tokens}"
                for each in tight
            ]
            self.left = roomy + tight

    def _refused(self) -> Refused:
        reasons = tuple(self.reasons)
        dropped = "; ".join(reasons[len(self.made.reasons) :])
        what = "budget" if self.code == BUDGET_EXCEEDED else "quality demands"
        return Refused(
            400,
            self.code or BUDGET_EXCEEDED,
            f"No candidate of route {self.route.name} fits the {what}: {dropped}.",
            reasons,
        )


def _tokens_of(route: RoutePolicy, facts: CallFacts, each: Candidate) -> int:
    tokens = _tokens(route, facts, each)
    return 0 if tokens is None else tokens.total_tokens


def _named(each: Candidate) -> str:
    if each.model is None:
        return each.upstream
    return f"{each.upstream} ({each.model[:64]})"


def _dollars(amount: float) -> str:
    """An amount with four significant digits: `$0.0123`."""
    return f"${amount:.4g}"
