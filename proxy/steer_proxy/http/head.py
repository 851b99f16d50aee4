"""Writing the head of a message with every byte of its fields as it was read."""

from __future__ import annotations

import re
from typing import Final

from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter
from multidict import CIMultiDict

#: What must never be written within a line (RFC 9110 §5.5): it could begin another one.
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


async def write_head(
    writer: AbstractStreamWriter, first_line: str, headers: CIMultiDict[str]
) -> None:
    """Hand a head to aiohttp's writer, to be sent with the first part of the body.

    Field values are bytes (RFC 9110 §5.5). aiohttp reads those that are not UTF-8 as lone
    surrogates, and its own serialiser leaves them out in silence.

    Raises:
        ValueError: for a control character.
    """
    try:
        "".join(headers.values()).encode()
    except UnicodeEncodeError:
        if isinstance(writer, StreamWriter):
            writer._headers_buf = _serialised(first_line, headers)  # noqa: SLF001 - see above
            return
    await writer.write_headers(first_line, headers)


def _serialised(first_line: str, headers: CIMultiDict[str]) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in headers.items())]
    if any(map(_FORBIDDEN.search, lines)):
        raise ValueError("a control character in a head")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("utf-8", "surrogateescape")
