"""The content codings of answers, and which of them can be undone here."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from multidict import CIMultiDictProxy

if TYPE_CHECKING:
    Decoder = zlib._Decompress  # noqa: SLF001 - the type has no public name

#: Names that stand for no coding: RFC 9110 (section 8.4.1) has only `identity`; servers that mean
#: to say nothing, or the charset, write the others.
_NO_CODINGS: Final = frozenset({"", "identity", "none", "utf-8", "utf8", "us-ascii", "iso-8859-1"})

#: The codings that can be undone; `x-gzip` is the same as `gzip`.
UNDONE: Final = frozenset({"gzip", "x-gzip", "deflate"})


def content_coding(headers: CIMultiDictProxy[str]) -> str:
    """The coding of an answer's body, lower-case; "" for none, several separated by commas."""
    if "Content-Encoding" not in headers:
        return ""
    names = ",".join(headers.getall("Content-Encoding")).lower().split(",")
    return ",".join(name for name in map(str.strip, names) if name not in _NO_CODINGS)


def decoder() -> Decoder:
    """What undoes any of `UNDONE`: zlib sees by itself which of its formats it is given."""
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
