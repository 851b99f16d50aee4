"""Copies of huge JSON texts without their long strings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.dialects import skim
from steer_policies.dialects.skim import Skimmer

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.text('\\"a', max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def skimmed(text: bytes, size: int) -> bytes:
    skimmer = Skimmer()
    for start in range(0, len(text), size):
        skimmer.feed(text[start : start + size])
    return skimmer.copy


def shortened(value: Any, limit: int) -> Any:
    """What the copy should say."""
    if isinstance(value, str):
        return value if len(json.dumps(value)) - 2 <= limit else ""
    if isinstance(value, list):
        return [shortened(item, limit) for item in value]
    if isinstance(value, dict):
        return {shortened(key, limit): shortened(item, limit) for key, item in value.items()}
    return value


@given(VALUES, st.integers(1, 40), st.booleans())
def test_a_copy_is_json_of_the_same_shape(value: Any, size: int, ascii_only: bool) -> None:
    """Short strings stay, long ones are empty, however the text is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skim, "MAX_STRING", 10)
        text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        if ascii_only:
            assert json.loads(skimmed(text, size)) == shortened(value, 10)
        assert skimmed(text, size) == skimmed(text, len(text))


def test_long_strings_are_left_out() -> None:
    """Also one with escapes at its edges, and a name."""
    long = "\\n" * 1000
    text = f'{{"a": "{long}", "b": "\\"", "{long}": 1}}'.encode()
    assert json.loads(skimmed(text, 7)) == {"a": "", "b": '"', "": 1}


def test_a_line_end_ends_a_string() -> None:
    """A stray quote spoils one line, not the rest."""
    assert skimmed(b': it"s\ndata: "' + b"x" * 2000 + b'"\n', 5) == b': it"s\ndata: ""\n'
    assert skimmed(b': it"' + b"s" * 2000 + b"\ndata: 1\n", 5) == b': it"\ndata: 1\n'


def test_the_copy_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays too long without long strings is given up."""
    monkeypatch.setattr(skim, "MAX_COPY", 100)
    skimmer = Skimmer()
    skimmer.feed(b"1," * 50)
    assert skimmer.copy == b"1," * 50
    skimmer.feed(b"1," * 5000)
    assert skimmer.copy == b""
    skimmer.feed(b'"x"' * 5000)
    assert len(skimmer._copy) < 250
