"""What is told of an error, and what is kept of it."""

from __future__ import annotations

from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


def brief(error: BaseException) -> str:
    """An error in one short line: it goes into messages for people."""
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def bare(error: _E) -> _E:
    """The error without its traceback, and without those of all that led to it.

    A connection or a task keeps the error that ended it, the traceback has the frames it was raised
    in, and those have the connection or the task: a circle, which only the collector could break.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()  # what causes an error may be caused by it: nothing forbids that
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            left += (each.__cause__, each.__context__)
    return error
