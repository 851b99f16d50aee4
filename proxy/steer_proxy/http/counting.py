"""What a provider says that a plain answer took; the reader of a stream has that already."""

from __future__ import annotations

import zlib
from typing import Final

from steer_policies.dialects.base import Usage, Where
from steer_policies.dialects.glimpse import GLIMPSE, glimpse
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call

#: An answer up to this many bytes is parsed whole for its usage, a larger one only looked at near
#: its ends: parsing takes about 3 us per KiB.
PARSED_WHOLE: Final = 32 * 1024

#: The largest compressed answer that is decoded for its usage, and the most that is taken of it, in
#: bytes: about a millisecond. Of a larger one the usage stays unknown.
MAX_ENCODED: Final = 64 * 1024
MAX_DECODED: Final = 512 * 1024

_NOWHERE: Final = Where.NOWHERE
_JSON_BEGINS: Final = b"{[ \n\r\t"


def count(call: Call, answer: HttpAnswer) -> None:
    """Read the model and the usage of a plain answer; a stream's reader has them already."""
    trace = answer.trace
    if answer.reader is not None or answer.verdict.failure is not None or trace.usage is not None:
        return
    if call.facts.model_in is _NOWHERE or answer.status == 101:
        return
    trace.model, trace.usage = _read(call, answer)


def is_encoded(answer: HttpAnswer) -> bool:
    """Whether counting has to decode the answer first, to up to `MAX_DECODED`."""
    body = answer.held
    return answer.reader is None and bool(body) and body[0] not in _JSON_BEGINS


def _read(call: Call, answer: HttpAnswer) -> tuple[str | None, Usage | None]:
    body = answer.held
    if answer.tail:
        return call.dialect.read_answer(call.facts, glimpse(body, answer.tail))
    if body and body[0] not in _JSON_BEGINS:
        body = _decoded(body)
    if len(body) > PARSED_WHOLE:
        body = glimpse(body[:GLIMPSE], body[-GLIMPSE:])
    return call.dialect.read_answer(call.facts, body)


def _decoded(body: bytes) -> bytes:
    """A gzip or deflate body without its coding; b"" for any other, and for a large one."""
    if len(body) > MAX_ENCODED:
        return b""
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = decoder.decompress(body, MAX_DECODED)
    except zlib.error:
        return b""
    return plain if decoder.eof else b""
