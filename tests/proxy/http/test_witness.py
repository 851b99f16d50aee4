"""Who tells whether an answer was cut, through its content coding."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from steer_policies.dialects.json_end import JsonEnd
from steer_policies.dialects.openai_stream import TypedReader
from steer_proxy.http.coding import content_coding
from steer_proxy.http.witness import (
    LINE,
    MAX_SEEN,
    PIECE,
    TURN,
    StreamEnd,
    Witness,
    seen_through,
)
from tests.policies.dialects.streams import RESPONSE


@pytest.mark.parametrize(
    ("named", "coding"),
    [
        ([], ""),
        ([""], ""),
        (["Identity"], ""),
        (["none"], ""),
        (["UTF-8"], ""),
        (["identity, identity"], ""),
        (["GZip"], "gzip"),
        (["identity", "gzip"], "gzip"),
        (["gzip, br"], "gzip,br"),
        (["something-new"], "something-new"),
    ],
)
def test_which_coding_an_answer_has(named: list[str], coding: str) -> None:
    """What names none is none, and what is not known is one."""
    fields = CIMultiDict([("Content-Encoding", each) for each in named])
    assert content_coding(CIMultiDictProxy(fields)) == coding


def through(coding: str) -> Witness:
    """The witness of a coded JSON text."""
    found = seen_through(coding, JsonEnd(needed=True))
    assert found is not None
    return found


WHOLE = b'{"a": [%s]}' % b",".join(b'"%d"' % n for n in range(50_000))


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("missing", [0, 40])
@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("", WHOLE),
        ("gzip", gzip.compress(WHOLE)),
        ("x-gzip", gzip.compress(WHOLE[:999]) + gzip.compress(WHOLE[999:])),
        ("deflate", zlib.compress(WHOLE)),
    ],
    ids=["plain", "gzip", "two in a row", "deflate"],
)
async def test_what_was_cut(coding: str, data: bytes, missing: int, size: int) -> None:
    """However it is cut into reads, and whatever it grows to."""
    witness = through(coding)
    data = data[: len(data) - missing]
    for start in range(0, len(data), size):
        await witness.feed(data[start : start + size])
    assert witness.cut is bool(missing)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"{", id="not coded at all"),
        pytest.param(gzip.compress(b"{" + b" " * 70_000_000), id="grows beyond measure"),
    ],
)
async def test_what_cannot_be_looked_into_is_not_judged(data: bytes) -> None:
    """Its framing alone tells its end."""
    witness = through("gzip")
    await witness.feed(data)
    await witness.feed(b"more")
    assert not witness.cut
    for coding in ("br", "zstd", "gzip,br", "something-new"):
        assert seen_through(coding, JsonEnd(needed=True)) is None


class Counting:
    """Counts what it is fed between two turns of the event loop."""

    cut = False

    def __init__(self) -> None:
        self.since = self.most = self.all = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self.since += len(data)
        self.all += len(data)
        self.most = max(self.most, self.since)

    async def turns(self) -> None:
        """Take every turn there is."""
        while True:
            self.since = 0
            await asyncio.sleep(0)


@pytest.mark.parametrize("size", [100, 1_000_000])
@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_others_have_their_turn_while_an_answer_is_looked_at(coding: str, size: int) -> None:
    """A few kilobytes may hold millions of events, and reads need not wait for one another."""
    judge = Counting()
    others = asyncio.create_task(judge.turns())
    data = b":\n\n" * 400_000
    data = gzip.compress(data) if coding else data
    witness = seen_through(coding, judge)
    assert witness is not None
    for start in range(0, len(data), size):
        await witness.feed(data[start : start + size])
    others.cancel()
    assert judge.all == 1_200_000
    assert judge.most <= TURN


async def test_a_long_answer_is_not_judged_however_small_its_reads() -> None:
    """What bounds the work is all of it, not one read."""
    judge = Counting()
    witness = seen_through("gzip", judge)
    assert witness is not None
    data = gzip.compress(b" " * 1_000_000)
    for _ in range(80):
        await witness.feed(data)
    assert judge.all <= MAX_SEEN


async def test_lines_are_counted_too() -> None:
    """Empty ones take the longest to look at, and next to nothing to send; so do empty pieces."""
    judge = Counting()
    witness = seen_through("gzip", judge)
    assert witness is not None
    await witness.feed(gzip.compress(b"\n" * 8_000_000))
    assert judge.all <= MAX_SEEN / LINE
    witness = seen_through("gzip", judge)
    assert witness is not None
    others = asyncio.create_task(judge.turns())
    judge.since = 1
    await witness.feed(gzip.compress(b"") * (TURN // PIECE + 1))
    others.cancel()
    assert judge.since == 0


def test_a_stream_may_end_without_an_empty_line() -> None:
    """Its last event counts all the same."""
    whole = b"".join(RESPONSE)
    for data, cut in (
        (whole, False),
        (whole.rstrip(), False),
        (b"".join(RESPONSE[:-1]), True),
    ):
        witness = StreamEnd(TypedReader())
        witness.feed(data)
        assert witness.cut is cut
