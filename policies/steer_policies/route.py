"""A route's policy: where its calls may go, and under which terms.

A `RoutePolicy` checks itself and prepares its choices when it is made: the route's own order of
candidates, one order for each rule, and the home candidate for calls that are not steered. Planning
then picks a choice; the plan of a choice is the same for every call with the same model, and is
made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from steer_policies.attributes import Home, declared_of
from steer_policies.budget import Budget, BudgetPolicy, PriceTable
from steer_policies.config import (
    CallTimeouts,
    CandidateSpec,
    CommitPoint,
    DialectName,
    OnBreak,
    RetryPolicy,
    UpstreamPolicy,
)
from steer_policies.idempotency import IdempotencyPolicy
from steer_policies.plan import Candidate, Plan
from steer_policies.rules import Rule, by_priority

#: Plans remembered for each choice, one per model; model names are foreign input.
MAX_PLANS: Final = 256
MAX_MODEL: Final = 256


class UsageMode(StrEnum):
    """Whether Steer asks a provider for token counts that the caller did not ask for."""

    AS_IS = "as_is"
    ASK = "ask"


class Order(StrEnum):
    """How candidates are ordered."""

    LISTED = "listed"
    CHEAPEST = "cheapest"


@dataclass(frozen=True, slots=True)
class Choice:
    """An order of candidates and its terms: a rule's, the route's own, or home alone."""

    specs: tuple[CandidateSpec, ...]
    commit: CommitPoint
    on_break: OnBreak
    timeouts: CallTimeouts
    reason: str
    rule: str | None = None
    plans: dict[str | None, Plan] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """One route, ready to plan by.

    `candidates` are in order of preference; the first is home. `upstreams` holds at least every
    upstream named by them and by `rules`. `fallback_on_refusal` lets a content-policy refusal move
    to the next candidate. `prices` is asked only for budgets, cost conditions, `order: cheapest`.

    Raises:
        ValueError: when there is no candidate, a name is unknown, or a dialect differs, naming the
            place: `candidates[1].upstream`, `rules[0].fallbacks[0].upstream`; when keys'
            records could expire while their calls run.
    """

    name: str
    dialect: DialectName
    candidates: tuple[CandidateSpec, ...]
    upstreams: Mapping[str, UpstreamPolicy]
    rules: tuple[Rule, ...] = ()
    order: Order = Order.LISTED
    commit: CommitPoint = CommitPoint.FIRST_TOKEN
    on_break: OnBreak = OnBreak.ERROR
    timeouts: CallTimeouts = field(default_factory=CallTimeouts)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    usage: UsageMode = UsageMode.AS_IS
    idempotency: IdempotencyPolicy = field(default_factory=IdempotencyPolicy)
    fallback_on_refusal: bool = False
    prices: PriceTable | None = field(default=None, compare=False)

    own: Choice = field(init=False, repr=False, compare=False)
    """The route's candidates in their order."""
    pinned: Choice = field(init=False, repr=False, compare=False)
    """Home alone, without options: for calls that are not steered."""
    choices: tuple[tuple[Rule, Choice], ...] = field(init=False, repr=False, compare=False)
    """Each rule with what it chooses, highest priority first."""
    home: Home = field(init=False, repr=False, compare=False)
    """What estimates in conditions are made for."""
    static: bool = field(init=False, repr=False, compare=False)
    """Whether every call without demands of its own gets the same plan for its model."""
    ceiling: Budget | None = field(init=False, repr=False, compare=False)
    """The route's own budget for each call; its `ms` is already in every choice's time-outs."""

    def __post_init__(self) -> None:
        self._check()
        set_ = object.__setattr__
        first = self.candidates[0]
        reason = (
            "no rule matched: the route's own order" if self.rules else "the route has no rules"
        )
        set_(self, "own", self._choice(self.candidates, reason))
        set_(
            self,
            "pinned",
            self._choice(
                (CandidateSpec(upstream=first.upstream),), "not a generation call: home alone"
            ),
        )
        set_(
            self,
            "choices",
            tuple((rule, self._choice_of(rule)) for rule in by_priority(self.rules)),
        )
        set_(self, "ceiling", self.budget.ceiling())
        set_(
            self,
            "static",
            not self.rules
            and self.ceiling is None
            and self.order is Order.LISTED
            and len(self.candidates) == 1,
        )
        set_(
            self,
            "home",
            Home(
                upstream=first.upstream,
                options=first.options,
                models=self.upstreams[first.upstream].models,
                prices=self.prices,
                assumed_completion=self.budget.completion_tokens,
            ),
        )

    @property
    def targets(self) -> tuple[CandidateSpec, ...]:
        """Every candidate that can be chosen by hand: the route's own, then the rules'."""
        return (*self.candidates, *(spec for rule in self.rules for spec in rule.targets))

    @property
    def needs_prices(self) -> bool:
        """Whether planning asks for prices even when the caller sets no budget."""
        return (
            self.order is Order.CHEAPEST
            or self.budget.cost_usd is not None
            or any(rule.asks_for_cost for rule in self.rules)
        )

    def plan_of(self, choice: Choice, model: str | None) -> Plan:
        """The plan of a choice for a model, before budget and quality are looked at."""
        made = choice.plans.get(model)
        if made is None:
            made = Plan(
                tuple(self.candidate(spec, model) for spec in choice.specs),
                choice.commit,
                choice.on_break,
                choice.timeouts,
                choice.rule,
                (choice.reason,),
            )
            if model is None or len(model) <= MAX_MODEL:
                if len(choice.plans) >= MAX_PLANS:
                    choice.plans.clear()
                choice.plans[model] = made
        return made

    def candidate(self, spec: CandidateSpec, model: str | None) -> Candidate:
        """A candidate for a call that names `model`."""
        effective = spec.options.get("model", model)
        declared = declared_of(self.upstreams[spec.upstream].models, effective)
        context = None if declared is None else declared.context_tokens
        return Candidate(spec.upstream, effective, spec.options, context)

    def _choice_of(self, rule: Rule) -> Choice:
        specs = tuple(
            CandidateSpec(upstream=spec.upstream, options=merged(rule.options, spec.options))
            for spec in rule.targets or self.candidates
        )
        return Choice(
            specs,
            rule.commit or self.commit,
            rule.on_break or self.on_break,
            self._bounded(rule.timeouts or self.timeouts),
            f"rule {rule.name} matched",
            rule.name,
        )

    def _choice(self, specs: tuple[CandidateSpec, ...], reason: str) -> Choice:
        return Choice(specs, self.commit, self.on_break, self._bounded(self.timeouts), reason)

    def _bounded(self, timeouts: CallTimeouts) -> CallTimeouts:
        """Time-outs within the route's budget of time, which is a bound until commit."""
        if self.budget.ms is None or timeouts.total * 1000.0 <= self.budget.ms:
            return timeouts
        return replace(timeouts, total=self.budget.ms / 1000.0)

    def _check(self) -> None:
        if not self.candidates:
            raise ValueError("candidates: a route needs at least one")
        self._outlives(self.timeouts)
        seen: set[str] = set()
        for index, rule in enumerate(self.rules):
            if rule.name in seen:
                raise ValueError(f"rules[{index}].name: {rule.name!r} is taken by another rule")
            seen.add(rule.name)
            self._outlives(rule.timeouts)
            for place, upstream in rule.asks_about:
                self._known(upstream, f"rules[{index}].when{place}.attribute")
        for place, spec in places(self.candidates, self.rules):
            policy = self._known(spec.upstream, f"{place}.upstream")
            if policy.dialect is not self.dialect:
                raise ValueError(
                    f"{place}.upstream: {spec.upstream} speaks {policy.dialect}, "
                    f"the route speaks {self.dialect}"
                )
            if not isinstance(spec.options.get("model", ""), str):
                raise ValueError(f"{place}.options.model: must be text")  # noqa: TRY004 - foreign input

    def _outlives(self, timeouts: CallTimeouts | None) -> None:
        """A record that expires during its call would let a second one be made unseen."""
        longest = 0.0 if timeouts is None else timeouts.total + timeouts.max_stream
        if self.idempotency.retention < longest:
            raise ValueError(
                f"idempotency.retention: must be at least {longest:g} s, as long as a call may "
                "take (timeouts.total + timeouts.max_stream)"
            )

    def _known(self, upstream: str, place: str) -> UpstreamPolicy:
        policy = self.upstreams.get(upstream)
        if policy is None:
            raise ValueError(f"{place}: unknown upstream {upstream!r}")
        return policy


def places(
    candidates: tuple[CandidateSpec, ...], rules: tuple[Rule, ...]
) -> tuple[tuple[str, CandidateSpec], ...]:
    """Every candidate of a route with the key path it stands at."""
    found = [(f"candidates[{index}]", spec) for index, spec in enumerate(candidates)]
    for index, rule in enumerate(rules):
        if rule.use is not None:
            found.append((f"rules[{index}].use", rule.use))
        found += [
            (f"rules[{index}].fallbacks[{number}]", spec)
            for number, spec in enumerate(rule.fallbacks)
        ]
    return tuple(found)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Mapping[str, Any]:
    """Two merge patches (RFC 7396) as one that does what applying them in turn would."""
    if not under or not over:
        return over or under
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result
