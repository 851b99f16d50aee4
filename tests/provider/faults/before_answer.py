"""Faults before the answer: nothing comes, or the end, or the wrong thing first."""

from __future__ import annotations

from dataclasses import replace

from tests.provider.answers import text_answer
from tests.provider.attempt import Attempt
from tests.provider.choosing import Behaviour, Fault, as_fault
from tests.provider.faults.rewriting import before_head
from tests.provider.steps import (
    Answer,
    Close,
    Headers,
    Pause,
    Reset,
    Send,
    Step,
    WaitUntilClosed,
)


def _only(name: str, *steps: Step) -> Fault:
    answer = Answer(steps)
    return Fault(name, lambda attempt, healthy: answer)


def reset_before_answer() -> Fault:
    """The request is read, then the connection reset: executed, or not, nobody knows."""
    return _only("reset before the answer", Reset())


def close_before_answer() -> Fault:
    """The request is read, then the connection closed without a word."""
    return _only("close before the answer", Close())


def reset_before_reading_body() -> Fault:
    """Reset as soon as the head has come, with the body unread."""
    return replace(
        _only("reset before reading the body", Reset()), before_body=True, reads_on=False
    )


def silence(seconds: float | None = None) -> Fault:
    """Nothing, not even headers: for good, or for some seconds and then the answer."""
    return before_head("silence", WaitUntilClosed() if seconds is None else Pause(seconds))


def steps_first(*steps: Step) -> Fault:
    """Any steps before the answer: `Signal` and `Await` let the test say when."""
    return before_head("steps first", *steps)


def garbage(data: bytes = b"\x16\x03\x01\x02\x00\x01 this is no HTTP\r\n\r\n") -> Fault:
    """Bytes that are no HTTP, then a close."""
    return _only("garbage", Send(data), Close())


def informational_first(
    status: int = 103, headers: Headers = (("Link", "</style.css>; rel=preload"),)
) -> Fault:
    """An informational answer before the final one (RFC 9110 section 15.2): to be skipped."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"HTTP/1.1 {status} Informational\r\n{lines}\r\n"
    return before_head(f"informational {status}", Send(head.encode("latin-1")))


def before_body(behaviour: Behaviour, *, reads_on: bool = True) -> Fault:
    """Act as soon as the head has come. `reads_on` says whether the body is read meanwhile."""
    fault = as_fault(behaviour)
    name = f"{fault.name}, before the body"
    return replace(fault, name=name, before_body=True, reads_on=reads_on)


def early_answer_then_close(behaviour: Behaviour | None = None, *, polite: bool = True) -> Fault:
    """Answer before the body is read, then close: 413 unless told otherwise.

    A polite provider says `Connection: close` and goes on reading (and throws away) until the
    client has gone; an impolite one closes on unread bytes, so that the kernel sends RST and may
    destroy the answer on its way (RFC 9112 section 9.6).
    """
    fault = as_fault(behaviour or text_answer(413, "too large"))

    def apply(attempt: Attempt, answer: Answer) -> Answer:
        early = fault.apply(attempt, answer)
        early = early.with_head(early.head.with_headers(("Connection", "close")))
        return Answer((*early.steps, WaitUntilClosed() if polite else Close()))

    return Fault("early answer, then close", apply, True, polite)


def without_continue() -> Fault:
    """Never send 100 Continue: the client has to send its body unasked, or wait for good."""
    return Fault("without 100 Continue", lambda attempt, answer: answer, continues=False)
