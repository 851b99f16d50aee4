"""JSON merge patches."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.merge_patch import merge_patch, same_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, "a", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_examples_of_rfc_7396(target: Any, patch: Any, result: Any) -> None:
    """Appendix A, whole."""
    assert merge_patch(target, patch) == result


@pytest.mark.parametrize(
    ("target", "patch", "changed"),
    [
        ({"a": 1}, {}, False),
        ({"a": 1}, {"a": 1}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, True),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 2}]}}, False),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 2.0}]}}, True),
        ({"a": [1]}, {"a": (1,)}, False),
        ({"a": [1]}, {"a": [1, 1]}, True),
        ({"a": {"b": 1}}, {"a": MappingProxyType({"b": 1})}, False),
        ({"a": {}}, {"a": {}}, False),
        ({"a": 1}, {"a": {}}, True),
        ({"b": 1}, {"a": {}}, True),
        ({"a": 1}, {"b": None}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": [{"b": 1}]}, {"a": [{"c": 1}]}, True),
        ({"a": [{}]}, {"a": [1]}, True),
        ({"a": [[]]}, {"a": [1]}, True),
    ],
)
def test_nothing_changed_is_the_same_object(target: Any, patch: Any, changed: bool) -> None:
    """By identity; 1, 1.0 and true are three different values of JSON."""
    assert (merge_patch(target, patch) is not target) is changed


def plain(target: Any, patch: Any) -> Any:
    """The pseudocode of RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = plain(result.get(name), value)
    return result


@given(JSON, JSON)
def test_it_is_what_the_rfc_says(target: Any, patch: Any) -> None:
    """And alters neither argument."""
    before = copy.deepcopy((target, patch))
    result = merge_patch(target, patch)
    assert same_json(result, plain(target, patch))
    assert same_json([target, patch], list(before))
    assert (result is target) or not same_json(result, target)


@given(JSON, JSON)
def test_same_json_is_as_strict_as_text(one: Any, other: Any) -> None:
    """Two values are the same when their sorted text is."""
    import json

    texts = [json.dumps(value, sort_keys=True) for value in (one, other)]
    assert same_json(one, other) is (texts[0] == texts[1])
