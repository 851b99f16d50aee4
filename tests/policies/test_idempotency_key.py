"""Reading the header that names a call."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.idempotency_key import MAX_KEY, KeySyntaxError, read_key

VISIBLE = [chr(code) for code in range(0x20, 0x7F)]


def quoted(key: str) -> str:
    """A key as an RFC 8941 string."""
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("  spaces-around\t ", "spaces-around"),
        (' \t"spaces around" ', "spaces around"),
        ("!", "!"),
        ("a;b=c", "a;b=c"),
        ("back\\slash", "back\\slash"),
        ("'single'", "'single'"),
        ('"a, b"', "a, b"),
        ('"a;b=c"', "a;b=c"),
        (r'"a \"quoted\" word"', 'a "quoted" word'),
        (r'"back\\slash"', "back\\slash"),
        (r'"\\\""', '\\"'),
        ("x" * MAX_KEY, "x" * MAX_KEY),
        ('"' + "x" * MAX_KEY + '"', "x" * MAX_KEY),
        ('"' + '\\"' * MAX_KEY + '"', '"' * MAX_KEY),
    ],
)
def test_a_key(line: str, key: str) -> None:
    """Quoted or bare, spaces around it or not."""
    assert read_key([line]) == key


def test_no_key() -> None:
    """A request without the header has none."""
    assert read_key([]) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a", "a"], "given 2 times; send it once"),
        (["a", "b", "c"], "given 3 times; send it once"),
        ([""], "is empty; send a key, or leave the header out"),
        ([" \t "], "is empty; send a key, or leave the header out"),
        (['""'], "is empty; send a key, or leave the header out"),
        (["x" * (MAX_KEY + 1)], "has 256 characters; use at most 255"),
        (['"' + "x" * (MAX_KEY + 1) + '"'], "has 256 characters; use at most 255"),
        (["a\x00b"], "control character or one that is not ASCII; use visible ASCII"),
        (["a\tb"], "control character or one that is not ASCII; use visible ASCII"),
        (["a\n"], "control character or one that is not ASCII; use visible ASCII"),
        (["\x7f"], "control character or one that is not ASCII; use visible ASCII"),
        (['"\x1f"'], "control character or one that is not ASCII; use visible ASCII"),
        (["schlüssel"], "control character or one that is not ASCII; use visible ASCII"),
        (['"schl\udcc3"'], "control character or one that is not ASCII; use visible ASCII"),
        (["a\xa0"], "control character or one that is not ASCII; use visible ASCII"),
        (['"'], "broken quoting; end it with a quote"),
        (['"never ended'], "broken quoting; end it with a quote"),
        (['"a\\"'], "broken quoting; end it with a quote"),
        (['"a\\n"'], "broken quoting; end it with a quote"),
        (['"a";v=1'], "parameters after the quoted key; send the key alone"),
        (['"a" ; v'], "parameters after the quoted key; send the key alone"),
        (['"a", "b"'], "lists more than one key; send one"),
        (['"a" "b"'], "text after the closing quote; send the quoted key alone"),
        (['"a"b'], "text after the closing quote; send the quoted key alone"),
        (['a"b'], 'has a quote; leave it out, or send one key as a quoted string: "..."'),
        (["a, b"], 'has a comma; leave it out, or send one key as a quoted string: "..."'),
        (["a b"], 'has a space; leave it out, or send one key as a quoted string: "..."'),
    ],
)
def test_no_good_key(lines: list[str], message: str) -> None:
    """Refused with what is wrong and what to do."""
    with pytest.raises(KeySyntaxError, match=re.escape(message)) as refused:
        read_key(lines)
    assert str(refused.value).startswith("Idempotency-Key ")
    assert str(refused.value).endswith(".")


@given(st.text(st.sampled_from(VISIBLE), min_size=1, max_size=MAX_KEY))
def test_quoted_and_bare_are_the_same(key: str) -> None:
    """Every text that can be written quoted is that key, and where it can be bare, the same one."""
    assert read_key([quoted(key)]) == key
    if not set(key) & {" ", '"', ","}:
        assert read_key([key]) == key


@given(
    st.lists(
        st.one_of(
            st.text(),
            st.text(st.sampled_from(' \t"\\,;=ab\x00é'), max_size=12),
            st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE000), max_size=3),
        ),
        max_size=2,
    )
)
def test_anything_is_read_or_refused(lines: list[str]) -> None:
    """Total: a bounded key of visible characters, none, or a reason."""
    try:
        key = read_key(lines)
    except KeySyntaxError:
        assert lines
    else:
        assert (key is None) == (not lines)
        assert key is None or (1 <= len(key) <= MAX_KEY and set(key) <= set(VISIBLE))
