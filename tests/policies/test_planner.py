"""Where a call goes, and why."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.budget import Budget, BudgetPolicy, UnknownPrice
from steer_policies.conditions import parse_when
from steer_policies.config import (
    CallTimeouts,
    CandidateSpec,
    CommitPoint,
    DialectName,
    ModelFacts,
    OnBreak,
    UpstreamPolicy,
)
from steer_policies.dialects.base import RequestFacts, Where
from steer_policies.facts import CallFacts, Calm
from steer_policies.plan import Plan, Refused
from steer_policies.planner import plan, plan_at_once
from steer_policies.quality import parse_quality
from steer_policies.route import MAX_MODEL, MAX_PLANS, Order, RoutePolicy
from steer_policies.rules import Rule

COSTS = {"free": 0.0, "cheap": 0.01, "dear": 1.0}


class Prices:
    """Dollars per call by upstream; no price for the rest."""

    def cost_usd(
        self, upstream: str, model: str, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        return COSTS.get(upstream)


class Broken(Calm):
    """One upstream's breaker is open."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream

    def breaker(self, upstream: str, model: str | None) -> str:
        return "open" if upstream == self._upstream else "closed"


def upstream(name: str, **models: ModelFacts) -> UpstreamPolicy:
    return UpstreamPolicy(name=name, dialect=DialectName.OPENAI, models=models)


UPSTREAMS = {
    each.name: each
    for each in (
        upstream("free"),
        upstream("cheap"),
        upstream("dear"),
        upstream("priceless"),
        upstream("small", m=ModelFacts(context_tokens=1000, quality=0.5)),
        upstream("large", m=ModelFacts(context_tokens=100_000, quality=0.9, capabilities=("x",))),
    )
}


def spec(name: str, **options: Any) -> CandidateSpec:
    return CandidateSpec(upstream=name, options=options)


def route(*names: str | CandidateSpec, **keys: Any) -> RoutePolicy:
    candidates = tuple(spec(each) if isinstance(each, str) else each for each in names)
    return RoutePolicy(
        name="chat",
        dialect=DialectName.OPENAI,
        candidates=candidates,
        upstreams=UPSTREAMS,
        prices=Prices(),
        **keys,
    )


def call(
    model: str | None = "m",
    *,
    steered: bool = True,
    max_tokens: int | None = 100,
    size: int = 400,
    **keys: Any,
) -> CallFacts:
    request = RequestFacts("chat.completions", steered, model, Where.BODY, max_tokens=max_tokens)
    return CallFacts(request=request, body_size=size, **keys)


def made(route: RoutePolicy, facts: CallFacts, override: str | None = None) -> Plan:
    result = plan(route, facts, Calm(), override)
    assert isinstance(result, Plan), result
    return result


def refused(route: RoutePolicy, facts: CallFacts, override: str | None = None) -> Refused:
    result = plan(route, facts, Calm(), override)
    assert isinstance(result, Refused), result
    assert result.status == 400
    return result


def order(plan: Plan) -> list[str]:
    return [candidate.upstream for candidate in plan.candidates]


def equals(attribute: str, value: Any) -> Any:
    return parse_when({"attribute": attribute, "operator": "equals", "value": value})


# --- the route's own order ---


def test_without_rules_the_route_decides() -> None:
    """Candidates in their order, with the route's terms."""
    terms = CallTimeouts(total=5)
    result = made(
        route(
            "dear",
            spec("cheap", model="other", temperature=0),
            commit=CommitPoint.COMPLETE,
            on_break=OnBreak.RESUME,
            timeouts=terms,
        ),
        call(),
    )
    assert order(result) == ["dear", "cheap"]
    assert [candidate.model for candidate in result.candidates] == ["m", "other"]
    assert result.candidates[1].options == {"model": "other", "temperature": 0}
    assert (result.commit, result.on_break, result.timeouts) == (
        CommitPoint.COMPLETE,
        OnBreak.RESUME,
        terms,
    )
    assert result.rule is None
    assert result.reasons == ("the route has no rules",)


def test_plans_are_remembered_within_bounds() -> None:
    """Model names are foreign input: neither their number nor their length may fill the memory."""
    policy = route("dear")
    assert made(policy, call("a")) is made(policy, call("a"))
    for number in range(2 * MAX_PLANS):
        made(policy, call(f"model-{number}"))
    assert len(policy.own.plans) <= MAX_PLANS
    longest = "x" * (MAX_MODEL + 1)
    assert made(policy, call(longest)).candidates[0].model == longest
    assert longest not in policy.own.plans


def test_a_call_without_a_model_has_candidates_without_one() -> None:
    """Unless the options give it one."""
    result = made(route("dear", spec("cheap", model="m")), call(None))
    assert [candidate.model for candidate in result.candidates] == [None, "m"]


def test_what_is_not_generation_goes_home_alone() -> None:
    """Unchanged, whatever rules, budgets and fallbacks say."""
    policy = route(
        spec("dear", model="x"),
        "cheap",
        rules=(Rule(name="always", use=spec("cheap")),),
        budget=BudgetPolicy(cost_usd=0.001),
    )
    result = made(policy, call(steered=False, budget=Budget(cost_usd=0.001)))
    assert [(each.upstream, each.model, dict(each.options)) for each in result.candidates] == [
        ("dear", "m", {})
    ]
    assert result.reasons == ("not a generation call: home alone",)


# --- rules ---

RULES = (
    Rule(name="low", priority=1, use=spec("cheap")),
    Rule(
        name="gold",
        priority=10,
        when=equals("metadata.tier", "gold"),
        use=spec("dear"),
        fallbacks=(spec("cheap", model="other"),),
        commit=CommitPoint.HEADERS,
        on_break=OnBreak.RESUME,
        timeouts=CallTimeouts(total=9),
    ),
    Rule(name="gold-too", priority=10, when=equals("metadata.tier", "gold"), use=spec("free")),
)


def test_the_first_rule_that_matches_decides() -> None:
    """Highest priority first, ties in their order; its terms replace the route's."""
    result = made(route("free", rules=RULES), call(metadata={"tier": "gold"}))
    assert order(result) == ["dear", "cheap"]
    assert result.candidates[1].model == "other"
    assert (result.rule, result.commit, result.on_break, result.timeouts.total) == (
        "gold",
        CommitPoint.HEADERS,
        OnBreak.RESUME,
        9,
    )
    assert result.reasons == ("rule gold matched",)


def test_a_rule_of_lower_priority_gets_the_rest() -> None:
    """What it leaves open stays the route's."""
    result = made(route("free", rules=RULES, commit=CommitPoint.COMPLETE), call())
    assert (order(result), result.rule, result.commit) == (["cheap"], "low", CommitPoint.COMPLETE)


def test_no_rule_matches() -> None:
    """The route's own order, and the reason says so."""
    result = made(route("free", "dear", rules=RULES[1:]), call())
    assert (order(result), result.rule) == (["free", "dear"], None)
    assert result.reasons == ("no rule matched: the route's own order",)


def test_a_rule_without_use_keeps_the_candidates() -> None:
    """Its options go to each of them, under the candidate's own."""
    rule = Rule(name="short", options={"max_tokens": 5, "temperature": 0})
    result = made(route("free", spec("dear", max_tokens=9), rules=(rule,)), call())
    assert [(each.upstream, dict(each.options)) for each in result.candidates] == [
        ("free", {"max_tokens": 5, "temperature": 0}),
        ("dear", {"max_tokens": 9, "temperature": 0}),
    ]


def test_a_rule_may_look_at_the_world() -> None:
    """And only then is it looked at."""
    rule = Rule(name="away", when=equals("upstream.dear.breaker", "open"), use=spec("cheap"))
    policy = route("dear", rules=(rule,))
    for live, expected in ((Broken("dear"), ["cheap"]), (Broken("cheap"), ["dear"])):
        result = plan(policy, call(), live)
        assert isinstance(result, Plan)
        assert order(result) == expected


def test_an_open_breaker_alone_changes_no_order() -> None:
    """The engine passes over it, and must still probe it."""
    result = plan(route("dear", "cheap"), call(), Broken("dear"))
    assert isinstance(result, Plan)
    assert order(result) == ["dear", "cheap"]


def test_a_rule_may_ask_what_the_call_would_cost() -> None:
    """At the route's first candidate."""
    when = parse_when({"attribute": "estimate.cost_usd", "operator": "gt", "value": 0.5})
    rule = Rule(name="too-dear", when=when, use=spec("free"))
    assert order(made(route("dear", rules=(rule,)), call())) == ["free"]
    assert order(made(route("cheap", rules=(rule,)), call())) == ["cheap"]


# --- chosen by hand ---


def test_the_caller_chooses_by_hand() -> None:
    """No rule, no fallback; the candidate's own options stay."""
    policy = route("free", spec("cheap", model="c"), rules=RULES)
    result = made(policy, call(metadata={"tier": "gold"}), "cheap")
    assert [(each.upstream, each.model) for each in result.candidates] == [("cheap", "c")]
    assert (result.rule, result.reasons) == (None, ("cheap was chosen by the caller",))


def test_what_rules_lead_to_can_be_chosen_too() -> None:
    """With the options it has there."""
    result = made(route("free", rules=RULES), call(), "dear")
    assert order(result) == ["dear"]


def test_an_unknown_choice_is_refused() -> None:
    """Naming what there is, each once."""
    result = refused(route("free", "cheap", rules=RULES), call(), "chaep\n")
    assert result.code == "steer_unknown_upstream"
    assert result.message == "Route chat has no upstream 'chaep\\n'; it has: free, cheap, dear."


def test_a_choice_does_not_unpin() -> None:
    """What is not steered stays at home, unchanged, by hand too: a cheaper way out of rules."""
    policy = route(spec("free", model="f"), spec("cheap", model="c"))
    pinned = call(steered=False, budget=Budget(tokens=1))
    result = made(policy, pinned, "free")
    assert [(each.upstream, each.model, dict(each.options)) for each in result.candidates] == [
        ("free", "m", {})
    ]
    answer = refused(policy, pinned, "cheap")
    assert (answer.status, answer.code) == (400, "steer_pinned")
    assert "goes to free alone" in answer.message
    assert refused(policy, pinned, "nobody").code == "steer_unknown_upstream"


def test_a_choice_is_not_exempt_from_the_budget() -> None:
    """The caller asked for both; quality is the caller's own judgement then."""
    policy = route("cheap", "dear", "small")
    assert refused(policy, call(budget=Budget(cost_usd=0.5)), "dear").code == (
        "steer_budget_exceeded"
    )
    assert order(made(policy, call(budget=Budget(cost_usd=0.5)), "cheap")) == ["cheap"]
    demanding = call(quality=parse_quality({"min_confidence": 0.9}))
    assert order(made(policy, demanding, "small")) == ["small"]
    strict = route("dear", budget=BudgetPolicy(cost_usd=0.5))
    assert refused(strict, call(), "dear").code == "steer_budget_exceeded"


# --- budget ---


def test_candidates_too_dear_drop_out() -> None:
    """And the reasons say so; the estimates stay with the others."""
    result = made(route("dear", "cheap", "free"), call(budget=Budget(cost_usd=0.5)))
    assert order(result) == ["cheap", "free"]
    assert [each.estimated_usd for each in result.candidates] == [0.01, 0.0]
    assert [each.estimated_tokens for each in result.candidates] == [None, None]
    (counted,) = made(route("cheap"), call(budget=Budget(tokens=10**6))).candidates
    assert counted.estimated_tokens
    assert result.reasons[1:] == ("dear (m) left out: about $1 exceed the budget of $0.5",)


def test_nobody_is_cheap_enough() -> None:
    """The refusal names every candidate and its price."""
    result = refused(route("dear", "cheap"), call(budget=Budget(cost_usd=0.001)))
    assert result.code == "steer_budget_exceeded"
    assert result.message == (
        "No candidate of route chat fits the budget: "
        "dear (m) left out: about $1 exceed the budget of $0.001; "
        "cheap (m) left out: about $0.01 exceed the budget of $0.001."
    )
    assert result.reasons[0] == "the route has no rules"


def test_an_unknown_price_excludes_nothing_unless_told_to() -> None:
    """A route can be strict about it."""
    facts = call(budget=Budget(cost_usd=0.5))
    assert order(made(route("priceless", "dear"), facts)) == ["priceless"]
    strict = route("priceless", "cheap", budget=BudgetPolicy(unknown_price=UnknownPrice.REFUSE))
    result = made(strict, facts)
    assert order(result) == ["cheap"]
    assert result.reasons[1:] == ("priceless (m) left out: its price is not known",)


def test_too_many_tokens_drop_out() -> None:
    """Prompt and completion together; options may shorten the completion."""
    policy = route("dear", spec("cheap", max_tokens=10))
    result = made(policy, call(size=400, max_tokens=100, budget=Budget(tokens=150)))
    assert order(result) == ["cheap"]
    assert result.reasons[1:] == (
        "dear (m) left out: about 100 prompt and 100 completion tokens exceed the budget of 150",
    )


def test_a_completion_without_a_bound_is_assumed() -> None:
    """As long as the route says."""
    facts = call(size=400, max_tokens=None, budget=Budget(tokens=500))
    assert refused(route("dear"), facts).code == "steer_budget_exceeded"
    short = route("dear", budget=BudgetPolicy(completion_tokens=300))
    assert order(made(short, facts)) == ["dear"]


def test_a_routes_ceiling_can_only_be_lowered() -> None:
    """Without a budget of the caller it holds alone."""
    policy = route("dear", "cheap", budget=BudgetPolicy(cost_usd=0.5))
    assert order(made(policy, call())) == ["cheap"]
    assert order(made(policy, call(budget=Budget(cost_usd=5)))) == ["cheap"]
    assert refused(policy, call(budget=Budget(cost_usd=0.001))).code == "steer_budget_exceeded"


def test_no_budget_keeps_tokens_from_being_counted() -> None:
    """To count them is free, whatever the price of what is counted."""
    request = RequestFacts("messages.count_tokens", True, "m", Where.BODY)
    facts = CallFacts(request=request, body_size=10**6, budget=Budget(tokens=1, cost_usd=0.001))
    strict = route("priceless", "dear", budget=BudgetPolicy(unknown_price=UnknownPrice.REFUSE))
    assert order(made(strict, facts)) == ["priceless", "dear"]


def test_a_budget_of_time_drops_nobody() -> None:
    """It bounds the deadline, which is the engine's."""
    assert order(made(route("dear", "cheap"), call(budget=Budget(ms=1)))) == ["dear", "cheap"]


def test_a_routes_budget_of_time_bounds_every_plan() -> None:
    """A caller's own is the engine's business; a route's is in the time-outs."""
    rules = (
        Rule(name="long", priority=1, when=equals("model", "m"), timeouts=CallTimeouts(total=9)),
        Rule(name="short", when=equals("model", "n"), timeouts=CallTimeouts(total=1, max_stream=7)),
    )
    policy = route("dear", "cheap", rules=rules, budget=BudgetPolicy(ms=2500))
    assert made(policy, call("m")).timeouts == CallTimeouts(total=2.5)
    assert made(policy, call("n")).timeouts == CallTimeouts(total=1, max_stream=7)
    assert made(policy, call("o")).timeouts.total == 2.5
    assert made(policy, call("o"), "cheap").timeouts.total == 2.5
    assert made(policy, call("o", steered=False)).timeouts.total == 2.5


def test_the_cheapest_first() -> None:
    """Unknown prices last; equal ones as listed."""
    result = made(route("dear", "priceless", "cheap", "free", order=Order.CHEAPEST), call())
    assert order(result) == ["free", "cheap", "dear", "priceless"]
    assert result.reasons[1:] == (
        "cheapest first: free (m) $0, cheap (m) $0.01, dear (m) $1, priceless (m) unknown",
    )
    already = made(route("free", "cheap", order=Order.CHEAPEST), call())
    assert already.reasons == ("the route has no rules",)


def test_a_candidate_without_a_model_is_named_by_its_upstream() -> None:
    """And has no price in the table."""
    strict = BudgetPolicy(cost_usd=1, unknown_price=UnknownPrice.REFUSE)
    result = refused(route("dear", budget=strict), call(None))
    assert "dear left out: its price is not known" in result.message


# --- quality ---


@pytest.mark.parametrize(
    ("demands", "expected"),
    [
        ({"min_confidence": 0.4}, ["small", "dear", "large"]),
        ({"min_confidence": 0.9}, ["dear", "large"]),
        ({"min_confidence": 0.95}, ["dear"]),
        ({"capabilities": ["x"]}, ["small", "dear", "large"]),
        ({"capabilities": ["y"]}, ["small", "dear"]),
        ({"min_context_tokens": 5000}, ["dear", "large"]),
        ({"anything": "else"}, ["small", "dear", "large"]),
    ],
)
def test_what_is_declared_too_low_drops_out(demands: Any, expected: list[str]) -> None:
    """What is not declared stays, in its place."""
    facts = call(quality=parse_quality(demands))
    assert order(made(route("small", "dear", "large"), facts)) == expected


def test_nobody_is_good_enough() -> None:
    """The refusal says what was declared."""
    facts = call(quality=parse_quality({"min_confidence": 0.95}))
    result = refused(route("small", "large"), facts)
    assert result.code == "steer_quality_unmet"
    assert "quality demands: small (m) left out: declared quality 0.5 is below 0.95" in (
        result.message
    )


def test_when_both_leave_nobody_the_budget_is_named() -> None:
    """It came first."""
    facts = call(budget=Budget(cost_usd=0.5), quality=parse_quality({"min_confidence": 0.9}))
    assert refused(route("dear", "small"), facts).code == "steer_budget_exceeded"


# --- context ---


def test_a_prompt_that_may_not_fit_moves_a_candidate_back() -> None:
    """Estimates are rough: it is never dropped."""
    policy = route("small", "dear", "large")
    assert order(made(policy, call(size=3600))) == ["small", "dear", "large"]
    result = made(policy, call(size=3604))
    assert order(result) == ["dear", "large", "small"]
    assert result.reasons[1:] == (
        "small (m) moved back: about 1001 tokens may not fit its context of 1000",
    )
    assert order(made(policy, call(size=10**7))) == ["dear", "small", "large"]


def test_when_none_fits_the_order_stays() -> None:
    """There is nothing to prefer."""
    result = made(route("small", "large"), call(size=10**7))
    assert (order(result), result.reasons) == (["small", "large"], ("the route has no rules",))
    assert order(made(route("small"), call(size=10**7))) == ["small"]


def test_a_form_moves_nobody() -> None:
    """Its bytes say nothing about tokens."""
    request = RequestFacts("audio.transcriptions", True, "m", Where.FORM)
    facts = CallFacts(request=request, body_size=10**7)
    assert order(made(route("small", "large"), facts)) == ["small", "large"]
    budgeted = CallFacts(request=request, body_size=10**7, budget=Budget(tokens=1))
    assert order(made(route("small", "large"), budgeted)) == ["small", "large"]


@pytest.mark.parametrize("steered", [True, False])
@pytest.mark.parametrize(
    ("names", "keys", "at_once"),
    [
        (("cheap",), {}, True),
        (("cheap", "dear"), {}, False),
        (("cheap",), {"order": Order.CHEAPEST}, False),
        (("cheap",), {"budget": BudgetPolicy(tokens=9)}, False),
        (("cheap",), {"rules": (Rule(name="r", when=equals("model", "m")),)}, False),
    ],
)
def test_a_plan_at_once_is_the_plan(
    names: tuple[str, ...], keys: dict[str, Any], at_once: bool, steered: bool
) -> None:
    """Where it needs no thought; what is not steered never does."""
    chosen = route(*names, **keys)
    facts = call(steered=steered)
    quick = plan_at_once(chosen, facts.request)
    if at_once or not steered:
        assert quick == made(chosen, facts)
    else:
        assert quick is None
