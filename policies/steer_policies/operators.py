"""The operators of conditions: each compiles its operand into a test of one value.

All of them are total: whatever a request holds, a test answers True or False and never raises.
Three rules hold everywhere:

- An absent attribute passes no test but `exists: false`; not even `not_equals`. To match "absent or
  something else", negate: `not: {... operator: equals ...}`.
- Values of unlike types are not equal and not ordered. Whole and decimal numbers are of one type;
  true and false are not numbers.
- null is a value: `equals null` passes when the attribute is there and null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

Test = Callable[[object], bool]

#: Characters of a text that `regex` looks at, from its beginning. RE2 is linear in the text's
#: length, and this many take well under a millisecond.
REGEX_TEXT: Final = 65_536

#: Longest pattern, in characters.
REGEX_PATTERN: Final = 1_000

#: Memory a compiled pattern may take, in bytes (RE2's `max_mem`).
REGEX_MEMORY: Final = 1 << 20


class Absent:
    """The value of an attribute that is not there; there is one, `ABSENT`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = Absent()


class Operator(StrEnum):
    """How a condition compares an attribute with its value."""

    EQUALS = "equals"
    NOT_EQUALS = "not_equals"
    CONTAINS = "contains"
    IN = "in"
    NOT_IN = "not_in"
    REGEX = "regex"
    EXISTS = "exists"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"


def compile_test(operator: Operator, value: Any) -> Test:
    """The test that `operator` makes of its operand.

    Raises:
        ValueError: when the operand is not one the operator can use, saying what it expects.
    """
    return _COMPILERS[operator](value)


def same(left: object, right: object) -> bool:
    """Whether two JSON values are equal and of like type, at every depth."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def _equals(value: Any) -> Test:
    if value is None or isinstance(value, bool):
        return lambda found: found is value
    if isinstance(value, str):
        return lambda found: found == value
    if isinstance(value, (int, float)):
        _finite(value)
        return lambda found: found == value and not isinstance(found, bool)
    return lambda found: same(found, value)


def _not_equals(value: Any) -> Test:
    equal = _equals(value)
    return lambda found: found is not ABSENT and not equal(found)


def _in(value: Any) -> Test:
    members = _members(value)
    if all(isinstance(member, str) for member in members):
        texts = frozenset(members)
        return lambda found: isinstance(found, str) and found in texts
    tests = tuple(_equals(member) for member in members)
    return lambda found: any(test(found) for test in tests)


def _not_in(value: Any) -> Test:
    member = _in(value)
    return lambda found: found is not ABSENT and not member(found)


def _contains(value: Any) -> Test:
    equal = _equals(value)
    text = value if isinstance(value, str) else None

    def test(found: object) -> bool:
        if isinstance(found, str):
            return text is not None and text in found
        return isinstance(found, (list, tuple)) and any(map(equal, found))

    return test


def _exists(value: Any) -> Test:
    if value is not None and not isinstance(value, bool):
        raise ValueError("exists takes true or false")
    if value is False:
        return lambda found: found is ABSENT
    return lambda found: found is not ABSENT


def _ordered(name: str, compare: Callable[[Any, Any], bool]) -> Callable[[Any], Test]:
    def compiler(value: Any) -> Test:
        if isinstance(value, str):
            return lambda found: isinstance(found, str) and compare(found, value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} takes a number or text")  # noqa: TRY004 - foreign input
        _finite(value)
        return lambda found: (
            isinstance(found, (int, float))
            and not isinstance(found, bool)
            and compare(found, value)
        )

    return compiler


def _edge(name: str, test: Callable[[str, str], bool]) -> Callable[[Any], Test]:
    def compiler(value: Any) -> Test:
        if not isinstance(value, str):
            raise ValueError(f"{name} takes text")  # noqa: TRY004 - foreign input
        return lambda found: isinstance(found, str) and test(found, value)

    return compiler


def _regex(value: Any) -> Test:
    if not isinstance(value, str):
        raise ValueError("regex takes a pattern as text")  # noqa: TRY004 - foreign input
    if len(value) > REGEX_PATTERN:
        raise ValueError(f"regex takes a pattern of at most {REGEX_PATTERN} characters")
    # Loaded only by a configuration that uses it: a few megabytes otherwise saved.
    import re2

    options = re2.Options()
    options.max_mem = REGEX_MEMORY
    options.log_errors = False
    options.never_capture = True
    try:
        # As bytes: RE2 works on UTF-8, and its wrapper for str counts characters we do not need.
        search = re2.compile(value.encode("utf-8", "replace"), options=options).search
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace") if error.args else "not understood"
        raise ValueError(f"regex takes an RE2 pattern; this one is refused: {reason}") from None

    def test(found: object) -> bool:
        return (
            isinstance(found, str)
            and search(found[:REGEX_TEXT].encode("utf-8", "replace")) is not None
        )

    return test


def _members(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("in and not_in take a list with at least one value")
    return value


def _finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError("a number to compare with is finite")


_COMPILERS: Final[Mapping[Operator, Callable[[Any], Test]]] = MappingProxyType(
    {
        Operator.EQUALS: _equals,
        Operator.NOT_EQUALS: _not_equals,
        Operator.CONTAINS: _contains,
        Operator.IN: _in,
        Operator.NOT_IN: _not_in,
        Operator.REGEX: _regex,
        Operator.EXISTS: _exists,
        Operator.GT: _ordered("gt", lambda found, value: found > value),
        Operator.GTE: _ordered("gte", lambda found, value: found >= value),
        Operator.LT: _ordered("lt", lambda found, value: found < value),
        Operator.LTE: _ordered("lte", lambda found, value: found <= value),
        Operator.STARTS_WITH: _edge("starts_with", str.startswith),
        Operator.ENDS_WITH: _edge("ends_with", str.endswith),
    }
)
