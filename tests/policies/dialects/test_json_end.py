"""Telling whether a JSON text was cut."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.dialects.json_end import JsonEnd
from tests.policies.dialects.test_sse import cut

VALUES = st.recursive(
    st.text('ä"\\{}[],', max_size=6) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\{}[]'), inner),
    max_leaves=8,
)
DOCUMENTS = st.lists(VALUES, max_size=3) | st.dictionaries(st.text('a"\\'), VALUES, max_size=3)
PLACES = st.lists(st.integers(0, 300), max_size=8)


def is_cut(*chunks: bytes, needed: bool = False) -> bool:
    end = JsonEnd(needed=needed)
    for chunk in chunks:
        end.feed(chunk)
    return end.cut


@given(DOCUMENTS, st.none() | st.integers(0, 2), st.booleans(), PLACES, st.data())
def test_documents(
    value: Any, indent: int | None, plain: bool, at: list[int], data: st.DataObject
) -> None:
    """A whole one is whole, and each part of it is cut, wherever it falls apart on its way."""
    text = json.dumps(value, indent=indent, ensure_ascii=plain).encode()
    assert not is_cut(*cut(text, at), needed=True)
    assert not is_cut(*cut(b"\n " + text + b"\r\n", at), needed=True)
    part = text[: data.draw(st.integers(0, len(text) - 1))]
    assert is_cut(*cut(part, at), needed=True)
    assert is_cut(*cut(part, at)) is bool(part)


@given(st.lists(DOCUMENTS, min_size=1, max_size=4), st.sampled_from(["", "\n", "\n\x1e"]), PLACES)
def test_several_documents(values: list[Any], between: str, at: list[int]) -> None:
    """One after the other, as some APIs send them."""
    assert not is_cut(*cut(between.join(map(json.dumps, values)).encode(), at), needed=True)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (b"", None),
        (b" \r\n\t", None),
        (b"\xef\xbb\xbf", None),
        (b"\xef\xbb\xbf{}", False),
        (b'\xef\xbb\xbf{"a', True),
        (b"nu", False),
        (b'"half a str', False),
        (b"12", False),
        (b")]}',\n{", False),
        (b"<html", False),
        ('{"a": "ⅻ'.encode("utf-16-le"), False),
        ('{"a'.encode("utf-16-be"), False),
        (b'{"a": NaN}', False),
        (b"{}}}", False),
        (b'{"a": "\\"}', True),
        (b'{"a": "\\\\"}', False),
        (b'{"a": "\xff"}', False),
        (b"[[[[", True),
    ],
)
def test_by_table(text: bytes, known: bool | None) -> None:
    """None where only who needs an answer can say; what does not begin as one is not judged."""
    assert is_cut(text) is bool(known)
    assert is_cut(text, needed=True) is (known is None or known)


@given(st.binary(max_size=200), PLACES)
def test_anything_at_all(text: bytes, at: list[int]) -> None:
    """It is total, and chunks make no difference where none is smaller than a byte order mark."""
    assert is_cut(text[:8], *cut(text[8:], at)) == is_cut(text)


@pytest.mark.parametrize("unit", [b"[", b'"', b"\\", b'\\"', b'""', b"a"])
def test_hostile_texts_take_no_longer(unit: bytes) -> None:
    """Each byte is looked at a few times at most: a second would be a thousand times as long."""
    text = b'{"' + unit * (1024 * 1024 // len(unit))
    started = time.process_time()
    is_cut(text)
    is_cut(*re.findall(rb"(?s).{1,65536}", text))
    assert time.process_time() - started < 1
