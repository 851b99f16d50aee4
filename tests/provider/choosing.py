"""Faults as values, and the script that says which request meets which."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.provider.attempt import Attempt
from tests.provider.dialects import is_generation
from tests.provider.steps import Answer

Predicate = Callable[[Attempt], bool]
Change = Callable[[Attempt, Answer], Answer]
"""From the request and its healthy answer to the answer it gets."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A named change to a healthy answer. `one | other` applies one, then the other, to its result.

    `before_body` acts as soon as the head has come; `reads_on` then says whether the body is still
    read (and thrown away). `continues` says whether `Expect: 100-continue` is answered.
    """

    name: str
    apply: Change
    before_body: bool = False
    reads_on: bool = True
    continues: bool = True

    def __or__(self, other: Behaviour) -> Fault:
        first, second = self, as_fault(other)
        return Fault(
            f"{first.name} | {second.name}",
            lambda attempt, answer: second.apply(attempt, first.apply(attempt, answer)),
            first.before_body or second.before_body,
            first.reads_on and second.reads_on,
            first.continues and second.continues,
        )

    def __repr__(self) -> str:
        return f"<Fault {self.name}>"


Behaviour = Fault | Answer | Change
"""What a script can be given: a fault, a whole answer, or any function that makes one."""


def as_fault(behaviour: Behaviour) -> Fault:
    """Any behaviour as a fault."""
    if isinstance(behaviour, Fault):
        return behaviour
    if isinstance(behaviour, Answer):
        given = behaviour
        return Fault("given answer", lambda attempt, healthy: given)
    return Fault(getattr(behaviour, "__name__", "function"), behaviour)


@dataclass(frozen=True, slots=True)
class Outage:
    """A rule by time: the fault holds whenever `down(now)` is true, with `now` the loop's time."""

    down: Callable[[float], bool]
    fault: Fault


@dataclass(slots=True)
class Script:
    """Which request meets which behaviour.

    In this order: what was queued (`then`), the rules (`when`, first match), outages by time, what
    holds always; and when nothing does, the healthy answer. Queued behaviours are given out in the
    order in which heads arrive.
    """

    queue: deque[tuple[Predicate, Fault]] = field(default_factory=deque)
    rules: list[tuple[Predicate, Fault]] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    always: Fault | None = None

    def clear(self) -> None:
        """Back to health."""
        self.queue.clear()
        self.rules.clear()
        self.outages.clear()
        self.always = None

    def at_head(self, attempt: Attempt) -> Fault | None:
        """The behaviour, as far as it can be told before the body: None means ask `at_body`."""
        for index, (applies, fault) in enumerate(self.queue):
            if applies(attempt):
                del self.queue[index]
                return fault
        for applies, fault in self.rules:
            if _acts_at_head(fault) and applies(attempt):
                return fault
        standing = self._standing(attempt)
        if standing is not None and (not self.rules or _acts_at_head(standing)):
            return standing
        return None

    def at_body(self, attempt: Attempt) -> Fault | None:
        """The behaviour once the request is complete; None means healthy."""
        for applies, fault in self.rules:
            if applies(attempt):
                return fault
        return self._standing(attempt)

    def _standing(self, attempt: Attempt) -> Fault | None:
        for outage in self.outages:
            if outage.down(attempt.at):
                return outage.fault
        return self.always


def _acts_at_head(fault: Fault) -> bool:
    return fault.before_body or not fault.continues


__all__ = [
    "Behaviour",
    "Change",
    "Fault",
    "Outage",
    "Predicate",
    "Script",
    "as_fault",
    "is_generation",
]
