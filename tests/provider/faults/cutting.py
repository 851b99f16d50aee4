"""Faults that end or hold an answer in the middle of its body.

What counts counts the events of the stream (preludes and pings included) or the bytes of the body
(framing excluded).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tests.provider.choosing import Fault
from tests.provider.faults.rewriting import (
    How,
    after_head,
    end,
    first_token,
    inserted,
    position_of,
    rewrite,
)
from tests.provider.steps import (
    Answer,
    Await,
    Data,
    Event,
    Finish,
    Part,
    Pause,
    Repeat,
    Send,
    Signal,
    Step,
    WaitUntilClosed,
)


def _kept(answer: Answer, events: int | None, size: int | None, *, part: bool) -> tuple[Step, ...]:
    """The steps up to so many events, or so many bytes of body."""
    if events == 0 or size == 0:
        return answer.steps[: answer.steps.index(answer.head) + 1]
    if events is not None and size is None:
        if events > len(answer.events):
            raise ValueError(f"the answer has only {len(answer.events)} events, not {events}")
        until = position_of(answer, events - 1) + 1
        while until < len(answer.steps) and isinstance(answer.steps[until], Signal | Await):
            until += 1  # what the test put right behind the event
        return answer.steps[:until]
    if size is not None and events is None:
        return _up_to_byte(answer, size, part=part)
    raise ValueError("give either events or bytes")


def _up_to_byte(answer: Answer, size: int, *, part: bool) -> tuple[Step, ...]:
    kept: list[Step] = []
    left = size
    for step in answer.steps:
        if not isinstance(step, Data | Event | Repeat):
            kept.append(step)
            continue
        count = step.count if isinstance(step, Repeat) else 1
        whole, rest = divmod(left, len(step.data))
        if whole >= count:
            kept.append(step)
            left -= count * len(step.data)
        else:
            kept.append(Repeat(step.data, whole))
            begun = step.data[:rest]
            kept.append(Part(begun, len(step.data)) if part and begun else Data(begun))
            left = 0
        if left == 0:
            return tuple(kept)
    raise ValueError(f"the answer has only {answer.size} bytes, not {size}")


def cut_after(
    events: int | None = None,
    bytes: int | None = None,  # noqa: A002 -- the word a test reads best
    how: How = "reset",
) -> Fault:
    """The answer up to so many events, or bytes of body, then its end.

    "clean_end" ends the framing properly (last chunk, fitting length), so that only the missing
    terminal marker, or the broken JSON, gives it away. Otherwise a cut within an event leaves a
    chunk unfinished.
    """

    def change(answer: Answer) -> Answer:
        kept = _kept(answer, events, bytes, part=how != "clean_end")
        cut = Answer((*kept, end(how)))
        if how == "clean_end" and cut.head.framing == "length":
            return cut.with_head(replace(cut.head, length=cut.size))
        return cut

    return rewrite(f"cut after {events=} {bytes=} by {how}", change)


def stall_after(
    events: int | None = None,
    bytes: int | None = None,  # noqa: A002 -- the word a test reads best
    seconds: float | None = None,
) -> Fault:
    """The answer up to so many events, or bytes of body, then silence; or a pause, and the rest."""

    def change(answer: Answer) -> Answer:
        if seconds is None:
            kept = _kept(answer, events, bytes, part=True)
            return Answer((*kept, WaitUntilClosed()))
        return inserted(answer, events or 0, Pause(seconds))

    if seconds is not None and events is None:
        raise ValueError("a pause is counted in events")
    return rewrite(f"stall after {events=} {bytes=}", change)


def at_event(index: int, *steps: Step) -> Fault:
    """Any steps right before the event of that index: `Signal`, `Await`, `Pause`, `Send`."""
    return rewrite(f"steps at event {index}", lambda answer: inserted(answer, index, *steps))


def at_byte(position: int, *steps: Step) -> Fault:
    """Any steps right before a byte of a chunked body, in the middle of an event's chunk, too.

    The rest of that chunk is bytes on the wire then: faults applied later do not see it.
    """

    def change(answer: Answer) -> Answer:
        repeated = any(isinstance(step, Repeat) for step in answer.steps)
        if answer.head.framing != "chunked" or repeated:
            raise ValueError("only an event's chunk can be interrupted")
        left = position
        for index, step in enumerate(answer.steps):
            if not isinstance(step, Data | Event):
                continue
            if left < len(step.data):
                before, after = answer.steps[:index], answer.steps[index + 1 :]
                if not left:
                    return Answer((*before, *steps, step, *after))
                begun = Part(step.data[:left], len(step.data))
                rest = Send(step.data[left:] + b"\r\n")
                return Answer((*before, begun, *steps, rest, *after))
            left -= len(step.data)
        raise ValueError(f"there is no byte {position}: the answer has {answer.size}")

    return rewrite(f"steps at byte {position}", change)


def slow_first_token(seconds: float) -> Fault:
    """Headers and prelude at once, then a pause before the first token."""

    def change(answer: Answer) -> Answer:
        first = first_token(answer)
        if first is None:
            return after_head(answer, Pause(seconds))
        return inserted(answer, first, Pause(seconds))

    return rewrite(f"first token after {seconds} s", change)


def pings_before_first_token(count: int, pace: float, ping: bytes = b": ping\n\n") -> Fault:
    """Comments or pings, `pace` seconds apart, instead of the first token: alive, but useless."""

    def change(answer: Answer) -> Answer:
        first = first_token(answer)
        if first is None:
            raise ValueError("the answer has no token")
        pings: list[Step] = []
        for _ in range(count):
            pings += [Pause(pace), Event(ping, "prelude")]
        return inserted(answer, first, *pings)

    return rewrite("pings before the first token", change)


def without_terminal_marker(how: How | Literal["open"] = "clean_end") -> Fault:
    """The whole stream but its terminal event; then an end, or ("open") an open connection."""

    def change(answer: Answer) -> Answer:
        kept = [
            step
            for step in answer.steps
            if not isinstance(step, Finish)
            and not (isinstance(step, Event) and step.role == "terminal")
        ]
        return Answer((*kept, WaitUntilClosed() if how == "open" else end(how)))

    return rewrite(f"without terminal marker, {how}", change)


def without_done_but_open() -> Fault:
    """A complete stream without its terminal marker on a connection that stays open."""
    return without_terminal_marker("open")
