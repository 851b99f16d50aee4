"""What reached the provider, and whether it counts as executed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.provider import Answer, Attempt, Behaviour, Fault, Pause, faults
from tests.torture.history import EXECUTION, Marker

#: Statuses with which a provider says that it did not execute a request.
NOT_EXECUTED: Final = frozenset({400, 401, 403, 404, 413, 422, 429, 500, 503, 529})


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that reached the provider. `status` is None when it was never answered.

    `ended` is when its answer was over, or could no longer be given; None while it lasts.
    """

    marker: Marker
    number: int
    at: float
    status: int | None
    whole: bool
    """Whether all of the request came."""
    ended: float | None = None

    @property
    def executed(self) -> bool:
        """Whether it has to be taken as executed: a provider bills what it began to answer, and may
        bill what it has read."""
        return self.whole and self.status not in NOT_EXECUTED


def marker_of(attempt: Attempt) -> Marker | None:
    """What a chat completion's first message and its credential say."""
    messages = attempt.object.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return None
    return Marker.parse(str(messages[0].get("content")), attempt.header("Authorization") or "")


def arrivals(attempts: Sequence[Attempt]) -> list[Arrival]:
    """What the provider logged, as the checker wants it."""
    found = []
    for attempt in attempts:
        marker = marker_of(attempt)
        if marker is None:
            # Without its body nobody can say whose it was; nothing was executed either.
            assert not attempt.received.is_set(), attempt
            continue
        found.append(
            Arrival(
                marker,
                attempt.number,
                attempt.at,
                attempt.status,
                attempt.received.is_set(),
                attempt.closed_by_peer_at,
            )
        )
    return found


def signed(attempt: Attempt, answer: Answer) -> Answer:
    """The answer with a header that says which execution it comes from."""
    head = answer.head.with_headers((EXECUTION, f"{marker_of(attempt)} {attempt.number}"))
    return answer.with_head(head)


_HEALTHY: Final = Fault("signed", signed)


def moody(dice: random.Random, sick: Callable[[], bool]) -> Fault:
    """A provider that answers most requests well, and fails the others in every way there is.

    While `sick` is false it is always well.
    """

    def apply(attempt: Attempt, healthy: Answer) -> Answer:
        answer = signed(attempt, healthy)
        if not sick():
            return answer
        fault = _mood(dice, len(healthy.events))
        return answer if fault is None else fault.apply(attempt, answer)

    return Fault("moody", apply)


def _mood(dice: random.Random, events: int) -> Fault | None:
    whole: tuple[tuple[int, Behaviour | None], ...] = (
        (60, None),
        (10, faults.silence(dice.uniform(0.05, 0.8))),
        (4, faults.status(500)),
        (3, faults.rate_limit(retry_after=0)),
        (2, faults.overloaded()),
        (3, faults.status(504)),
        (3, faults.reset_before_answer()),
        (2, faults.close_before_answer()),
        (2, faults.silence()),
    )
    begun: tuple[tuple[int, Behaviour | None], ...]
    if events:
        at = dice.randrange(events)
        begun = (
            (4, faults.at_event(at, Pause(dice.uniform(0.05, 0.8)))),
            (3, faults.cut_after(events=at, how="reset")),
            (2, faults.cut_after(events=at, how="close")),
            (2, faults.without_terminal_marker()),
            (2, faults.slow_first_token(dice.uniform(0.05, 0.8))),
        )
    else:
        begun = (
            (4, faults.headers_then_silence(dice.uniform(0.05, 0.8))),
            (3, faults.cut_after(bytes=dice.randrange(1, 200), how="reset")),
            (2, faults.wrong_length(20)),
        )
    weights, moods = zip(*whole, *begun, strict=True)
    chosen = dice.choices(moods, weights)[0]
    assert chosen is None or isinstance(chosen, Fault)
    return chosen
