"""Faults in the head of an answer, and in how the connection goes on after it."""

from __future__ import annotations

from dataclasses import replace

from tests.provider.choosing import Fault
from tests.provider.faults.rewriting import after_head, before_head, rewrite
from tests.provider.steps import Answer, Close, Pause, Slowly, WaitUntilClosed


def with_headers(*headers: tuple[str, str]) -> Fault:
    """Set headers on the answer, e.g. `("x-should-retry", "false")`."""
    return rewrite(
        "with headers", lambda answer: answer.with_head(answer.head.with_headers(*headers))
    )


def headers_then_silence(seconds: float | None = None) -> Fault:
    """The head alone: for good, or for some seconds and then the body."""
    step = WaitUntilClosed() if seconds is None else Pause(seconds)
    return rewrite("headers, then silence", lambda answer: after_head(answer, step))


def slow_header(pace: float, size: int = 1) -> Fault:
    """The head in pieces of `size` bytes, `pace` seconds apart; the body as usual."""

    def change(answer: Answer) -> Answer:
        return Answer((Slowly(size, pace), *after_head(answer, Slowly(0)).steps))

    return rewrite("slow header", change)


def one_byte_writes(pace: float = 0.0) -> Fault:
    """Every byte in a write of its own, as a parser should survive."""
    return before_head("one byte at a time", Slowly(1, pace))


def then_close(*, announced: bool = False) -> Fault:
    """A complete answer, then the connection closed; unannounced, it makes a pooled one stale."""

    def change(answer: Answer) -> Answer:
        if announced:
            answer = answer.with_head(answer.head.with_headers(("Connection", "close")))
        return Answer((*answer.steps, Close()))

    return rewrite("then close", change)


def until_close() -> Fault:
    """The same body delimited by the end of the connection instead of a length or chunks."""
    return rewrite(
        "body until close",
        lambda answer: answer.with_head(replace(answer.head, framing="close")),
    )
