"""Which of several tools may take a request, and in which order.

The in-process planner's counterpart of what `planner` does with a route's candidates: budget and
quality demands take tools out; what is known to be broken, or failed before, moves behind the
others; the caller's preferences come first among equals. The order is otherwise the one given.

A tool behind an open breaker is moved back, not taken out: should all else fail, its breaker may be
due. One that is half-open keeps its place, for nobody would ever find out that it recovered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from steer_policies.budget import Budget
from steer_policies.config import ModelFacts
from steer_policies.quality import Quality

_UNDECLARED: Final = ModelFacts()

#: Preferences that are read; others are for rules.
PREFERENCES: Final = ("preferred_tools", "preferred_providers", "excluded_tools")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A tool and what is declared of it; None means not known, and excludes nothing.

    `ms`, `tokens` and `cost_usd` are what one run of it is expected to take.
    """

    name: str
    provider: str | None = None
    facts: ModelFacts = _UNDECLARED
    ms: float | None = None
    tokens: float | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What the caller likes and refuses; earlier names in a list are liked more."""

    tools: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a request asks of the tools, and what is known of them now."""

    budget: Budget | None = None
    quality: Quality | None = None
    preferences: Preferences = Preferences()
    failed: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Overrun:
    """By how much the budget is exceeded: its kind, its limit, and what was estimated."""

    kind: str
    limit: float
    estimated: float


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The tools left, in order, and why the others are not among them or stand further back.

    `overrun` is the least that any tool exceeds the budget by, when the budget took one out.
    """

    names: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    overrun: Overrun | None = None


def parse_preferences(value: object) -> Preferences:
    """Preferences from what a caller gave, such as `{"preferred_tools": ["fast"]}`.

    Keys other than `PREFERENCES` carry no preference of their own; rules may ask for them.

    Raises:
        ValueError: naming the key and what was expected.
    """
    if not isinstance(value, Mapping):
        raise ValueError('preferences are an object such as {"preferred_tools": ["fast"]}')  # noqa: TRY004 - foreign input
    tools, providers, excluded = (_names(key, value.get(key)) for key in PREFERENCES)
    return Preferences(tools=tools, providers=providers, excluded=frozenset(excluded))


def shortlist(entrants: Sequence[Entrant], demands: Demands) -> Shortlist:
    """The tools that may take a request, best first; none of them when none may."""
    return _Listing(list(entrants)).result(demands)


def overrun(entrant: Entrant, budget: Budget) -> Overrun | None:
    """How a tool's estimates exceed a budget; None when they do not, or are not known."""
    for kind in ("ms", "tokens", "cost_usd"):
        limit, estimated = getattr(budget, kind), getattr(entrant, kind)
        if limit is not None and estimated is not None and estimated > limit:
            return Overrun(kind, limit, estimated)
    return None


@dataclass(slots=True)
class _Listing:
    left: list[Entrant]
    reasons: list[str] = field(default_factory=list)
    overrun: Overrun | None = None

    def result(self, demands: Demands) -> Shortlist:
        preferences, budget, quality = demands.preferences, demands.budget, demands.quality
        if preferences.excluded:
            self._drop(
                lambda each: "the caller excludes it" if each.name in preferences.excluded else None
            )
        if budget is not None:
            self._drop(lambda each: self._too_dear(each, budget))
        if quality is not None:
            self._drop(lambda each: quality.shortfall(each.facts))
        self._first(preferences)
        self._back(demands.failed, "it failed before")
        self._back(demands.open, "its circuit is open")
        return Shortlist(tuple(each.name for each in self.left), tuple(self.reasons), self.overrun)

    def _drop(self, why: Callable[[Entrant], str | None]) -> None:
        kept = []
        for each in self.left:
            if (reason := why(each)) is None:
                kept.append(each)
            else:
                self.reasons.append(f"{each.name} left out: {reason}")
        self.left = kept

    def _too_dear(self, each: Entrant, budget: Budget) -> str | None:
        found = overrun(each, budget)
        if found is None:
            return None
        known = self.overrun
        if known is None or found.estimated / found.limit < known.estimated / known.limit:
            self.overrun = found
        return f"about {found.estimated:g} {found.kind} exceed the budget of {found.limit:g}"

    def _first(self, preferences: Preferences) -> None:
        """Liked tools before liked providers before the rest; the order among equals stays."""
        if not preferences.tools and not preferences.providers:
            return

        def rank(each: Entrant) -> tuple[int, int]:
            return (
                _place(each.name, preferences.tools),
                _place(each.provider, preferences.providers),
            )

        ordered = sorted(self.left, key=rank)
        if ordered != self.left:
            self.reasons.append(f"{ordered[0].name} moved forward: the caller prefers it")
            self.left = ordered

    def _back(self, names: frozenset[str], why: str) -> None:
        if not names:
            return
        behind = [each for each in self.left if each.name in names]
        if behind and len(behind) < len(self.left):
            self.left = [each for each in self.left if each.name not in names] + behind
            self.reasons += [f"{each.name} moved back: {why}" for each in behind]


def _place(name: str | None, names: tuple[str, ...]) -> int:
    return names.index(name) if name in names else len(names)


def _names(key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(
        isinstance(name, str) for name in value
    ):
        raise ValueError(f"{key} must be a list of names")
    return tuple(value)
