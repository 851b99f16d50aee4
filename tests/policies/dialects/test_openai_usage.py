"""Asking for token counts that the caller did not ask for, and taking them out again."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_policies.config import DialectName
from steer_policies.dialects import dialect, openai_usage, sse
from steer_policies.dialects.base import Progress, RequestFacts, StreamReader, Usage
from steer_policies.dialects.openai_usage import WithoutUsage
from steer_policies.outcome import Failure
from steer_policies.route import merged
from tests.policies.dialects.streams import CHAT, DONE, chunk, data, named
from tests.policies.dialects.test_readers import EVENTS, KINDS
from tests.policies.dialects.test_sse import STREAMS, cut
from tests.provider.attempt import Attempt
from tests.provider.openai.chat import chat_completions, completions
from tests.provider.world import World

OPENAI = dialect(DialectName.OPENAI)
SSE, JSON = "text/event-stream; charset=utf-8", "application/json"
ASK = {"stream_options": {"include_usage": True}}
COUNT = {"prompt_tokens": 3, "completion_tokens": 2}


# --- Asking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "body", "asks"),
    [
        ("chat.completions", {"stream": True}, True),
        ("completions", {"stream": True}, True),
        ("chat.completions", {"stream": True, "stream_options": None}, True),
        ("chat.completions", {"stream": True, "stream_options": {}}, True),
        ("chat.completions", {"stream": True, "stream_options": {"include_usage": False}}, True),
        ("chat.completions", {"stream": True, **ASK}, False),
        ("chat.completions", {"stream": True, "stream_options": {"include_usage": None}}, False),
        ("chat.completions", {"stream": True, "stream_options": {"include_usage": 0}}, False),
        ("chat.completions", {"stream": True, "stream_options": []}, False),
        ("chat.completions", {"stream": True, "stream_options": "usage"}, False),
        ("chat.completions", {"stream": False}, False),
        ("chat.completions", {"stream": "true"}, False),
        ("chat.completions", {}, False),
        ("chat.completions", None, False),
        ("responses", {"stream": True}, False),
        ("audio.transcriptions", {"stream": True}, False),
    ],
)
def test_what_is_asked(operation: str, body: Any, asks: bool) -> None:
    """Streams with choices whose caller left the option alone; what is wrong stays wrong."""
    facts = RequestFacts(operation, True, stream=True)
    assert OPENAI.usage_options(facts, body) == (ASK if asks else {})


@pytest.mark.parametrize("name", [name for name in DialectName if name is not DialectName.OPENAI])
def test_other_dialects_have_nothing_to_ask(name: DialectName) -> None:
    """Their streams count by themselves, or not at all."""
    facts = RequestFacts("messages", True, stream=True)
    assert dialect(name).usage_options(facts, {"stream": True}) == {}


def test_asking_comes_after_a_candidates_options() -> None:
    """Members the caller or the plan put beside it are kept."""
    body = {"model": "a", "stream": True, "stream_options": {"include_obfuscation": False}}
    facts = OPENAI.describe("POST", "/chat/completions", "", JSON, body)
    options = {"model": "b", "stream_options": {"include_usage": False, "x": 1}}
    made = OPENAI.rewrite(
        facts,
        "/chat/completions",
        "",
        JSON,
        orjson.dumps(body),
        body,
        merged(options, OPENAI.usage_options(facts, body)),
    )
    asked = {"include_obfuscation": False, "include_usage": True, "x": 1}
    assert orjson.loads(made.body or b"") == {**body, "model": "b", "stream_options": asked}


# --- Taking out -----------------------------------------------------------------------------------


def stripping(*, keep_text: bool = False, choices: int = 1) -> StreamReader:
    facts = RequestFacts("chat.completions", True, stream=True, choices=choices)
    made = OPENAI.read_stream(facts, SSE, keep_text=keep_text, strip_usage=True)
    assert made is not None
    return made


def progress(made: StreamReader) -> Progress:
    """Asked anew each time, whatever a type checker remembers of the last answer."""
    return made.progress


def answered(path: str, body: dict[str, Any], text: str) -> list[bytes]:
    """The events of the wall's answer."""
    attempt = Attempt(
        number=1,
        at=0.0,
        connection=1,
        first_on_connection=True,
        method="POST",
        target=path,
        version="HTTP/1.1",
        headers=[],
    )
    attempt.body = json.dumps(body).encode()
    answer = completions if path == "/v1/completions" else chat_completions
    return [event.data for event in answer(attempt, World(text=text)).events]


def respelled(event: bytes, end: bytes, spaces: bool, place: int | None) -> bytes:
    """The event with other line ends, blanks between members, and its `usage` elsewhere."""
    text = event[6:-2]
    if text != b"[DONE]":
        members = list(orjson.loads(text).items())
        if place is not None and members[-1][0] == "usage":
            members.insert(place, members.pop())
        separators = (" , ", " : ") if spaces else (",", ":")
        text = json.dumps(dict(members), separators=separators, ensure_ascii=False).encode()
    return b"data: " + text + end + end


TEXTS = st.text(max_size=30) | st.sampled_from(
    ['"usage":null', 'say ,"usage":null}', '{"usage": null, "choices": []}', "usage", '","usage":']
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@given(
    text=TEXTS,
    number=st.integers(1, 3),
    end=ENDS,
    spaces=st.booleans(),
    place=st.none() | st.integers(0, 5),
    at=CUTS,
)
def test_what_is_left_is_the_stream_nobody_asked_to_count(
    path: str, text: str, number: int, end: bytes, spaces: bool, place: int | None, at: list[int]
) -> None:
    """Byte for byte, however it is written and cut; and the count is known."""
    body = {"model": "gpt", "messages": [], "prompt": "Hi", "stream": True}
    if path == "/v1/chat/completions":
        body["n"] = number
    else:
        number = 1
    plain, counted = answered(path, body, text), answered(path, {**body, **ASK}, text)
    whole = b"".join(respelled(event, end, spaces, place) for event in counted)
    expected = b"".join(respelled(event, end, spaces, None) for event in plain)
    assert b'"usage"' in whole
    made = stripping(choices=number)
    assert b"".join(map(made.feed, cut(whole, at))) + made.finish() == expected
    assert progress(made) is Progress.COMPLETE
    assert made.error is None
    assert made.usage is not None
    assert made.usage.input is not None
    assert made.held == 0


@given(at=CUTS)
@settings(max_examples=20)
def test_text_is_kept_for_a_resume(at: list[int]) -> None:
    """The chunk that only counts says nothing, and ends no text."""
    made = stripping(keep_text=True)
    for piece in cut(b"".join(CHAT), at):
        made.feed(piece)
    assert made.text == "Hello"
    assert made.model == "gpt"


def before(member: bytes, after: bytes) -> bytes:
    """A chunk with text that looks like the member it has."""
    look_alike = b'{"usage":null},"usage":null'
    return b'data: {"content":"' + look_alike.replace(b'"', b'\\"') + b'"' + member + after


@pytest.mark.parametrize(
    ("event", "left"),
    [
        pytest.param(b'data: {"usage":null}\n\n', b"data: {}\n\n", id="alone"),
        pytest.param(b'data:{ "usage" :null }\r\n\r\n', b"data:{}\r\n\r\n", id="alone, spaced"),
        pytest.param(b'data: {"usage":null,"a":1}\n\n', b'data: {"a":1}\n\n', id="first"),
        pytest.param(
            b'data: {"usage"\t: null , "a": 1}\n\n', b'data: {"a": 1}\n\n', id="first, spaced"
        ),
        pytest.param(
            b'data: {"a":1,"usage":null,"b":2}\n\n', b'data: {"a":1,"b":2}\n\n', id="middle"
        ),
        pytest.param(
            b'data: {"a": 1 , "usage" : null , "b": 2}\n\n',
            b'data: {"a": 1 , "b": 2}\n\n',
            id="middle, spaced",
        ),
        pytest.param(
            b'data: { "a": 1, "usage": null }\n\n', b'data: { "a": 1 }\n\n', id="last, spaced"
        ),
        pytest.param(b'data: {"a":1,"usage":null}\n\n', b'data: {"a":1}\n\n', id="last"),
        pytest.param(
            before(b',"usage":null', b"}\n\n"), before(b"", b"}\n\n"), id="beside look-alikes"
        ),
        pytest.param(
            b': usage\nid: 7\ndata: {"a":1,\ndata: "b":2,"usage":null}\n\n',
            b': usage\nid: 7\ndata: {"a":1,\ndata: "b":2}\n\n',
            id="several lines",
        ),
        pytest.param(
            data({"choices": [], "prompt_filter_results": [{}], "usage": None}),
            data({"choices": [], "prompt_filter_results": [{}]}),
            id="Azure's first",
        ),
        pytest.param(
            b'data: {"x":[{"usage":null}],"usage":null,"y":{"a":1,"usage":null}}\n\n',
            b'data: {"x":[{"usage":null}],"y":{"a":1,"usage":null}}\n\n',
            id="the chunk's own among others",
        ),
        pytest.param(data({"choices": [], "usage": COUNT}), b"", id="a count alone"),
        pytest.param(
            b'data: {"usage": {}, "choices": [ ]}\r\r', b"", id="a count alone, spelled otherwise"
        ),
    ],
)
def test_what_is_taken_out(event: bytes, left: bytes) -> None:
    """The member with one comma, wherever it stands, or the whole chunk."""
    assert stripping().feed(event) == left


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(chunk({}, "stop", usage=COUNT), id="a count beside choices"),
        pytest.param(data({"choices": None, "usage": COUNT}), id="no list of choices"),
        pytest.param(data({"usage": COUNT}), id="no choices"),
        pytest.param(data({"choices": [], "usage": 7}), id="no count"),
        pytest.param(chunk({"content": "x"}, x_groq={"usage": None}), id="further inside"),
        pytest.param(b'data: {"usage"\n\n', id="no JSON"),
        pytest.param(b'data: [{"usage":null}]\n\n', id="no object"),
        pytest.param(b': {"usage":null}\n\n', id="a comment"),
        pytest.param(b'data: {"a":1,\ndata: "usage":null}\n\n', id="over two lines"),
        pytest.param(
            data({"x": [{"usage": None}] * 8, "usage": None}), id="behind too many of its name"
        ),
        pytest.param(before(b"", b"}\n\n"), id="look-alikes"),
        pytest.param(b"data: usage\n\n", id="text"),
    ],
)
def test_what_stays(event: bytes) -> None:
    """Whatever was not brought by asking, and what cannot be told from it."""
    made = stripping()
    assert made.feed(event + DONE) == event + DONE
    assert progress(made) is Progress.COMPLETE


def test_a_count_beside_choices_is_read() -> None:
    """It stays, and counts."""
    made = stripping()
    made.feed(chunk({"content": "x"}, "stop", usage=COUNT))
    assert made.usage == Usage(3, None, 2)


@pytest.mark.parametrize(
    "event",
    [
        data({"choices": [], "usage": COUNT, "error": {"message": "x", "type": "server_error"}}),
        data({"choices": [], "usage": COUNT, "object": "error", "message": "x", "code": 500}),
        named("error", {"choices": [], "usage": COUNT, "message": "x", "type": "server_error"}),
    ],
)
def test_an_error_is_never_taken_out(event: bytes) -> None:
    """Whatever else it says, its event is kept for the caller."""
    made = stripping()
    counted = data({"choices": [], "usage": COUNT})
    assert made.feed(chunk({"content": "x"}, usage=None) + event + counted + b"data") == chunk(
        {"content": "x"}
    )
    assert made.error is not None
    assert made.error.failure is Failure.SERVER_ERROR
    assert made.error_event == event + b"data"


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_count_may_lack_its_empty_line(end: bytes) -> None:
    """The last event of a server that closes at once."""
    made = stripping()
    made.feed(chunk({"content": "x"}, "stop"))
    assert made.feed(data({"choices": [], "usage": COUNT}).strip() + end) == b""
    assert made.held > 0
    assert made.finish() == b""
    assert made.usage == Usage(3, None, 2)


def test_a_line_end_goes_with_its_event() -> None:
    """CR LF may arrive in halves; only the half of what was taken out is taken out."""
    made = stripping()
    counted = data({"choices": [], "usage": COUNT}).replace(b"\n", b"\r\n")
    said = chunk({"content": "x"}).replace(b"\n", b"\r\n")
    assert made.feed(said[:-1]) == said[:-1]
    assert made.feed(b"\n") == b"\n"
    assert made.feed(counted[:-1]) == b""
    assert made.feed(b"\n" + said) == said


def test_events_too_large_to_hold_pass_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are relayed as they come, and read all the same."""
    monkeypatch.setattr(sse, "MAX_HELD_EVENT", 8)
    whole = b"".join(CHAT)
    made = stripping()
    pieces = [whole[start : start + 10] for start in range(0, len(whole), 10)]
    torn = [made.torn]
    first = made.feed(pieces[0])
    torn.append(made.torn)
    assert first + b"".join(map(made.feed, pieces[1:])) + made.finish() == whole
    assert [*torn, made.torn] == [False, True, False]
    # Even when all of an event but its empty line comes at once.
    again = stripping()
    lines = whole.splitlines(keepends=True)
    assert (
        b"".join(map(again.feed, [part for text in lines for part in (text[:-1], b"\n")])) == whole
    )
    assert progress(made) is Progress.COMPLETE
    assert made.usage is not None


MEMBERS = st.dictionaries(st.sampled_from(["usage", "choices", "a", "error"]), EVENTS, max_size=4)


@given(value=MEMBERS, spaces=st.booleans())
@settings(max_examples=300)
def test_what_is_left_is_sound(value: dict[str, Any], spaces: bool) -> None:
    """An event keeps its bytes, loses its null, or goes whole; nothing else happens to it."""
    separators = (", ", ": ") if spaces else (",", ":")
    event = b"data: " + json.dumps(value, separators=separators).encode() + b"\n\n"
    rest = {name: member for name, member in value.items() if name != "usage"}
    left = b"".join(WithoutUsage().feed(event))
    if left == b"":
        assert isinstance(value["usage"], dict)
        assert value["choices"] == []
    elif left != event:
        assert value["usage"] is None
        assert left == b"data: " + json.dumps(rest, separators=separators).encode() + b"\n\n"


@given(stream=STREAMS, at=st.lists(st.integers(0, 200), max_size=8))
def test_what_has_no_count_keeps_every_byte(stream: bytes, at: list[int]) -> None:
    """Whatever its line ends."""
    splitter = WithoutUsage()
    passed = [piece for part in cut(stream, at) for piece in splitter.feed(part)]
    assert b"".join(passed) + splitter.finish() == stream


@pytest.mark.parametrize(
    ("name", "operation", "content_type", "stream", "error"),
    [kind for kind in KINDS if kind.id != "chat"],
)
def test_other_streams_know_no_stripping(
    name: DialectName, operation: str, content_type: str, stream: list[bytes], error: bytes
) -> None:
    """Asked or not, their readers and bytes are the same."""
    facts = RequestFacts(operation, True, stream=True)
    made = dialect(name).read_stream(facts, content_type, strip_usage=True)
    assert made is not None
    assert b"".join(map(made.feed, stream)) + made.finish() == b"".join(stream)


def test_foreign_names_cost_a_bounded_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event full of members of that name is parsed a few times, not once for each."""
    parsed = 0

    def load(text: bytes) -> Any:
        nonlocal parsed
        parsed += 1
        return orjson.loads(text)

    monkeypatch.setattr(openai_usage, "load", load)
    stripping().feed(data({"x": [{"usage": None}] * 1000, "usage": None}))
    assert parsed < 10
