"""The ends of a large answer: its model and usage are found, and nothing that looks like them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.dialects.glimpse import GLIMPSE, glimpse

USAGE = {"prompt_tokens": 7, "details": {"cached_tokens": 3, "list": [1, {"a": "}"}]}}
FILLER = "x" * (2 * GLIMPSE)


def seen(value: Any, **how: Any) -> Any:
    """What is found in a large answer, as its ends are cut off it."""
    body = json.dumps(value, **how).encode()
    assert len(body) >= 2 * GLIMPSE
    return json.loads(glimpse(body[:GLIMPSE], body[-GLIMPSE:]))


@pytest.mark.parametrize("how", [{}, {"indent": 2}, {"separators": (",", ":")}], ids=str)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"data": FILLER, "model": "m", "usage": USAGE}, id="at the end"),
        pytest.param({"model": "m", "usage": USAGE, "data": FILLER}, id="at the beginning"),
        pytest.param({"model": "m", "data": [FILLER], "usage": USAGE, "user": "u"}, id="both"),
    ],
)
def test_what_stands_near_the_ends_is_found(value: Any, how: dict[str, Any]) -> None:
    """Wherever the large part is, and however the JSON is written."""
    assert seen(value, **how) == {"model": "m", "usage": USAGE}


def test_a_response_with_all_the_metadata_it_may_have() -> None:
    """Sixteen members of 512 characters stand behind its usage, and its tier after that."""
    metadata = {f"{number:064}": "x" * 512 for number in range(16)}
    value = {"output": FILLER, "service_tier": "flex", "usage": USAGE, "metadata": metadata}
    assert seen(value) == {"service_tier": "flex", "usage": USAGE}


def test_a_gemini_answer() -> None:
    """It has names of its own."""
    value = {"candidates": [FILLER], "usageMetadata": {"n": 1}, "modelVersion": "g"}
    assert seen(value) == {"usageMetadata": {"n": 1}, "modelVersion": "g"}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": {"usage": USAGE}, "data": FILLER}, id="inside, at the beginning"),
        pytest.param({"data": FILLER, "a": [{"usage": USAGE}]}, id="inside, at the end"),
        pytest.param({"data": FILLER, "a": '{"usage": {"n": 1}}'}, id="in a string"),
        pytest.param({"data": [FILLER, "usage"]}, id="no member"),
        pytest.param([FILLER, {"usage": USAGE}], id="in an array"),
        pytest.param({"data": FILLER + '"', "text": '"usage": {}}'}, id="quotes"),
        pytest.param({"data": FILLER, "usage": {"text": FILLER}}, id="too long"),
    ],
)
def test_what_only_looks_like_it_is_not_taken(value: Any) -> None:
    """Text of a model's own making must not count tokens."""
    assert seen(value) == {}


def test_an_answer_that_was_cut_counts_nothing() -> None:
    """Its end is not the end of its outermost object."""
    body = json.dumps({"data": FILLER, "usage": USAGE, "more": FILLER[:100]}).encode()
    assert json.loads(glimpse(b"", body[-GLIMPSE:])) == {"usage": USAGE}
    assert json.loads(glimpse(b"", body[-GLIMPSE:-3])) == {}


@given(head=st.binary(max_size=200), tail=st.binary(max_size=200))
def test_it_is_total(head: bytes, tail: bytes) -> None:
    """Whatever the ends hold, there is a JSON object."""
    assert isinstance(json.loads(glimpse(head, tail)), dict)
    deep = b'"usage": ' + b"[" * 4000 + head
    assert json.loads(glimpse(b"{" + deep, deep)) == {}


@given(
    st.dictionaries(
        st.sampled_from(["model", "usage", "other", "data"]),
        st.recursive(
            st.none() | st.integers(-9, 9) | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["usage", "model", '"', "a"]), inner, max_size=3)
            ),
            max_leaves=8,
        ),
    )
)
def test_nothing_but_members_of_the_outermost_object(value: dict[str, Any]) -> None:
    """Read from the end alone, as from the beginning alone."""
    wanted = {name: value[name] for name in ("model", "usage") if name in value}
    body = json.dumps(value).encode()
    assert json.loads(glimpse(body, b"")) == wanted
    assert json.loads(glimpse(b"", body)) == wanted
