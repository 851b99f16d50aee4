"""A process that is stopped for longer than a time-out: what arrived meanwhile is no silence."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.provider import Answer, faults
from tests.provider.choosing import Fault
from tests.provider.faults.rewriting import rewrite
from tests.provider.steps import Pause, Signal, Step
from tests.support.virtual_time import VirtualTimeLoop
from tests.support.world import world

LIMITS = {"timeouts": {"answer": 6, "first_byte": 6, "first_token": 6, "idle": 6}}


class Standstill(asyncio.Event):
    """Set, it lets time pass for everybody, and nobody has a turn."""

    def set(self) -> None:
        """Ten seconds later, at once; what is due comes before the sockets, as in uvloop."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.advance(10)
        loop.look_away()
        super().set()


def stopped_after(events: int | None) -> Fault:
    """In time comes the whole answer, or its head, or an event; and nobody is there to look."""

    def change(answer: Answer) -> Answer:
        steps: list[Step] = list(answer.steps)
        at = 0 if events is None else steps.index(answer.events[events])
        there = at + 1 if answer.events else len(steps)
        stop = Signal(Standstill())
        return Answer((*steps[:at], Pause(3), *steps[at:there], stop, *steps[there:]))

    return rewrite("stopped", change)


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "order-1"}], ids=["unkeyed", "keyed"])
@pytest.mark.parametrize(
    ("stream", "events"),
    [(False, None), (True, None), (True, 1), (True, 4)],
    ids=["answer", "first byte", "first token", "idle"],
)
async def test_an_answer_that_came_while_stopped(
    tmp_path: Path, key: dict[str, str], stream: bool, events: int | None
) -> None:
    """It is given, and the call is not made again."""
    async with world(tmp_path, upstream=LIMITS) as parties:
        parties.primary.always(stopped_after(events))
        reply = await parties.ask(stream=stream, headers=key)
        assert (reply.status, reply.cut) == (200, False)
        assert reply.text == parties.primary.text
        assert len(parties.primary.attempts) == 1
        assert parties.fallback.attempts == []


async def test_silence_is_silence_all_the_same(tmp_path: Path) -> None:
    """Where nothing came, a stop only delays the time-out."""
    async with world(tmp_path, fallback=False, upstream=LIMITS) as parties:
        stopped = faults.steps_first(Pause(3), Signal(Standstill()))
        parties.primary.always(faults.silence() | stopped)
        reply = await parties.ask(headers={"Idempotency-Key": "order-1"})
        assert reply.status == 504
        assert 13 <= reply.seconds < 13.5
