"""Header lines as bytes: what a peer wrote is what the other one reads.

aiohttp reads a head into mappings of text, which respell the names they know and cannot hold every
byte a value may have (RFC 9110 §5.5); its serialiser leaves such values out in silence. Relaying
the raw fields is exact, and costs a fraction of reading and writing them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Field = tuple[bytes, bytes]


def line(name: str, value: str) -> bytes:
    """One header line of our own.

    Raises:
        ValueError: for a control character, which could begin another line.
    """
    if not value.isprintable() or not name.isprintable():
        raise ValueError(f"a control character in {name!r}")
    return f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")


def head(first_line: str, fields: Iterable[Field], own: Sequence[bytes]) -> bytes:
    """A message's head: a peer's fields, then lines of our own, then the empty line.

    Raises:
        ValueError: when a field would be more than one line. The parser of requests sees to that;
            the one of answers is lenient.
    """
    lines = [b"%b: %b\r\n" % field for field in fields]
    theirs = b"".join(lines)
    if theirs.count(b"\n") != len(lines) or theirs.count(b"\r") != len(lines) or b"\0" in theirs:
        raise ValueError("a control character in a head")
    return b"".join((first_line.encode("utf-8", "surrogateescape"), b"\r\n", theirs, *own, b"\r\n"))
