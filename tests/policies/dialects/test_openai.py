"""The OpenAI dialect: requests, answers and errors."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.base import RequestFacts, Rewritten, Usage, Where
from steer_policies.dialects.openai_errors import read_error
from steer_policies.dialects.openai_stream import ChoicesReader, TypedReader
from steer_policies.outcome import Failure
from tests.policies.dialects.streams import data, named

OPENAI = dialect(DialectName.OPENAI)
JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
CHAT = "/chat/completions"
DEPLOYED = "/deployments/gpt-4o/chat/completions"


def describe(
    path: str, body: Any = None, *, method: str = "POST", query: str = "", content_type: str = JSON
) -> RequestFacts:
    return OPENAI.describe(method, path, query, content_type, body)


@pytest.mark.parametrize(
    ("method", "path", "operation", "steered"),
    [
        ("POST", "/chat/completions", "chat.completions", True),
        ("POST", "/completions", "completions", True),
        ("POST", "/fim/completions", "completions", True),
        ("POST", "/responses", "responses", True),
        ("POST", "/embeddings", "embeddings", True),
        ("POST", "/audio/speech", "audio.speech", True),
        ("POST", "/audio/transcriptions", "audio.transcriptions", True),
        ("POST", "/audio/translations", "audio.translations", True),
        ("POST", "/images/generations", "images.generations", True),
        ("POST", "/images/edits", "images.edits", True),
        ("POST", "/images/variations", "images.variations", True),
        ("POST", "/moderations", "moderations", True),
        ("POST", DEPLOYED, "chat.completions", True),
        ("POST", "/openai/deployments/d/embeddings", "embeddings", True),
        ("POST", "/deployments/d/files", "other", False),
        ("GET", "/chat/completions", "chat", False),
        ("POST", "/chat/completions/c_1", "chat", False),
        ("GET", "/responses/r_1", "responses", False),
        ("POST", "/responses/r_1/cancel", "responses", False),
        ("POST", "/responses/compact", "responses", False),
        ("GET", "/models", "models", False),
        ("POST", "/files", "files", False),
        ("POST", "/uploads/u/parts", "uploads", False),
        ("POST", "/batches", "batches", False),
        ("POST", "/fine_tuning/jobs", "fine_tuning", False),
        ("POST", "/vector_stores", "vector_stores", False),
        ("POST", "/threads/t/runs", "threads", False),
        ("POST", "/realtime/sessions", "realtime", False),
        ("POST", "/secret-thing", "other", False),
        ("POST", "", "other", False),
    ],
)
def test_only_generation_is_steered(method: str, path: str, operation: str, steered: bool) -> None:
    """The generation endpoints; whatever the provider keeps belongs to the home upstream."""
    facts = describe(path, {"model": "gpt"}, method=method)
    assert (facts.operation, facts.steered) == (operation, steered)


def test_pinned_calls_may_stream() -> None:
    """A run of an assistant, say."""
    assert describe("/threads/t/runs", {"stream": True}).stream
    assert not describe("/threads/t/runs", {}).stream


@pytest.mark.parametrize(
    ("members", "steered"),
    [
        ({}, True),
        ({"store": True}, True),
        ({"background": False, "previous_response_id": None, "conversation": None}, True),
        ({"background": True}, False),
        ({"previous_response_id": "resp_1"}, False),
        ({"conversation": {"id": "conv_1"}}, False),
        ({"prompt": {"id": "pmpt_1"}}, False),
    ],
)
def test_a_response_that_refers_to_stored_things_is_pinned(
    members: dict[str, Any], steered: bool
) -> None:
    """Only its home knows them."""
    facts = describe("/responses", {"model": "gpt", "stream": True, **members})
    assert facts == RequestFacts("responses", steered, "gpt", Where.BODY, stream=True)


@pytest.mark.parametrize(
    ("path", "content_type", "body", "expected"),
    [
        pytest.param(CHAT, JSON, None, RequestFacts("chat.completions", True), id="no body"),
        pytest.param(CHAT, JSON, [1], RequestFacts("chat.completions", True), id="no object"),
        pytest.param(
            CHAT,
            JSON,
            {"model": 3, "stream": 1, "max_tokens": -1},
            RequestFacts("chat.completions", True, None, Where.BODY),
            id="other kinds",
        ),
        pytest.param(
            CHAT,
            JSON,
            {"model": "gpt", "max_tokens": 7},
            RequestFacts("chat.completions", True, "gpt", Where.BODY, max_tokens=7),
            id="max_tokens",
        ),
        pytest.param(
            CHAT,
            JSON,
            {"model": "gpt", "max_completion_tokens": 8, "max_tokens": 7, "n": 3},
            RequestFacts("chat.completions", True, "gpt", Where.BODY, max_tokens=8, choices=3),
            id="max_completion_tokens",
        ),
        pytest.param(
            "/responses",
            JSON,
            {"model": "gpt", "max_output_tokens": 9},
            RequestFacts("responses", True, "gpt", Where.BODY, max_tokens=9),
            id="max_output_tokens",
        ),
        pytest.param(
            "/completions",
            JSON,
            {"model": "gpt", "prompt": ["a", "b"], "n": 2, "stream": True},
            RequestFacts("completions", True, "gpt", Where.BODY, stream=True, choices=4),
            id="several prompts",
        ),
        pytest.param(
            "/completions",
            JSON,
            {"model": "gpt", "prompt": [1, 2, 3]},
            RequestFacts("completions", True, "gpt", Where.BODY),
            id="one prompt of tokens",
        ),
        pytest.param(
            "/audio/transcriptions",
            FORM,
            {"model": "whisper-1", "stream": "true", "n": "2"},
            RequestFacts(
                "audio.transcriptions", True, "whisper-1", Where.FORM, stream=True, choices=2
            ),
            id="form",
        ),
        pytest.param(
            "/images/edits",
            FORM,
            None,
            RequestFacts("images.edits", True, None, Where.FORM),
            id="form not understood",
        ),
        pytest.param(
            "/audio/speech",
            JSON,
            {"model": "tts", "stream_format": "sse"},
            RequestFacts("audio.speech", True, "tts", Where.BODY, stream=True),
            id="speech as events",
        ),
        pytest.param(
            CHAT,
            JSON,
            {"model": "gpt", "n": 10**9},
            RequestFacts("chat.completions", True, "gpt", Where.BODY, choices=128),
            id="bounded choices",
        ),
        pytest.param(
            DEPLOYED,
            JSON,
            {"model": "ignored", "stream": False},
            RequestFacts("chat.completions", True, "gpt-4o", Where.PATH),
            id="Azure deployment",
        ),
    ],
)
def test_describe(path: str, content_type: str, body: Any, expected: RequestFacts) -> None:
    """What a request says of itself."""
    assert describe(path, body, content_type=content_type) == expected


@pytest.mark.parametrize(
    ("members", "resumable"),
    [
        ({}, True),
        ({"n": 1, "modalities": ["text"], "tools": [], "logprobs": False}, True),
        ({"response_format": {"type": "json_object"}, "stop": ["x"]}, True),
        ({"stream": False}, False),
        ({"n": 2}, False),
        ({"tools": [{}]}, False),
        ({"functions": [{}]}, False),
        ({"modalities": ["text", "audio"]}, False),
        ({"audio": {"voice": "x"}}, False),
        ({"logprobs": True}, False),
        ({"web_search_options": {"a": 1}}, False),
        ({"moderation": {"model": "m"}}, False),
    ],
)
def test_only_plain_text_is_resumable(members: dict[str, Any], resumable: bool) -> None:
    """One streamed text without decoration."""
    assert describe(CHAT, {"model": "gpt", "stream": True, **members}).resumable is resumable
    assert not describe("/responses", {"model": "gpt", "stream": True}).resumable


@pytest.mark.parametrize(
    ("query", "steered", "model"),
    [
        ("model=gpt-realtime", True, "gpt-realtime"),
        ("intent=transcription", True, None),
        ("a=b&model=m%2F1", True, "m/1"),
        ("call_id=rtc_1", False, None),
    ],
)
def test_realtime(query: str, steered: bool, model: str | None) -> None:
    """The model is in the query; joining a call that runs is no new generation."""
    facts = describe("/realtime", method="GET", query=query)
    assert facts == RequestFacts("realtime", steered, model, Where.QUERY)
    assert describe("/openai/realtime", method="GET", query=query) == facts


BODY = {"model": "gpt", "temperature": 1, "nested": {"a": 1, "b": 2}}
RAW = b'{ "model" : "gpt", "temperature":1, "nested": {"a":1,"b":2} }'


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({}, None),
        ({"model": "gpt"}, None),
        ({"temperature": 1, "nested": {"a": 1}}, None),
        ({"model": "other"}, b'{ "model" : "other", "temperature":1, "nested": {"a":1,"b":2} }'),
        ({"temperature": None}, b'{"model":"gpt","nested":{"a":1,"b":2}}'),
        ({"nested": {"a": None}}, b'{"model":"gpt","temperature":1,"nested":{"b":2}}'),
        (
            {"model": "other", "top_p": 0.5},
            b'{"model":"other","temperature":1,"nested":{"a":1,"b":2},"top_p":0.5}',
        ),
    ],
)
def test_rewrite_of_a_body(options: dict[str, Any], body: bytes | None) -> None:
    """A new model is put in place, other options write the body anew, nothing new nothing."""
    made = OPENAI.rewrite(describe(CHAT, BODY), CHAT, "a=b", JSON, RAW, BODY, options)
    assert made == Rewritten(CHAT, "a=b", body)


@pytest.mark.parametrize(
    ("query", "options", "expected"),
    [
        ("model=a&x=1", {"model": "b c"}, "model=b%20c&x=1"),
        ("x=1", {"model": "b"}, "x=1&model=b"),
        ("", {"model": "b"}, "model=b"),
        ("model=a", {"model": "a"}, "model=a"),
        ("model=a", {"temperature": 1}, "model=a"),
    ],
)
def test_rewrite_of_a_query(query: str, options: dict[str, Any], expected: str) -> None:
    """Realtime's model is a parameter."""
    facts = describe("/realtime", method="GET", query=query)
    made = OPENAI.rewrite(facts, "/realtime", query, "", b"", None, options)
    assert made == Rewritten("/realtime", expected, None)


def test_rewrite_of_a_form() -> None:
    """The model's part alone changes."""
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--b--\r\n'
    facts = describe("/audio/transcriptions", {"model": "w"}, content_type=FORM)
    path = "/audio/transcriptions"
    made = OPENAI.rewrite(
        facts, path, "", FORM, part % b"w", {"model": "w"}, {"model": "x", "a": 1}
    )
    assert made == Rewritten(path, "", part % b"x")
    made = OPENAI.rewrite(facts, path, "", FORM, part % b"w", {"model": "w"}, {"language": "de"})
    assert made == Rewritten(path, "", None)


def test_rewrite_of_a_deployment() -> None:
    """Azure's deployment stands for the model; the body's own is left alone."""
    body: dict[str, Any] = {"messages": []}
    facts = describe(DEPLOYED, body)
    made = OPENAI.rewrite(facts, DEPLOYED, "", JSON, b"{}", body, {"model": "a/b", "n": 1})
    assert made == Rewritten("/deployments/a%2Fb/chat/completions", "", b'{"messages":[],"n":1}')
    made = OPENAI.rewrite(facts, DEPLOYED, "", JSON, b"{}", body, {"model": "gpt-4o"})
    assert made == Rewritten(DEPLOYED, "", None)


def test_canonical_path() -> None:
    """Empty segments are dropped."""
    assert OPENAI.canonical_path("//chat//completions") == CHAT


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("chat.completions", ChoicesReader),
        ("completions", ChoicesReader),
        ("responses", TypedReader),
        ("audio.speech", TypedReader),
        ("audio.transcriptions", TypedReader),
        ("images.generations", TypedReader),
        ("images.edits", TypedReader),
        ("threads", type(None)),
        ("embeddings", type(None)),
    ],
)
def test_read_stream(operation: str, kind: type) -> None:
    """Each operation's own reader, for event streams only."""
    facts = RequestFacts(operation, True)
    assert type(OPENAI.read_stream(facts, "text/event-stream")) is kind
    assert OPENAI.read_stream(facts, JSON) is None


ERRORS: list[tuple[int, Any, Failure]] = [
    (400, {"code": "context_length_exceeded"}, Failure.CONTEXT_LENGTH),
    (400, {"message": "This model's maximum context length is 8192"}, Failure.CONTEXT_LENGTH),
    (
        400,
        {"message": "Your input exceeds the context window of this model"},
        Failure.CONTEXT_LENGTH,
    ),
    (400, {"type": "exceed_context_size_error"}, Failure.CONTEXT_LENGTH),
    (400, {"code": "string_above_max_length"}, Failure.REJECTED),
    (400, {"code": "content_policy_violation"}, Failure.CONTENT_POLICY),
    (400, {"code": "content_filter"}, Failure.CONTENT_POLICY),
    (
        400,
        {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
        Failure.CONTENT_POLICY,
    ),
    (400, {"message": "Rejected as a result of our safety system."}, Failure.CONTENT_POLICY),
    (400, {"code": "billing_hard_limit_reached"}, Failure.QUOTA),
    (400, {"code": "invalid_value"}, Failure.REJECTED),
    (401, {"code": "invalid_api_key"}, Failure.CREDENTIAL),
    (402, {"message": "Insufficient Balance"}, Failure.QUOTA),
    (403, {"code": "unsupported_country_region_territory"}, Failure.CREDENTIAL),
    (403, {"code": 403, "message": "Your input was flagged"}, Failure.CONTENT_POLICY),
    (404, {"code": "model_not_found"}, Failure.REJECTED),
    (422, {"message": "x"}, Failure.REJECTED),
    (429, {"code": "rate_limit_exceeded", "type": "tokens"}, Failure.THROTTLED),
    (
        429,
        {"code": "rate_limit_exceeded", "message": "Request too large for gpt"},
        Failure.CONTEXT_LENGTH,
    ),
    (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, Failure.QUOTA),
    (429, {"type": "insufficient_quota"}, Failure.QUOTA),
    (429, {"code": "credit_balance_exhausted"}, Failure.QUOTA),
    (429, {"code": "project_spend_limit_exceeded"}, Failure.QUOTA),
    (429, {"code": "monthly_usage_limit_exceeded"}, Failure.QUOTA),
    (429, {"code": "enforced_spend_limit_reached"}, Failure.QUOTA),
    (500, {"message": "maximum context length"}, Failure.SERVER_ERROR),
    (503, {"message": "The engine is currently overloaded"}, Failure.OVERLOADED),
]


@pytest.mark.parametrize(("status", "error", "failure"), ERRORS)
def test_classify(status: int, error: Any, failure: Failure) -> None:
    """By status, and by what the error says beyond it; also in a list, as Google has it."""
    facts = RequestFacts("chat.completions", True)
    for body in ({"error": error}, [{"error": error}]):
        verdict = OPENAI.classify(facts, status, {}, orjson.dumps(body), 0.0)
        assert verdict.failure is failure


@pytest.mark.parametrize("document", [None, 3, [], [3], {}, {"error": None}, {"error": []}])
def test_no_complaint(document: Any) -> None:
    """What is no error says nothing."""
    said = read_error(document)
    assert (said.reasons, said.message, said.status, said.code) == ((), "", None, None)


def test_a_complaint_in_text() -> None:
    """`error` may be text, with a code beside it."""
    said = read_error({"error": "Model not loaded", "code": "not_loaded"})
    assert (said.message, said.code) == ("model not loaded", "not_loaded")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"model":"gpt","usage":{"prompt_tokens":1,"completion_tokens":2}}',
            ("gpt", Usage(1, None, 2)),
        ),
        (b'{"object":"list","model":"e","usage":{"prompt_tokens":1}}', ("e", Usage(1))),
        (b'{"text":"x","usage":{"type":"duration","seconds":3}}', (None, None)),
        (b'{"model":"m","results":[]}', ("m", None)),
        (b"\xff\xfb audio", (None, None)),
        (b"", (None, None)),
        (b"[1]", (None, None)),
    ],
)
def test_read_answer(body: bytes, expected: tuple[str | None, Usage | None]) -> None:
    """What there is; audio and text say nothing."""
    assert OPENAI.read_answer(RequestFacts("chat.completions", True), body) == expected


def test_error_event() -> None:
    """Choices have an unnamed error, typed events one of their own type, other answers none."""
    error = {"message": "No.", "type": "steer_error", "param": None, "code": "steer_x"}
    event = OPENAI.error_event(
        RequestFacts("chat.completions", True), "text/event-stream", "steer_x", "No."
    )
    assert event == data({"error": error})
    event = OPENAI.error_event(
        RequestFacts("responses", True), "text/event-stream", "steer_x", "No."
    )
    flat = {"type": "error", "code": "steer_x", "message": "No.", "param": None, "error": error}
    assert event == named("error", flat)
    assert OPENAI.error_event(RequestFacts("responses", True), JSON, "steer_x", "No.") == b""
