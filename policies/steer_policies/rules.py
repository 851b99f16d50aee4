"""A rule of a route: under which conditions a call goes elsewhere, and how.

A rule compiles its conditions when it is made, so one that exists can be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from steer_policies.attributes import CREDENTIAL_HEADERS, Scope, compile_attribute
from steer_policies.conditions import ALWAYS, ConditionError, When, compile_when, conditions_in
from steer_policies.config import CallTimeouts, CandidateSpec, CommitPoint, OnBreak
from steer_policies.operators import Operator
from steer_policies.plan import NO_OPTIONS


class Prioritised(Protocol):
    """Anything with a priority: a proxy's rule, or an in-process planner's."""

    @property
    def priority(self) -> int:
        """The higher, the earlier it is asked."""


P = TypeVar("P", bound=Prioritised)


def by_priority(rules: Iterable[P]) -> tuple[P, ...]:
    """Highest priority first; ties keep their order."""
    return tuple(sorted(rules, key=lambda rule: -rule.priority))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Sends the calls its conditions hold for to `use`, then to `fallbacks`.

    Without `use` the route's own candidates stay. `options` are merged into the request at every
    candidate, under the candidate's own. What is None is the route's.

    Raises:
        ValueError: for an empty name, or fallbacks without `use`.
        ConditionError: for conditions that cannot be asked, naming the place.
    """

    name: str
    when: When = ALWAYS
    priority: int = 0
    use: CandidateSpec | None = None
    fallbacks: tuple[CandidateSpec, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: NO_OPTIONS)
    commit: CommitPoint | None = None
    on_break: OnBreak | None = None
    timeouts: CallTimeouts | None = None
    matches: Callable[[Scope], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name must not be empty")
        if self.fallbacks and self.use is None:
            raise ValueError("fallbacks need use: they come after it")
        _refuse_credentials(self.when)
        object.__setattr__(self, "matches", compile_when(self.when, compile_attribute))

    @property
    def targets(self) -> tuple[CandidateSpec, ...]:
        """`use` and its fallbacks, in order."""
        return () if self.use is None else (self.use, *self.fallbacks)

    @property
    def always(self) -> bool:
        """Whether there are no conditions at all."""
        return self.when == ALWAYS

    @property
    def asks_for_cost(self) -> bool:
        """Whether a condition needs the price list."""
        return any(
            condition.attribute == "estimate.cost_usd" for _, condition in conditions_in(self.when)
        )

    @property
    def asks_about(self) -> tuple[tuple[str, str], ...]:
        """The upstreams whose live state the conditions ask for, each after its place."""
        return tuple(
            (place, condition.attribute.split(".")[1])
            for place, condition in conditions_in(self.when)
            if condition.attribute.startswith("upstream.")
        )


def _refuse_credentials(when: When) -> None:
    for place, condition in conditions_in(when):
        root, _, name = condition.attribute.partition(".")
        if (
            root == "header"
            and name.lower() in CREDENTIAL_HEADERS
            and condition.operator is not Operator.EXISTS
        ):
            raise ConditionError(
                f"{place}.operator",
                f"{name} carries a credential: a rule may ask whether it exists, not what it holds",
            )
