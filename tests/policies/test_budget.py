"""Budgets and estimates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.budget import (
    Budget,
    BudgetPolicy,
    Estimate,
    UnknownPrice,
    estimate,
    estimate_usd,
    parse_budget,
    tightest,
)
from steer_policies.config import ModelFacts
from steer_policies.dialects.base import RequestFacts, Where


class Prices:
    """A dollar per prompt token, two per completion token, for every model but one."""

    def cost_usd(
        self, upstream: str, model: str, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        return None if model == "unheard-of" else prompt_tokens + 2.0 * completion_tokens


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, Budget()),
        ({"ms": 2000}, Budget(ms=2000.0)),
        ({"tokens": 5000, "cost_usd": 0.5}, Budget(tokens=5000, cost_usd=0.5)),
        ({"tokens": 5000.0}, Budget(tokens=5000)),
        ({"cost_usd": 1}, Budget(cost_usd=1.0)),
    ],
)
def test_budgets_are_read(value: Any, expected: Budget) -> None:
    """From what a caller sent as JSON."""
    assert parse_budget(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a budget is an object with ms, tokens or cost_usd"),
        ({"usd": 1}, "unknown budget 'usd'; known: ms, tokens, cost_usd"),
        ({"ms": "2000"}, "ms must be a number"),
        ({"ms": None}, "ms must be a number"),
        ({"tokens": True}, "tokens must be a number"),
        ({"tokens": 1.5}, "tokens must be a whole number"),
        ({"tokens": float("nan")}, "tokens must be a whole number"),
        ({"tokens": 0}, "tokens must be a finite number greater than 0"),
        ({"cost_usd": -1}, "cost_usd must be a finite number greater than 0"),
        ({"ms": float("inf")}, "ms must be a finite number greater than 0"),
        ({"ms": 10**400}, "a budget is a finite number"),
        ({"tokens": 10**400}, "a budget is a finite number"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(value: Any, message: str) -> None:
    """A budget that is silently ignored costs money."""
    with pytest.raises(ValueError, match=message):
        parse_budget(value)


@given(
    st.dictionaries(
        st.sampled_from(["ms", "tokens", "cost_usd", "x"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    )
)
def test_reading_a_budget_is_total(value: Any) -> None:
    """A budget whose limits are all positive, or ValueError."""
    try:
        budget = parse_budget(value)
    except ValueError:
        return
    assert all(limit is None or limit > 0 for limit in (budget.ms, budget.tokens, budget.cost_usd))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (None, None, None),
        (Budget(ms=1), None, Budget(ms=1)),
        (None, Budget(ms=1), Budget(ms=1)),
        (Budget(ms=1, tokens=9), Budget(ms=2, cost_usd=3), Budget(ms=1, tokens=9, cost_usd=3)),
        (Budget(ms=2), Budget(ms=1), Budget(ms=1)),
    ],
)
def test_the_tightest_budget_keeps_both(
    one: Budget | None, other: Budget | None, expected: Budget | None
) -> None:
    """Limit by limit."""
    assert tightest(one, other) == expected


def test_a_route_has_ceilings_only_if_it_sets_some() -> None:
    """Otherwise planning need not look at budgets at all."""
    assert BudgetPolicy().ceiling() is None
    policy = BudgetPolicy(cost_usd=0.1, unknown_price=UnknownPrice.REFUSE)
    assert policy.ceiling() == Budget(cost_usd=0.1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cost_usd": 0}, "cost_usd must be a finite number greater than 0"),
        ({"completion_tokens": -1}, "completion_tokens must not be negative"),
    ],
)
def test_a_route_cannot_have_impossible_ceilings(keys: Any, message: str) -> None:
    """The value cannot exist."""
    with pytest.raises(ValueError, match=message):
        BudgetPolicy(**keys)


CHAT = RequestFacts("chat.completions", True, "m", Where.BODY)


@pytest.mark.parametrize(
    ("request_facts", "size", "options", "expected"),
    [
        (CHAT, 400, {}, (100, 1024)),
        (CHAT, 401, {}, (101, 1024)),
        (CHAT, 0, {}, (0, 1024)),
        (RequestFacts("chat.completions", True, "m", Where.BODY, max_tokens=50), 4, {}, (1, 50)),
        (RequestFacts("chat", True, "m", Where.BODY, max_tokens=0), 4, {}, (1, 0)),
        (CHAT, 4, {"max_tokens": 10}, (1, 10)),
        (CHAT, 4, {"max_completion_tokens": 11}, (1, 11)),
        (CHAT, 4, {"max_output_tokens": 12}, (1, 12)),
        (CHAT, 4, {"generationConfig": {"maxOutputTokens": 13}}, (1, 13)),
        (CHAT, 4, {"generationConfig": {}}, (1, 1024)),
        (CHAT, 4, {"max_tokens": None}, (1, 1024)),
        (CHAT, 4, {"max_tokens": True}, (1, 1024)),
        (CHAT, 4, {"max_tokens": -1}, (1, 1024)),
        (RequestFacts("embeddings", True, "m", Where.BODY), 400, {"max_tokens": 9}, (100, 0)),
    ],
)
def test_tokens_are_estimated(
    request_facts: RequestFacts, size: int, options: Any, expected: tuple[int, int]
) -> None:
    """Four bytes a prompt token; the completion as long as options, request or route say."""
    found = estimate(request_facts, size, options, 1024)
    assert found == Estimate(*expected)
    assert found.total_tokens == sum(expected)


@pytest.mark.parametrize(
    ("operation", "model_in"),
    [("messages.count_tokens", Where.BODY), ("countTokens", Where.PATH)],
)
def test_to_count_tokens_is_free(operation: str, model_in: Where) -> None:
    """Whatever the price; rules see the prompt all the same."""
    found = estimate(RequestFacts(operation, True, "m", model_in, max_tokens=9), 400, {}, 1024)
    assert found == Estimate(100, 0, free=True)
    assert estimate_usd(found, "up", "m", None, Prices()) == 0
    assert estimate_usd(found, "up", None, None, None) == 0


@pytest.mark.parametrize(
    ("operation", "model_in"),
    [
        ("images.edits", Where.FORM),
        ("realtime", Where.QUERY),
        ("http", Where.NOWHERE),
        ("http", Where.BODY),
        ("audio.speech", Where.BODY),
        ("images.generations", Where.BODY),
    ],
)
def test_what_is_not_sold_by_tokens_has_no_estimate(operation: str, model_in: Where) -> None:
    """Its bytes are audio, images, or none of our business."""
    assert estimate(RequestFacts(operation, True, "m", model_in), 10**6, {}, 1024) is None


@pytest.mark.parametrize(
    ("tokens", "model", "declared", "prices", "expected"),
    [
        (Estimate(10, 5), "m", None, Prices(), 20.0),
        (Estimate(10, 5), "unheard-of", None, Prices(), None),
        (Estimate(10, 5), None, None, Prices(), None),
        (Estimate(10, 5), "m", None, None, None),
        (None, "m", None, Prices(), None),
        (
            Estimate(10**6, 10**6),
            "m",
            ModelFacts(input_usd_per_mtok=3, output_usd_per_mtok=4),
            Prices(),
            7.0,
        ),
        (Estimate(10, 5), "m", ModelFacts(input_usd_per_mtok=3), Prices(), 10 + 3e-5),
        (Estimate(10, 5), "m", ModelFacts(output_usd_per_mtok=3), Prices(), 10 + 1.5e-5),
        (Estimate(10, 5), "m", ModelFacts(output_usd_per_mtok=3), None, None),
        (Estimate(10, 5), "m", ModelFacts(input_usd_per_mtok=3), None, None),
        (Estimate(10, 5), "unheard-of", ModelFacts(input_usd_per_mtok=3), Prices(), None),
        (Estimate(10, 5), "unheard-of", ModelFacts(output_usd_per_mtok=3), Prices(), None),
        (Estimate(10**6, 0), "m", ModelFacts(input_usd_per_mtok=3), Prices(), 3.0),
        (Estimate(10, 5), "m", ModelFacts(quality=1), Prices(), 20.0),
        (
            Estimate(10, 5),
            "m",
            ModelFacts(input_usd_per_mtok=0, output_usd_per_mtok=0),
            Prices(),
            0.0,
        ),
    ],
)
def test_cost_is_estimated(
    tokens: Estimate | None,
    model: str | None,
    declared: ModelFacts | None,
    prices: Prices | None,
    expected: float | None,
) -> None:
    """Declared prices override the table; nothing known is None, never zero."""
    found = estimate_usd(tokens, "up", model, declared, prices)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-9))
