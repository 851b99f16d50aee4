"""Reading OpenAI's streams."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.dialects.base import Progress, Special, Usage
from steer_policies.dialects.openai_stream import ChoicesReader, TypedReader
from steer_policies.outcome import Executed, Failure, HintSource, RetryHint
from tests.policies.dialects.streams import CHAT, DONE, RESPONSE, chunk, data, named, read, typed

PRELUDE, CONTENT, FINISHED, COMPLETE = Progress

SKIPPED = chunk({"content": "more"}, usage=None)


@pytest.mark.parametrize(
    ("events", "progress"),
    [
        pytest.param([], PRELUDE, id="nothing"),
        pytest.param([b": comment\n\n"], PRELUDE, id="comment"),
        pytest.param([b"data: {broken\n\n"], PRELUDE, id="broken JSON"),
        pytest.param([data([1])], PRELUDE, id="not an object"),
        pytest.param(
            [data({"choices": [], "prompt_filter_results": []})], PRELUDE, id="Azure's first"
        ),
        pytest.param([chunk({"role": "assistant", "content": ""})], PRELUDE, id="role"),
        pytest.param([chunk({"content": None})], PRELUDE, id="null content"),
        pytest.param([data({"choices": [None, {"delta": 3}]})], PRELUDE, id="no choices"),
        pytest.param([chunk({"content": "a"})], CONTENT, id="content"),
        pytest.param([chunk({"refusal": "no"})], CONTENT, id="refusal"),
        pytest.param([chunk({"reasoning_content": "hm"})], CONTENT, id="DeepSeek's reasoning"),
        pytest.param([chunk({"reasoning": "hm"})], CONTENT, id="OpenRouter's reasoning"),
        pytest.param([chunk({"audio": {"data": "x"}})], CONTENT, id="audio"),
        pytest.param([chunk({"function_call": {"name": "f"}})], CONTENT, id="function call"),
        pytest.param(
            [chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]})],
            CONTENT,
            id="tool call",
        ),
        pytest.param([data({"choices": [{"index": 0, "text": "a"}]})], CONTENT, id="legacy text"),
        pytest.param([chunk({}, "length")], FINISHED, id="finished without content"),
        pytest.param([chunk({"content": "a"}), SKIPPED], CONTENT, id="more content"),
        pytest.param([*CHAT[:4]], FINISHED, id="finish reason"),
        pytest.param([*CHAT[:5]], FINISHED, id="usage"),
        pytest.param(CHAT, COMPLETE, id="done"),
        pytest.param([DONE], COMPLETE, id="done at once"),
        pytest.param([b"data: [DONE] \n\n"], COMPLETE, id="done with a space"),
        pytest.param(
            [chunk({"content": "a"}), chunk({"content": 'data: [DONE] "finish_reason":"stop"'})],
            CONTENT,
            id="text that looks like an end",
        ),
        pytest.param(
            [chunk({"content": "a"}), chunk({"content": '"finish_reason":null'}, "stop")],
            FINISHED,
            id="text that looks like no end",
        ),
    ],
)
def test_progress_of_choices(events: list[bytes], progress: Progress) -> None:
    """The first delta with anything in it is content, all reasons finish, [DONE] completes."""
    assert read(ChoicesReader(), *events).progress is progress


def test_every_choice_must_finish() -> None:
    """With n = 2 the first finish reason is content only; a repeated one counts once."""
    reader = read(ChoicesReader(2), chunk({}, "stop"), chunk({}, "stop"))
    assert reader.progress is CONTENT
    read(reader, chunk({"content": "a"}, index=1))
    assert reader.progress is CONTENT
    read(reader, chunk({}, "stop", index=1))
    assert reader.progress is FINISHED
    odd = data({"choices": [{"index": "one", "finish_reason": "stop"}]})
    assert read(ChoicesReader(), odd, odd).progress is FINISHED


@pytest.mark.parametrize(
    "event",
    [
        chunk({}, "stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
        chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 2}),
        chunk({"content": "a"}, x_groq={"usage": {"prompt_tokens": 5, "completion_tokens": 2}}),
    ],
)
def test_usage_of_choices(event: bytes) -> None:
    """It may come with any chunk, also one that is otherwise passed over."""
    reader = read(ChoicesReader(), chunk({"content": "a"}), SKIPPED, event, chunk({}, usage={}))
    assert reader.usage == Usage(input=5, output=2)
    assert reader.model == "gpt"


@pytest.mark.parametrize(
    ("event", "failure", "code"),
    [
        pytest.param(
            data({"error": {"message": "x", "type": "server_error", "code": None}}),
            Failure.SERVER_ERROR,
            "server_error",
            id="OpenAI",
        ),
        pytest.param(
            data({"error": {"message": "x", "code": "rate_limit_exceeded"}}),
            Failure.THROTTLED,
            "rate_limit_exceeded",
            id="rate limit",
        ),
        pytest.param(
            chunk({}, "error", error={"code": 429, "message": "slow"}),
            Failure.THROTTLED,
            None,
            id="OpenRouter, beside choices",
        ),
        pytest.param(
            data({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}),
            Failure.REJECTED,
            "BadRequestError",
            id="vLLM",
        ),
        pytest.param(named("error", b"oops"), Failure.SERVER_ERROR, None, id="named, no JSON"),
        pytest.param(data({"error": "overloaded"}), Failure.SERVER_ERROR, None, id="text"),
        pytest.param(
            data({"error": {"code": "context_length_exceeded"}}),
            Failure.CONTEXT_LENGTH,
            "context_length_exceeded",
            id="context length",
        ),
        pytest.param(
            data({"error": {"type": "invalid_request_error", "message": "Maximum Context Length"}}),
            Failure.CONTEXT_LENGTH,
            "invalid_request_error",
            id="context length in words",
        ),
        pytest.param(
            data({"error": {"code": "insufficient_quota"}}),
            Failure.QUOTA,
            "insufficient_quota",
            id="quota",
        ),
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_errors_among_choices(event: bytes, failure: Failure, code: str | None, seen: bool) -> None:
    """They stop the stream; after content the call was executed, maybe."""
    reader = read(ChoicesReader(), CHAT[0], *([CHAT[1]] if seen else []))
    assert reader.feed(event) == b""
    assert reader.error_event == event
    assert reader.error is not None
    assert reader.error.failure is failure
    assert reader.error.code == code
    assert reader.error.executed is (Executed.MAYBE if seen else Executed.NO)


def _counted(**usage: int) -> bytes:
    return data({"id": "chatcmpl-1", "choices": [], "usage": usage})


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        pytest.param([_counted(completion_tokens=500)], True, id="some"),
        pytest.param([_counted(completion_tokens=0)], False, id="none"),
        pytest.param([_counted(prompt_tokens=9)], False, id="of the prompt"),
    ],
)
def test_an_error_after_counted_tokens_alone(events: list[bytes], seen: bool) -> None:
    """What the provider counts as its output it has made, and may bill, unseen as it is."""
    reader = read(ChoicesReader(), CHAT[0], *events)
    assert reader.progress is PRELUDE
    reader.feed(data({"error": {"type": "server_error"}}))
    assert reader.error is not None
    assert reader.error.executed is (Executed.MAYBE if seen else Executed.NO)


@pytest.mark.parametrize(
    ("usage", "seen"),
    [
        ({"input_tokens": 9, "output_tokens": 2000}, True),
        ({"input_tokens": 9, "output_tokens": 0}, False),
        (None, False),
    ],
)
def test_a_response_that_failed_may_count_tokens(usage: Any, seen: bool) -> None:
    """It says itself whether the provider has run the call."""
    reader = read(TypedReader(), *RESPONSE[:3])
    failed = {"status": "failed", "error": {"code": "server_error"}, "usage": usage}
    assert reader.feed(typed("response.failed", response=failed)) == b""
    assert reader.error is not None
    assert reader.error.executed is (Executed.MAYBE if seen else Executed.NO)


def test_an_empty_error_is_none() -> None:
    """`error: null` beside content is what the official SDK passes over, too."""
    reader = read(ChoicesReader(), chunk({"content": "a"}), chunk({"content": "b"}, error=None))
    assert reader.progress is CONTENT


@pytest.mark.parametrize(
    ("events", "text"),
    [
        pytest.param(CHAT, "Hello", id="text"),
        pytest.param(CHAT[:1], "", id="none yet"),
        pytest.param([*CHAT[:2], chunk({"tool_calls": [{}]})], None, id="a tool call"),
        pytest.param([chunk({"reasoning_content": "hm"}), CHAT[1]], None, id="reasoning"),
        pytest.param([chunk({"content": ["parts"]})], None, id="content in parts"),
        pytest.param([data({"choices": [{"text": "a"}]})], None, id="legacy"),
    ],
)
def test_text_of_choices(events: list[bytes], text: str | None) -> None:
    """All of it, or None once anything else was seen."""
    assert read(ChoicesReader(keep_text=True), *events).text == text


@pytest.mark.parametrize(
    ("events", "progress"),
    [
        pytest.param([], PRELUDE, id="nothing"),
        pytest.param(RESPONSE[:4], PRELUDE, id="created and added"),
        pytest.param([typed("keepalive")], PRELUDE, id="keepalive"),
        pytest.param([typed("response.output_text.delta", delta="")], PRELUDE, id="empty delta"),
        pytest.param([b": comment\n\n", b"data: {broken\n\n"], PRELUDE, id="no events"),
        pytest.param(RESPONSE[:5], CONTENT, id="text"),
        pytest.param(RESPONSE[:7], CONTENT, id="text done"),
        pytest.param(
            [data({"type": "response.refusal.delta", "delta": "n"})], CONTENT, id="unnamed"
        ),
        pytest.param(
            [
                typed("response.output_text.delta", delta="a"),
                data({"type": "response.output_text.delta", "delta": "b"}),
            ],
            CONTENT,
            id="unnamed after content",
        ),
        pytest.param([typed("response.mcp_call.in_progress")], CONTENT, id="a tool at work"),
        pytest.param([named("response.reasoning_text.delta", b"{}")], CONTENT, id="only named"),
        pytest.param(RESPONSE, COMPLETE, id="completed"),
        pytest.param([typed("response.incomplete", response={})], COMPLETE, id="incomplete"),
        pytest.param([typed("speech.audio.delta", audio="x")], CONTENT, id="speech"),
        pytest.param([typed("speech.audio.done")], COMPLETE, id="speech done"),
        pytest.param([typed("transcript.text.delta", delta="x")], CONTENT, id="transcript"),
        pytest.param([typed("transcript.text.done", text="x")], COMPLETE, id="transcript done"),
        pytest.param([typed("image_generation.partial_image")], CONTENT, id="partial image"),
        pytest.param([typed("image_edit.completed", b64_json="x")], COMPLETE, id="image"),
        pytest.param([DONE], COMPLETE, id="DONE"),
    ],
)
def test_progress_of_typed_events(events: list[bytes], progress: Progress) -> None:
    """What only announces is prelude, the terminal events complete, all else is content."""
    assert read(TypedReader(), *events).progress is progress


def test_each_image_completes() -> None:
    """With n = 2 the second one does."""
    image = typed("image_generation.completed", b64_json="x", usage={"input_tokens": 7})
    reader = read(TypedReader(2), image)
    assert reader.progress is CONTENT
    read(reader, image)
    assert reader.progress is COMPLETE
    assert reader.usage == Usage(input=7)


def test_what_typed_events_tell() -> None:
    """The model from the first event, usage from the last."""
    reader = read(TypedReader(), *RESPONSE)
    assert reader.model == "gpt"
    assert reader.usage == Usage(input=3, output=2)
    assert reader.text is None
    reader = read(TypedReader(), typed("transcript.text.done", usage={"input_tokens": 1}))
    assert reader.usage == Usage(input=1)


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({"Retry-After-Ms": "1500"}, RetryHint(1.5, HintSource.RETRY_AFTER)),
        (
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"},
            RetryHint(360.0, HintSource.RESET),
        ),
        ({"x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "6m0s"}, None),
        ({"retry-after": "3"}, RetryHint(3.0, HintSource.RETRY_AFTER)),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after-ms": 5}, None),
        ([], None),
    ],
)
def test_an_error_event_may_repeat_headers(headers: Any, hint: RetryHint | None) -> None:
    """As OpenAI does for a rate limit; what cannot be told without the answer's date is left."""
    error = {"type": "tokens", "code": "rate_limit_exceeded", "headers": headers}
    reader: Any = TypedReader()
    reader.feed(typed("error", error=error))
    assert reader.error.failure is Failure.THROTTLED
    assert reader.error.hint == hint


@pytest.mark.parametrize(
    ("event", "failure", "code"),
    [
        pytest.param(
            typed("error", code="server_error", message="x", param=None),
            Failure.SERVER_ERROR,
            "server_error",
            id="flat",
        ),
        pytest.param(
            typed("error", error={"type": "rate_limit_error", "message": "x"}),
            Failure.THROTTLED,
            "rate_limit_error",
            id="nested",
        ),
        pytest.param(
            typed("error", status=429, error={"message": "x"}), Failure.THROTTLED, None, id="status"
        ),
        pytest.param(
            data({"error": {"code": "overloaded_error"}}),
            Failure.OVERLOADED,
            "overloaded_error",
            id="bare",
        ),
        pytest.param(
            typed("response.failed", response={"error": {"code": "server_error"}, "usage": None}),
            Failure.SERVER_ERROR,
            "server_error",
            id="failed",
        ),
        pytest.param(
            typed("response.failed", response={"error": {"code": "bio_policy"}}),
            Failure.CONTENT_POLICY,
            "bio_policy",
            id="refused",
        ),
        pytest.param(
            typed("response.failed", response={"error": {"code": "image_too_large"}}),
            Failure.REJECTED,
            "image_too_large",
            id="rejected",
        ),
        pytest.param(typed("response.failed"), Failure.SERVER_ERROR, None, id="without a reason"),
    ],
)
def test_errors_among_typed_events(event: bytes, failure: Failure, code: str | None) -> None:
    """An `error` event, a failed response, or an error as other streams have it."""
    reader: Any = read(TypedReader(), *RESPONSE[:3])
    assert reader.feed(event) == b""
    assert reader.error.failure is failure
    assert reader.error.code == code


def test_a_response_that_failed_was_paid_for() -> None:
    """It says what for, as one that was completed does, and by which tier."""
    usage = {"input_tokens": 1000, "output_tokens": 500}
    response = {"model": "gpt", "error": {"code": "server_error"}, "usage": usage}
    reader = TypedReader()
    assert reader.feed(typed("response.failed", response=response)) == b""
    assert reader.error is not None
    assert (reader.model, reader.usage) == ("gpt", Usage(1000, None, 500))


def test_an_end_that_is_cut_is_none() -> None:
    """Its name alone does not complete a response: there may be nothing behind it."""
    *begun, end = RESPONSE
    whole = end.rstrip(b"\n")
    for size in range(len(end)):
        reader = read(TypedReader(), *begun)
        reader.feed(end[:size])
        reader.finish()
        complete = reader.progress is Progress.COMPLETE
        assert complete == (size >= len(whole)), end[:size]


def test_what_a_stream_says_of_its_tier() -> None:
    """It stands beside the usage."""
    flex = Special(context=(("service_tier", "flex"),))
    event = chunk({}, usage={"prompt_tokens": 5}, service_tier="flex")
    assert read(ChoicesReader(), event).usage == Usage(5, special=flex)
    response = {"usage": {"input_tokens": 5}, "service_tier": "flex"}
    event = typed("response.completed", response=response)
    assert read(TypedReader(), event).usage == Usage(5, special=flex)
