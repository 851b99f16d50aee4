"""Splitting a JSON array into its elements."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.dialects import json_array
from steer_policies.dialects.json_array import JsonArraySplitter
from steer_policies.dialects.pieces import Fragment
from tests.policies.dialects.test_sse import cut

OBJECTS = st.dictionaries(
    st.text('a"\\{}[]', max_size=4),
    st.recursive(
        st.text('x"\\{}[],', max_size=8) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=6,
    ),
    max_size=4,
)


def split(chunks: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = JsonArraySplitter()
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    return pieces, splitter.finish()


@given(
    st.lists(OBJECTS, max_size=5),
    st.sampled_from([",", ",\r\n", "\n, "]),
    st.none() | st.integers(0, 2),
    st.lists(st.integers(0, 500), max_size=8),
)
def test_elements(values: list[Any], between: str, indent: int | None, at: list[int]) -> None:
    """Each comes with what stands before it, the closing bracket by itself, whatever the chunks."""
    text = "[" + between.join(json.dumps(value, indent=indent) for value in values) + "\n]"
    stream = text.encode()
    pieces, rest = split(cut(stream, at))
    assert rest == b""
    assert b"".join(pieces) == stream
    assert [json.loads(piece.lstrip(b"[,\r\n ")) for piece in pieces[:-1]] == values
    assert pieces[-1].strip(b"[\n") == b"]"


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_anything_at_all_passes_unchanged(stream: bytes, at: list[int]) -> None:
    """What is no JSON is held, or released, but never changed."""
    pieces, rest = split(cut(stream, at))
    assert b"".join([*pieces, rest]) == stream


def test_what_follows_the_end_is_released_at_once() -> None:
    """In the same chunk or later, and an empty chunk releases nothing."""
    splitter = JsonArraySplitter()
    assert splitter.feed(b"[{}]\n") == [b"[{}", b"]", b"\n"]
    assert splitter.closed
    assert splitter.feed(b"more") == [b"more"]
    assert splitter.feed(b"") == []


def test_a_lone_object() -> None:
    """An error may come without an array around it."""
    splitter = JsonArraySplitter()
    assert splitter.feed(b'{"error": {"code"') == []
    assert splitter.feed(b": 1}}") == [b'{"error": {"code": 1}}']
    assert splitter.closed


def test_scalars_belong_to_the_next_element() -> None:
    """Nothing depends on them; nested arrays are elements."""
    assert split([b'[1, "a", null, [2], {}]']) == ([b'[1, "a", null, [2]', b", {}", b"]"], b"")


@given(st.lists(OBJECTS, min_size=1, max_size=4), st.lists(st.integers(0, 300), max_size=8))
def test_a_large_element_is_released_as_it_comes(values: list[Any], at: list[int]) -> None:
    """Nothing is held beyond the limit, and its last fragment brings a copy of the whole."""
    stream = json.dumps(values).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "MAX_HELD_EVENT", 3)
        splitter = JsonArraySplitter()
        pieces: list[bytes] = []
        for chunk in cut(stream, at):
            pieces += splitter.feed(chunk)
            assert splitter.held <= 3
    assert b"".join(pieces) == stream
    seen = b"".join(piece.event if isinstance(piece, Fragment) else piece for piece in pieces)
    assert json.loads(seen) == values
