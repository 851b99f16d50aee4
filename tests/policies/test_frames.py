"""Frames are followed to the byte, however they are cut, and nothing but their heads is read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.frames import GOING_AWAY, MAX_REASON, FrameTracker, close_frame

LIMIT = 1000
MASK = b"\x01\x02\x03\x04"
CLOSE, PING, TEXT, CONTINUATION = 0x8, 0x9, 0x1, 0x0


@dataclass(frozen=True)
class Frame:
    """One frame; `spelled` is the least number of bytes its length takes."""

    opcode: int
    payload: bytes
    final: bool = True
    masked: bool = False
    spelled: int = 1

    @property
    def head(self) -> bytes:
        length = len(self.payload)
        bit = 0x80 if self.masked else 0
        first = bytes((self.opcode | (0x80 if self.final else 0),))
        if length < 126 and self.spelled == 1:
            size = bytes((bit | length,))
        elif length < 1 << 16 and self.spelled < 8:
            size = bytes((bit | 126,)) + length.to_bytes(2, "big")
        else:
            size = bytes((bit | 127,)) + length.to_bytes(8, "big")
        return first + size + (MASK if self.masked else b"")

    @property
    def bytes(self) -> bytes:
        return self.head + self.payload


FRAMES = st.lists(
    st.builds(
        Frame,
        opcode=st.sampled_from([CONTINUATION, TEXT, 0x2, CLOSE, PING, 0xA]),
        payload=st.one_of(
            st.binary(max_size=130), st.integers(0, 2 * LIMIT).map(lambda size: b"x" * size)
        ),
        final=st.booleans(),
        masked=st.booleans(),
        spelled=st.sampled_from([1, 2, 8]),
    ),
    max_size=8,
)
CUTS = st.lists(st.integers(0, 4000), max_size=12)


@given(FRAMES, CUTS)
def test_frames_are_followed_however_they_are_cut(frames: list[Frame], cuts: list[int]) -> None:
    """Passed is what was fed, up to a head that is not whole or a frame that is too large."""
    stream = b"".join(frame.bytes for frame in frames)
    tracker = FrameTracker(LIMIT)
    passed = b""
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for start, end in pairwise(edges):
        passed += tracker.feed(stream[start:end])
        expected, at_boundary = _until(frames, end)
        assert passed == stream[:expected]
        assert tracker.at_boundary == at_boundary
        heads = [frame for frame, head in _heads(frames) if head <= end]
        assert tracker.closing == any(frame.opcode == CLOSE for frame in heads)
        assert tracker.too_big == any(len(frame.payload) > LIMIT for frame in heads)


def _heads(frames: list[Frame]) -> list[tuple[Frame, int]]:
    """Each frame with the position at which its head is whole."""
    found, position = [], 0
    for frame in frames:
        found.append((frame, position + len(frame.head)))
        position += len(frame.bytes)
    return found


def _until(frames: list[Frame], end: int) -> tuple[int, bool]:
    """How far bytes may pass when `end` of them are there, and whether a frame ends at that."""
    position = 0
    for frame in frames:
        whole = position + len(frame.bytes)
        if end < position + len(frame.head) or len(frame.payload) > LIMIT:
            return position, True
        if end < whole:
            return end, False
        position = whole
    return position, True


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_at_all(pieces: list[bytes]) -> None:
    """Foreign bytes are followed without an error; at most an unfinished head is held back."""
    tracker = FrameTracker(1 << 62)
    passed = b"".join(map(tracker.feed, pieces))
    fed = b"".join(pieces)
    assert fed.startswith(passed)
    assert tracker.too_big or len(fed) - len(passed) < 14


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 1 << 63])
def test_a_frame_is_judged_by_its_head(size: int) -> None:
    """Whoever announces too much is cut off before any of it; what came before passes."""
    tracker = FrameTracker(LIMIT)
    before = Frame(TEXT, b"before").bytes
    head = b"\x82\x7f" + size.to_bytes(8, "big")
    fed = before + head
    passed = b"".join(tracker.feed(fed[at : at + 1]) for at in range(len(fed)))
    assert passed == (before if size > LIMIT else fed)
    assert tracker.too_big == (size > LIMIT)
    assert tracker.at_boundary == (size > LIMIT)
    assert tracker.feed(b"x" * 10) == (b"" if size > LIMIT else b"x" * 10)


def test_a_goodbye_after_too_large_a_frame_is_seen() -> None:
    """Frames are still followed, so that the sender's own close frame is noticed."""
    tracker = FrameTracker(LIMIT)
    assert tracker.feed(Frame(TEXT, b"x" * (LIMIT + 1)).bytes) == b""
    assert not tracker.closing
    assert tracker.feed(close_frame(1009)) == b""
    assert tracker.closing


def test_a_payload_that_looks_like_a_close_frame_is_none() -> None:
    """Only heads count."""
    tracker = FrameTracker(LIMIT)
    tracker.feed(Frame(TEXT, close_frame(1000) * 3).bytes)
    assert not tracker.closing
    assert tracker.at_boundary


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (1000, "", b"\x03\xe8"),
        (GOING_AWAY, "bye", b"\x03\xe9bye"),
        (1011, "x" * 200, b"\x03\xf3" + b"x" * MAX_REASON),
        # 123 is no multiple of 3: the character at the limit would be cut in the middle.
        (1011, "x" + "€" * 50, b"\x03\xf3x" + "€".encode() * 40),
    ],
)
def test_close_frames(code: int, reason: str, payload: bytes) -> None:
    """Code and reason, short enough for a control frame and valid UTF-8; masked on demand."""
    assert close_frame(code, reason) == Frame(CLOSE, payload).bytes
    masked = close_frame(code, reason, MASK)
    assert masked[:6] == bytes((0x88, 0x80 | len(payload))) + MASK
    assert bytes(byte ^ MASK[at % 4] for at, byte in enumerate(masked[6:])) == payload
    tracker = FrameTracker(125)
    assert tracker.feed(masked) == masked
    assert tracker.closing
