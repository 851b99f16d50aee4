"""The official Python SDKs behave through Steer as they do without it, synchronous or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import openai
import pydantic
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types

from tests.provider import Provider, faults
from tests.support.sdk import Scenario, compared, done, doubles, driven, entered, listed, told
from tests.support.sidecar import configure, running

# google-genai subclasses aiohttp's session, which aiohttp discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")

Table = dict[str, Scenario]
USER: Any = [{"role": "user", "content": "Hello"}]
PARAMETERS: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
CLAUDE: Any = {"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": USER}
GEMINI = "gemini-2.5-flash"
SOUND = ("hello.mp3", b"\xff\xfb\x90\x64" + bytes(range(256)) * 20)

F = TypeVar("F", bound=Scenario)


def added_to(table: Table) -> Callable[[F], F]:
    def add(scenario: F) -> F:
        table[scenario.__name__] = scenario
        return scenario

    return add


# --- openai

OPENAI: Table = {}


@added_to(OPENAI)
async def chat(client: Any) -> Any:
    raw = await done(
        client.chat.completions.with_raw_response.create(model="gpt-4o", messages=USER, n=2)
    )
    return raw.parse(), raw.request_id, raw.headers.get_list("set-cookie"), raw.headers["date"]


@added_to(OPENAI)
async def chat_stream(client: Any) -> Any:
    options = {"include_usage": True}
    return await listed(
        client.chat.completions.create(
            model="gpt-4o", messages=USER, stream=True, stream_options=options
        )
    )


@added_to(OPENAI)
async def chat_stream_helper(client: Any) -> Any:
    async with entered(
        client.chat.completions.stream(model="gpt-4o", messages=USER, tools=TOOLS)
    ) as stream:
        events = [event.type for event in await listed(stream)]
        return events, await done(stream.get_final_completion())


@added_to(OPENAI)
async def tools(client: Any) -> Any:
    first = await done(client.chat.completions.create(model="m", messages=USER, tools=TOOLS))
    call = first.choices[0].message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    asked = [*USER, first.choices[0].message, result]
    second = await done(client.chat.completions.create(model="m", messages=asked, tools=TOOLS))
    return first, second


@added_to(OPENAI)
async def structure(client: Any) -> Any:
    class Forecast(pydantic.BaseModel):
        city: str
        sure: bool

    answer = await done(
        client.chat.completions.parse(model="m", messages=USER, response_format=Forecast)
    )
    return answer.choices[0].message.parsed


@added_to(OPENAI)
async def completions(client: Any) -> Any:
    plain = await done(client.completions.create(model="m", prompt="Hello"))
    return plain, await listed(client.completions.create(model="m", prompt="Hello", stream=True))


@added_to(OPENAI)
async def responses(client: Any) -> Any:
    plain = await done(client.responses.create(model="m", input="Hello"))
    async with entered(
        client.responses.stream(model="m", input="Hello", reasoning={"summary": "auto"})
    ) as stream:
        events = await listed(stream)
        final = await done(stream.get_final_response())
    queued = await done(client.responses.create(model="m", input="Later", background=True))
    found = await done(client.responses.retrieve(queued.id))
    after = await done(
        client.responses.create(model="m", input="And?", previous_response_id=plain.id)
    )
    await done(client.responses.delete(queued.id))
    return plain, plain.output_text, events, final, queued, found, after


@added_to(OPENAI)
async def response_that_is_gone(client: Any) -> Any:
    return await done(client.responses.retrieve("resp_none"))


@added_to(OPENAI)
async def embeddings(client: Any) -> Any:
    packed = await done(client.embeddings.create(model="m", input=["a", "b"], dimensions=5))
    floats = await done(client.embeddings.create(model="m", input="a", encoding_format="float"))
    return packed, floats


@added_to(OPENAI)
async def speech(client: Any) -> Any:
    asked: Any = {"model": "tts-1", "voice": "alloy", "input": "Hello you"}
    whole = await done(client.audio.speech.create(**asked))
    async with entered(client.audio.speech.with_streaming_response.create(**asked)) as stream:
        pieces = await listed(stream.iter_bytes(100))
    return whole.content, whole.response.headers["content-type"], b"".join(pieces)


@added_to(OPENAI)
async def transcription(client: Any) -> Any:
    create = client.audio.transcriptions.create
    return (
        await done(create(model="whisper-1", file=SOUND)),
        await done(create(model="whisper-1", file=SOUND, response_format="text")),
        await done(create(model="whisper-1", file=SOUND, response_format="verbose_json")),
        await listed(create(model="gpt-4o-transcribe", file=SOUND, stream=True)),
    )


@added_to(OPENAI)
async def images(client: Any) -> Any:
    image = ("a.png", b"\x89PNG\r\n\x1a\n")
    return (
        await done(client.images.generate(model="gpt-image-1", prompt="A wall", n=2)),
        await listed(client.images.generate(model="m", prompt="A wall", stream=True)),
        await done(client.images.edit(model="gpt-image-1", prompt="Taller", image=image)),
    )


@added_to(OPENAI)
async def moderations(client: Any) -> Any:
    return await done(client.moderations.create(input=["a", "b"]))


@added_to(OPENAI)
async def files(client: Any) -> Any:
    data = b'{"a": 1}\r\n--boundary\r\n' * 100_000  # beyond what stays in memory
    file = await done(client.files.create(file=("in.jsonl", data), purpose="batch"))
    content = (await done(client.files.content(file.id))).content
    assert content == data
    found = [await done(client.files.retrieve(file.id)), await listed(client.files.list())]
    gone = await done(client.files.delete(file.id))
    return file, found, gone, len(content)


@added_to(OPENAI)
async def batches(client: Any) -> Any:
    asked: Any = {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = await done(client.batches.create(**asked))
    return (
        batch,
        await done(client.batches.retrieve(batch.id)),
        await listed(client.batches.list()),
        await done(client.batches.cancel(batch.id)),
    )


@added_to(OPENAI)
async def models(client: Any) -> Any:
    return await listed(client.models.list()), await done(client.models.retrieve("gpt-4o"))


@added_to(OPENAI)
async def many_at_once(client: Any) -> Any:
    create = client.chat.completions.create
    if isinstance(client, openai.OpenAI):
        return [create(model="m", messages=USER) for _ in range(20)]
    return list(await asyncio.gather(*(create(model="m", messages=USER) for _ in range(20))))


# --- anthropic

ANTHROPIC: Table = {}


@added_to(ANTHROPIC)
async def message(client: Any) -> Any:
    raw = await done(client.messages.with_raw_response.create(**CLAUDE))
    cookies = raw.headers.get_list("set-cookie")
    return await done(raw.parse()), raw.headers["request-id"], cookies


@added_to(ANTHROPIC)
async def message_stream(client: Any) -> Any:
    events = await listed(client.messages.create(**CLAUDE, stream=True))
    async with entered(client.messages.stream(**CLAUDE)) as stream:
        return (
            events,
            "".join(await listed(stream.text_stream)),
            await done(stream.get_final_message()),
        )


@added_to(ANTHROPIC)
async def message_tools(client: Any) -> Any:
    offered = [{"name": "weather", "input_schema": PARAMETERS}]
    plain = await done(client.messages.create(**CLAUDE, tools=offered))
    async with entered(client.messages.stream(**CLAUDE, tools=offered)) as stream:
        return plain, await done(stream.get_final_message())


@added_to(ANTHROPIC)
async def thinking(client: Any) -> Any:
    budget = {"type": "enabled", "budget_tokens": 1024}
    async with entered(
        client.messages.stream(**{**CLAUDE, "max_tokens": 2048}, thinking=budget)
    ) as stream:
        return await done(stream.get_final_message())


@added_to(ANTHROPIC)
async def count_tokens(client: Any) -> Any:
    return await done(client.messages.count_tokens(model=CLAUDE["model"], messages=USER))


@added_to(ANTHROPIC)
async def message_batches(client: Any) -> Any:
    requests = [{"custom_id": "one", "params": CLAUDE}]
    batch = await done(client.messages.batches.create(requests=requests))
    found = await done(client.messages.batches.retrieve(batch.id))
    results = await listed(client.messages.batches.results(batch.id))
    # The address of the results names the provider that was asked, and there are two of them.
    assert found.results_url.endswith(f"/v1/messages/batches/{batch.id}/results")
    return batch, found.processing_status, results


@added_to(ANTHROPIC)
async def anthropic_models(client: Any) -> Any:
    return await listed(client.models.list()), await done(
        client.models.retrieve("claude-sonnet-5-5")
    )


# --- google-genai

GENAI: Table = {}


@added_to(GENAI)
async def generate(client: Any) -> Any:
    return await done(client.models.generate_content(model=GEMINI, contents="Hello"))


@added_to(GENAI)
async def generate_stream(client: Any) -> Any:
    return await listed(client.models.generate_content_stream(model=GEMINI, contents="Hello"))


@added_to(GENAI)
async def function_calling(client: Any) -> Any:
    declared = types.FunctionDeclaration(name="weather", parameters_json_schema=PARAMETERS)
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declared])])
    answer = await done(client.models.generate_content(model=GEMINI, contents="Hi", config=config))
    return answer.function_calls


@added_to(GENAI)
async def counting_and_embedding(client: Any) -> Any:
    return (
        await done(client.models.count_tokens(model=GEMINI, contents="Hello")),
        await done(client.models.embed_content(model="gemini-embedding-001", contents=["a", "b"])),
    )


@added_to(GENAI)
async def gemini_models(client: Any) -> Any:
    return await listed(client.models.list()), await done(client.models.get(model=GEMINI))


# --- clients

KEY = "sk-caller"
Clients = contextlib.AbstractAsyncContextManager[Any]


@contextlib.asynccontextmanager
async def openai_client(url: str, **options: Any) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, **options) as client:
        yield client


@contextlib.asynccontextmanager
async def openai_sync(url: str, **options: Any) -> AsyncIterator[Any]:
    with openai.OpenAI(base_url=url, api_key=KEY, **options) as client:
        yield client


@contextlib.asynccontextmanager
async def anthropic_client(url: str, **options: Any) -> AsyncIterator[Any]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key=KEY, **options) as client:
        yield client


@contextlib.asynccontextmanager
async def anthropic_sync(url: str, **options: Any) -> AsyncIterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key=KEY, **options) as client:
        yield client


@contextlib.asynccontextmanager
async def genai_client(url: str, **options: Any) -> AsyncIterator[Any]:
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=url, **options))
    try:
        yield client.aio
    finally:
        await client.aio.aclose()
        client.close()


@contextlib.asynccontextmanager
async def genai_sync(url: str, **options: Any) -> AsyncIterator[Any]:
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=url, **options))
    try:
        yield client
    finally:
        client.close()


ASYNCHRONOUS: Mapping[str, tuple[Table, Callable[..., Clients]]] = {
    "openai": (OPENAI, openai_client),
    "anthropic": (ANTHROPIC, anthropic_client),
    "gemini": (GENAI, genai_client),
}
SYNCHRONOUS: Mapping[str, tuple[Table, Callable[..., Clients]]] = {
    "openai": (OPENAI, openai_sync),
    "anthropic": (ANTHROPIC, anthropic_sync),
    "gemini": (GENAI, genai_sync),
}


async def outcomes(table: Table, client: Any) -> dict[str, Any]:
    """What every scenario comes to, one after another."""
    return {name: await told(scenario, client) for name, scenario in table.items()}


@pytest.mark.parametrize("dialect", ASYNCHRONOUS)
async def test_asynchronous_clients(tmp_path: Path, dialect: str) -> None:
    """Every call comes to the same as directly; and to a result, not to the same error."""
    table, connect = ASYNCHRONOUS[dialect]
    async with doubles(tmp_path) as both:
        direct, steered = both.urls(dialect)
        async with connect(direct) as one, connect(steered) as other:
            expected, found = await outcomes(table, one), await outcomes(table, other)
    compared(table, expected, found)
    failed = [name for name in table if isinstance(found[name], dict) and "raised" in found[name]]
    assert failed == (["response_that_is_gone"] if dialect == "openai" else [])
    assert len(both.direct.attempts) == len(both.behind.attempts)


@pytest.mark.real_time
@pytest.mark.parametrize("dialect", SYNCHRONOUS)
async def test_synchronous_clients(tmp_path: Path, dialect: str) -> None:
    """The same with blocking clients in a thread."""
    table, connect = SYNCHRONOUS[dialect]

    def run(url: str) -> Any:
        async def all_of_them() -> Any:
            async with connect(url) as client:
                return await outcomes(table, client)

        return driven(all_of_them())

    async with doubles(tmp_path) as both:
        direct, steered = both.urls(dialect)
        expected = await asyncio.to_thread(run, direct)
        found = await asyncio.to_thread(run, steered)
    compared(table, expected, found)


# --- errors of the provider

PLAIN_AND_STREAMED: Mapping[str, tuple[Scenario, Scenario]] = {
    "openai": (chat, chat_stream),
    "anthropic": (message, message_stream),
    "gemini": (generate, generate_stream),
}
EVERY_DIALECT = pytest.mark.parametrize("dialect", ASYNCHRONOUS)


@EVERY_DIALECT
async def test_errors_are_the_same_errors(tmp_path: Path, dialect: str) -> None:
    """Class, status, message and body of a provider's error do not change on the way."""
    _, connect = ASYNCHRONOUS[dialect]
    options = {} if dialect == "gemini" else {"max_retries": 0}
    async with doubles(tmp_path) as both:
        direct, steered = both.urls(dialect)
        async with connect(direct, **options) as one, connect(steered, **options) as other:
            for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 529):
                both.both(faults.status(status))
                for scenario in PLAIN_AND_STREAMED[dialect]:
                    expected = await told(scenario, one)
                    assert "raised" in expected
                    assert await told(scenario, other) == expected, (status, scenario.__name__)


@EVERY_DIALECT
@pytest.mark.parametrize(("kind", "status"), [("rate_limit", 429), ("overloaded", 503)])
async def test_retries_do_not_multiply(
    tmp_path: Path, dialect: str, kind: Any, status: int
) -> None:
    """A persistent failure costs Steer's attempts and none of the SDK's, whose class it raises."""
    _, connect = ASYNCHRONOUS[dialect]
    classes: dict[tuple[str, str], type[Exception]] = {
        ("openai", "rate_limit"): openai.RateLimitError,
        ("openai", "overloaded"): openai.InternalServerError,
        ("anthropic", "rate_limit"): anthropic.RateLimitError,
        ("anthropic", "overloaded"): anthropic.InternalServerError,
        ("gemini", "rate_limit"): genai_errors.ClientError,
        ("gemini", "overloaded"): genai_errors.ServerError,
    }
    async with doubles(tmp_path) as both:
        both.both(faults.error(kind, None if dialect == "anthropic" else status))
        direct, steered = both.urls(dialect)
        for scenario in PLAIN_AND_STREAMED[dialect]:
            before = len(both.behind.attempts), len(both.direct.attempts)
            async with connect(steered) as client:
                with pytest.raises(classes[dialect, kind]):
                    await scenario(client)
            assert len(both.behind.attempts) - before[0] == 3
            retried = {
                attempt.header("x-stainless-retry-count") for attempt in both.behind.attempts
            }
            assert retried <= {"0", None}
            async with connect(direct) as client:
                with pytest.raises(classes[dialect, kind]):
                    await scenario(client)
            # What the SDK does by itself, so that the figure above means something.
            assert len(both.direct.attempts) - before[1] == (1 if dialect == "gemini" else 3)


async def test_a_hint_is_obeyed_once(tmp_path: Path) -> None:
    """A delay that does not fit is passed on, and the SDK is told whether to wait it out itself."""
    async with doubles(tmp_path) as both:
        both.behind.then(faults.rate_limit(retry_after=90), faults.healthy())
        _, steered = both.urls("openai")
        began = asyncio.get_running_loop().time()
        async with openai_client(steered, timeout=30) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await chat(client)
        assert caught.value.response.headers["retry-after"] == "90"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert asyncio.get_running_loop().time() - began < 1
        assert len(both.behind.attempts) == 1


# --- errors of Steer's own


async def refused(dialect: str, url: str, scenario: Scenario, **options: Any) -> Any:
    """The exception a call ends with."""
    _, connect = ASYNCHRONOUS[dialect]
    async with connect(url, **options) as client:
        try:
            await scenario(client)
        except Exception as error:  # noqa: BLE001 - its class is what is asked for
            return error
    raise AssertionError("nothing was raised")


def by_dialect(status: int, openai_class: Any, anthropic_class: Any) -> dict[str, Any]:
    gemini = genai_errors.ClientError if status < 500 else genai_errors.ServerError
    return {"openai": openai_class, "anthropic": anthropic_class, "gemini": gemini}


def says(error: Any, dialect: str, status: int, code: str, text: str) -> None:
    """Steer's status, code and message stand where the SDK's users look for them."""
    if dialect == "gemini":
        assert error.code == status
    else:
        assert error.status_code == status
    assert text in str(error)
    if dialect == "openai":
        assert error.code == code
    else:
        assert code in str(error)


OWN = pytest.mark.parametrize("scenario", [0, 1], ids=["plain", "stream"])


@EVERY_DIALECT
@OWN
async def test_no_route(tmp_path: Path, dialect: str, scenario: int) -> None:
    """404: the SDK says that nothing is there, and which routes there are."""
    classes = by_dialect(404, openai.NotFoundError, anthropic.NotFoundError)
    async with doubles(tmp_path) as both:
        error = await refused(
            dialect, f"{both.steer.url}/nowhere", PLAIN_AND_STREAMED[dialect][scenario]
        )
        assert isinstance(error, classes[dialect])
        says(error, dialect, 404, "steer_no_route", "/openai/v1")


@EVERY_DIALECT
@OWN
async def test_a_bad_steering_header(tmp_path: Path, dialect: str, scenario: int) -> None:
    """400 names the header."""
    classes = by_dialect(400, openai.BadRequestError, anthropic.BadRequestError)
    wrong = {"X-Steer-Budget": "{"}
    options: Any = {"headers" if dialect == "gemini" else "default_headers": wrong}
    async with doubles(tmp_path) as both:
        error = await refused(
            dialect, both.urls(dialect)[1], PLAIN_AND_STREAMED[dialect][scenario], **options
        )
        assert isinstance(error, classes[dialect])
        says(error, dialect, 400, "steer_bad_header", "X-Steer-Budget")
        assert both.behind.attempts == []


@EVERY_DIALECT
@OWN
async def test_an_upstream_out_of_reach(tmp_path: Path, dialect: str, scenario: int) -> None:
    """502 after Steer's own attempts, not multiplied by the SDK's."""
    classes = by_dialect(502, openai.InternalServerError, anthropic.InternalServerError)
    async with doubles(tmp_path) as both:
        await both.behind.stop_listening()
        error = await refused(dialect, both.urls(dialect)[1], PLAIN_AND_STREAMED[dialect][scenario])
        assert isinstance(error, classes[dialect])
        says(error, dialect, 502, "steer_upstream_unreachable", "attempt 3 at")
        assert str(error).count("attempt ") == 3
        if dialect != "gemini":
            assert error.response.headers["x-should-retry"] == "false"


@EVERY_DIALECT
@OWN
async def test_an_open_circuit(tmp_path: Path, dialect: str, scenario: int) -> None:
    """503 with the time after which it can make sense to come back; the provider is left alone."""
    classes = by_dialect(503, openai.InternalServerError, anthropic.InternalServerError)
    breaker = {"failure_threshold": 1, "open_duration": 300}
    call = PLAIN_AND_STREAMED[dialect][scenario]
    # Anthropic's client would wait until a probe is let through.
    options: Any = {} if dialect == "gemini" else {"max_retries": 0}
    async with doubles(tmp_path, breaker=breaker) as both:
        both.behind.always(faults.status(503))
        url = both.urls(dialect)[1]
        await refused(dialect, url, call, **options)
        seen = len(both.behind.attempts)
        error = await refused(dialect, url, call, **options)
        assert isinstance(error, classes[dialect])
        says(error, dialect, 503, "steer_unavailable", "its circuit is open")
        assert len(both.behind.attempts) == seen
        if dialect != "gemini":
            assert int(error.response.headers["retry-after"]) > 200


@EVERY_DIALECT
@OWN
async def test_time_is_up(tmp_path: Path, dialect: str, scenario: int) -> None:
    """504 by the caller's own limit, and only one attempt for the SDK's sake."""
    classes = by_dialect(504, openai.InternalServerError, anthropic.InternalServerError)
    limit = {"X-Steer-Timeout": "3"}
    options: Any = {"headers" if dialect == "gemini" else "default_headers": limit}
    async with doubles(tmp_path) as both:
        both.behind.always(faults.silence())
        began = asyncio.get_running_loop().time()
        error = await refused(
            dialect, both.urls(dialect)[1], PLAIN_AND_STREAMED[dialect][scenario], **options
        )
        assert isinstance(error, classes[dialect])
        says(error, dialect, 504, "steer_deadline", "time is up")
        assert asyncio.get_running_loop().time() - began == pytest.approx(3, abs=0.2)
        assert len(both.behind.attempts) == 1


# --- the SDK's read time-out


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize(("limit", "within"), [(10.0, 9.5), (60.0, 59.0), (2.0, 1.9)])
@OWN
async def test_steer_answers_before_the_sdk_hangs_up(
    tmp_path: Path, dialect: str, limit: float, within: float, scenario: int
) -> None:
    """`x-stainless-read-timeout` bounds the time to the first byte: less 5 %, at most a second."""
    call = PLAIN_AND_STREAMED[dialect][scenario]
    async with doubles(tmp_path) as both:
        both.behind.always(faults.silence())
        began = asyncio.get_running_loop().time()
        url = both.urls(dialect)[1]
        error = await refused(dialect, url, call, timeout=limit, max_retries=0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(within, abs=0.05)
        # An answer, not the SDK's own time-out, which is another class and is retried.
        assert isinstance(error, openai.InternalServerError | anthropic.InternalServerError)
        assert error.status_code == 504
        assert error.response.headers["x-should-retry"] == "true"  # the attempt goes on
        (attempt,) = both.behind.attempts
        assert attempt.header("x-stainless-read-timeout") == f"{limit}"


async def test_a_fallback_answers_within_the_read_timeout(tmp_path: Path) -> None:
    """A silent first upstream leaves the second one time to answer."""
    async with Provider(name="silent") as silent, Provider(name="awake") as awake:
        settings = {
            "upstreams": {
                "silent": {
                    "dialect": "openai",
                    "base_url": f"{silent.base_url}/v1",
                    "timeouts": {"first_byte": 4, "answer": 4},
                },
                "awake": {
                    "dialect": "openai",
                    "base_url": f"{awake.base_url}/v1",
                    "credential": "none",
                },
            },
            "routes": [{"name": "chat", "path": "/v1", "candidates": ["silent", "awake"]}],
        }
        silent.always(faults.silence())
        async with running(configure(settings, tmp_path)) as steer:
            began = asyncio.get_running_loop().time()
            async with openai_client(f"{steer.url}/v1", timeout=10) as client:
                answer = await client.chat.completions.create(model="m", messages=USER)
            assert answer.choices[0].message.content == awake.text
            assert asyncio.get_running_loop().time() - began == pytest.approx(4, abs=0.1)
