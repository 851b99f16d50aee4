"""Streams on their way into a shared ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from steer_policies.idempotency import State
from steer_proxy.http.body import MemoryBudget
from steer_proxy.http.live import (
    EVERY,
    LINGER,
    MOST_WAITING,
    SLACK,
    WINDOW,
    LiveStream,
    LiveStreams,
)
from steer_proxy.http.recording import PATIENCE, RecordedHead, Recording
from steer_proxy.http.recording import WINDOW as READERS_WINDOW
from steer_proxy.http.stored import CHUNK, head_text
from steer_proxy.ledger.values import CallRow, ChunkRow, Claim, Ref
from tests.support.books import Books, keeping

HEAD = RecordedHead(200, "OK", ((b"X-Name", b"value"),), ())


class Stage:
    """Streams, the ledger they go to, and what another process sees there."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.ledger = books.ledger
        self.live = LiveStreams(books.keeper, lambda: 7)
        self.memory = MemoryBudget(1_000_000)

    async def stream(self, name: str, *, most: int = 100_000) -> tuple[Recording, LiveStream]:
        """A call under way whose answer has begun."""
        row = CallRow(
            id=name,
            request_id=name,
            idem_scope=name,
            idem_fp="print",
            idem_state=State.SENT.value,
            idem_live=1,
            idem_epoch=1,
            owner_id=self.books.keeper.owner,
        )
        assert await self.books.memory.claim(Claim(row)) is None
        recording = Recording(most, self.memory)
        recording.begin(HEAD)
        stream = LiveStream(self.books.keeper, Ref(name, 1), 200, head_text(HEAD), recording.read())
        self.live.add(stream)
        return recording, stream

    def opened(self, chunks: list[ChunkRow]) -> bytes:
        """What chunks hold."""
        return b"".join(self.books.keeper.sealer.open(chunk) for chunk in chunks)

    async def seen(self, name: str) -> bytes | None:
        """What another process sees of a call's answer; None before it has a head."""
        following = await self.books.memory.follow(name, -1, 1000)
        if following.headers is None:
            return None
        assert [each.seq for each in following.chunks] == list(range(len(following.chunks)))
        return self.opened(list(following.chunks))


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A bookkeeper at work, and live streams."""
    async with keeping() as books:
        made = Stage(books)
        try:
            yield made
        finally:
            await made.live.close()


async def put(recording: Recording, piece: bytes) -> None:
    """Write, and let readers have it."""
    await recording.write(piece)
    recording.release()


async def test_streams_are_written_together_now_and_then() -> None:
    """One statement for all of them; bytes of one moment are one chunk."""
    async with stage() as at:
        one, _ = await at.stream("one")
        two, _ = await at.stream("two")
        for piece in (b"a", b"b", b"c"):
            await put(one, piece)
            await put(two, piece.upper())
        assert await at.seen("one") is None
        await asyncio.sleep(EVERY * 1.5)
        assert (await at.seen("one"), await at.seen("two")) == (b"abc", b"ABC")
        assert at.ledger.called["add_chunks"] == 1
        assert len(await at.books.memory.chunks("one", -1, 9)) == 1
        await put(one, b"d")
        await asyncio.sleep(EVERY * 1.5)
        assert await at.seen("one") == b"abcd"


async def test_a_head_is_there_before_the_first_byte() -> None:
    """Who follows can begin its own answer."""
    async with stage() as at:
        await at.stream("one")
        await asyncio.sleep(EVERY * 1.5)
        assert await at.seen("one") == b""
        assert at.ledger.called["add_chunks"] == 0


async def test_what_is_held_back_is_not_written_before_the_end() -> None:
    """The rest comes with the record's end, and only then."""
    async with stage() as at:
        recording, stream = await at.stream("one")
        await put(recording, b"seen ")
        await recording.write(b"held")
        await asyncio.sleep(EVERY * 1.5)
        assert await at.seen("one") == b"seen "
        rest = await at.live.finish(stream, 9)
        assert (at.opened(rest), [each.seq for each in rest]) == (b"held", [1])
        assert (stream.chunker.size, stream.chunker.count) == (9, 2)


@pytest.mark.parametrize("method", ["begin_answer", "add_chunks"])
async def test_an_end_waits_for_no_other_stream(method: str) -> None:
    """Nor for what is being written of its own: that is written once more."""
    async with stage() as at:
        recording, stream = await at.stream("one")
        await put(recording, b"first ")
        await asyncio.sleep(EVERY * 1.5)
        for number in range(20):
            other, _ = await at.stream(f"other-{number}")
            await put(other, b"x")
        await put(recording, b"second ")
        at.ledger.hang(method)
        await asyncio.sleep(EVERY * 1.5)
        await put(recording, b"third")
        began = asyncio.get_running_loop().time()
        rest = await at.live.finish(stream, 9)
        assert asyncio.get_running_loop().time() - began < EVERY
        assert at.opened(rest)[-5:] == b"third"
        at.ledger.up()
        await asyncio.sleep(EVERY * 3)
        assert at.opened(rest) == b"second third"
        assert [chunk.seq for chunk in rest] == list(range(1, stream.chunker.count))


async def test_an_end_that_is_being_cut_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, perhaps, while it is the stream's turn to be written."""
    async with stage() as at:
        recording, stream = await at.stream("one")
        await put(recording, b"all of it")
        cut, go = stream.chunker.cut, asyncio.Event()

        async def slowly(pieces: Sequence[bytes], at_us: int) -> list[ChunkRow]:
            await go.wait()
            return await cut(pieces, at_us)

        monkeypatch.setattr(stream.chunker, "cut", slowly)
        ending = asyncio.create_task(at.live.finish(stream, 9))
        await asyncio.sleep(0)
        at.live._streams.add(stream)  # its turn had come just before
        turn = asyncio.create_task(at.live._cut(stream, 9))
        await asyncio.sleep(0)
        at.live._streams.discard(stream)
        go.set()
        assert at.opened(await ending) == b"all of it"
        assert not await turn
        assert (stream.chunker.count, stream.chunker.size) == (1, 9)


async def test_a_short_stream_is_written_with_its_end() -> None:
    """Nothing was written before: all of it is the rest."""
    async with stage() as at:
        recording, stream = await at.stream("one")
        await put(recording, b"short")
        assert at.opened(await at.live.finish(stream, 9)) == b"short"
        assert at.ledger.called["begin_answer"] == 0


@pytest.mark.parametrize("method", ["begin_answer", "add_chunks"])
@pytest.mark.parametrize("how", ["fail", "lose_reply"])
async def test_what_cannot_be_written_waits(method: str, how: str) -> None:
    """In order, none twice, none lost; and not without end."""
    async with stage() as at:
        recording, stream = await at.stream("one")
        getattr(at.ledger, how)(method)
        sent = b""
        for turn in range(2 * MOST_WAITING):
            piece = b"%d," % turn
            sent += piece
            await put(recording, piece)
            await asyncio.sleep(EVERY)
        assert len(stream.unwritten) <= MOST_WAITING
        at.ledger.up()
        await asyncio.sleep(3 * EVERY)
        assert await at.seen("one") == sent
        assert await at.live.finish(stream, 9) == []


async def test_what_waits_goes_with_the_end() -> None:
    """The ledger is back just in time for the record."""
    async with stage() as at:
        recording, stream = await at.stream("one")
        at.ledger.fail("add_chunks")
        for piece in (b"a", b"b"):
            await put(recording, piece)
            await asyncio.sleep(EVERY)
        rest = await at.live.finish(stream, 9)
        assert at.opened(rest) == b"ab"


async def test_what_grows_too_large_is_taken_back() -> None:
    """Nobody can have it later; the ledger does not fill with it meanwhile."""
    async with stage() as at:
        recording, stream = await at.stream("one", most=10)
        await put(recording, b"12345")
        await asyncio.sleep(EVERY * 1.5)
        assert await at.seen("one") == b"12345"
        await put(recording, b"6789ab")
        await asyncio.sleep(EVERY * 1.5)
        assert await at.seen("one") is None
        assert await at.books.memory.chunks("one", -1, 9) == []
        assert stream.reader not in recording.readers
        before = at.ledger.called["add_chunks"]
        await put(recording, b"more")
        await asyncio.sleep(EVERY * 3)
        assert at.ledger.called["add_chunks"] == before
        assert at.memory.used == 0


async def test_what_grows_too_large_goes_on_for_who_follows() -> None:
    """Through a window in the ledger, and to its end, which stays for a while."""
    async with stage() as at:
        recording, stream = await at.stream("one", most=10)
        piece = b"x" * CHUNK
        async with at.books.memory.watch("one"):
            for _ in range(3 * WINDOW // CHUNK):
                await put(recording, piece)
                await asyncio.sleep(EVERY)
            await asyncio.sleep(EVERY)
            assert stream.passing
            rows = await at.books.memory.chunks("one", -1, 10_000)
            assert sum(row.raw_bytes for row in rows) <= WINDOW + SLACK
            assert [row.seq for row in rows] == list(range(rows[0].seq, stream.chunker.count))
            assert rows[0].seq > 0
            assert at.live.passes_on(stream)
            assert await at.live.finish(stream, 9) == []
            at.live.drop(stream)
        await asyncio.sleep(LINGER - 1)
        assert await at.books.memory.chunks("one", -1, 1) != []
        await asyncio.sleep(2)
        assert await at.books.memory.chunks("one", -1, 1) == []
        assert (await at.books.memory.follow("one", -1, 1)).headers is None
        task = at.live._task
        assert task is not None
        await asyncio.sleep(EVERY * 2)
        assert task.done()


async def test_what_grows_too_large_is_taken_back_when_nobody_follows_any_more() -> None:
    """Nothing of it is left."""
    async with stage() as at:
        recording, stream = await at.stream("one", most=10)
        async with at.books.memory.watch("one"):
            await put(recording, b"x" * 100)
            await asyncio.sleep(EVERY * 1.5)
            assert stream.passing
        await put(recording, b"x" * 100)
        await asyncio.sleep(EVERY * 1.5)
        assert await at.seen("one") is None
        assert stream.reader not in recording.readers


async def test_a_ledger_that_does_not_keep_up_is_not_waited_for() -> None:
    """Who follows a large answer elsewhere does not hold up who is served here."""
    async with stage() as at:
        recording, stream = await at.stream("one", most=10)
        await put(recording, b"x")
        await asyncio.sleep(EVERY * 1.5)
        async with at.books.memory.watch("one"):
            at.ledger.fail("add_chunks")
            began = asyncio.get_running_loop().time()
            for _ in range(4):
                await put(recording, b"x" * READERS_WINDOW)
            assert asyncio.get_running_loop().time() - began < 1
            await asyncio.sleep(EVERY * 2)
            assert not stream.passing
            assert await at.seen("one") is None


async def test_an_end_that_cannot_be_removed_is_tried_again() -> None:
    """The ledger may be away when its time has come."""
    async with stage() as at:
        recording, stream = await at.stream("one", most=10)
        async with at.books.memory.watch("one"):
            await put(recording, b"x" * 100)
            await asyncio.sleep(EVERY * 1.5)
            await at.live.finish(stream, 9)
            at.live.drop(stream)
        at.ledger.fail("drop_chunks")
        await asyncio.sleep(LINGER + 1)
        at.ledger.up()
        assert await at.books.memory.chunks("one", -1, 1) != []
        await asyncio.sleep(LINGER + 1)
        assert await at.books.memory.chunks("one", -1, 1) == []


async def test_a_ledger_that_hangs_holds_up_no_answer_for_good() -> None:
    """One too large to keep waits for its slowest reader: the ledger is one of them."""
    async with stage() as at:
        recording, _ = await at.stream("one", most=10)
        at.ledger.hang("begin_answer")
        began = asyncio.get_running_loop().time()
        for _ in range(4):
            await put(recording, b"x" * READERS_WINDOW)
            await asyncio.sleep(EVERY)
        assert asyncio.get_running_loop().time() - began < PATIENCE + 1
        at.ledger.up()
        await asyncio.sleep(EVERY * 3)
        assert await at.seen("one") is None


async def test_what_fell_behind_is_not_passed_on() -> None:
    """There is a hole in it: who follows gets none of what comes behind that, and other streams are
    written as ever."""
    async with stage() as at:
        recording, stream = await at.stream("one", most=10)
        async with at.books.memory.watch("one"):
            await put(recording, b"x" * 100)
            await asyncio.sleep(EVERY * 1.5)
            assert stream.passing
            at.ledger.hang("add_chunks")
            for _ in range(4):
                await put(recording, b"x" * READERS_WINDOW)
                await asyncio.sleep(EVERY)
            assert stream.reader.dropped
            assert not at.live.passes_on(stream)
            at.ledger.up()
            await asyncio.sleep(EVERY * 3)
            assert await at.seen("one") is None
            other, _ = await at.stream("other")
            await put(other, b"x")
            await asyncio.sleep(EVERY * 3)
            assert await at.seen("other") == b"x"


async def test_a_key_that_was_taken_over_is_written_nothing_of() -> None:
    """Its chunks would be another call's."""
    async with stage() as at:
        recording, _ = await at.stream("one")
        row = at.books.memory.calls["one"]
        at.books.memory.calls["one"] = row._replace(idem_epoch=2)
        await put(recording, b"zombie")
        await asyncio.sleep(EVERY * 3)
        assert await at.books.memory.chunks("one", -1, 9) == []


async def test_nothing_runs_without_streams() -> None:
    """It stops with the last one, and starts with the next."""
    async with stage() as at:
        for turn in range(2):
            recording, stream = await at.stream(f"one-{turn}")
            await asyncio.sleep(EVERY * 1.5)
            at.live.drop(stream)
            at.live.drop(stream)
            await asyncio.sleep(EVERY * 1.5)
            task = at.live._task
            assert task is not None
            assert task.done()
            assert recording.readers == set()
