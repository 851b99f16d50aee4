"""Reading one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_proxy.settings import ConfigurationError
from steer_proxy.settings.document import (
    MAX_BYTES,
    MAX_DEPTH,
    Document,
    parse_document,
    parse_value,
    read_document,
)


def problem(text: str | bytes) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_document(text, "f.yaml")
    return str(caught.value)


def test_values_and_their_lines() -> None:
    """Each key path knows the line of its key, each item of a list its own."""
    document = parse_document("a: 1\nb:\n  c: [x,\n      y]\n", "f.yaml")
    assert document.values == {"a": 1, "b": {"c": ["x", "y"]}}
    assert document.source(("a",)) == "f.yaml:1"
    assert document.source(("b", "c")) == "f.yaml:3"
    assert document.source(("b", "c", 1)) == "f.yaml:4"
    assert document.source(("b", "d", "e")) == "f.yaml:2"
    assert document.source(("z",)) == "f.yaml"
    assert Document().source(("a",)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("2.5e2", 250.0),
        ("2024-01-01", "2024-01-01"),
        ("0x10", 16),
        ("~", None),
        ("yes", True),
        ("'1'", "1"),
        ("1e", "1e"),
    ],
)
def test_scalars(text: str, expected: Any) -> None:
    """As YAML has them, but for dates (text) and exponents (numbers, as in JSON)."""
    assert parse_document(f"a: {text}", "f").values == {"a": expected}


def test_keys_are_the_words_that_were_written() -> None:
    """Whatever YAML would make of them."""
    assert parse_document("on: 1\n1: 2\nnull: 3", "f").values == {"on": 1, "1": 2, "null": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"b": 1, "c": 3}),
        ("a: &x {b: 1, c: 2}\nd: {c: 3, <<: *x}", {"b": 1, "c": 3}),
        ("a: &x {b: 1}\ne: &y {b: 2, c: 2}\nd: {<<: [*x, *y]}", {"b": 1, "c": 2}),
        ("a: &x [1, 2]\nd: *x", [1, 2]),
    ],
)
def test_anchors_and_merges(text: str, expected: Any) -> None:
    """What stands beside a merge wins, and the first of several merges."""
    assert parse_document(text, "f").values["d"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2", "f.yaml:2: a: appears twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "f.yaml:4: a.b: appears twice"),
        ("a: 1\nb: [", "f.yaml:2: is not YAML: "),
        ("a: b: c", "f.yaml:1: is not YAML: mapping values are not allowed here"),
        (
            "a: !!python/object:os.system x",
            "f.yaml:1: is not YAML: could not determine a construct",
        ),
        ("- a", "f.yaml:1: expected a mapping of keys such as upstreams and routes"),
        ("text", "f.yaml:1: expected a mapping"),
        ("a: 0x_", "f.yaml: is not YAML: invalid literal"),
        ("a: 1\n--- \nb: 2", "f.yaml:2: is not YAML: but found another document"),
        ("? [a, b]\n: 1", "f.yaml:1: expected a name as key"),
        ("a: {<<: 1}", "f.yaml:1: a: << takes a mapping"),
        ("a: &a [*a]", "f.yaml: is not YAML: a[0] is nested too deep, or contains itself"),
        ("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "is nested too deep"),
        ("a: " + "[" * 5000, "f.yaml: is not YAML"),
        ("\x00", "f.yaml: is not YAML: "),
        (b"\xff\xfe\xff", "f.yaml: is not YAML: "),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "\n".join(
                f"{name}: &{name} [{', '.join(['*' + below] * 10)}]"
                for below, name in zip("abcde", "bcdef", strict=True)
            ),
            "f.yaml: is not YAML: more than 100000 values",
        ),
    ],
)
def test_what_is_refused(text: str | bytes, expected: str) -> None:
    """With the line, where there is one."""
    assert problem(text).startswith(expected) or expected in problem(text)


def test_every_double_key_is_told() -> None:
    """Not only the first."""
    assert len(problem("a: 1\na: 2\nb: 1\nb: 2").splitlines()) == 2


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_reading_is_total(text: str | bytes) -> None:
    """Whatever a file holds: a document, or an error that says so."""
    try:
        document = parse_document(text, "f")
    except ConfigurationError:
        return
    assert isinstance(document.values, dict)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """By name, with the reason."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_document(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        read_document(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigurationError, match=f"is larger than {MAX_BYTES} bytes"):
        read_document(large)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("true", True),
        ("null", None),
        ("250ms", "250ms"),
        ("https://h:1/v1", "https://h:1/v1"),
        ("a: b # c", "a: b # c"),
        ("'quoted'", "'quoted'"),
        ("#", "#"),
        ("*", "*"),
        ("=", "="),
        ('["a", "b"]', ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ("0o9", "0o9"),
        ("09", "09"),
        ("0b_", "0b_"),
    ],
)
def test_values_of_variables(text: str, expected: Any) -> None:
    """Numbers, words and brackets are read; all else is text as it is."""
    assert parse_value(text) == expected


@given(st.text(max_size=20))
def test_reading_a_variable_is_total(text: str) -> None:
    """A value, or an error for its brackets."""
    try:
        parse_value(text)
    except ConfigurationError:
        assert text[0] in "[{"
