"""What a request that is not valid HTTP asked for, if that much is clear."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: RFC 9112, section 3, as far as a path: that is what a route is found by.
_LINE: Final = re.compile(rb"(?:\r\n)*([A-Z]{1,20}) (/[!-~]*) HTTP/1\.[01]\r\n")


class RequestLine(NamedTuple):
    """A request's method and target."""

    method: str
    target: str


def read_request_line(head: bytes) -> RequestLine | None:
    """The request line that bytes begin with; None when they begin with none that is beyond doubt.

    Only for the shape of a refusal: nothing is forwarded by it.
    """
    match = _LINE.match(head)
    return None if match is None else RequestLine(match[1].decode(), match[2].decode())
