"""The Gemini dialect."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.base import (
    Progress,
    RequestFacts,
    Rewritten,
    Special,
    Usage,
    Where,
)
from steer_policies.dialects.gemini_stream import GeminiArrayReader, GeminiReader
from steer_policies.outcome import Executed, Failure, HintSource, RetryHint
from tests.policies.dialects.streams import GEMINI, GEMINI_ARRAY, candidate, data, read

GEMINI_DIALECT = dialect(DialectName.GEMINI)
JSON = "application/json"
PRELUDE, CONTENT, FINISHED, COMPLETE = Progress

GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"


def describe(path: str, body: Any = None, method: str = "POST") -> RequestFacts:
    return GEMINI_DIALECT.describe(method, path, "key=k", JSON, {} if body is None else body)


@pytest.mark.parametrize(
    ("path", "operation", "model"),
    [
        (GENERATE, "generateContent", "gemini-2.5-flash"),
        ("/v1/models/g:streamGenerateContent", "streamGenerateContent", "g"),
        ("/v1alpha/models/g:countTokens", "countTokens", "g"),
        ("/v1beta/models/g:embedContent", "embedContent", "g"),
        ("/v1beta/models/g:batchEmbedContents", "batchEmbedContents", "g"),
        ("/v1beta/models/imagen:predict", "predict", "imagen"),
        ("/v1beta/tunedModels/t-1:generateContent", "generateContent", "tunedModels/t-1"),
        ("/v1beta/models/g%201:generateContent", "generateContent", "g 1"),
        (
            "/v1beta1/projects/p/locations/l/publishers/google/models/g:generateContent",
            "generateContent",
            "g",
        ),
    ],
)
def test_generation_is_steered(path: str, operation: str, model: str) -> None:
    """The model is in the path."""
    facts = describe(path)
    assert (facts.operation, facts.steered, facts.model) == (operation, True, model)
    assert facts.model_in is Where.PATH
    assert facts.stream is (operation == "streamGenerateContent")


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "/v1beta/models", "models"),
        ("GET", GENERATE, "models"),
        ("POST", "/v1beta/models/veo:predictLongRunning", "models"),
        ("POST", "/v1beta/models/g:batchGenerateContent", "models"),
        ("POST", "/upload/v1beta/files", "upload"),
        ("GET", "/v1beta/files/f", "files"),
        ("POST", "/v1beta/cachedContents", "cachedContents"),
        ("POST", "/v1beta/openai/chat/completions", "other"),
        ("POST", "", "other"),
    ],
)
def test_everything_else_is_pinned(method: str, path: str, operation: str) -> None:
    """Stored things, and operations that outlive their call."""
    assert describe(path, method=method) == RequestFacts(operation, False)


@pytest.mark.parametrize(
    ("body", "steered", "max_tokens", "choices"),
    [
        pytest.param({}, True, None, 1, id="nothing said"),
        pytest.param({"cachedContent": "cachedContents/1"}, False, None, 1, id="cached content"),
        pytest.param({"cached_content": "cachedContents/1"}, False, None, 1, id="proto name"),
        pytest.param(
            {"generateContentRequest": {"cachedContent": "c"}}, False, None, 1, id="inside"
        ),
        pytest.param({"generationConfig": {"maxOutputTokens": 7}}, True, 7, 1, id="limit"),
        pytest.param({"generation_config": {"max_output_tokens": 7}}, True, 7, 1, id="proto limit"),
        pytest.param({"generationConfig": {"candidateCount": 2}}, True, None, 2, id="candidates"),
        pytest.param({"generationConfig": {"candidateCount": 10**9}}, True, None, 128, id="bound"),
        pytest.param([], True, None, 1, id="no object"),
    ],
)
def test_describe(body: Any, steered: bool, max_tokens: int | None, choices: int) -> None:
    """What a body says of the request; proto3's JSON takes both spellings."""
    facts = describe(GENERATE, body)
    assert (facts.steered, facts.max_tokens, facts.choices) == (steered, max_tokens, choices)


@pytest.mark.parametrize(
    ("path", "body", "options", "new_path", "new_body"),
    [
        pytest.param(GENERATE, {"a": 1}, {}, GENERATE, None, id="nothing"),
        pytest.param(
            GENERATE, {"a": 1}, {"model": "gemini-2.5-flash"}, GENERATE, None, id="the same model"
        ),
        pytest.param(
            GENERATE,
            {"a": 1},
            {"model": "other"},
            "/v1beta/models/other:generateContent",
            None,
            id="model",
        ),
        pytest.param(
            GENERATE,
            {"a": 1},
            {"model": "models/other"},
            "/v1beta/models/other:generateContent",
            None,
            id="full name",
        ),
        pytest.param(
            GENERATE,
            {"a": 1},
            {"model": "tunedModels/t"},
            "/v1beta/tunedModels/t:generateContent",
            None,
            id="tuned model",
        ),
        pytest.param(
            "/v1beta/tunedModels/t:generateContent",
            {"a": 1},
            {"model": "a:b/c d"},
            "/v1beta/models/c%20d:generateContent",
            None,
            id="odd name",
        ),
        pytest.param(
            GENERATE,
            {"a": 1},
            {"generationConfig": {"temperature": 0}},
            GENERATE,
            {"a": 1, "generationConfig": {"temperature": 0}},
            id="options",
        ),
        pytest.param(
            "/v1beta/models/g:embedContent",
            {"model": "models/g", "content": {}},
            {"model": "e"},
            "/v1beta/models/e:embedContent",
            {"model": "models/e", "content": {}},
            id="embedContent repeats it",
        ),
        pytest.param(
            "/v1beta/models/g:batchEmbedContents",
            {"requests": [{"model": "models/g"}, {"a": 1}, 3]},
            {"model": "e"},
            "/v1beta/models/e:batchEmbedContents",
            {"requests": [{"model": "models/e"}, {"a": 1}, 3]},
            id="batchEmbedContents repeats it",
        ),
        pytest.param(
            "/v1beta/models/g:countTokens",
            {"generateContentRequest": {"model": "models/g", "contents": []}},
            {"model": "e"},
            "/v1beta/models/e:countTokens",
            {"generateContentRequest": {"model": "models/e", "contents": []}},
            id="countTokens repeats it",
        ),
        pytest.param("/v1beta/files", {"a": 1}, {"model": "e"}, "/v1beta/files", None, id="pinned"),
        pytest.param(GENERATE, {"a": 1}, {"model": 3}, GENERATE, None, id="no name"),
    ],
)
def test_rewrite(
    path: str, body: Any, options: dict[str, Any], new_path: str, new_body: Any
) -> None:
    """The model goes into the path, and into the bodies that repeat it; options into the body."""
    raw = orjson.dumps(body)
    made = GEMINI_DIALECT.rewrite(describe(path, body), path, "alt=sse", JSON, raw, body, options)
    assert (made.path, made.query) == (new_path, "alt=sse")
    assert (None if made.body is None else orjson.loads(made.body)) == new_body


def test_rewrite_of_a_body_not_understood() -> None:
    """The path changes all the same."""
    made = GEMINI_DIALECT.rewrite(
        describe(GENERATE, None), GENERATE, "", JSON, b"?", None, {"model": "m", "a": 1}
    )
    assert made == Rewritten("/v1beta/models/m:generateContent", "", None)


def test_canonical_path() -> None:
    """Empty segments are dropped."""
    assert GEMINI_DIALECT.canonical_path("//v1beta//models") == "/v1beta/models"


def test_read_stream() -> None:
    """Both forms are known; nothing else is a stream."""
    stream = describe("/v1beta/models/g:streamGenerateContent")
    assert type(GEMINI_DIALECT.read_stream(stream, "text/event-stream")) is GeminiReader
    assert type(GEMINI_DIALECT.read_stream(stream, "application/json; a=b")) is GeminiArrayReader
    assert GEMINI_DIALECT.read_stream(stream, "text/html") is None
    assert GEMINI_DIALECT.read_stream(describe(GENERATE), JSON) is None


def parts(*values: Any) -> bytes:
    return data({"candidates": [{"content": {"parts": list(values)}}]})


@pytest.mark.parametrize(
    ("events", "progress"),
    [
        pytest.param([], PRELUDE, id="nothing"),
        pytest.param([data({"usageMetadata": {"promptTokenCount": 1}})], PRELUDE, id="counts only"),
        pytest.param([parts({"text": ""}), parts({"thought": True})], PRELUDE, id="empty parts"),
        pytest.param([b"data: {broken\n\n", b"data: 3\n\n", b": c\n\n"], PRELUDE, id="noise"),
        pytest.param([data([[]]), data([])], PRELUDE, id="lists"),
        pytest.param([data({"candidates": [3, {"content": []}]})], PRELUDE, id="other kinds"),
        pytest.param([parts({"text": "a"})], CONTENT, id="text"),
        pytest.param([parts({"text": "a", "thought": True})], CONTENT, id="thought"),
        pytest.param([parts({"functionCall": {"name": "f"}})], CONTENT, id="function call"),
        pytest.param([parts({"inlineData": {"data": "x"}})], CONTENT, id="image"),
        pytest.param([parts({"thoughtSignature": "x"})], CONTENT, id="signature"),
        pytest.param(GEMINI[:2], CONTENT, id="two"),
        pytest.param(GEMINI, FINISHED, id="finish reason"),
        pytest.param([data(candidate(None, "SAFETY"))], FINISHED, id="refused answer"),
        pytest.param(
            [data({"promptFeedback": {"blockReason": "SAFETY"}})], FINISHED, id="refused prompt"
        ),
        pytest.param(
            [*GEMINI[:1], parts({"text": '"finishReason": "STOP", "error"'})],
            CONTENT,
            id="text that looks like an end",
        ),
    ],
)
def test_progress(events: list[bytes], progress: Progress) -> None:
    """Anything in a part is content; finish reasons and refused prompts finish."""
    assert read(GeminiReader(), *events).progress is progress


def test_every_candidate_must_finish() -> None:
    """With two of them the first finish reason is content only."""
    first = data({"candidates": [{"index": 0, "finishReason": "STOP"}]})
    reader = read(GeminiReader(2), first, first)
    assert reader.progress is CONTENT
    read(reader, data({"candidates": [{"index": 1, "finishReason": "STOP"}]}))
    assert reader.progress is FINISHED
    odd = data({"candidates": [{"index": "x", "finishReason": "STOP"}]})
    assert read(GeminiReader(), odd, odd).progress is FINISHED


def test_counts_are_those_of_the_last_event() -> None:
    """Also while the stream is under way, and of an event that was passed over."""
    reader = read(GeminiReader(), *GEMINI[:2])
    assert reader.usage == Usage(input=4, output=3)
    assert reader.usage == Usage(input=4, output=3)
    read(reader, GEMINI[2])
    assert reader.usage == Usage(input=4, output=5)
    assert reader.model == "gemini"
    assert reader.text is None
    array = GeminiArrayReader()
    array.feed(b"".join(GEMINI_ARRAY[:2]))
    assert array.usage == Usage(input=4, output=3)


@pytest.mark.parametrize(
    ("stream", "progress"),
    [
        pytest.param(b"[", PRELUDE, id="nothing"),
        pytest.param(b"[]", PRELUDE, id="an empty array is no answer"),
        pytest.param(GEMINI_ARRAY[0], CONTENT, id="one"),
        pytest.param(b"".join(GEMINI_ARRAY[:3]), FINISHED, id="finish reason"),
        pytest.param(b"".join(GEMINI_ARRAY), COMPLETE, id="closed"),
        pytest.param(GEMINI_ARRAY[0] + b"]", COMPLETE, id="closed without a reason"),
    ],
)
def test_progress_of_an_array(stream: bytes, progress: Progress) -> None:
    """The closing bracket completes what had something in it."""
    for size in (len(stream), 50):
        reader = GeminiArrayReader()
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
        reader.finish()
        assert reader.progress is progress


def error(status: int, name: str, message: str = "x", *details: Any) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": name, "details": [*details]}}


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}


def info(reason: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (error(503, "UNAVAILABLE"), Failure.OVERLOADED),
        (error(429, "RESOURCE_EXHAUSTED"), Failure.THROTTLED),
        (error(500, "INTERNAL"), Failure.SERVER_ERROR),
        (error(504, "DEADLINE_EXCEEDED"), Failure.SERVER_ERROR),
        (error(400, "INVALID_ARGUMENT"), Failure.REJECTED),
        ({"error": {"code": 503}}, Failure.OVERLOADED),
        ({"error": {"code": 418}}, Failure.REJECTED),
        ({"error": "odd"}, Failure.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize("form", ["data", "bare", "array"])
def test_errors_in_a_stream(body: Any, failure: Failure, form: str) -> None:
    """As an event, as bare JSON in an event stream, as an element of an array."""
    reader: Any = GeminiArrayReader() if form == "array" else GeminiReader()
    text = orjson.dumps(body, option=orjson.OPT_INDENT_2)
    stream = {"data": data(body), "bare": text + b"\n\n", "array": b"[" + text}[form]
    assert reader.feed(stream) == b""
    assert reader.error.failure is failure
    maybe = body["error"] != "odd" and body["error"].get("code") == 504
    assert reader.error.executed is (Executed.MAYBE if maybe else Executed.NO)


@pytest.mark.parametrize(
    ("usage", "seen"),
    [
        ({"promptTokenCount": 4, "thoughtsTokenCount": 500}, True),
        ({"promptTokenCount": 4, "candidatesTokenCount": 0}, False),
    ],
)
def test_an_error_after_thoughts_that_are_only_counted(usage: Any, seen: bool) -> None:
    """What the provider counts as its output it has made, and may bill, unseen as it is."""
    thinking = {"candidates": [{"content": {"role": "model", "parts": []}}], "usageMetadata": usage}
    reader: Any = read(GeminiReader(), data(thinking))
    assert reader.progress is Progress.PRELUDE
    reader.feed(data(error(500, "INTERNAL")))
    assert reader.error.executed is (Executed.MAYBE if seen else Executed.NO)


def test_an_error_in_a_stream_may_say_when() -> None:
    """And be wrapped in a list; after content the call was executed, maybe."""
    reader: Any = read(GeminiReader(), GEMINI[0])
    reader.feed(data([error(429, "RESOURCE_EXHAUSTED", "x", RETRY_INFO)]))
    assert reader.error.hint == RetryHint(37.0, HintSource.BODY_HINT)
    assert reader.error.executed is Executed.MAYBE


@pytest.mark.parametrize(
    ("status", "body", "failure", "code"),
    [
        (429, error(429, "RESOURCE_EXHAUSTED"), Failure.THROTTLED, "RESOURCE_EXHAUSTED"),
        (429, [error(429, "RESOURCE_EXHAUSTED")], Failure.THROTTLED, "RESOURCE_EXHAUSTED"),
        (
            429,
            error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for metric: m, limit: 0, model: g"),
            Failure.QUOTA,
            "quota_limit_zero",
        ),
        (
            429,
            error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for metric: m, limit: 0.5"),
            Failure.THROTTLED,
            "RESOURCE_EXHAUSTED",
        ),
        (
            429,
            error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for metric: m, limit: 20"),
            Failure.THROTTLED,
            "RESOURCE_EXHAUSTED",
        ),
        (
            429,
            error(
                429, "RESOURCE_EXHAUSTED", "Gemini Pro doesn't have a free quota tier.", RETRY_INFO
            ),
            Failure.QUOTA,
            "RESOURCE_EXHAUSTED",
        ),
        (
            400,
            error(400, "INVALID_ARGUMENT", "API key not valid.", info("API_KEY_INVALID")),
            Failure.CREDENTIAL,
            "API_KEY_INVALID",
        ),
        (
            403,
            error(403, "PERMISSION_DENIED", "x", info("BILLING_DISABLED")),
            Failure.QUOTA,
            "BILLING_DISABLED",
        ),
        (403, error(403, "PERMISSION_DENIED"), Failure.CREDENTIAL, "PERMISSION_DENIED"),
        (
            400,
            error(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
            Failure.CREDENTIAL,
            "FAILED_PRECONDITION",
        ),
        (
            400,
            error(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum"),
            Failure.CONTEXT_LENGTH,
            "INVALID_ARGUMENT",
        ),
        (
            400,
            error(400, "INVALID_ARGUMENT", "violates Google's Responsible AI practices"),
            Failure.CONTENT_POLICY,
            "INVALID_ARGUMENT",
        ),
        (400, error(400, "INVALID_ARGUMENT", "x", 3, {}), Failure.REJECTED, "INVALID_ARGUMENT"),
        (404, error(404, "NOT_FOUND"), Failure.REJECTED, "NOT_FOUND"),
        (503, error(503, "UNAVAILABLE"), Failure.OVERLOADED, "UNAVAILABLE"),
        (500, {"error": 5}, Failure.SERVER_ERROR, None),
    ],
)
def test_classify(status: int, body: Any, failure: Failure, code: str | None) -> None:
    """By status, and by what the error says beyond it."""
    verdict = GEMINI_DIALECT.classify(describe(GENERATE), status, {}, orjson.dumps(body), 0.0)
    assert (verdict.failure, verdict.code) == (failure, code)


def test_a_blocked_prompt_is_an_answer() -> None:
    """A 200 is kept whatever its body says."""
    body = b'{"promptFeedback": {"blockReason": "SAFETY"}}'
    assert GEMINI_DIALECT.classify(describe(GENERATE), 200, {}, body, 0.0).ok


def test_the_delay_of_a_body() -> None:
    """`RetryInfo` is read."""
    body = orjson.dumps(error(429, "RESOURCE_EXHAUSTED", "x", RETRY_INFO))
    verdict = GEMINI_DIALECT.classify(describe(GENERATE), 429, {}, body, 0.0)
    assert verdict.hint == RetryHint(37.0, HintSource.BODY_HINT)


def test_read_answer() -> None:
    """Thoughts are output, tools' results input."""
    usage = {
        "promptTokenCount": 10,
        "toolUsePromptTokenCount": 5,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 3,
        "thoughtsTokenCount": 2,
    }
    body = orjson.dumps({"modelVersion": "g-001", "usageMetadata": usage})
    read_answer = GEMINI_DIALECT.read_answer(describe(GENERATE), body)
    assert read_answer == ("g-001", Usage(input=15, cached=4, output=5, reasoning=2))
    assert GEMINI_DIALECT.read_answer(describe(GENERATE), b'{"totalTokens": 3}') == (None, None)


def test_an_answer_made_of_searches() -> None:
    """Those are billed apart; a stream says so in any of its events."""
    usage = {"promptTokenCount": 3}
    searched = [{"groundingMetadata": {"webSearchQueries": ["x"]}}]
    expected = Usage(3, special=Special(unpriced=True))
    body = orjson.dumps({"candidates": searched, "usageMetadata": usage})
    assert GEMINI_DIALECT.read_answer(describe(GENERATE), body) == (None, expected)
    reader = GeminiReader()
    for event in ({"candidates": searched}, {"candidates": [{}], "usageMetadata": usage}):
        reader.feed(b"data: " + orjson.dumps(event) + b"\n\n")
    assert reader.usage == expected


@pytest.mark.parametrize(
    ("status", "name"),
    [(404, "NOT_FOUND"), (418, "INVALID_ARGUMENT"), (508, "INTERNAL"), (503, "UNAVAILABLE")],
)
def test_error(status: int, name: str) -> None:
    """A status that has no name there takes the nearest one."""
    body = orjson.loads(GEMINI_DIALECT.error(status, "steer_x", "No.").body)
    assert body["error"]["status"] == name
    assert body["error"]["details"][0]["reason"] == "steer_x"


def test_error_event() -> None:
    """An event, or an array's last element; neither in any other answer."""
    facts = describe("/v1beta/models/g:streamGenerateContent")
    event = GEMINI_DIALECT.error_event(facts, "text/event-stream", "steer_x", "No.")
    assert orjson.loads(event.removeprefix(b"data: "))["error"]["message"] == "No."
    assert event.endswith(b"\r\n\r\n")
    element = GEMINI_DIALECT.error_event(facts, JSON, "steer_x", "No.")
    whole = orjson.loads(GEMINI_ARRAY[0].rstrip() + element)
    assert whole[1]["error"]["message"] == "No."
    assert GEMINI_DIALECT.error_event(facts, "text/html", "steer_x", "No.") == b""


def test_nothing_is_resumed() -> None:
    """Neither a text nor an event fits into another stream."""
    assert GEMINI_DIALECT.resumed(describe(GENERATE), b"", "x") is None
    assert GEMINI_DIALECT.adopted(describe(GENERATE), b"", b"x") is None
