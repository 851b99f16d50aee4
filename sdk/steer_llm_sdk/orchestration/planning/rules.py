"""Planning rules: conditions on a request, and the tools they lead to.

The operators are those of the sidecar's rules (`steer_policies.operators`), and like them total: a
rule that compares unlike things does not match, and never fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from steer_llm_sdk import checks
from steer_llm_sdk.calling import accepted
from steer_llm_sdk.copies import copied
from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.orchestration.planning.values import ExecutionStrategy, PlanRequest, strategy_of
from steer_policies.attributes import compile_path
from steer_policies.conditions import Condition, ConditionError, compile_when, parse_when
from steer_policies.operators import ABSENT, Operator

LOGGER: Final = logging.getLogger("steer.sdk")

#: The operator of a condition that a function of its own decides.
CUSTOM: Final = "custom"

_CONTEXT: Final = "context"
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(slots=True)
class Scope:
    """What conditions read: a request (a text counts as `{"query": text}`), and the context."""

    request: Any
    context: PlanRequest


def scope_of(request: Any, context: PlanRequest) -> Scope:
    """The scope of a request."""
    return Scope({"query": request} if isinstance(request, str) else request, context)


def attribute(path: str) -> Callable[[Scope], object]:
    """A getter of a dotted path: of the request, or `context.budget.tokens` of the context.

    Raises:
        ValueError: for an empty step.
    """
    get = compile_path(path)
    root, _, rest = path.partition(".")
    if root != _CONTEXT or not rest:
        return lambda scope: get(scope.request)
    part, _, rest = rest.partition(".")
    deeper = compile_path(rest)

    def getter(scope: Scope) -> object:
        found = get(scope.request)
        return deeper(scope.context.attribute(part)) if found is ABSENT else found

    return getter


@dataclass(frozen=True, slots=True)
class RuleCondition:
    """One comparison: an attribute of the request, an operator, a value to compare with.

    `attribute_path` is dotted, `metadata.items.0.kind`; `context.` leads to the planning context,
    unless the request has a member of that name.

    Operators: equals, not_equals, contains (part of a text, member of a list), in, not_in, regex
    (RE2, anywhere in the text), exists, gt, gte, lt, lte, starts_with, ends_with. An attribute that
    is not there passes none of them but `exists` with False.

    With a `custom_matcher` that function decides: it is given the attribute's value (None where
    there is none) and, if it takes two, the value to compare with. One that raises does not match.

    Raises:
        InvalidValue: for an unknown operator, or a value or path it cannot use.
    """

    attribute_path: str
    operator: str
    value: Any = None
    custom_matcher: Callable[..., object] | None = None
    holds: Callable[[Scope], bool] = field(init=False, repr=False, compare=False)
    """Whether the condition holds for a scope."""

    def __post_init__(self) -> None:
        checks.text("attribute_path", self.attribute_path)
        checks.plain_function("custom_matcher", self.custom_matcher)
        if self.custom_matcher is not None and self.operator == CUSTOM:
            holds = self._custom(self.custom_matcher)
        else:
            condition = self._condition()
            holds = self._compiled(condition)
            if self.custom_matcher is not None:
                holds = self._custom(self.custom_matcher)
        object.__setattr__(self, "holds", holds)

    def _condition(self) -> Condition:
        try:
            parsed = parse_when(
                {"attribute": self.attribute_path, "operator": self.operator, "value": self.value}
            )
        except ConditionError as error:
            raise _named(error) from None
        assert isinstance(parsed, Condition)  # noqa: S101 - a single condition was given
        return parsed

    def _compiled(self, condition: Condition) -> Callable[[Scope], bool]:
        try:
            return compile_when(condition, attribute)
        except ConditionError as error:
            raise _named(error) from None

    def _custom(self, matcher: Callable[..., object]) -> Callable[[Scope], bool]:
        get, count, value = attribute(self.attribute_path), accepted(matcher, 2), self.value

        def holds(scope: Scope) -> bool:
            found = get(scope)
            try:
                given = None if found is ABSENT else copied(found)
                if count == 1:  # the usual case, and the cheaper one
                    return bool(matcher(given))
                return bool(matcher(*(given, value)[:count]))
            except Exception as error:  # noqa: BLE001 - a user's function must not fail the run
                _failed_at(f"the matcher of {self.attribute_path}", error)
                return False

        return holds


def _failed_at(what: str, error: Exception) -> None:
    LOGGER.warning("%s could not be compared: %s", what, type(error).__name__)


class ReadsOnly:
    """Marks the transformers of our own, which change nothing: they need no copy of the request."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RuleAction:
    """What a rule that matches leads to.

    Attributes:
        tool_name: the tool to run.
        tool_options: options for it and for the fallback tools.
        fallback_tools: what is tried after it, in order.
        execution_strategy: how they are run.
        option_transformer: makes the options anew: given a copy of `tool_options`, the request and
            the `PlanRequest`, or as many of them as it takes, it returns the options to use.

    Raises:
        InvalidValue: naming the field.
    """

    tool_name: str
    tool_options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    fallback_tools: Sequence[str] = field(default_factory=list)
    execution_strategy: ExecutionStrategy = ExecutionStrategy.SINGLE
    option_transformer: Callable[..., Mapping[str, Any]] | None = None
    tools: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The tool and its fallbacks, in order, each once."""
    _count: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.text("tool_name", self.tool_name)
        checks.mapping("tool_options", self.tool_options)
        checks.names("fallback_tools", self.fallback_tools)
        checks.plain_function("option_transformer", self.option_transformer)
        transformer = self.option_transformer
        object.__setattr__(self, "_count", accepted(transformer, 3) if transformer else 0)
        tools = tuple(dict.fromkeys((self.tool_name, *self.fallback_tools)))
        object.__setattr__(self, "tools", tools)
        object.__setattr__(self, "execution_strategy", strategy_of(self.execution_strategy))

    def options(self, request: Any, context: PlanRequest) -> dict[str, Any]:
        """The options for a request.

        Raises:
            Exception: whatever the transformer raises.
        """
        options = dict(self.tool_options)
        if self.option_transformer is None:
            return options
        given: tuple[Any, ...] = (options,)
        if self._count > 1:
            if not isinstance(self.option_transformer, ReadsOnly):
                request = copied(request)  # a rule looks at it, and does not change it
            given = (options, request, context)
        return dict(self.option_transformer(*given[: self._count]))


@dataclass(frozen=True, slots=True)
class PlanningRule:
    """Leads the requests that all its conditions hold for to its action; without any, all requests.

    Rules are asked in order of `priority`, highest first; ties in the order they were added.

    Raises:
        InvalidValue: naming the field.
    """

    name: str
    priority: int = 0
    conditions: Sequence[RuleCondition] = field(default_factory=list)
    action: RuleAction | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        checks.number("priority", self.priority, least=-(2**53), most=2**53)
        if not isinstance(self.conditions, Sequence):
            raise InvalidValue("conditions", "must be a list of RuleCondition")
        for index, condition in enumerate(self.conditions):
            if not isinstance(condition, RuleCondition):
                raise InvalidValue(f"conditions[{index}]", "must be a RuleCondition")
        object.__setattr__(self, "conditions", list(self.conditions))
        if self.action is not None and not isinstance(self.action, RuleAction):
            raise InvalidValue("action", "must be a RuleAction")

    def matches(self, scope: Scope) -> bool:
        """Whether every condition holds."""
        # A request may hold anything; what it holds may fail at being compared.
        try:
            for condition in self.conditions:
                if not condition.holds(scope):
                    return False
        except Exception as error:  # noqa: BLE001 - a foreign method must not fail the run
            _failed_at(f"a value that rule {self.name} asks for", error)
            return False
        return True


_FIELDS: Final = {"attribute": "attribute_path", "operator": "operator", "value": "value"}


def _named(error: ConditionError) -> InvalidValue:
    """The same refusal in the words of `RuleCondition`'s own fields."""
    return InvalidValue(_FIELDS.get(error.place.lstrip("."), "condition"), str(error))


OPERATORS: Final = tuple(str(each) for each in Operator)
"""The names of the operators."""
