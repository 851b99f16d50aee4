"""A request's body as bytes that are equal where the requests are: JSON by value, forms by parts.

Nothing is ever taken as equal that a provider could tell apart. What cannot be compared by value
with certainty is None here, and compared byte for byte by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final

import orjson

from steer_policies.dialects.multipart import form_delimiter

#: Brackets, braces and commas up to which a body is compared by value, those in its texts included:
#: a parser makes some 80 bytes of each, and the interpreter stands still meanwhile.
MAX_STRUCTURE: Final = 1_000_000

# Numbers that need a look: those with a fraction or an exponent, and those of 19 or more digits.
_UNUSUAL: Final = re.compile(rb"-?\d++(?:[.eE][\d.eE+-]*|(?<=\d{19}))")
_MAX_INTEGER: Final = len("-9223372036854775808")
# Longer spellings of a double than this are nobody's; it also bounds what a comparison costs.
_FLOAT: Final = re.compile(rb"(?=.{1,64}\Z)-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4})?")
# Up to 15 significant digits survive a double (IEEE 754), here with a point and perhaps a sign.
_SURE: Final = 16


def pack(parts: Iterable[bytes]) -> bytes:
    """Byte strings as one from which they could be read back: each after its length."""
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


def canonical_json(data: bytes) -> bytes | None:
    """The same bytes for every spelling of the same JSON value, or None.

    The order of members, white space and escapes in strings do not matter, and 1, 1.0 and 1e0 are
    one number. None for what is not valid JSON (RFC 8259) in UTF-8, repeats a member's name,
    has an integer beyond 64 bits or a number a double cannot keep, is nested deeper than 254 levels
    or has more than `MAX_STRUCTURE`.
    """
    if len(data) > MAX_STRUCTURE and sum(map(data.count, (b"[", b"{", b","))) > MAX_STRUCTURE:
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    bare = _without_strings(data)
    unusual = _UNUSUAL.findall(bare)
    if unusual:
        if not all(map(_is_kept, unusual)):
            return None
        if any(map(_is_integer, unusual)):
            value = _with_integers(value)
    try:
        canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # of what was parsed, only what is nested too deeply
        return None
    # The parser drops a member whose name comes again. Counting colons before and after finds that
    # at a fraction of what a parser costs that asks at every object.
    return canonical if _without_strings(canonical).count(b":") == bare.count(b":") else None


def _without_strings(data: bytes) -> bytes:
    """A valid JSON text with a lone quote for each of its strings."""
    if b"\\" in data:
        # Pairs of backslashes first: one that is left then escapes what follows it.
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b'"'.join(data.split(b'"')[::2])


def _is_kept(number: bytes) -> bool:
    """Whether a JSON number's value is exactly what it is parsed to."""
    if number.lstrip(b"-").isdigit():
        return len(number) <= _MAX_INTEGER and -(2**63) <= int(number) < 2**64
    if len(number) <= _SURE and b"e" not in number and b"E" not in number:
        return True
    # A double stands for the decimal it is written as, the shortest that reads back as the same.
    written, kept = number.decode(), repr(float(number))
    if written == kept:
        return True
    return _FLOAT.fullmatch(number) is not None and Decimal(written) == Decimal(kept)


def _is_integer(number: bytes) -> bool:
    """Whether a number is an integer that is not written as one."""
    return not number.lstrip(b"-").isdigit() and float(number).is_integer()


def _with_integers(value: Any) -> Any:
    """The value with integers for floats that are 64-bit ones (0 for -0.0)."""
    root = [value]
    pending: list[Any] = [root]
    while pending:
        container = pending.pop()
        places: Iterable[tuple[Any, Any]]
        places = container.items() if type(container) is dict else enumerate(container)
        for place, each in places:
            kind = type(each)
            if kind is dict or kind is list:
                pending.append(each)
            elif kind is float and each.is_integer():
                # Beyond 2^53 a double and its decimal are different integers.
                whole = int(each if abs(each) <= 2**53 else Decimal(repr(each)))
                if -(2**63) <= whole < 2**64:
                    container[place] = whole
    return root[0]


def form_digest(content_type: str, data: bytes) -> bytes | None:
    """A digest of a form's parts in their order (RFC 7578), whatever their boundary; or None.

    None unless there is one boundary, and the body is nothing but delimiters on lines of their own,
    the parts between them and the closing delimiter, perhaps with a line end after it.
    """
    delimiter = form_delimiter(content_type)
    if (
        delimiter is None
        or content_type.lower().count("boundary=") > 1
        or not data.startswith(delimiter)
    ):
        return None
    between = b"\r\n" + delimiter
    digest = sha256()
    view = memoryview(data)
    start = len(delimiter)
    while (end := data.find(between, start)) >= 0:
        if not data.startswith(b"\r\n", start, end):
            return None
        digest.update(b"%d:" % (end - start))
        digest.update(view[start:end])
        start = end + len(between)
    return digest.digest() if data[start : start + 5] in {b"--", b"--\r\n"} else None
