"""What a provider says that a plain answer took; the reader of a stream has that already."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

from steer_policies.dialects.base import Usage, Where
from steer_policies.dialects.glimpse import GLIMPSE, glimpse
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call
from steer_proxy.http.coding import UNDONE, content_coding, decoder

#: An answer up to this many bytes is parsed whole for its usage, a larger one only looked at near
#: its ends: parsing takes about 3 us per KiB.
PARSED_WHOLE: Final = 32 * 1024

#: The largest compressed answer that is decoded in the event loop, and the most that is taken of
#: it, in bytes: about a millisecond. A larger one is decoded in a thread, as it is relayed.
MAX_ENCODED: Final = 64 * 1024
MAX_DECODED: Final = 512 * 1024

#: How much of such an answer is decoded at most, in bytes, and how much of that is kept at a time.
#: Of one that turns out to be larger the usage stays unknown.
MAX_UNPACKED: Final = 256 * 1024 * 1024
_STEP: Final = 256 * 1024

_NOWHERE: Final = Where.NOWHERE
_JSON_BEGINS: Final = b"{[ \n\r\t"


def count(call: Call, answer: HttpAnswer) -> None:
    """Read the model and the usage of a plain answer; a stream's reader has them already."""
    trace = answer.trace
    if answer.reader is not None or answer.verdict.failure is not None or trace.usage is not None:
        return
    if call.facts.model_in is _NOWHERE or answer.status == 101:
        return
    model, trace.usage = _read(call, answer)
    trace.model = model or trace.model  # a coded stream's reader may have told the model alone


def is_encoded(answer: HttpAnswer) -> bool:
    """Whether counting has to decode the answer first, to up to `MAX_DECODED`."""
    body = answer.held
    return answer.reader is None and bool(body) and body[0] not in _JSON_BEGINS


class Ends:
    """Both ends of a compressed answer, decoded as it comes."""

    def __init__(self) -> None:
        self._decoder = decoder()
        self._left = MAX_UNPACKED
        self._head = self._tail = b""

    async def take(self, data: bytes) -> None:
        """The next bytes, as they came: in a thread, which takes about 4 ms per MiB."""
        if data and self._left > 0:
            await asyncio.to_thread(self._take, data)

    def put(self, answer: HttpAnswer) -> None:
        """Let the answer, which is over, be counted by its ends."""
        whole = self._decoder.eof and self._left > 0
        answer.held, answer.tail = (self._head, self._tail) if whole else (b"", b"")

    def _take(self, data: bytes) -> None:
        more = not self._decoder.eof
        while more and self._left > 0:
            try:
                plain = self._decoder.decompress(data, _STEP)
            except zlib.error:
                self._left = 0
                return
            data = self._decoder.unconsumed_tail
            more = bool(data) or len(plain) == _STEP
            self._left -= len(plain)
            missing = GLIMPSE - len(self._head)
            self._head += plain[:missing]
            self._tail = (self._tail + plain[missing:][-GLIMPSE:])[-GLIMPSE:]


def ends_of(call: Call, answer: HttpAnswer) -> Ends | None:
    """What will look into a compressed answer; None where there is nothing to be found."""
    response = answer.response
    if response is None or answer.reader is not None or answer.verdict.failure is not None:
        return None
    if call.facts.model_in is _NOWHERE or "json" not in answer.content_type:
        return None
    return Ends() if content_coding(response.headers) in UNDONE else None


async def unpack(call: Call, answer: HttpAnswer) -> None:
    """Let an answer that is held whole, and was taken for the caller, be counted quickly, however
    large and compressed it is."""
    if len(answer.held) > MAX_ENCODED and (ends := ends_of(call, answer)) is not None:
        await ends.take(answer.held)
        ends.put(answer)


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
    """A small gzip or deflate body without its coding; b"" for any other."""
    if len(body) > MAX_ENCODED:
        return b""
    undoing = decoder()
    try:
        plain = undoing.decompress(body, MAX_DECODED)
    except zlib.error:
        return b""
    return plain if undoing.eof else b""
