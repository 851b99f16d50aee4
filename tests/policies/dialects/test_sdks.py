"""The official SDKs and the shapes Steer gives its errors, resumed streams and rewritten requests.

Real SDK clients read scripted answers through httpx's own mock transport: no network, no proxy, but
every line of the SDKs' parsing and raising.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import openai
import orjson
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.base import Progress, RequestFacts
from tests.policies.dialects.streams import CHAT, GEMINI, MESSAGE, RESPONSE

OPENAI = dialect(DialectName.OPENAI)
ANTHROPIC = dialect(DialectName.ANTHROPIC)
GEMINI_DIALECT = dialect(DialectName.GEMINI)
SSE, JSON = "text/event-stream", "application/json"
MESSAGE_TEXT = "Every upstream is resting; try again in 3 s."
CODE = "steer_breakers_open"


class Scripted:
    """An HTTP client that gives one answer to all requests, and remembers the last one."""

    def __init__(self, status: int, content_type: str, body: bytes) -> None:
        self.seen: httpx2.Request | None = None
        self._answer = (status, {"content-type": content_type}, body)
        self.client = httpx2.Client(transport=httpx2.MockTransport(self._respond))

    def _respond(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.seen = request
        status, headers, body = self._answer
        return httpx2.Response(status, headers=headers, content=body)


def openai_client(status: int, content_type: str, body: bytes) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k",
        base_url="http://steer/v1",
        max_retries=0,
        http_client=Scripted(status, content_type, body).client,
    )


def anthropic_client(status: int, content_type: str, body: bytes) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="k",
        base_url="http://steer",
        max_retries=0,
        http_client=Scripted(status, content_type, body).client,
    )


def gemini_client(status: int, content_type: str, body: bytes) -> genai.Client:
    options = genai_types.HttpOptions(
        base_url="http://steer", httpx_client=Scripted(status, content_type, body).client
    )
    return genai.Client(api_key="k", vertexai=False, http_options=options)


HELLO: Any = [{"role": "user", "content": "Hello"}]


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="gpt", messages=HELLO, **options)


def message(client: anthropic.Anthropic, **options: Any) -> Any:
    return client.messages.create(model="claude", messages=HELLO, max_tokens=5, **options)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (413, openai.APIStatusError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (502, openai.InternalServerError),
        (503, openai.InternalServerError),
        (504, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize(
    "call", [chat, lambda client: client.responses.create(model="g", input="")]
)
def test_openai_raises_its_class(
    status: int, kind: type[openai.APIStatusError], call: Callable[[openai.OpenAI], Any]
) -> None:
    """With Steer's message and code."""
    answer = OPENAI.error(status, CODE, MESSAGE_TEXT)
    with pytest.raises(kind) as raised:
        call(openai_client(status, answer.content_type, answer.body))
    assert type(raised.value) is kind
    assert raised.value.status_code == status
    assert (raised.value.code, raised.value.type) == (CODE, "steer_error")
    assert MESSAGE_TEXT in str(raised.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (404, anthropic.NotFoundError),
        (409, anthropic.ConflictError),
        (422, anthropic.UnprocessableEntityError),
        (429, anthropic.RateLimitError),
        (502, anthropic.InternalServerError),
        (503, anthropic.InternalServerError),
        (504, anthropic.InternalServerError),
    ],
)
def test_anthropic_raises_its_class(status: int, kind: type[anthropic.APIStatusError]) -> None:
    """With Steer's message and type."""
    answer = ANTHROPIC.error(status, CODE, MESSAGE_TEXT)
    with pytest.raises(kind) as raised:
        message(anthropic_client(status, answer.content_type, answer.body))
    assert raised.value.status_code == status
    assert raised.value.body == {"type": "error", "error": {"type": CODE, "message": MESSAGE_TEXT}}
    assert MESSAGE_TEXT in str(raised.value)


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 429, 502, 503, 504])
@pytest.mark.parametrize("stream", [False, True])
def test_genai_raises_its_class(status: int, stream: bool) -> None:
    """With Steer's message, Google's name of the status, and Steer's code among the details."""
    answer = GEMINI_DIALECT.error(status, CODE, MESSAGE_TEXT)
    models = gemini_client(status, answer.content_type, answer.body).models
    kind = genai_errors.ClientError if status < 500 else genai_errors.ServerError
    call: Any = models.generate_content_stream if stream else models.generate_content
    with pytest.raises(kind) as raised:
        list(call(model="g", contents="Hello"))
    assert raised.value.code == status
    assert raised.value.message == MESSAGE_TEXT
    assert CODE in str(raised.value)


def test_a_broken_chat_stream() -> None:
    """What came before the break is given, then `APIError` is raised."""
    facts = RequestFacts("chat.completions", True)
    body = b"".join(CHAT[:3]) + OPENAI.error_event(facts, SSE, CODE, MESSAGE_TEXT)
    seen: list[str] = []
    with pytest.raises(openai.APIError) as raised:
        seen.extend(
            chunk.choices[0].delta.content or ""
            for chunk in chat(openai_client(200, SSE, body), stream=True)
        )
    assert raised.value.message == MESSAGE_TEXT
    assert (raised.value.code, raised.value.type) == (CODE, "steer_error")


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        (
            "responses",
            lambda client: client.responses.create(model="g", input="", stream=True),
        ),
        (
            "images.generations",
            lambda client: client.images.generate(model="g", prompt="", stream=True),
        ),
        (
            "audio.transcriptions",
            lambda client: client.audio.transcriptions.create(model="g", file=b"x", stream=True),
        ),
    ],
)
def test_a_broken_typed_stream(operation: str, call: Callable[[openai.OpenAI], Any]) -> None:
    """The same for responses, images and transcriptions."""
    event = OPENAI.error_event(RequestFacts(operation, True), SSE, CODE, MESSAGE_TEXT)
    with pytest.raises(openai.APIError) as raised:
        list(call(openai_client(200, SSE, b"".join(RESPONSE[:5]) + event)))
    assert raised.value.message == MESSAGE_TEXT
    assert raised.value.code == CODE


def test_a_broken_response_stream_through_the_helper() -> None:
    """Also with `responses.stream`."""
    event = OPENAI.error_event(RequestFacts("responses", True), SSE, CODE, MESSAGE_TEXT)
    client = openai_client(200, SSE, event)
    with (
        pytest.raises(openai.APIError, match=MESSAGE_TEXT),
        client.responses.stream(model="g", input="") as stream,
    ):
        list(stream)


def through_the_helper(client: anthropic.Anthropic) -> Any:
    with client.messages.stream(model="c", messages=HELLO, max_tokens=5) as stream:
        return stream.get_final_message()


@pytest.mark.parametrize(
    "call", [through_the_helper, lambda client: list(message(client, stream=True))]
)
def test_a_broken_message_stream(call: Callable[[anthropic.Anthropic], Any]) -> None:
    """With and without the helper, `APIStatusError` is raised."""
    facts = RequestFacts("messages", True)
    body = b"".join(MESSAGE[:4]) + ANTHROPIC.error_event(facts, SSE, CODE, MESSAGE_TEXT)
    with pytest.raises(anthropic.APIStatusError) as raised:
        call(anthropic_client(200, SSE, body))
    assert raised.value.api_message == MESSAGE_TEXT
    assert raised.value.type == CODE


def test_a_broken_gemini_stream() -> None:
    """What came before the break is given, then `ServerError` is raised."""
    facts = RequestFacts("streamGenerateContent", True)
    body = b"".join(GEMINI[:2]) + GEMINI_DIALECT.error_event(facts, SSE, CODE, MESSAGE_TEXT)
    models = gemini_client(200, SSE, body).models
    seen: list[Any] = []
    with pytest.raises(genai_errors.ServerError) as raised:
        seen.extend(models.generate_content_stream(model="g", contents="Hello"))
    assert raised.value.message == MESSAGE_TEXT
    assert [part.text for part in seen] == ["Hel", "lo "]


def test_a_resumed_chat_is_one_completion() -> None:
    """The SDK's own accumulation sees one id, one text, one finish reason."""
    facts = RequestFacts("chat.completions", True, stream=True, resumable=True)
    first = b"".join(CHAT[:2])
    more = OPENAI.resumed(facts, first, "lo again")
    ends = [OPENAI.adopted(facts, first, event.replace(b"-1", b"-2")) for event in CHAT[3:]]
    assert more is not None
    body = first + more + b"".join(end for end in ends if end is not None)
    client = openai_client(200, SSE, body)
    with client.chat.completions.stream(model="gpt", messages=HELLO) as stream:
        completion = stream.get_final_completion()
    assert completion.id == "chatcmpl-1"
    assert completion.choices[0].message.content == "Hello again"
    assert completion.choices[0].finish_reason == "stop"
    facts = RequestFacts("chat.completions", True, stream=True)
    reader = OPENAI.read_stream(facts, SSE)
    assert reader is not None
    assert reader.feed(body) == body
    assert reader.progress is Progress.COMPLETE


def test_a_resumed_message_is_one_message() -> None:
    """The SDK's own accumulation sees one block of text."""
    facts = RequestFacts("messages", True, stream=True, resumable=True)
    first = b"".join(MESSAGE[:4])
    more = ANTHROPIC.resumed(facts, first, "lo again")
    assert more is not None
    ends = [ANTHROPIC.adopted(facts, first + more, event) for event in MESSAGE[5:]]
    body = first + more + b"".join(end for end in ends if end is not None)
    client = anthropic_client(200, SSE, body)
    with client.messages.stream(model="c", messages=HELLO, max_tokens=5) as stream:
        final = stream.get_final_message()
    assert final.id == "msg_1"
    assert final.content[0].to_dict() == {"type": "text", "text": "Hello again"}
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 9)


def sent(scripted: Scripted) -> httpx2.Request:
    assert scripted.seen is not None
    return scripted.seen


def test_requests_are_described_as_the_sdks_send_them() -> None:
    """Paths, bodies and forms of real requests."""
    scripted = Scripted(200, JSON, b"{}")
    client = openai.OpenAI(api_key="k", base_url="http://steer/v1", http_client=scripted.client)
    chat(client, max_completion_tokens=7)
    request = sent(scripted)
    facts = OPENAI.describe(
        request.method,
        request.url.path.removeprefix("/v1"),
        "",
        JSON,
        orjson.loads(request.content),
    )
    assert (facts.operation, facts.model, facts.max_tokens) == ("chat.completions", "gpt", 7)

    claude = anthropic.Anthropic(api_key="k", base_url="http://s", http_client=scripted.client)
    message(claude)
    request = sent(scripted)
    facts = ANTHROPIC.describe("POST", request.url.path, "", JSON, orjson.loads(request.content))
    assert (facts.operation, facts.model, facts.max_tokens) == ("messages", "claude", 5)

    options = genai_types.HttpOptions(base_url="http://s", httpx_client=scripted.client)
    gemini = genai.Client(api_key="k", vertexai=False, http_options=options)
    gemini.models.generate_content(model="g", contents="Hello")
    request = sent(scripted)
    facts = GEMINI_DIALECT.describe(
        "POST", request.url.path, "", JSON, orjson.loads(request.content)
    )
    assert (facts.operation, facts.model) == ("generateContent", "g")
    gemini.models.embed_content(model="g", contents="Hello")
    request = sent(scripted)
    path, body = request.url.path, orjson.loads(request.content)
    facts = GEMINI_DIALECT.describe("POST", path, "", JSON, body)
    assert (facts.operation, facts.model) == ("batchEmbedContents", "g")
    made = GEMINI_DIALECT.rewrite(facts, path, "", JSON, request.content, body, {"model": "e"})
    assert made.path == path.replace("/g:", "/e:")
    assert made.body is not None
    assert orjson.loads(made.body)["requests"][0]["model"] == "models/e"
