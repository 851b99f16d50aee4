"""What is told of an error, and what is kept of it."""

from __future__ import annotations

from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


def brief(error: BaseException) -> str:
    """An error in one short line: it goes into messages for people."""
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def bare(error: _E) -> _E:
    """The error without its traceback, and without those of what caused it.

    A connection or a task keeps the error that ended it, the traceback has the frames it was raised
    in, and those have the connection or the task: a circle, which only the collector could break.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error
