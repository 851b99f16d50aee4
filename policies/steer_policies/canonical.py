"""A request's body as bytes that are equal where the requests are: JSON by value, forms by parts.

Nothing is ever taken as equal that a provider could tell apart. What cannot be compared by value
with certainty is None here, and compared byte for byte by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final

import orjson

from steer_policies.dialects.multipart import form_delimiter

#: Brackets, braces, commas and colons outside strings up to which a body is compared by value, and
#: the bytes there that are no white space. The parser holds the interpreter's lock while it runs:
#: measured were 2 to 7 ms for each MiB of text or space, with as many escapes as it has room for
#: (so these have no bound), and 100 to 300 ms for this many names that all differ.
MAX_STRUCTURE: Final = 400_000
MAX_BARE: Final = 4 * 1024 * 1024

#: Numbers up to which it is by value, of those that take a comparison digit by digit: some 3 us
#: each, where all others take less than one.
MAX_UNSURE: Final = 10_000

# Looked through without a pause, in bytes: 10 ms where there is nothing but quotes. Between such
# pieces others have their turn.
_AT_ONCE: Final = 256 * 1024

# One match for each number, so that others have their turn between them.
_NUMBER: Final = re.compile(rb"[-\d][\d.eE+-]*+")
# Up to so many digits an integer needs no look.
_USUAL: Final = 18
_MAX_INTEGER: Final = len("-9223372036854775808")
# Longer spellings of a double than this are nobody's; it also bounds what a comparison costs.
_MAX_FLOAT: Final = 64
_FLOAT: Final = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4})?")
# Up to 15 significant digits survive a double (IEEE 754), here with a point and perhaps a sign,
# where it is a normal one, or zero without an exponent.
_SURE: Final = 16
_NORMAL: Final = (1e-307, 1e307)


def pack(parts: Iterable[bytes]) -> bytes:
    """Byte strings as one from which they could be read back: each after its length."""
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


def canonical_json(data: bytes) -> bytes | None:
    """The same bytes for every spelling of the same JSON value, or None.

    The order of members, white space and escapes in strings do not matter, and 1, 1.0 and 1e0 are
    one number. None for what is not valid JSON (RFC 8259) in UTF-8, repeats a member's name,
    has an integer beyond 64 bits or a number a double cannot keep, is nested deeper than 254 levels
    or has more than `MAX_STRUCTURE`, `MAX_BARE` or `MAX_UNSURE` outside strings.
    """
    bare = _bare(data)
    if bare is None:
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    integers = False
    unsure = 0
    for found in _NUMBER.finditer(bare):
        number = found[0]
        if len(number) <= _USUAL and (number.isdigit() or number[1:].isdigit()):
            continue
        if number.lstrip(b"-").isdigit():
            if len(number) > _MAX_INTEGER or not -(2**63) <= int(number) < 2**64:
                return None
            continue
        if len(number) > _MAX_FLOAT:
            return None
        double = float(number)
        if not _is_sure(number, double):
            unsure += 1
            if unsure > MAX_UNSURE or not _is_kept(number, double):
                return None
        integers = integers or (double.is_integer() and abs(double) <= 2**64)
    if integers:
        value = _with_integers(value)
    try:
        canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # of what was parsed, only what is nested too deeply
        return None
    # The parser drops a member whose name comes again. Counting colons before and after finds that
    # at a fraction of what a parser costs that asks at every object.
    colons = sum(piece.count(b":") for piece in _outside(canonical))
    return canonical if colons == bare.count(b":") else None


def _bare(data: bytes) -> bytes | None:
    """What of a valid JSON text is outside its strings, or None where that is too much."""
    pieces: list[bytes] = []
    size = 0
    for piece in _outside(data):
        size += len(piece)
        if size > MAX_BARE:
            return None
        pieces.append(piece)
    bare = b"".join(pieces)
    if size > MAX_STRUCTURE and sum(map(bare.count, (b"[", b"{", b",", b":"))) > MAX_STRUCTURE:
        return None
    return bare


def _outside(data: bytes) -> Iterator[bytes]:
    """What of a valid JSON text is neither in a string nor white space, piece by piece."""
    start = inside = 0
    while start < len(data):
        piece = data[start : start + _AT_ONCE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # what the last one escapes belongs to it
            piece = data[start : start + _AT_ONCE + 1]
        start += len(piece)
        if b"\\" in piece:
            # Pairs of backslashes first: one that is left then escapes what follows it.
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        yield b"".join(parts[inside::2]).translate(None, b" \t\r\n")
        inside ^= (len(parts) - 1) % 2


def _is_sure(number: bytes, double: float) -> bool:
    """Whether a number, parsed to this double, is one that any double keeps."""
    if len(number) > _SURE:
        return False
    if _NORMAL[0] < abs(double) < _NORMAL[1]:
        return True
    return not double and b"e" not in number and b"E" not in number


def _is_kept(number: bytes, double: float) -> bool:
    """Whether a number's value is exactly that of the double it is parsed to."""
    # A double stands for the decimal it is written as, the shortest that reads back as the same.
    written, kept = number.decode(), repr(double)
    if written == kept:
        return True
    return _FLOAT.fullmatch(number) is not None and Decimal(written) == Decimal(kept)


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
            elif kind is float and each.is_integer() and abs(each) <= 2**64:
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
