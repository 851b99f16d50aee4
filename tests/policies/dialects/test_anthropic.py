"""The Anthropic dialect."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.anthropic_stream import MessageReader
from steer_policies.dialects.base import Progress, RequestFacts, Rewritten, Usage, Where
from steer_policies.outcome import Executed, Failure, HintSource, RetryHint
from tests.policies.dialects.streams import MESSAGE, data, named, read, typed

ANTHROPIC = dialect(DialectName.ANTHROPIC)
JSON = "application/json"
PRELUDE, CONTENT, FINISHED, COMPLETE = Progress


def describe(body: Any, path: str = "/v1/messages", method: str = "POST") -> RequestFacts:
    return ANTHROPIC.describe(method, path, "", JSON, body)


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/v1/messages", "/v1/messages"),
        ("//v1//messages", "/v1/messages"),
        ("/messages", "/v1/messages"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/messages/batches", "/messages/batches"),
        ("", ""),
    ],
)
def test_canonical_path(path: str, canonical: str) -> None:
    """The AI SDK's paths lack the version."""
    assert ANTHROPIC.canonical_path(path) == canonical


@pytest.mark.parametrize(
    ("method", "path", "operation", "steered"),
    [
        ("POST", "/v1/messages", "messages", True),
        ("POST", "/v1/messages/count_tokens", "messages.count_tokens", True),
        ("GET", "/v1/messages", "other", False),
        ("POST", "/v1/messages/batches", "messages.batches", False),
        ("POST", "/v1/messages/batches/b_1/cancel", "messages.batches", False),
        ("GET", "/v1/models", "models", False),
        ("POST", "/v1/files", "files", False),
        ("POST", "/v1/whatever/secret", "other", False),
        ("GET", "", "other", False),
    ],
)
def test_only_generation_is_steered(method: str, path: str, operation: str, steered: bool) -> None:
    """Messages and their token counts; the rest belongs to the home upstream."""
    facts = describe({"model": "claude"}, path, method)
    assert (facts.operation, facts.steered) == (operation, steered)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param({}, RequestFacts("messages", True, "claude", Where.BODY), id="plain"),
        pytest.param(
            {"stream": True, "max_tokens": 9},
            RequestFacts(
                "messages", True, "claude", Where.BODY, True, max_tokens=9, resumable=True
            ),
            id="stream",
        ),
        pytest.param(
            {"stream": True, "tools": [{}]},
            RequestFacts("messages", True, "claude", Where.BODY, True),
            id="tools are not resumable",
        ),
        pytest.param(
            {"stream": True, "thinking": {"type": "enabled"}},
            RequestFacts("messages", True, "claude", Where.BODY, True),
            id="thinking is not resumable",
        ),
        pytest.param(
            {"stream": True, "thinking": {"type": "disabled"}, "tools": []},
            RequestFacts("messages", True, "claude", Where.BODY, True, resumable=True),
            id="neither asked for",
        ),
        pytest.param(
            {"container": "container_1"},
            RequestFacts("messages", False, "claude", Where.BODY),
            id="a kept container pins",
        ),
        pytest.param(
            {"container": {"id": "container_1"}},
            RequestFacts("messages", False, "claude", Where.BODY),
            id="also with skills",
        ),
        pytest.param(
            {"container": {"skills": []}},
            RequestFacts("messages", True, "claude", Where.BODY),
            id="a new container does not",
        ),
        pytest.param(
            {"stream": "true", "max_tokens": "9"},
            RequestFacts("messages", True, "claude", Where.BODY),
            id="members of other kinds",
        ),
    ],
)
def test_describe(members: dict[str, Any], expected: RequestFacts) -> None:
    """What a message request says of itself."""
    assert describe({"model": "claude", **members}) == expected


@pytest.mark.parametrize("body", [None, [], "text", 3, {}])
def test_a_body_that_is_not_understood(body: Any) -> None:
    """It is steered, but nothing can be put into it."""
    assert describe(body) == RequestFacts("messages", True)
    assert ANTHROPIC.rewrite(
        describe(body), "/v1/messages", "", JSON, b"raw", body, {}
    ) == Rewritten("/v1/messages", "", None)


def test_rewrite() -> None:
    """The model is in the body."""
    raw = b'{"model": "claude", "max_tokens": 5}'
    body = {"model": "claude", "max_tokens": 5}
    made = ANTHROPIC.rewrite(
        describe(body), "/v1/messages", "beta=true", JSON, raw, body, {"model": "other"}
    )
    assert made == Rewritten("/v1/messages", "beta=true", b'{"model": "other", "max_tokens": 5}')


def test_read_stream() -> None:
    """Only a message's event stream is known."""
    facts = describe({"model": "claude", "stream": True})
    assert ANTHROPIC.read_stream(facts, "text/event-stream") is not None
    assert ANTHROPIC.read_stream(facts, JSON) is None
    count = describe({}, "/v1/messages/count_tokens")
    assert ANTHROPIC.read_stream(count, "text/event-stream") is None


def block(kind: str, index: int = 0, **members: Any) -> bytes:
    return typed("content_block_start", index=index, content_block={"type": kind, **members})


def delta(kind: str, **members: Any) -> bytes:
    return typed("content_block_delta", index=0, delta={"type": kind, **members})


@pytest.mark.parametrize(
    ("events", "progress"),
    [
        pytest.param([], PRELUDE, id="nothing"),
        pytest.param(MESSAGE[:3], PRELUDE, id="start and ping"),
        pytest.param([data({"type": "ping"}), b": x\n\n"], PRELUDE, id="unnamed ping, comment"),
        pytest.param([block("thinking", thinking="")], PRELUDE, id="thinking starts"),
        pytest.param([delta("text_delta", text="")], PRELUDE, id="empty delta"),
        pytest.param([named("content_block_delta", b"{broken")], PRELUDE, id="broken JSON"),
        pytest.param([named("content_block_delta", b"[]")], PRELUDE, id="no object"),
        pytest.param(MESSAGE[:4], CONTENT, id="text"),
        pytest.param(MESSAGE[:6], CONTENT, id="block stops"),
        pytest.param([block("text", text="Hi")], CONTENT, id="text at start"),
        pytest.param([block("tool_use", name="f")], CONTENT, id="tool"),
        pytest.param([block("redacted_thinking", data="x")], CONTENT, id="redacted thinking"),
        pytest.param([delta("thinking_delta", thinking="hm")], CONTENT, id="thinking"),
        pytest.param([delta("input_json_delta", partial_json="{")], CONTENT, id="tool input"),
        pytest.param([delta("signature_delta", signature="x")], CONTENT, id="signature"),
        pytest.param([delta("citations_delta", citation={"a": 1})], CONTENT, id="citation"),
        pytest.param(
            [typed("message_delta", delta={"stop_reason": None})], PRELUDE, id="no reason to stop"
        ),
        pytest.param(MESSAGE[:7], FINISHED, id="reason to stop"),
        pytest.param(MESSAGE, COMPLETE, id="stop"),
        pytest.param(
            [*MESSAGE[:4], delta("text_delta", text='event: error\ndata: {"type":"message_stop"}')],
            CONTENT,
            id="text that looks like an end",
        ),
    ],
)
def test_progress(events: list[bytes], progress: Progress) -> None:
    """From `message_start` to `message_stop`."""
    assert read(MessageReader(), *events).progress is progress


def test_what_a_stream_tells() -> None:
    """Later counts are cumulative, and members they do not name stay."""
    start = {"model": "claude", "usage": {"input_tokens": 3, "cache_read_input_tokens": 10}}
    reader = read(MessageReader(), typed("message_start", message=start))
    assert reader.usage == Usage(input=13, cached=10)
    usage = {"input_tokens": 3, "cache_read_input_tokens": None, "output_tokens": 7}
    read(reader, typed("message_delta", delta={"stop_reason": "end_turn"}, usage=usage))
    assert reader.usage == Usage(input=13, cached=10, output=7)
    assert reader.model == "claude"


def test_a_count_of_nothing_yet_is_none() -> None:
    """What `message_start` has of the output is a placeholder: what came tells more, roughly."""
    start = {"model": "claude", "usage": {"input_tokens": 3, "output_tokens": 1}}
    reader = read(MessageReader(), typed("message_start", message=start))
    assert reader.usage == Usage(input=3)
    read(reader, *(delta("text_delta", text="x" * 400) for _ in range(13)))
    assert reader.usage == Usage(input=3, streamed=1300)
    read(reader, typed("message_delta", usage={"output_tokens": 900}))
    assert reader.usage == Usage(input=3, output=900)
    small = read(MessageReader(), typed("message_start", message=start))
    read(small, b'data:{"type":"content_block_delta","delta":{"text":"x"}}\n\n')
    assert small.usage == Usage(input=3, streamed=0)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        pytest.param(MESSAGE, "Hello", id="text"),
        pytest.param([block("text", text="Hi")], "Hi", id="text at start"),
        pytest.param(MESSAGE[:3], "", id="none yet"),
        pytest.param([block("tool_use")], None, id="tool"),
        pytest.param([*MESSAGE[:6], block("text", 1, text="")], None, id="a second block"),
        pytest.param([delta("thinking_delta", thinking="hm")], None, id="thinking"),
    ],
)
def test_text(events: list[bytes], text: str | None) -> None:
    """One block's text, or None once anything else was seen."""
    assert read(MessageReader(keep_text=True), *events).text == text


def error(kind: str, message: str = "x", **members: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **members}}


@pytest.mark.parametrize(
    ("kind", "message", "failure"),
    [
        ("overloaded_error", "Overloaded", Failure.OVERLOADED),
        ("rate_limit_error", "x", Failure.THROTTLED),
        ("api_error", "x", Failure.SERVER_ERROR),
        ("timeout_error", "x", Failure.SERVER_ERROR),
        ("something_new", "x", Failure.SERVER_ERROR),
        ("invalid_request_error", "x", Failure.REJECTED),
        ("invalid_request_error", "prompt is too long: 9 > 8", Failure.CONTEXT_LENGTH),
        (
            "invalid_request_error",
            "Output blocked by content filtering policy",
            Failure.CONTENT_POLICY,
        ),
        ("not_found_error", "x", Failure.REJECTED),
        ("authentication_error", "x", Failure.CREDENTIAL),
        ("permission_error", "x", Failure.CREDENTIAL),
        ("billing_error", "x", Failure.QUOTA),
        ("conflict_error", "x", Failure.BUSY),
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_errors_in_a_stream(kind: str, message: str, failure: Failure, seen: bool) -> None:
    """By their type; after content the call was executed, maybe."""
    reader: Any = read(MessageReader(), *MESSAGE[: 4 if seen else 1])
    event = named("error", error(kind, message))
    assert reader.feed(event) == b""
    assert reader.error.failure is failure
    assert reader.error.code == kind
    assert reader.error.executed is (Executed.MAYBE if seen else Executed.NO)


_OMITTED = [
    MESSAGE[0],
    typed("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
    typed("content_block_stop", index=0),
]


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        pytest.param(_OMITTED, True, id="a block that is over"),
        pytest.param(_OMITTED[:2], False, id="a block that has begun"),
        pytest.param(
            [MESSAGE[0], typed("message_delta", delta={}, usage={"output_tokens": 9})],
            True,
            id="tokens counted",
        ),
        pytest.param(
            [MESSAGE[0], typed("message_delta", delta={}, usage={"output_tokens": 0})],
            False,
            id="no tokens counted",
        ),
    ],
)
def test_an_error_after_what_is_not_shown(events: list[bytes], seen: bool) -> None:
    """Thinking may be left out of the stream: its block is over, and nothing was said.

    The token that `message_start` counts is none yet.
    """
    reader: Any = read(MessageReader(), *events)
    assert reader.progress is Progress.PRELUDE
    reader.feed(named("error", error("api_error")))
    assert reader.error.executed is (Executed.MAYBE if seen else Executed.NO)


def test_an_error_without_json_or_name() -> None:
    """Either is enough to know it."""
    reader: Any = MessageReader()
    reader.feed(named("error", b"Overloaded"))
    assert reader.error.failure is Failure.SERVER_ERROR
    reader = MessageReader()
    reader.feed(data(error("overloaded_error")))
    assert reader.error.failure is Failure.OVERLOADED


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, error("invalid_request_error"), Failure.REJECTED),
        (400, error("invalid_request_error", "Your credit balance is too low"), Failure.QUOTA),
        (
            400,
            error("invalid_request_error", "You have reached your specified API usage limits."),
            Failure.QUOTA,
        ),
        (400, error("invalid_request_error", "prompt is too long"), Failure.CONTEXT_LENGTH),
        (
            400,
            error("invalid_request_error", "input length and `max_tokens` exceed context limit"),
            Failure.CONTEXT_LENGTH,
        ),
        (
            400,
            error("invalid_request_error", details={"error_code": "organization_on_hold"}),
            Failure.CREDENTIAL,
        ),
        (401, error("authentication_error"), Failure.CREDENTIAL),
        (402, error("billing_error"), Failure.QUOTA),
        (403, error("permission_error"), Failure.CREDENTIAL),
        (
            403,
            error("permission_error", details={"error_code": "user_profile_not_billable"}),
            Failure.QUOTA,
        ),
        (404, error("not_found_error"), Failure.REJECTED),
        (413, error("request_too_large"), Failure.REJECTED),
        (429, error("rate_limit_error"), Failure.THROTTLED),
        (
            429,
            error("rate_limit_error", details={"error_code": "ramp_limit_exceeded"}),
            Failure.THROTTLED,
        ),
        (
            429,
            error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
            Failure.QUOTA,
        ),
        (
            429,
            error("rate_limit_error", details={"error_code": "contract_spend_limit_reached"}),
            Failure.QUOTA,
        ),
        (
            429,
            error("rate_limit_error", "Extra usage is required for long context requests."),
            Failure.CONTEXT_LENGTH,
        ),
        (500, error("api_error"), Failure.SERVER_ERROR),
        (504, error("timeout_error"), Failure.SERVER_ERROR),
        (529, error("overloaded_error"), Failure.OVERLOADED),
    ],
)
def test_classify(status: int, body: dict[str, Any], failure: Failure) -> None:
    """By status, and by what the error says beyond it."""
    import orjson

    verdict = ANTHROPIC.classify(RequestFacts("messages", True), status, {}, orjson.dumps(body), 0)
    assert verdict.failure is failure


def test_a_reset_is_read() -> None:
    """Of the limit that is used up."""
    headers = {
        "date": "Sun, 06 Nov 1994 08:49:37 GMT",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "1994-11-06T08:49:47Z",
    }
    verdict = ANTHROPIC.classify(RequestFacts("messages", True), 429, headers, b"", 0.0)
    assert verdict.hint == RetryHint(10.0, HintSource.RESET)


def test_read_answer() -> None:
    """Cached and written tokens are part of the input; a count of tokens is no usage."""
    body = b'{"model": "claude", "usage": {"input_tokens": 1, "cache_read_input_tokens": 2}}'
    assert ANTHROPIC.read_answer(RequestFacts("messages", True), body) == ("claude", Usage(3, 2))
    counted = ANTHROPIC.read_answer(
        RequestFacts("messages.count_tokens", True), b'{"input_tokens": 5}'
    )
    assert counted == (None, None)


def test_error_event() -> None:
    """Only an event stream has events."""
    facts = RequestFacts("messages", True)
    assert ANTHROPIC.error_event(facts, JSON, "steer_x", "No.") == b""
    assert ANTHROPIC.error_event(facts, "text/event-stream", "steer_x", "No.") == named(
        "error", {"type": "error", "error": {"type": "steer_x", "message": "No."}}
    )
