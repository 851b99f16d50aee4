"""What the attribute paths of conditions mean for a call to a provider.

A path is compiled once into a getter from a `Scope`; what is not there is `ABSENT`. The roots are
listed in `ROOTS`. Anything else is refused when configuration is loaded, so that a typo cannot make
a rule that silently never matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final

from steer_policies.budget import Estimate, PriceTable, estimate, estimate_usd
from steer_policies.config import ModelFacts
from steer_policies.facts import CallFacts, LiveContext
from steer_policies.operators import ABSENT


@dataclass(slots=True)
class Scope:
    """What getters read: a call, the live context, and what the home candidate would cost.

    One is made for each call that rules are asked about; freezing it would double that cost.
    """

    facts: CallFacts
    live: LiveContext
    home: Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What estimates are made for: the route's first candidate."""

    upstream: str
    options: Mapping[str, Any]
    models: Mapping[str, ModelFacts]
    prices: PriceTable | None
    assumed_completion: int

    def tokens(self, facts: CallFacts) -> Estimate | None:
        """The tokens the call is expected to take there."""
        return estimate(facts.request, facts.body_size, self.options, self.assumed_completion)

    def usd(self, facts: CallFacts) -> float | None:
        """What the call is expected to cost there, in US dollars."""
        model = self.options.get("model", facts.request.model)
        declared = declared_of(self.models, model)
        return estimate_usd(self.tokens(facts), self.upstream, model, declared, self.prices)


Getter = Callable[[Scope], object]

#: Headers that carry credentials: a rule may ask whether they exist, never what they hold.
CREDENTIAL_HEADERS: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
    }
)

_INDEX: Final = re.compile(r"-?\d{1,9}")
_BRACKETS: Final = re.compile(r"\[(-?\d{1,9})\]")


def declared_of(models: Mapping[str, ModelFacts], model: str | None) -> ModelFacts | None:
    """What is declared of a model; `*` declares for all that are not named."""
    if not models:
        return None
    found = None if model is None else models.get(model)
    return models.get("*") if found is None else found


def compile_attribute(path: str) -> Getter:
    """The getter of an attribute path.

    Raises:
        ValueError: for an unknown root or member, with the nearest known one.
    """
    root, dot, rest = path.partition(".")
    if "[" in root:
        root, dot, rest = root[: root.index("[")], ".", path[path.index("[") :]
    compiler = _ROOTS.get(root)
    if compiler is None:
        raise ValueError(_unknown(f"attribute {path!r}", root, ROOTS))
    if dot and not rest:
        raise ValueError(f"attribute {path!r} ends with a dot")
    return compiler(rest)


def compile_path(path: str) -> Callable[[object], object]:
    """A getter of a dotted path in a JSON value; `messages.0`, `messages[0]` and `messages.-1`
    are members of lists. An empty path is the value itself.

    Raises:
        ValueError: for an empty step.
    """
    if not path:
        return lambda value: value
    dotted = _BRACKETS.sub(r".\1", path)
    steps: list[tuple[str, int | None]] = []
    for key in (dotted[1:] if path.startswith("[") else dotted).split("."):
        if not key:
            raise ValueError(f"path {path!r} has an empty step")
        steps.append((key, int(key) if _INDEX.fullmatch(key) else None))

    def get(value: object) -> object:
        for key, index in steps:
            # A dictionary is found to be one before the abstract class has to be asked.
            if isinstance(value, (dict, Mapping)):
                value = value.get(key, ABSENT)
            elif index is not None and isinstance(value, (list, tuple)):
                value = value[index] if -len(value) <= index < len(value) else ABSENT
            else:
                return ABSENT
        return value

    return get


def _body(rest: str) -> Getter:
    get = compile_path(rest)
    # None is how "no body" is told; a body that is the JSON text null is as good as none.
    return lambda scope: ABSENT if scope.facts.body is None else get(scope.facts.body)


def _metadata(rest: str) -> Getter:
    get = compile_path(rest)
    return lambda scope: get(scope.facts.metadata)


def _quality(rest: str) -> Getter:
    get = compile_path(rest)

    def getter(scope: Scope) -> object:
        quality = scope.facts.quality
        return ABSENT if quality is None else get(quality.attributes)

    return getter


def _header(rest: str) -> Getter:
    if not rest:
        raise ValueError("header takes a name, such as header.user-agent")
    name = rest.lower()
    if name in CREDENTIAL_HEADERS:
        return lambda scope: True if name in scope.facts.headers else ABSENT
    return lambda scope: scope.facts.headers.get(name, ABSENT)


def _upstream(rest: str) -> Getter:
    name, _, member = rest.rpartition(".")
    if not name or "." in name:
        raise ValueError("upstream takes a name and a member, such as upstream.openai.breaker")
    getter = _LIVE.get(member)
    if getter is None:
        raise ValueError(_unknown(f"attribute 'upstream.{rest}'", member, tuple(_LIVE)))
    return lambda scope: _known(getter(scope, name))


def _plain(root: str, get: Getter) -> Callable[[str], Getter]:
    def compiler(rest: str) -> Getter:
        if rest:
            raise ValueError(f"attribute {root!r} has no members")
        return get

    return compiler


def _members(root: str, getters: Mapping[str, Getter]) -> Callable[[str], Getter]:
    def compiler(rest: str) -> Getter:
        getter = getters.get(rest)
        if getter is None:
            raise ValueError(_unknown(f"attribute '{root}.{rest}'", rest, tuple(getters)))
        return lambda scope: _known(getter(scope))

    return compiler


def _limit(kind: str) -> Getter:
    return lambda scope: getattr(scope.facts.budget, kind, None)


def _tokens(kind: str) -> Getter:
    return lambda scope: getattr(scope.home.tokens(scope.facts), kind, None)


def _known(value: object) -> object:
    return ABSENT if value is None else value


def _unknown(what: str, found: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(found, known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    return f"unknown {what}{hint}; known: {', '.join(known)}"


_LIVE: Final[Mapping[str, Callable[[Scope, str], object]]] = MappingProxyType(
    {
        "breaker": lambda scope, name: scope.live.breaker(name, scope.facts.request.model),
        "throttled_for": lambda scope, name: scope.live.throttled_for(
            name, scope.facts.request.model
        ),
        "recent_failures": lambda scope, name: scope.live.recent_failures(name),
        "latency_ms": lambda scope, name: scope.live.latency_ms(name),
    }
)

_ROOTS: Final[Mapping[str, Callable[[str], Getter]]] = MappingProxyType(
    {
        "body": _body,
        "header": _header,
        "metadata": _metadata,
        "path": _plain("path", lambda scope: scope.facts.path),
        "method": _plain("method", lambda scope: scope.facts.method),
        "model": _plain("model", lambda scope: _known(scope.facts.request.model)),
        "operation": _plain("operation", lambda scope: scope.facts.request.operation),
        "stream": _plain("stream", lambda scope: scope.facts.request.stream),
        "budget": _members("budget", {kind: _limit(kind) for kind in ("ms", "tokens", "cost_usd")}),
        "quality": _quality,
        "estimate": _members(
            "estimate",
            {
                "prompt_tokens": _tokens("prompt_tokens"),
                "completion_tokens": _tokens("completion_tokens"),
                "total_tokens": _tokens("total_tokens"),
                "cost_usd": lambda scope: scope.home.usd(scope.facts),
            },
        ),
        "upstream": _upstream,
    }
)

#: The first steps an attribute path may take.
ROOTS: Final = tuple(_ROOTS)
