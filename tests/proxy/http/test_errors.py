"""What is kept of an error."""

from __future__ import annotations

from steer_proxy.http.errors import bare


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_no_traceback_is_left_however_it_came_about() -> None:
    """Neither its own, nor its cause's, nor that of what was being handled, nor theirs."""
    first, handled = _raised(KeyError("first")), _raised(OSError("handled"))
    cause = _raised(ValueError("cause"), first)
    error = _raised(RuntimeError("error"), cause)
    error.__context__ = handled
    assert all(each.__traceback__ for each in (first, handled, cause, error))
    assert bare(error) is error
    assert not any(each.__traceback__ for each in (first, handled, cause, error))
    assert error.__cause__ is cause


def test_a_cause_that_was_never_raised_hides_nothing() -> None:
    """As aiohttp puts them together."""
    deepest = _raised(ValueError("deepest"))
    between, error = OSError("between"), RuntimeError("error")
    between.__cause__, error.__cause__ = deepest, between
    bare(error)
    assert deepest.__traceback__ is None


def test_errors_that_caused_each_other() -> None:
    """There is an end to it."""
    one, other = _raised(KeyError("one")), _raised(OSError("other"))
    one.__cause__, other.__context__ = other, one
    bare(one)
    assert one.__traceback__ is other.__traceback__ is None
