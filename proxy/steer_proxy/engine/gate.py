"""At a throttle gate: waiting as `steer_policies.throttle` decides, and telling it what came."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from steer_policies.outcome import TRAITS, Failure, Outcome, Verdict
from steer_policies.throttle import Gate, Pass

#: Failures that bring no word of the provider's, and so none on whether it still throttles.
_UNHEARD: Final = frozenset(
    failure
    for failure, traits in TRAITS.items()
    if traits.outcome in (Outcome.NETWORK, Outcome.TIMEOUT, Outcome.CANCELLED)
)


def throttled(lesson: Verdict | None) -> bool | None:
    """What a throttle gate learns: None when no provider said anything."""
    if lesson is None or lesson.failure in _UNHEARD:
        return None
    return lesson.failure is Failure.THROTTLED


async def pass_gate(
    gate: Gate,
    now: Callable[[], float],
    jitter: Callable[[], float],
    worth_waiting: Callable[[float], bool],
    wait: Callable[[float], Awaitable[None]],
) -> Pass | float:
    """Wait at a gate if that is worth while; else for how many seconds it stays shut.

    `worth_waiting` is asked about each delay, `wait` then waits for it.
    """
    while True:
        shut = gate.closed_for(now())
        # Asked before `admit`, which counts a turn for everyone it tells to wait.
        if shut > 0 and not worth_waiting(shut):
            return shut
        admission = gate.admit(now(), jitter())
        if isinstance(admission, Pass):
            return admission
        if not worth_waiting(admission.seconds):
            return admission.seconds
        await wait(admission.seconds)
