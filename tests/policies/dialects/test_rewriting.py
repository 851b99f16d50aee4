"""Changing as little of a request as can be."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.dialects.rewriting import (
    dump,
    patch_body,
    query_parameter,
    set_query_parameter,
)
from steer_policies.merge_patch import merge_patch

NAMES = st.sampled_from(["model", 'x"model"', 'x"model', "\\"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["a", '"model":"x"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("raw", "patched"),
    [
        pytest.param(b'{"model":"a"}', b'{"model":"b"}', id="plain"),
        pytest.param(
            b'{\n "n": 123456789012345678901234567890, "model" :\t"a" , "x": 1.10}',
            b'{\n "n": 123456789012345678901234567890, "model" :\t"b" , "x": 1.10}',
            id="spaces and numbers stay",
        ),
        pytest.param(
            b'{"text":"\\"model\\": \\"x\\"","model":"a"}',
            b'{"text":"\\"model\\": \\"x\\"","model":"b"}',
            id="text that looks like a member",
        ),
        pytest.param(b'{"model":"q\\"a"}', b'{"model":"b"}', id="escapes in the old name"),
        pytest.param(
            b'{"x":{"model":"y"},"model":"a"}', b'{"x":{"model":"y"},"model":"b"}', id="nested, too"
        ),
        pytest.param(b'{"model":"z","model":"a"}', b'{"model":"b"}', id="named twice"),
        pytest.param(
            b'{"x":{"model":"y"},"mod\\u0065l":"a"}',
            b'{"x":{"model":"y"},"model":"b"}',
            id="spelled with escapes",
        ),
        pytest.param(
            b'{"x\\"model":"y","model":"a"}', b'{"x\\"model":"y","model":"b"}', id="a name like it"
        ),
        pytest.param(b'{"model":3}', b'{"model":"b"}', id="no name before"),
        pytest.param(b"{}", b'{"model":"b"}', id="none before"),
    ],
)
def test_a_new_model(raw: bytes, patched: bytes) -> None:
    """It is put in place of the only one; where that is not certain the body is written anew."""
    assert patch_body(raw, orjson.loads(raw), {"model": "b"}) == patched


def test_a_model_that_needs_escapes() -> None:
    """It is written as JSON."""
    assert (
        patch_body(b'{"model":"a"}', {"model": "a"}, {"model": 'ü"'}) == '{"model":"ü\\""}'.encode()
    )


@pytest.mark.parametrize(
    ("patch", "patched"),
    [
        ({}, None),
        ({"model": "a", "x": {"y": 1}}, None),
        ({"gone": None}, None),
        ({"model": None}, b'{"x":{"y":1}}'),
        ({"model": 3}, b'{"model":3,"x":{"y":1}}'),
        ({"model": "b", "x": {"z": 2}}, b'{"model":"b","x":{"y":1,"z":2}}'),
        ({"x": MappingProxyType({"z": 2})}, b'{"model":"a","x":{"y":1,"z":2}}'),
    ],
)
def test_options(patch: dict[str, Any], patched: bytes | None) -> None:
    """A merge patch; None when nothing changes."""
    raw = b'{"model":"a","x":{"y":1}}'
    assert patch_body(raw, orjson.loads(raw), patch) == patched


@pytest.mark.parametrize("body", [None, [], "text", 1])
def test_only_objects_are_patched(body: Any) -> None:
    """Anything else stays."""
    assert patch_body(b"raw", body, {"a": 1}) is None


@given(st.dictionaries(st.sampled_from(["model", "a", "x"]), JSON), JSON, st.booleans())
def test_a_patched_body_says_what_the_patch_says(
    body: dict[str, Any], model: Any, ascii_only: bool
) -> None:
    """Whatever the text looks like."""
    raw = json.dumps(body, ensure_ascii=ascii_only, indent=1).encode()
    patch = {"model": model}
    made = patch_body(raw, orjson.loads(raw), patch)
    assert (body if made is None else json.loads(made)) == merge_patch(body, patch)


def test_dump_takes_what_orjson_does_not() -> None:
    """Integers of any size, lone surrogates, read-only mappings."""
    assert dump({"a": 2**70}) == b'{"a":1180591620717411303424}'
    assert dump({"a": "\ud800"}) == b'{"a":"\\ud800"}'
    assert dump(MappingProxyType({"a": [1]})) == b'{"a":[1]}'


@pytest.mark.parametrize(
    ("query", "value", "expected"),
    [
        ("", None, "model=new"),
        ("a=b", None, "a=b&model=new"),
        ("model=x", "x", "model=new"),
        ("a=%20&model=x+y&b", "x y", "a=%20&model=new&b"),
        ("mod%65l=x", "x", "mod%65l=new"),
        ("model=1&model=2", "1", "model=new&model=new"),
        ("model", "", "model=new"),
    ],
)
def test_query_parameters(query: str, value: str | None, expected: str) -> None:
    """The first value is read, every one is set, the rest stays as it is written."""
    assert query_parameter(query, "model") == value
    assert set_query_parameter(query, "model", "new") == expected
