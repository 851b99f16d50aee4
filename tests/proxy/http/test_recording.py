"""One answer for many readers: what is kept, what readers may have, and what memory it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_proxy.http.body import MemoryBudget
from steer_proxy.http.recording import (
    PATIENCE,
    WINDOW,
    Reader,
    RecordedHead,
    Recording,
    TooLate,
    TooSlow,
)

HEAD = RecordedHead(200, "OK", (), ())


def made(most: int = 1000, total: int = 10_000) -> tuple[Recording, MemoryBudget]:
    """A recording and the memory it may use."""
    memory = MemoryBudget(total)
    return Recording(most, memory), memory


async def put(recording: Recording, *pieces: bytes) -> None:
    """Write, and let readers have it."""
    for piece in pieces:
        await recording.write(piece)
        recording.release()


async def everything(reader: Reader) -> bytes:
    """What is to be read until the end."""
    pieces = []
    while piece := await reader.read():
        pieces.append(piece)
    return b"".join(pieces)


async def test_readers_of_any_time_get_the_same() -> None:
    """One that was there first, one in the middle, one after the end."""
    recording, _ = made()
    early = asyncio.create_task(everything(recording.read()))
    await put(recording, b"one ", b"two ")
    middle = asyncio.create_task(everything(recording.read()))
    await asyncio.sleep(0)
    await put(recording, b"three")
    recording.end()
    late = await everything(recording.read())
    assert (await early, await middle, late) == (b"one two three",) * 3
    assert (recording.kept, recording.broken, recording.size) == (True, False, 13)


async def test_nobody_gets_what_is_not_released() -> None:
    """The end is held back until `end`, or `release`."""
    recording, _ = made()
    reader = recording.read()
    await put(recording, b"seen")
    await recording.write(b"held")
    assert reader.ready() == [b"seen"]
    waiting = asyncio.create_task(reader.read())
    await asyncio.sleep(1)
    assert not waiting.done()
    recording.end()
    assert await waiting == b"held"
    assert await reader.read() == b""


async def test_what_is_withdrawn_is_gone() -> None:
    """Another end takes the place of what nobody had."""
    recording, memory = made()
    await put(recording, b"seen")
    await recording.write(b"held")
    await recording.write(b"held too")
    recording.withdraw()
    assert (recording.size, memory.used) == (4, 4)
    recording.put(b"!")
    recording.end(broken=True)
    assert await everything(recording.read()) == b"seen!"
    recording.forget()
    assert memory.used == 0


async def test_the_head_is_waited_for() -> None:
    """All who wait have it at once."""
    recording, _ = made()
    waiting = [asyncio.create_task(recording.read().head()) for _ in range(3)]
    await asyncio.sleep(1)
    recording.begin(HEAD)
    assert await asyncio.gather(*waiting) == [HEAD] * 3


async def test_who_leaves_waits_for_nothing() -> None:
    """A call that takes long, and readers that come and go: nothing is kept of those."""
    recording, _ = made()
    staying = asyncio.create_task(recording.read().head())
    for _ in range(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(recording.read().head(), 1)
    assert len(recording._news) == 1
    recording.begin(HEAD)
    assert await staying == HEAD
    assert recording._news == []


@pytest.mark.parametrize("why", ["size", "memory"])
async def test_what_is_too_large_can_be_read_by_who_is_there(why: str) -> None:
    """Nobody else can join; the memory is given back as they read."""
    recording, memory = made(**({"most": 10} if why == "size" else {"total": 10}))
    reader = recording.read()
    await put(recording, b"12345", b"6789")
    assert memory.used == 9
    reading = asyncio.create_task(everything(reader))
    await put(recording, b"ab", b"cd")
    assert not recording.kept
    await asyncio.sleep(0)
    await put(recording, b"ef")
    assert memory.used == 0
    with pytest.raises(TooLate):
        recording.read()
    recording.end()
    assert await reading == b"123456789abcdef"


async def test_what_nobody_reads_is_not_kept_beyond_its_size() -> None:
    """A call without callers whose answer is too large: nothing piles up."""
    recording, memory = made(most=10)
    for _ in range(100):
        await put(recording, b"x" * 1000)
    assert len(recording.pieces()) <= 1
    assert (recording.size, memory.used) == (100_000, 0)


async def test_a_slow_reader_holds_up_what_is_too_large_and_is_dropped() -> None:
    """The writer waits for it for a while; the others lose nothing."""
    loop = asyncio.get_running_loop()
    recording, memory = made(most=10)
    slow, quick = recording.read(), recording.read()
    reading = asyncio.create_task(everything(quick))
    began = loop.time()
    for _ in range(4):
        await put(recording, b"x" * (WINDOW // 2))
        await asyncio.sleep(0)
    assert loop.time() - began == pytest.approx(PATIENCE, abs=0.1)
    recording.end()
    assert len(await reading) == 2 * WINDOW
    for read in (slow.read(), slow.read()):
        with pytest.raises(TooSlow):
            await read
    with pytest.raises(TooSlow):
        slow.ready()
    quick.close()
    assert (recording.readers, memory.used) == (set(), 0)


async def test_a_reader_that_was_slow_and_goes_on_is_waited_for() -> None:
    """As long as it takes something within the time, it is not dropped."""
    recording, _ = made(most=10)
    reader = recording.read()

    async def slowly() -> int:
        size = 0
        while piece := await reader.read():
            size += len(piece)
            await asyncio.sleep(PATIENCE - 1)
        return size

    reading = asyncio.create_task(slowly())
    for _ in range(6):
        await put(recording, b"x" * WINDOW)
    recording.end()
    assert await reading == 6 * WINDOW


async def test_forgetting_waits_for_those_who_read() -> None:
    """Nobody new can come; who is there has all of it, and then nothing is left."""
    recording, memory = made()
    await put(recording, b"one", b"two")
    recording.end()
    reader = recording.read()
    recording.forget()
    assert memory.used == 6
    assert await reader.read() == b"one"
    assert memory.used == 3
    with pytest.raises(TooLate):
        recording.read()
    reader.close()
    reader.close()
    assert memory.used == 0


async def test_only_the_first_end_counts() -> None:
    """What broke stays broken."""
    recording, _ = made()
    recording.end(broken=True)
    recording.end()
    assert recording.broken


async def test_rest_has_what_was_not_released() -> None:
    """For whoever stores the answer: from where it read on, to the last byte."""
    recording, _ = made()
    reader = recording.read()
    await put(recording, b"one")
    assert reader.ready() == [b"one"]
    await put(recording, b"two")
    await recording.write(b"three")
    assert reader.rest() == [b"two", b"three"]
    assert recording.readers == set()


@given(
    st.lists(st.binary(min_size=1, max_size=9), max_size=12),
    st.integers(0, 60),
    st.integers(0, 60),
    st.lists(st.integers(0, 14), max_size=5),
)
def test_memory_comes_back_to_nothing(
    pieces: Sequence[bytes], most: int, total: int, joining: Sequence[int]
) -> None:
    """Whatever the sizes, and whenever readers come: they have all of it, and none is left."""

    async def run() -> None:
        recording, memory = made(most, total)
        readers = []
        for index, piece in enumerate(pieces):
            for _ in range(joining.count(index)):
                try:
                    readers.append(asyncio.create_task(everything(recording.read())))
                except TooLate:
                    assert not recording.kept
            await asyncio.sleep(0)
            await put(recording, piece)
            assert 0 <= memory.used <= total
            assert not recording.kept or memory.used == recording.size <= most
        recording.end()
        for reading in readers:
            assert await reading == b"".join(pieces)
        for reader in tuple(recording.readers):
            reader.close()
        recording.forget()
        assert memory.used == 0
        assert recording.pieces() == []

    asyncio.run(run())


async def test_its_last_bytes_are_known() -> None:
    """Also of an answer that is not kept, and when its end is taken back."""
    recording, _ = made(most=10)
    assert recording.tail == b""
    await put(recording, b"data: one\n\n", b"data: two\n\n")
    recording.forget()
    assert recording.pieces() == []
    assert recording.tail == b"wo\n\n"
    await recording.write(b"data: half\r\n\r")
    await recording.write(b"\n")
    assert recording.tail == b"\r\n\r\n"
    recording.withdraw()
    assert recording.tail == b"wo\n\n"
