"""What holds for every stream reader."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_policies.config import DialectName
from steer_policies.dialects import dialect, json_array, reader, sse
from steer_policies.dialects.base import Progress, RequestFacts, StreamReader
from steer_policies.outcome import Failure
from tests.policies.dialects.streams import (
    CHAT,
    DONE,
    GEMINI,
    GEMINI_ARRAY,
    MESSAGE,
    RESPONSE,
    chunk,
    data,
    named,
    typed,
)
from tests.policies.dialects.test_sse import cut

SSE, JSON = "text/event-stream; charset=utf-8", "application/json; charset=UTF-8"

# dialect, operation, content type, a whole stream, an error event
KINDS: list[Any] = [
    pytest.param(
        DialectName.OPENAI,
        "chat.completions",
        SSE,
        CHAT,
        data({"error": {"message": "x", "type": "server_error"}}),
        id="chat",
    ),
    pytest.param(
        DialectName.OPENAI,
        "responses",
        SSE,
        RESPONSE,
        typed("error", code="server_error", message="x"),
        id="responses",
    ),
    pytest.param(
        DialectName.ANTHROPIC,
        "messages",
        SSE,
        MESSAGE,
        named("error", {"type": "error", "error": {"type": "api_error", "message": "x"}}),
        id="messages",
    ),
    pytest.param(
        DialectName.GEMINI,
        "streamGenerateContent",
        SSE,
        GEMINI,
        data({"error": {"code": 500, "message": "x", "status": "INTERNAL"}}),
        id="gemini",
    ),
    pytest.param(
        DialectName.GEMINI,
        "streamGenerateContent",
        JSON,
        GEMINI_ARRAY,
        b',\r\n{"error": {"code": 500, "message": "x", "status": "INTERNAL"}}',
        id="gemini array",
    ),
]


def make(name: DialectName, operation: str, content_type: str, **options: Any) -> StreamReader:
    facts = RequestFacts(operation, True, stream=True)
    made = dialect(name).read_stream(facts, content_type, **options)
    assert made is not None
    return made


def progress(made: StreamReader) -> Progress:
    """Asked anew each time, whatever a type checker remembers of the last answer."""
    return made.progress


def text(made: StreamReader) -> str | None:
    return made.text


def state(made: StreamReader) -> tuple[Any, ...]:
    return made.progress, made.error, made.usage, made.model, made.held


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
@given(at=st.lists(st.integers(0, 3000), max_size=8))
@settings(max_examples=50)
def test_a_stream_passes_unchanged(
    name: DialectName,
    operation: str,
    content_type: str,
    stream: list[bytes],
    error: bytes,
    at: list[int],
) -> None:
    """Whatever the chunks, every byte comes out, and the reader learns the same."""
    whole = b"".join(stream)
    made, other = make(name, operation, content_type), make(name, operation, content_type)
    passed = b"".join(map(made.feed, cut(whole, at))) + made.finish()
    assert passed == whole == other.feed(whole) + other.finish()
    assert state(made) == state(other)
    assert progress(made) is Progress.COMPLETE
    assert made.error is None
    assert made.error_event == b""
    assert made.usage is not None
    assert made.model in {"gpt", "claude", "gemini"}


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
@given(at=st.lists(st.integers(0, 3000), max_size=8), after=st.integers(1, 3))
@settings(max_examples=50)
def test_an_error_stops_the_stream(
    name: DialectName,
    operation: str,
    content_type: str,
    stream: list[bytes],
    error: bytes,
    at: list[int],
    after: int,
) -> None:
    """What came before the error is released, the error is not, and nothing after it."""
    before = b"".join(stream[:after])
    made = make(name, operation, content_type)
    passed = b"".join(map(made.feed, cut(before + error, at)))
    assert passed + made.error_event == before + error
    assert made.error_event.strip() == error.strip()
    assert made.error is not None
    assert made.error.failure is Failure.SERVER_ERROR
    assert made.feed(b"data: more\n\n") == b""
    assert made.finish() == b""
    assert made.held == 0


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
def test_what_had_come_after_an_error_is_kept_with_it(
    name: DialectName, operation: str, content_type: str, stream: list[bytes], error: bytes
) -> None:
    """In the same chunk, whole or not."""
    made = make(name, operation, content_type)
    passed = made.feed(stream[0] + error + b"\n\ndata: x\n\ndata")
    assert passed.strip() == stream[0].strip()
    assert made.error_event.lstrip() == error + b"\n\ndata: x\n\ndata"


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
def test_an_error_may_lack_its_end(
    name: DialectName, operation: str, content_type: str, stream: list[bytes], error: bytes
) -> None:
    """A server that gives up may not write the empty line any more."""
    made = make(name, operation, content_type)
    made.feed(stream[0])
    made.feed(error.rstrip(b"\n}"))
    closing = error[len(error.rstrip(b"\n}")) :].rstrip(b"\n")
    made.feed(closing)
    assert made.finish() == b""
    assert made.error is not None
    assert made.error_event.strip() == error.strip()


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
@given(noise=st.lists(st.binary(max_size=60), max_size=6))
@settings(max_examples=50)
def test_noise_harms_nothing(
    name: DialectName,
    operation: str,
    content_type: str,
    stream: list[bytes],
    error: bytes,
    noise: list[bytes],
) -> None:
    """A reader takes anything, keeps every byte, and never raises."""
    made = make(name, operation, content_type)
    fed, passed = b"", b""
    for piece in [b for pair in zip(noise, stream, strict=False) for b in pair]:
        fed += piece
        passed += made.feed(piece)
        if made.error is not None:
            return
    assert passed + made.finish() + made.error_event == fed


MEMBERS = (
    "error choices delta content finish_reason usage index type message model response code "
    "candidates parts content_block stop_reason usageMetadata promptFeedback"
).split()
EVENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["error", "stop", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(MEMBERS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
@given(events=st.lists(EVENTS, max_size=5), keep=st.booleans())
@settings(max_examples=100)
def test_any_json_is_taken(
    name: DialectName,
    operation: str,
    content_type: str,
    stream: list[bytes],
    error: bytes,
    events: list[Any],
    keep: bool,
) -> None:
    """Known members with values of any kind neither raise nor change a byte."""
    made = make(name, operation, content_type, keep_text=keep)
    before = progress(made)
    for event in events:
        piece = data(event) if content_type is SSE else b"," + data(event)[6:]
        passed = made.feed(piece)
        if made.error is not None:
            assert passed + made.error_event == piece or content_type is JSON
            return
        assert before <= made.progress
        before = made.progress
        assert made.text is None or isinstance(made.text, str)


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
def test_large_events_are_understood(
    monkeypatch: pytest.MonkeyPatch,
    name: DialectName,
    operation: str,
    content_type: str,
    stream: list[bytes],
    error: bytes,
) -> None:
    """Events too large to hold tell the same: here, all of them are."""
    monkeypatch.setattr(sse, "MAX_HELD_EVENT", 8)
    monkeypatch.setattr(json_array, "MAX_HELD_EVENT", 8)
    made = make(name, operation, content_type)
    whole = b"".join(stream)
    chunks = [whole[start : start + 10] for start in range(0, len(whole), 10)]
    torn = [made.torn]
    first = made.feed(chunks[0])
    torn.append(made.torn)
    assert first + b"".join(map(made.feed, chunks[1:])) + made.finish() == whole
    assert [*torn, made.torn] == [False, True, False]
    assert progress(made) is Progress.COMPLETE
    assert made.usage is not None


def test_after_the_end_all_is_noise() -> None:
    """Not even an error counts, and everything is passed on."""
    made = make(DialectName.OPENAI, "chat.completions", SSE)
    tail = data({"error": {"message": "too late"}})
    assert made.feed(b"".join(CHAT) + tail) == b"".join(CHAT) + tail
    assert made.feed(tail + tail) == tail + tail
    assert made.feed(b"data: rest") == b""
    assert made.finish() == b"data: rest"
    assert made.error is None


def test_only_a_clean_end_completes_a_stream_without_a_marker() -> None:
    """Gemini's event stream is FINISHED at its last event and COMPLETE when the body ended."""
    made = make(DialectName.GEMINI, "streamGenerateContent", SSE)
    made.feed(b"".join(GEMINI[:2]))
    assert progress(made) is Progress.CONTENT
    made.feed(GEMINI[2])
    assert progress(made) is Progress.FINISHED
    made.finish()
    assert progress(made) is Progress.COMPLETE


@pytest.mark.parametrize(("name", "operation", "content_type", "stream", "error"), KINDS)
def test_a_stream_that_is_cut_is_not_complete(
    name: DialectName, operation: str, content_type: str, stream: list[bytes], error: bytes
) -> None:
    """Without its last two events a stream has content at most."""
    made = make(name, operation, content_type)
    made.feed(b"".join(stream[:2]))
    made.finish()
    assert made.progress <= Progress.CONTENT


def test_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer too long to keep is not resumed."""
    monkeypatch.setattr(reader, "MAX_TEXT", 5)
    made = make(DialectName.OPENAI, "chat.completions", SSE, keep_text=True)
    made.feed(chunk({"content": "Hello"}))
    assert text(made) == "Hello"
    made.feed(chunk({"content": "!"}))
    assert text(made) is None
    assert make(DialectName.OPENAI, "chat.completions", SSE).text is None


def test_done_is_seen_without_its_empty_line() -> None:
    """The last event of a server that closes at once."""
    made = make(DialectName.OPENAI, "chat.completions", SSE)
    made.feed(b"".join(CHAT[:-1]) + DONE.strip())
    assert progress(made) is Progress.FINISHED
    assert made.finish() == DONE.strip()
    assert progress(made) is Progress.COMPLETE
