"""What the faults share: how an answer can end, and where in it to put steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tests.provider.choosing import Fault
from tests.provider.steps import Answer, Close, Event, Finish, Reset, Step

How = Literal["reset", "close", "clean_end"]


def end(how: How) -> Step:
    """The step that ends an answer this way."""
    ends: dict[How, Step] = {"reset": Reset(), "close": Close(), "clean_end": Finish()}
    return ends[how]


def rewrite(name: str, change: Callable[[Answer], Answer]) -> Fault:
    """A fault that needs to know the answer only."""
    return Fault(name, lambda attempt, answer: change(answer))


def before_head(name: str, *steps: Step) -> Fault:
    """A fault that puts steps in front of the answer."""
    return rewrite(name, lambda answer: Answer((*steps, *answer.steps)))


def after_head(answer: Answer, *inserted: Step) -> Answer:
    """The answer with steps right after its head."""
    index = answer.steps.index(answer.head) + 1
    return Answer((*answer.steps[:index], *inserted, *answer.steps[index:]))


def position_of(answer: Answer, index: int) -> int:
    """Where in the steps the event of that index is; the number of events means behind the last."""
    places = [at for at, step in enumerate(answer.steps) if isinstance(step, Event)]
    if index == len(places) and places:
        return places[-1] + 1
    if index >= len(places):
        raise ValueError(f"the answer has {len(places)} events, none at {index}")
    return places[index]


def inserted(answer: Answer, index: int, *steps: Step) -> Answer:
    """The answer with steps right before the event of that index."""
    position = position_of(answer, index)
    return Answer((*answer.steps[:position], *steps, *answer.steps[position:]))


def first_token(answer: Answer) -> int | None:
    """The index of the first event that is no prelude."""
    roles = [event.role for event in answer.events]
    return next((at for at, role in enumerate(roles) if role != "prelude"), None)
