"""Faults that make the content or the framing of an answer wrong, or enormous."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tests.provider.attempt import Attempt
from tests.provider.choosing import Fault
from tests.provider.faults.rewriting import position_of, rewrite
from tests.provider.steps import (
    Answer,
    Close,
    Data,
    Event,
    Finish,
    Repeat,
    Reset,
    Send,
    Step,
    WaitUntilClosed,
)


def malformed_event(at: int, data: bytes = b'data: {"broken": \n\n') -> Fault:
    """The event of that index replaced by one that is no JSON."""

    def change(answer: Answer) -> Answer:
        position = position_of(answer, at)
        return Answer((*answer.steps[:position], Event(data), *answer.steps[position + 1 :]))

    return rewrite(f"malformed event {at}", change)


def malformed_json() -> Fault:
    """A plain answer of the promised length that is no JSON."""

    def change(answer: Answer) -> Answer:
        broken = tuple(
            Data(b"{" + b"?" * (len(step.data) - 1)) if isinstance(step, Data) else step
            for step in answer.steps
        )
        return Answer(broken)

    return rewrite("malformed JSON", change)


def wrong_length(delta: int, then: Literal["close", "reset", "silence", "open"] = "close") -> Fault:
    """A Content-Length off by `delta`: positive promises more than comes, negative less.

    Too little promised and "open" leaves the rest on the connection, in front of the next answer.
    """
    ending: dict[str, tuple[Step, ...]] = {
        "close": (Close(),),
        "reset": (Reset(),),
        "silence": (WaitUntilClosed(),),
        "open": (),
    }

    def change(answer: Answer) -> Answer:
        head = answer.head
        if head.framing != "length":
            raise ValueError("only a plain answer has a length")
        answer = answer.with_head(replace(head, length=head.length + delta))
        return Answer((*answer.steps, *ending[then]))

    return rewrite(f"length off by {delta}", change)


def bad_chunk_size(at: int = 1, line: bytes = b"zz\r\n") -> Fault:
    """A chunk size that is no number, right before the event of that index, then a close."""

    def change(answer: Answer) -> Answer:
        position = position_of(answer, at)
        return Answer((*answer.steps[:position], Send(line), Close()))

    return rewrite("bad chunk size", change)


def huge_answer(size: int = 100 * 1024 * 1024, block: int = 64 * 1024) -> Fault:
    """The healthy answer grown to about `size` bytes, made while it is sent.

    A plain answer gets one enormous text (or, where there is none, spaces after the JSON), a
    stream its first token event over and over.
    """

    def apply(attempt: Attempt, answer: Answer) -> Answer:
        if answer.events:
            first = next(event for event in answer.events if event.role == "token")
            position = answer.steps.index(first)
            more = Repeat(first.data, max(0, size // len(first.data)))
            return Answer((*answer.steps[:position], more, *answer.steps[position:]))
        body, count = answer.body, size // block
        text = attempt.text.encode()
        found = body.find(text) if text else -1
        position, filler = (found, b"a") if found >= 0 else (len(body), b" ")
        head = replace(answer.head, length=len(body) + count * block)
        filling = Repeat(filler * block, count)
        return Answer((head, Data(body[:position]), filling, Data(body[position:]), Finish()))

    return Fault(f"huge answer of {size} bytes", apply)
