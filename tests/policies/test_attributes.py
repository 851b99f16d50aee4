"""Attribute paths of calls to providers."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from steer_policies.attributes import (
    ROOTS,
    Home,
    Scope,
    compile_attribute,
    compile_path,
    declared_of,
)
from steer_policies.budget import Budget
from steer_policies.config import ModelFacts
from steer_policies.dialects.base import RequestFacts, Where
from steer_policies.facts import CallFacts, Calm
from steer_policies.operators import ABSENT
from steer_policies.quality import parse_quality


class Stormy:
    """A live context in which something is known of every upstream."""

    def breaker(self, upstream: str, model: str | None) -> str:
        return f"open:{upstream}:{model}"

    def throttled_for(self, upstream: str, model: str | None) -> float:
        return 2.5

    def recent_failures(self, upstream: str) -> int:
        return 3

    def latency_ms(self, upstream: str) -> float | None:
        return 120.0


HOME = Home(
    upstream="openai",
    options={},
    models={"gpt-4o": ModelFacts(input_usd_per_mtok=2.0, output_usd_per_mtok=10.0)},
    prices=None,
    assumed_completion=100,
)

FACTS = CallFacts(
    request=RequestFacts("chat.completions", True, "gpt-4o", Where.BODY, stream=True),
    method="POST",
    path="/chat/completions",
    headers=CIMultiDict({"X-Team": "blue", "Authorization": "Bearer secret"}),
    metadata={"tier": "gold", "tags": ["a", "b"]},
    budget=Budget(tokens=500, cost_usd=0.05),
    quality=parse_quality({"min_confidence": 0.9, "style": "terse"}),
    body={
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "user": None,
        "0": "zero",
    },
    body_size=400,
)

EMPTY = CallFacts(request=RequestFacts("models.list", False))


def get(path: str, facts: CallFacts = FACTS, live: Any = None) -> object:
    return compile_attribute(path)(Scope(facts, live or Stormy(), HOME))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("body.model", "gpt-4o"),
        ("body.user", None),
        ("body.messages.0.role", "system"),
        ("body.messages[1].content", "hi"),
        ("body.messages.-1.content", "hi"),
        ("body.messages[-2].role", "system"),
        ("body.0", "zero"),
        ("body[0]", "zero"),
        ("header.x-team", "blue"),
        ("header.X-TEAM", "blue"),
        ("header.authorization", True),
        ("metadata.tier", "gold"),
        ("metadata.tags.1", "b"),
        ("path", "/chat/completions"),
        ("method", "POST"),
        ("model", "gpt-4o"),
        ("operation", "chat.completions"),
        ("stream", True),
        ("budget.tokens", 500),
        ("budget.cost_usd", 0.05),
        ("quality.min_confidence", 0.9),
        ("quality.style", "terse"),
        ("estimate.prompt_tokens", 100),
        ("estimate.completion_tokens", 100),
        ("estimate.total_tokens", 200),
        ("estimate.cost_usd", 0.0012),
        ("upstream.azure-eu.breaker", "open:azure-eu:gpt-4o"),
        ("upstream.azure-eu.throttled_for", 2.5),
        ("upstream.azure-eu.recent_failures", 3),
        ("upstream.azure-eu.latency_ms", 120.0),
    ],
)
def test_what_is_there(path: str, expected: object) -> None:
    """Each root reads its part of the call or of the world."""
    found = get(path)
    assert found == (pytest.approx(expected) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    "path",
    [
        "body.nothing",
        "body.model.deeper",
        "body.messages.2",
        "body.messages.-3",
        "body.messages.role",
        "body.user.name",
        "header.x-nothing",
        "header.x-api-key",
        "metadata.nothing",
        "budget.ms",
        "quality.nothing",
    ],
)
def test_what_is_not_there(path: str) -> None:
    """Absent, whatever stands in the way."""
    assert get(path) is ABSENT


@pytest.mark.parametrize(
    "path", ["body", "body.a", "model", "budget.tokens", "quality.x", "quality", "metadata.a"]
)
def test_a_call_that_says_nothing(path: str) -> None:
    """No body, no model, no budget, no quality: absent, not null."""
    assert get(path, EMPTY) is ABSENT


def test_whole_values() -> None:
    """A root alone is the whole of it."""
    assert get("body") == FACTS.body
    assert get("metadata") == FACTS.metadata
    assert get("quality") == {"min_confidence": 0.9, "style": "terse"}


def test_a_calm_world() -> None:
    """What `steer plan` assumes: all closed, nothing throttled, nothing measured."""
    assert get("upstream.a.breaker", live=Calm()) == "closed"
    assert get("upstream.a.throttled_for", live=Calm()) == 0.0
    assert get("upstream.a.recent_failures", live=Calm()) == 0
    assert get("upstream.a.latency_ms", live=Calm()) is ABSENT


def test_a_form_has_no_estimate() -> None:
    """Bytes of audio say nothing about tokens."""
    facts = CallFacts(
        request=RequestFacts("audio.transcriptions", True, "whisper-1", Where.FORM), body_size=10**6
    )
    assert get("estimate.prompt_tokens", facts) is ABSENT
    assert get("estimate.cost_usd", facts) is ABSENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("bdy.model", "unknown attribute 'bdy.model', did you mean body?; known: body, header"),
        ("", "unknown attribute ''"),
        ("xyz", "unknown attribute 'xyz'; known:"),
        ("body.", "ends with a dot"),
        ("body..model", "has an empty step"),
        ("header", "header takes a name"),
        ("path.x", "attribute 'path' has no members"),
        ("budget.dollars", "unknown attribute 'budget.dollars'; known: ms, tokens, cost_usd"),
        ("budget", "unknown attribute 'budget.'"),
        ("estimate.cost", "did you mean cost_usd?"),
        ("upstream", "upstream takes a name and a member"),
        ("upstream.openai", "upstream takes a name and a member"),
        ("upstream.a.b.breaker", "upstream takes a name and a member"),
        ("upstream.openai.braker", "did you mean breaker?"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path: str, message: str) -> None:
    """A typo is found when configuration is loaded, not by a rule that never matches."""
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        compile_attribute(path)


def test_every_root_is_known() -> None:
    """The roots that the documentation lists."""
    assert " ".join(ROOTS) == (
        "body header metadata path method model operation stream budget quality estimate upstream"
    )


@given(
    path=st.text(alphabet="ab.0-1[]", max_size=12),
    value=st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab0"), inner),
        max_leaves=8,
    ),
)
def test_paths_are_total(path: str, value: Any) -> None:
    """A path compiles or is refused, and then finds something or `ABSENT`."""
    try:
        getter = compile_path(path)
    except ValueError:
        return
    getter(value)


def test_mappings_of_any_kind() -> None:
    """What parsers hand over may be read-only."""
    assert compile_path("a.b")(MappingProxyType({"a": MappingProxyType({"b": 1})})) == 1


def test_declared_models() -> None:
    """A model's own declaration, else that of `*`, else none."""
    small, rest = ModelFacts(quality=0.1), ModelFacts(quality=0.5)
    assert declared_of({}, "small") is None
    assert declared_of({"small": small}, "other") is None
    assert declared_of({"small": small, "*": rest}, "small") is small
    assert declared_of({"small": small, "*": rest}, "other") is rest
    assert declared_of({"*": rest}, None) is rest
