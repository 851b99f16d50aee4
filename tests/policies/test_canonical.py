"""Bodies that are equal, and bodies that only look so."""

from __future__ import annotations

import json
import threading
import time
from decimal import Decimal
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from steer_policies import canonical
from steer_policies.canonical import (
    MAX_BARE,
    MAX_STRUCTURE,
    MAX_UNSURE,
    canonical_json,
    form_digest,
    pack,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, 1e16, 2.0**63, 2.0**64, 1e22, 0.1, 5e-324, 0.5])
    | st.text(max_size=8)
    | st.text(st.sampled_from('"\\/ua0\n:,é\U0001f600'), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("ab\"\\:'é", max_size=2), inner)
    ),
    max_leaves=12,
)

SPACE = st.text(st.sampled_from(" \t\r\n"), max_size=2)


# --- A slow and plain reference -------------------------------------------------------------------


def frozen(value: Any) -> Any:
    """A value in a form that is equal exactly where JSON values are."""
    match value:
        case dict():
            return "object", frozenset((name, frozen(each)) for name, each in value.items())
        case list():
            return "array", tuple(map(frozen, value))
        case bool():
            return "boolean", value
        case int() | Decimal():
            return "number", Decimal(value)
        case float():
            return "number", Decimal(repr(value))
        case _:
            return "other", value


def reference(text: bytes) -> Any:
    """The frozen value of a JSON text, None where it is not to be compared by value."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name comes again")
        return dict(pairs)

    def integer(written: str) -> int:
        if not -(2**63) <= int(written) < 2**64:
            raise ValueError("beyond 64 bits")
        return int(written)

    def number(written: str) -> Decimal:
        if not Decimal(repr(float(written))) == Decimal(written):
            raise ValueError("beyond a double")
        return Decimal(written)

    def constant(written: str) -> Any:
        raise ValueError(written)

    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=members,
            parse_int=integer,
            parse_float=number,
            parse_constant=constant,
        )
        json.dumps(value, ensure_ascii=False, default=str).encode()  # no half surrogate pair
    except ValueError:
        return None
    return frozen(value)


# --- Other spellings ------------------------------------------------------------------------------


def spelled(draw: Any, value: Any) -> str:
    """One of the many ways to write a value."""

    def spaced(text: str) -> str:
        return str(draw(SPACE)) + text + str(draw(SPACE))

    match value:
        case dict():
            names = draw(st.permutations(list(value)))
            members = (
                spaced(spelled_text(draw, name)) + ":" + spaced(spelled(draw, value[name]))
                for name in names
            )
            return spaced("{" + (",".join(members) or str(draw(SPACE))) + "}")
        case list():
            items = (spaced(spelled(draw, each)) for each in value)
            return spaced("[" + (",".join(items) or str(draw(SPACE))) + "]")
        case str():
            return spelled_text(draw, value)
        case None | bool():
            return json.dumps(value)
        case _:
            return str(draw(st.sampled_from(spellings(value))))


def spelled_text(draw: Any, text: str) -> str:
    def character(each: str) -> str:
        units = each.encode("utf-16-be").hex()
        escaped = "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
        ways = [json.dumps(each)[1:-1], escaped, escaped.upper().replace("\\U", "\\u")]
        if each == "/":
            ways.append("\\/")
        if each not in '"\\' and each >= " ":
            ways.append(each)
        return str(draw(st.sampled_from(ways)))

    return '"' + "".join(map(character, text)) + '"'


def spellings(value: float) -> list[str]:
    """Ways to write a number."""
    if value == 0:
        return ["0", "-0", "0.0", "-0.0", "0e5", "0E-7", "0.000"]
    if type(value) is float and not (value.is_integer() and abs(value) < 2**53):
        shortest = repr(value)
        _, digits, exponent = Decimal(shortest).as_tuple()
        whole = "".join(map(str, digits))
        sign = "-" if value < 0 else ""
        return [shortest, shortest.replace("e", "E"), f"{sign}{whole}e{exponent}"]
    whole = str(int(value))
    if abs(int(value)) >= 2**53:
        return [whole]
    return [whole, f"{whole}.0", f"{whole}e0", f"{whole}E+0", f"{whole}0e-1", f"{whole}.000e00"]


@given(VALUES, st.data())
def test_spelling_does_not_matter(value: Any, data: st.DataObject) -> None:
    """Order of members, white space, escapes and ways to write a number do not."""
    one = spelled(data.draw, value).encode()
    other = spelled(data.draw, value).encode()
    assert reference(one) == reference(other) == frozen(value)
    found = canonical_json(one)
    assert found is not None
    assert found == canonical_json(other)


@given(VALUES, VALUES)
def test_other_values_are_others(one: Any, other: Any) -> None:
    """Equal exactly where the values are."""
    texts = [json.dumps(each).encode() for each in (one, other)]
    assume(reference(texts[0]) is not None and reference(texts[1]) is not None)
    assert (canonical_json(texts[0]) == canonical_json(texts[1])) == (frozen(one) == frozen(other))


@given(VALUES.filter(lambda value: isinstance(value, dict | list)), VALUES, st.data())
def test_a_change_anywhere_is_seen(value: Any, new: Any, data: st.DataObject) -> None:
    """A value changed, a member or an element added, an array turned round: somewhere in it."""
    before = canonical_json(json.dumps(value).encode())
    was = frozen(value)
    place: Any = value
    while True:
        names = list(place) if isinstance(place, dict) else list(range(len(place)))
        inner = [name for name in names if isinstance(place[name], dict | list)]
        if not inner or not data.draw(st.booleans()):
            break
        place = place[data.draw(st.sampled_from(inner))]
    change = data.draw(st.sampled_from(["add", "set", "turn"]))
    if change == "add" and isinstance(place, dict):
        place["added"] = new
    elif change == "set" and names:
        place[data.draw(st.sampled_from(names))] = new
    elif change == "turn" and isinstance(place, list):
        place.reverse()
    else:
        place.clear()
    assert (canonical_json(json.dumps(value).encode()) == before) == (frozen(value) == was)


AWKWARD = st.recursive(
    st.sampled_from(
        '"" "a" "\\u0061" "\\"" "\\\\" "1.0:{" "\\\\\\":" 1 1.0 1.00e0 true null - '
        "0.1 0.10 1e400 1e-400 "
        "18446744073709551615 18446744073709551616 1e19 10000000000000000000 "
        "0.30000000000000004 0.300000000000000041 9007199254740993 9007199254740993.0".split()
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(
            st.tuples(st.sampled_from(['"a"', '"\\u0061"', '"b"', '"\\""', '"\\u0022"']), inner),
            max_size=3,
        ).map(lambda members: "{" + ", ".join(f"{name}:{each}" for name, each in members) + "}")
    ),
    max_leaves=4,
).map(str.encode)


@settings(max_examples=500)
@given(AWKWARD | st.binary(max_size=20), AWKWARD)
def test_what_is_compared_by_value(one: bytes, other: bytes) -> None:
    """Whatever comes: exactly what the reference can compare is, and with the same result."""
    first, second = canonical_json(one), canonical_json(other)
    assert (first is None) == (reference(one) is None)
    assert (second is None) == (reference(other) is None)
    if first is not None and second is not None:
        assert (first == second) == (reference(one) == reference(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1}'),
        ('"\\u0041"', '"A"'),
        ('"\\ud83d\\ude00"', '"\U0001f600"'),
        ('"\\/"', '"/"'),
        ('{"\\u0061": 0}', '{"a": 0}'),
        ("1", "1.0"),
        ("1", "1e0"),
        ("100", "1E2"),
        ("0.1", "1e-1"),
        ("0.1", "0.1000000000000000000000000"),
        ("0", "-0.0"),
        ("9007199254740992", "9007199254740992.0"),
        ("9223372036854776000", "9.223372036854776e18"),
        ("1e22", "10000000000000000000000.0"),
        ("[1.0, [2.0, {}]]", "[1,[2,{}]]"),
    ],
)
def test_equal(one: str, other: str) -> None:
    """Two spellings of one value."""
    assert canonical_json(one.encode()) == canonical_json(other.encode()) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "true"),
        ("0", "false"),
        ("0", "null"),
        ("1", '"1"'),
        ("[1, 2]", "[2, 1]"),
        ("[]", "{}"),
        ("[[]]", "[]"),
        ('{"a": null}', "{}"),
        ('{"a": 1}', '{"A": 1}'),
        ('"\\u00e9"', '"e\\u0301"'),
        ("9007199254740993", "9007199254740992"),
        ("9223372036854775808", "9.223372036854776e18"),
        ("18446744073709551615", "18446744073709551614"),
        ("0.1", "0.10000000000000002"),
    ],
)
def test_different(one: str, other: str) -> None:
    """Two values that look alike."""
    first, second = canonical_json(one.encode()), canonical_json(other.encode())
    assert first is not None
    assert second is not None
    assert first != second


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"{'a': 1}",
        b"NaN",
        b"[1,]",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\\ud800"',
        b'"a\nb"',
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 2}',
        b'[{"x": [{"\\\\": 1, "\\u005c": 1}]}]',
        b'{"a\\"": 1, "a\\u0022": "\\\\\\""}',
        b"18446744073709551616",
        b"-9223372036854775809",
        b"1" + b"0" * 100,
        b"1" * 400,
        b"3.14159265358979323846",
        b"9007199254740993.0",
        b"1e400",
        b"-1e-400",
        b"0.1" + b"0" * 70,
        b"1.00000000000000000e000000",
        b"[" * 255 + b"]" * 255,
        b'{"a":' * 255 + b"1.0" + b"}" * 255,
        b"[" * 2000 + b"]" * 2000,
        b"[" * 500_000,
        b"[" + b"1," * MAX_STRUCTURE + b"1]",
        b"{" + b",".join(b'"%d":1' % name for name in range(MAX_STRUCTURE // 2 + 1)) + b"}",
        b"[" + b"0.12345678901," * (MAX_BARE // 14) + b"0.12345678901]",
        b"[" + b"0e0," * MAX_UNSURE + b"0e0]",
        b"[" + b"5e-324," * MAX_UNSURE + b"5e-324]",
        b"[" + b"0.30000000000000004," * MAX_UNSURE + b"0.30000000000000004]",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_not_compared_by_value(text: bytes) -> None:
    """Invalid, ambiguous, beyond what numbers hold, too deep, too much."""
    assert canonical_json(text) is None


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 254 + b"]" * 254,
        b'{"a":' * 254 + b"1.0" + b"}" * 254,
        b'"' + b"," * (MAX_STRUCTURE + 1) + b'"',
        b"[" + b"1," * (MAX_STRUCTURE - 1) + b"1]",
        b'["' + b"x" * MAX_BARE + b'",1' + b" " * MAX_BARE + b"]",
        b'"' + b"\\\\" * MAX_STRUCTURE + b'\\"' * MAX_STRUCTURE + b'"',
        b"18446744073709551615",
        b"-9223372036854775808",
        b"1.7976931348623157e308",
        b"5e-324",
        b'{"a": {"a": [{"a": "\\"a\\":"}]}, "b": ":::"}',
        b"[" + b"5e-324," * (MAX_UNSURE - 1) + b"5e-324]",
        b"[" + b"1e300,0.0,-1.5E-7," * MAX_UNSURE + b"-1e19]",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_just_compared_by_value(text: bytes) -> None:
    """The last ones within the bounds."""
    assert canonical_json(text) is not None


@given(AWKWARD, st.integers(1, 9))
def test_a_body_in_pieces(text: bytes, size: int) -> None:
    """Wherever the pieces end in which it is looked through: in a string, a number, an escape."""
    whole = canonical_json(text)
    with patch.object(canonical, "_AT_ONCE", size):
        assert canonical_json(text) == whole


def longest_stretch(body: bytes) -> float:
    """For how many seconds nobody else has a turn while a thread looks through a body."""
    thread = threading.Thread(target=canonical_json, args=(body,))
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while thread.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return max(longest, time.perf_counter() - last)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1' + b" " * 2**24 + b"}",
        b"[" + b"123456789012345678," * (MAX_BARE // 20) + b"1]",
        b"[" + b"123456789012345678," * 990_000 + b"1]",
    ],
    ids=["space", "integers", "too many integers"],
)
def test_others_have_their_turn(body: bytes) -> None:
    """No stretch is long but the parser's, some 50 ms here; a busy machine is given three tries."""
    assert any(longest_stretch(body) < 0.2 for _ in range(3))


@pytest.mark.parametrize(
    ("number", "most"),
    [
        (b"100000", 0),
        (b"1e300", 0),
        (b"-1e300", 0),
        (b"1E+300", 0),
        (b"9e19", 0),
        (b"1e-300", 0),
        (b"0e0", MAX_UNSURE),
        (b"1e-310", MAX_UNSURE),
        (b"0.12345678901234567e0", MAX_UNSURE),
    ],
)
def test_no_number_costs_much(number: bytes, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes the awkward ones has nobody wait for it: others have an event loop to run.

    Dear are decimals, of which a comparison takes two.
    """
    made = 0

    def counted(value: str) -> Decimal:
        nonlocal made
        made += 1
        return Decimal(value)

    monkeypatch.setattr(canonical, "Decimal", counted)
    canonical_json(b"[" + b",".join([number] * (2 * MAX_UNSURE)) + b"]")
    assert made <= 2 * most


@given(st.lists(st.binary(max_size=12)), st.lists(st.binary(max_size=12)))
def test_packing_is_unambiguous(one: list[bytes], other: list[bytes]) -> None:
    """Different sequences, different bytes."""
    assert (pack(one) == pack(other)) == (one == other)
    assert pack([pack(one), pack(other)]) != pack([pack([*one, *other])])


def test_packing_is_not_concatenation() -> None:
    """The case that separators get wrong."""
    assert len({pack(parts) for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"1:a"])}) == 4


# --- Forms ----------------------------------------------------------------------------------------

PARTS = st.lists(
    st.tuples(
        st.sampled_from([b'name="a"', b'name="b"; filename="x.png"']),
        st.binary(max_size=12) | st.sampled_from([b"\r\n--", b"--", b"\r\n\r\n", b"\r\n--x"]),
    ),
    min_size=1,
    max_size=3,
)
BOUNDARY = st.text("abc012-", min_size=8, max_size=12)


def form(boundary: str, parts: list[tuple[bytes, bytes]], end: bytes = b"\r\n") -> bytes:
    """A form as SDKs write it."""
    delimiter = b"--" + boundary.encode()
    written = [
        delimiter + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    ]
    return b"".join(written) + delimiter + b"--" + end


def digest(boundary: str, body: bytes) -> bytes | None:
    return form_digest(f"multipart/form-data; boundary={boundary}", body)


@given(PARTS, PARTS, BOUNDARY, BOUNDARY)
def test_a_form_is_its_parts(
    parts: list[tuple[bytes, bytes]],
    others: list[tuple[bytes, bytes]],
    one: str,
    other: str,
) -> None:
    """Equal exactly where the parts are, whatever the boundary."""
    first = digest(one, form(one, parts))
    assert first is not None
    assert first == digest(other, form(other, parts, end=b""))
    assert (first == digest(other, form(other, others))) == (parts == others)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x; boundary=y", b"--x\r\n\r\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"preamble\r\n--x\r\n\r\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\na\r\n--x--\r\nepilogue"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\na\r\n--x"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\na\r\n"),
        ("multipart/form-data; boundary=x", b"--x\n\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\na\r\n--xy\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x--\r\n--x--"),
    ],
)
def test_no_clean_form(content_type: str, body: bytes) -> None:
    """What another reader could read differently is not compared by parts."""
    assert form_digest(content_type, body) is None


@given(st.text(max_size=30), st.binary(max_size=60))
def test_any_form_is_read_or_not(content_type: str, body: bytes) -> None:
    """Total, also for boundaries that are none."""
    form_digest(content_type, body)
    form_digest("multipart/form-data; boundary=" + content_type, b"--" + body)


def test_parts_do_not_run_together() -> None:
    """What looks like the head of a second part within the first one's content is content."""
    head = b'name="a"'
    inner = b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n"
    two = form("x", [(head, b"a"), (head, b"b")])
    one = form("x", [(head, b"a" + inner + b"b")])
    assert digest("x", two) != digest("x", one)


def test_a_form_without_parts() -> None:
    """Some clients send an empty form: the closing delimiter alone."""
    assert digest("x", b"--x--\r\n") == digest("y", b"--y--\r\n") is not None
