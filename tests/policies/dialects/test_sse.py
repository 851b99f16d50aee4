"""Splitting an event stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steer_policies.dialects import sse
from steer_policies.dialects.pieces import Fragment
from steer_policies.dialects.sse import SseSplitter, fields, first_document, is_event_stream

# Bytes that make line ends, fields and their look-alikes likely.
STREAMS = st.lists(
    st.sampled_from(
        [
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\r\n\r\n",
            b"data: x",
            b"data:y",
            b"event: e",
            b": c",
            b"z",
        ]
    ),
    max_size=30,
).map(b"".join)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    """The stream in chunks, cut at these places."""
    places = sorted({place % (len(stream) + 1) for place in at})
    bounds = [0, *places, len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def split(chunks: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = SseSplitter()
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    return pieces, splitter.finish()


def meanings(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    """What the events say; empty lines say nothing."""
    return [said for said in map(fields, pieces) if said != (b"", b"")]


@pytest.mark.parametrize(
    ("stream", "events", "rest"),
    [
        pytest.param(b"", [], b"", id="nothing"),
        pytest.param(b"data: a\n\n", [b"data: a\n\n"], b"", id="LF"),
        pytest.param(b"data: a\r\n\r\n", [b"data: a\r\n\r\n"], b"", id="CRLF"),
        pytest.param(b"data: a\r\r", [b"data: a\r\r"], b"", id="CR"),
        pytest.param(b"a\n\nb\n\n", [b"a\n\n", b"b\n\n"], b"", id="two"),
        pytest.param(b"a\r\n\r\nb\r\n\r\n", [b"a\r\n\r\n", b"b\r\n\r\n"], b"", id="two with CRLF"),
        pytest.param(b"a\n\r\nb\r\n\n", [b"a\n\r\n", b"b\r\n\n"], b"", id="mixed"),
        pytest.param(b"a\n\r\rb", [b"a\n\r"], b"\rb", id="CR after an empty line begins the next"),
        pytest.param(b"a\r\nb\r\n", [], b"a\r\nb\r\n", id="a CRLF is one line end"),
        pytest.param(b"a\n\n\n", [b"a\n\n"], b"\n", id="three LF"),
        pytest.param(b"a\r\n\r\n\r\n", [b"a\r\n\r\n"], b"\r\n", id="three CRLF"),
        pytest.param(b"a\n\nb", [b"a\n\n"], b"b", id="an unfinished event"),
        pytest.param(b"a\nb\r\n\r\n", [b"a\nb\r\n\r\n"], b"", id="a lone LF among CRLF"),
    ],
)
def test_events_end_at_an_empty_line(stream: bytes, events: list[bytes], rest: bytes) -> None:
    """Whatever its line ends are, and whatever is left is held."""
    assert split([stream]) == (events, rest)


def test_an_event_is_not_held_for_a_line_feed_that_may_never_come() -> None:
    """An empty line that ends with CR releases its event; its LF follows as soon as it comes."""
    splitter = SseSplitter()
    assert splitter.feed(b"a\r\n\r") == [b"a\r\n\r"]
    assert splitter.held == 0
    assert splitter.feed(b"\nb\n\n") == [b"\n", b"b\n\n"]
    assert splitter.feed(b"a\r\r") == [b"a\r\r"]
    assert splitter.feed(b"b\n\n") == [b"b\n\n"]
    assert splitter.feed(b"a\r\r") == [b"a\r\r"]
    assert splitter.feed(b"\n") == [b"\n"]
    assert splitter.feed(b"") == []


@given(STREAMS, st.lists(st.integers(0, 200), max_size=6))
@example(b"data: x\r\n\r\ndata: y\n\n", [10])
@example(b"data: x\r\n\r\n\r\ndata: y\n\n", [11, 12])
def test_chunks_do_not_matter(stream: bytes, at: list[int]) -> None:
    """However a stream is cut, no byte changes and the events say the same."""
    whole, whole_rest = split([stream])
    pieces, rest = split(cut(stream, at))
    assert b"".join([*pieces, rest]) == stream
    assert b"".join([*whole, whole_rest]) == stream
    assert meanings([*pieces, rest]) == meanings([*whole, whole_rest])


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_anything_at_all_passes_unchanged(stream: bytes, at: list[int]) -> None:
    """Bytes that are no event stream come out as they went in, too."""
    pieces, rest = split(cut(stream, at))
    assert b"".join([*pieces, rest]) == stream


@given(STREAMS, st.lists(st.integers(0, 200), max_size=8), st.integers(0, 12))
def test_a_large_event_is_released_as_it_comes(stream: bytes, at: list[int], limit: int) -> None:
    """Beyond the limit only what may be the start of an empty line is held."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "MAX_HELD_EVENT", limit)
        splitter = SseSplitter()
        released: list[bytes] = []
        for chunk in cut(stream, at):
            released += splitter.feed(chunk)
            assert splitter.held <= max(limit, 3)
        rest = splitter.finish()
    assert b"".join([*released, rest]) == stream
    seen = [piece.event if isinstance(piece, Fragment) else piece for piece in (*released, rest)]
    whole, whole_rest = split([stream])
    assert meanings(seen) == meanings([*whole, whole_rest])


def test_a_large_event_is_seen_without_its_long_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last fragment brings a copy that can be parsed; the others bring nothing."""
    monkeypatch.setattr(sse, "MAX_HELD_EVENT", 1000)
    splitter = SseSplitter()
    first = splitter.feed(b'event: image\ndata: {"image": "' + b"A" * 2000)
    second = splitter.feed(b"B" * 2000)
    third = splitter.feed(b'", "type": "done"}\n\ndata: next\n\n')
    assert [type(piece) for piece in (*first, *second, *third)] == [Fragment] * 3 + [bytes]
    events = [piece.event for piece in (*first, *second, *third) if isinstance(piece, Fragment)]
    assert events == [b"", b"", b'event: image\ndata: {"image": "", "type": "done"}\n\n']
    assert third[1] == b"data: next\n\n"


def test_a_large_event_may_lack_its_empty_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left at the end closes it, and brings the copy."""
    monkeypatch.setattr(sse, "MAX_HELD_EVENT", 4)
    splitter = SseSplitter()
    splitter.feed(b"data: abc")
    assert splitter.feed(b"\n") == []
    rest = splitter.finish()
    assert rest == b"\n"
    assert isinstance(rest, Fragment)
    assert rest.event == b"data: abc\n"


@pytest.mark.parametrize(
    ("event", "name", "data"),
    [
        pytest.param(b"data: a\n\n", b"", b"a", id="the usual"),
        pytest.param(b"data:a\n\n", b"", b"a", id="no space"),
        pytest.param(b"data:  a\n\n", b"", b" a", id="only one space is dropped"),
        pytest.param(b"data: a\r\n\r\n", b"", b"a", id="CRLF"),
        pytest.param(b"event: e\ndata: a\n\n", b"e", b"a", id="named"),
        pytest.param(b"event:e\ndata: a\n\n", b"e", b"a", id="named without a space"),
        pytest.param(b"event: e\nevent: f\n\n", b"f", b"", id="the last name counts"),
        pytest.param(b"data: a\ndata: b\n\n", b"", b"a\nb", id="lines are joined"),
        pytest.param(b"data: a\ndata\n\n", b"", b"a\n", id="a field without a colon"),
        pytest.param(b": comment\nid: 7\nretry: 9\n\n", b"", b"", id="nothing we read"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", b"", b"a", id="byte order mark"),
        pytest.param(b"\ndata: a\n\n", b"", b"a", id="after a stray empty line"),
        pytest.param(b"data: a", b"", b"a", id="without its end"),
        pytest.param(b"data: a\x0bb\n\n", b"", b"a\x0bb", id="only CR and LF end lines"),
    ],
)
def test_fields(event: bytes, name: bytes, data: bytes) -> None:
    """As the HTML standard interprets an event."""
    assert fields(event) == (name, data)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        (" text/event-stream ;x", True),
        ("text/event-streams", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_content_type(content_type: str, expected: bool) -> None:
    """Case and parameters do not matter."""
    assert is_event_stream(content_type) is expected


def test_first_document() -> None:
    """The first object among the events that have the mark."""
    stream = b'data: {"a":1}\n\ndata: [1,"mark"]\n\ndata: {"mark":1}\n\ndata: {"mark":2}\n\n'
    assert first_document(stream, b"mark") == {"mark": 1}
    assert first_document(stream, b"none") is None
