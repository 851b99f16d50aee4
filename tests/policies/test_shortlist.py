"""Which of several tools may take a request, and in which order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.budget import Budget
from steer_policies.config import ModelFacts
from steer_policies.quality import Quality
from steer_policies.shortlist import (
    Demands,
    Entrant,
    Overrun,
    Preferences,
    overrun,
    parse_preferences,
    shortlist,
)

CHEAP = Entrant(name="cheap", provider="acme", cost_usd=0.01, tokens=100, ms=200)
GOOD = Entrant(
    name="good", provider="bolt", cost_usd=0.2, tokens=4000, facts=ModelFacts(quality=0.9)
)
POOR = Entrant(name="poor", facts=ModelFacts(quality=0.3))
ALL = [CHEAP, GOOD, POOR]


@pytest.mark.parametrize(
    ("demands", "names"),
    [
        (Demands(), "cheap good poor"),
        (Demands(budget=Budget(cost_usd=0.1)), "cheap poor"),
        (Demands(budget=Budget(tokens=50)), "poor"),
        (Demands(budget=Budget(ms=100.0)), "good poor"),
        (Demands(budget=Budget(ms=200.0)), "cheap good poor"),
        (Demands(quality=Quality(min_confidence=0.5)), "cheap good"),
        (Demands(failed=frozenset({"cheap"})), "good poor cheap"),
        (Demands(open=frozenset({"cheap", "good"})), "poor cheap good"),
        (Demands(open=frozenset({"cheap"}), failed=frozenset({"good"})), "poor good cheap"),
        (Demands(open=frozenset({"cheap", "good", "poor"})), "cheap good poor"),
        (Demands(open=frozenset({"elsewhere"})), "cheap good poor"),
        (Demands(preferences=Preferences(excluded=frozenset({"good"}))), "cheap poor"),
        (Demands(preferences=Preferences(tools=("poor", "good"))), "poor good cheap"),
        (Demands(preferences=Preferences(providers=("bolt",))), "good cheap poor"),
        (Demands(preferences=Preferences(tools=("cheap",))), "cheap good poor"),
        (
            Demands(preferences=Preferences(tools=("good",)), open=frozenset({"good"})),
            "cheap poor good",
        ),
    ],
)
def test_what_is_left(demands: Demands, names: str) -> None:
    """Demands take tools out or move them; the order is otherwise the one given."""
    found = shortlist(ALL, demands)
    assert " ".join(found.names) == names
    assert bool(found.reasons) == (names != "cheap good poor")


def test_it_says_why() -> None:
    """One sentence for each tool that dropped out or was moved."""
    found = shortlist(
        ALL,
        Demands(
            budget=Budget(cost_usd=0.1),
            quality=Quality(min_confidence=0.5),
            preferences=Preferences(excluded=frozenset({"nobody"})),
        ),
    )
    assert found.reasons == (
        "good left out: about 0.2 cost_usd exceed the budget of 0.1",
        "poor left out: declared quality 0.3 is below 0.5",
    )
    assert shortlist(ALL, Demands(open=frozenset({"cheap"}))).reasons == (
        "cheap moved back: its circuit is open",
    )
    assert shortlist(ALL, Demands(preferences=Preferences(tools=("poor",)))).reasons == (
        "poor moved forward: the caller prefers it",
    )


def test_by_how_much_a_budget_is_exceeded() -> None:
    """The least of all tools, as a share of the limit; the first bound of each."""
    found = shortlist([CHEAP, GOOD], Demands(budget=Budget(cost_usd=0.005)))
    assert (found.names, found.overrun) == ((), Overrun("cost_usd", 0.005, 0.01))
    assert shortlist([GOOD, CHEAP], Demands(budget=Budget(cost_usd=0.005))).overrun == found.overrun
    assert overrun(CHEAP, Budget(ms=1.0, cost_usd=0.001)) == Overrun("ms", 1.0, 200)
    assert overrun(POOR, Budget(ms=1.0)) is None


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, Preferences()),
        ({"tone": "dry"}, Preferences()),
        (
            {"preferred_tools": ["a"], "preferred_providers": ("b",), "excluded_tools": {"c"}},
            Preferences(tools=("a",), providers=("b",), excluded=frozenset({"c"})),
        ),
    ],
)
def test_preferences(given_: dict[str, Any], expected: Preferences) -> None:
    """Lists of names; what is not known is for rules."""
    assert parse_preferences(given_) == expected


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (["fast"], "preferences are an object"),
        ({"preferred_tools": "fast"}, "preferred_tools must be"),
        ({"excluded_tools": [1]}, "excluded_tools must be"),
    ],
)
def test_preferences_that_cannot_be_used(value: object, named: str) -> None:
    """They are refused by the key's name."""
    with pytest.raises(ValueError, match=named):
        parse_preferences(value)


@given(
    names=st.lists(st.sampled_from("abcdefgh"), unique=True),
    out=st.frozensets(st.sampled_from("abcdefgh")),
    behind=st.frozensets(st.sampled_from("abcdefgh")),
)
def test_nobody_is_lost_and_nobody_is_made_up(
    names: list[str], out: frozenset[str], behind: frozenset[str]
) -> None:
    """What is left is what was given less what was excluded, those behind in their order."""
    demands = Demands(preferences=Preferences(excluded=out), open=behind)
    found = shortlist([Entrant(name=name) for name in names], demands).names
    kept = [name for name in names if name not in out]
    assert list(found) == [each for each in kept if each not in behind] + [
        each for each in kept if each in behind
    ]
