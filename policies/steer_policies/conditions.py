"""Conditions on attributes, nested with all, any and not.

A condition is read once, when configuration is loaded, and compiled to a closure, so that asking it
costs a few hundred nanoseconds and cannot fail. What an attribute path means is not decided here:
`compile_when` is given a function from path to getter, so that calls to providers
(`steer_policies.attributes`) and calls to in-process tools share everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, TypeAlias, TypeVar

from steer_policies.operators import Operator, Test, compile_test

S = TypeVar("S")

#: How deep conditions may nest, and how many of them one rule may have.
MAX_DEPTH: Final = 16
MAX_CONDITIONS: Final = 256

_KEYS: Final = ("attribute", "operator", "value")


class ConditionError(ValueError):
    """A condition that cannot be used; `place` is where in the tree, such as `.all[1].operator`."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison: an attribute at a dotted path, an operator, a value to compare with."""

    attribute: str
    operator: Operator
    value: Any = None


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds; without parts, always."""

    parts: tuple[When, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds; without parts, never."""

    parts: tuple[When, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: When


When: TypeAlias = Condition | AllOf | AnyOf | Not

ALWAYS: Final[When] = AllOf(())


def parse_when(value: object, place: str = "") -> When:
    """Conditions from configuration: `{attribute, operator, value}`, `{all: []}`, `{any: []}`,
    `{not: {}}`.

    Raises:
        ConditionError: naming the place and what was expected.
    """
    return _Parser().when(value, place, MAX_DEPTH)


class _Parser:
    """Carries the count of conditions through the recursion."""

    def __init__(self) -> None:
        self._count = 0

    def when(self, value: object, place: str, depth: int) -> When:
        if not depth:
            raise ConditionError(place, f"conditions nest at most {MAX_DEPTH} deep")
        if not isinstance(value, Mapping):
            raise ConditionError(
                place, "a condition is {attribute, operator, value}, or all, any, not"
            )
        combining = [key for key in ("all", "any", "not") if key in value]
        if not combining:
            return self._condition(value, place)
        if len(value) > 1:
            others = ", ".join(str(key) for key in value if key != combining[0])
            raise ConditionError(place, f"{combining[0]} stands alone; move {others} into it")
        if "not" in value:
            return Not(self.when(value["not"], f"{place}.not", depth - 1))
        key = combining[0]
        parts = value[key]
        if not isinstance(parts, (list, tuple)) or not parts:
            raise ConditionError(f"{place}.{key}", f"{key} takes a list of at least one condition")
        return (AllOf if key == "all" else AnyOf)(
            tuple(
                self.when(part, f"{place}.{key}[{index}]", depth - 1)
                for index, part in enumerate(parts)
            )
        )

    def _condition(self, value: Mapping[Any, Any], place: str) -> Condition:
        self._count += 1
        if self._count > MAX_CONDITIONS:
            raise ConditionError(place, f"a rule has at most {MAX_CONDITIONS} conditions")
        for key in value:
            if key not in _KEYS:
                raise ConditionError(f"{place}.{key}", _unknown("key", key, _KEYS))
        attribute = value.get("attribute")
        if not isinstance(attribute, str) or not attribute:
            raise ConditionError(f"{place}.attribute", "the dotted path of an attribute is missing")
        if "operator" not in value:
            raise ConditionError(f"{place}.operator", "an operator is missing, such as equals")
        try:
            operator = Operator(value["operator"])
        except ValueError:
            raise ConditionError(
                f"{place}.operator", _unknown("operator", value["operator"], tuple(Operator))
            ) from None
        return Condition(attribute, operator, value.get("value"))


def compile_when(
    when: When, attribute: Callable[[str], Callable[[S], object]], place: str = ""
) -> Callable[[S], bool]:
    """One closure that says whether the conditions hold for a scope.

    `attribute` turns a path into a getter that returns `ABSENT` for what is not there.

    Raises:
        ConditionError: for an operand its operator cannot use, or a path that `attribute` refuses
            with ValueError, naming the place.
    """
    match when:
        case Condition():
            return _compile_condition(when, attribute, place)
        case Not(part):
            inner = compile_when(part, attribute, f"{place}.not")
            return lambda scope: not inner(scope)
        case AllOf(parts):
            return _every(_compile_parts(parts, attribute, f"{place}.all"))
        case _:
            return _some(_compile_parts(when.parts, attribute, f"{place}.any"))


def conditions_in(when: When, place: str = "") -> Iterator[tuple[str, Condition]]:
    """Every single condition with its place, in order."""
    match when:
        case Condition():
            yield place, when
        case Not(part):
            yield from conditions_in(part, f"{place}.not")
        case AllOf(parts):
            for index, part in enumerate(parts):
                yield from conditions_in(part, f"{place}.all[{index}]")
        case _:
            for index, part in enumerate(when.parts):
                yield from conditions_in(part, f"{place}.any[{index}]")


def _compile_condition(
    condition: Condition, attribute: Callable[[str], Callable[[S], object]], place: str
) -> Callable[[S], bool]:
    try:
        get = attribute(condition.attribute)
    except ValueError as error:
        raise ConditionError(f"{place}.attribute", str(error)) from None
    try:
        test: Test = compile_test(condition.operator, condition.value)
    except ValueError as error:
        raise ConditionError(f"{place}.value", str(error)) from None
    return lambda scope: test(get(scope))


def _compile_parts(
    parts: tuple[When, ...], attribute: Callable[[str], Callable[[S], object]], place: str
) -> tuple[Callable[[S], bool], ...]:
    return tuple(
        compile_when(part, attribute, f"{place}[{index}]") for index, part in enumerate(parts)
    )


def _every(tests: tuple[Callable[[S], bool], ...]) -> Callable[[S], bool]:
    if len(tests) == 1:
        return tests[0]

    def test(scope: S) -> bool:
        for each in tests:  # noqa: SIM110 - a generator would cost three times as much
            if not each(scope):
                return False
        return True

    return test


def _some(tests: tuple[Callable[[S], bool], ...]) -> Callable[[S], bool]:
    if len(tests) == 1:
        return tests[0]

    def test(scope: S) -> bool:
        for each in tests:  # noqa: SIM110 - as above
            if each(scope):
                return True
        return False

    return test


def _unknown(kind: str, found: object, known: tuple[str, ...]) -> str:
    close = get_close_matches(str(found), known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    return f"unknown {kind} {str(found)[:64]!r}{hint}; known: {', '.join(known)}"
