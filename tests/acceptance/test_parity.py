"""What a provider answers, and what it is asked, is the same with Steer in between: byte for byte.

Two equal providers, one asked directly and one through Steer, by raw sockets. What may differ is
listed here, with its reason, and nothing else may.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.provider import Attempt, Behaviour, Data, Finish, Head, Send, faults
from tests.provider.steps import Answer
from tests.support.exact import Asked, ExactClient, Got, ask, form, post
from tests.support.sdk import BASES, Doubles, doubles

# What Steer adds to an answer.
ADDED_TO_ANSWERS = ("x-steer-",)
# A failing answer may also be given advice for the caller's SDK; it replaces the provider's own.
ADVICE = {"retry-after", "retry-after-ms", "x-should-retry"}
# These belong to one connection (RFC 9110 section 7.6.1), and Steer's has its own.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}

# What Steer writes anew in a request: the next hop's name, ids and trace, the way it came, the
# codings it can look into, the length (the caller's chunks are gathered before they are sent).
WRITTEN_ANEW = {
    "host",
    "x-request-id",
    "traceparent",
    "tracestate",
    "via",
    "accept-encoding",
    "content-length",
    "connection",
    "transfer-encoding",
    "expect",
}

CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
MESSAGE: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Hello"}],
}
CONTENTS: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
GEMINI = "/v1beta/models/gemini-2.5-flash"
CLAUDE = ("anthropic-version", "2023-06-01")
GOOGLE = ("x-goog-api-key", "caller-key")
SOUND = ("file", "hello.mp3", b"\xff\xfb\x90\x64" + bytes(range(256)) * 8)
GET = "GET"


def claude(path: str, value: Any) -> Asked:
    return post(path, value, CLAUDE, ("x-api-key", "caller-key"))


def gemini(path: str, value: Any = CONTENTS) -> Asked:
    return post(path, value, GOOGLE)


def speech(**more: Any) -> Asked:
    return post("/audio/speech", {"model": "tts-1", "voice": "alloy", "input": "One two", **more})


def heard(*more: tuple[str, str]) -> Asked:
    fields = [(name, None, value.encode()) for name, value in (("model", "whisper-1"), *more)]
    return form("/audio/transcriptions", *fields, SOUND)


UPLOAD = form("/files", ("purpose", None, b"batch"), ("file", "in.jsonl", b'{"a": 1}\n' * 5))
BATCH = post("/batches", {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"})
CLAUDE_BATCH = claude(
    "/v1/messages/batches", {"requests": [{"custom_id": "one", "params": MESSAGE}]}
)
BY_CLAUDE = (CLAUDE, ("x-api-key", "caller-key"))

# Every endpoint of the wall: the dialect, then the requests, one after another.
ENDPOINTS: dict[str, tuple[str, Sequence[Asked]]] = {
    "chat": ("openai", [post("/chat/completions", CHAT)]),
    "chat stream": ("openai", [post("/chat/completions", {**CHAT, "stream": True})]),
    "chat stream with usage": (
        "openai",
        [
            post(
                "/chat/completions",
                {**CHAT, "stream": True, "n": 2, "stream_options": {"include_usage": True}},
            )
        ],
    ),
    "chat tools": (
        "openai",
        [
            post("/chat/completions", {**CHAT, "tools": TOOLS}),
            post("/chat/completions", {**CHAT, "tools": TOOLS, "stream": True}),
        ],
    ),
    "completions": (
        "openai",
        [
            post("/completions", {"model": "m", "prompt": "Hello"}),
            post("/completions", {"model": "m", "prompt": "Hello", "stream": True}),
        ],
    ),
    "responses": (
        "openai",
        [
            post("/responses", {"model": "m", "input": "Hello"}),
            Asked(GET, "/responses/{id}"),
            Asked("DELETE", "/responses/{id}"),
        ],
    ),
    "responses stream": (
        "openai",
        [
            post(
                "/responses",
                {"model": "m", "input": "Hi", "stream": True, "reasoning": {"summary": "auto"}},
            )
        ],
    ),
    "responses in the background": (
        "openai",
        [post("/responses", {"model": "m", "input": "Hello", "background": True})],
    ),
    "embeddings": (
        "openai",
        [
            post("/embeddings", {"model": "m", "input": ["a", "b"]}),
            post("/embeddings", {"model": "m", "input": "a", "encoding_format": "base64"}),
        ],
    ),
    "speech": ("openai", [speech()]),
    "speech as events": ("openai", [speech(stream_format="sse")]),
    "speech as wav": ("openai", [speech(response_format="wav")]),
    "transcription": ("openai", [heard()]),
    "transcription as text": ("openai", [heard(("response_format", "text"))]),
    "transcription as subtitles": ("openai", [heard(("response_format", "srt"))]),
    "transcription stream": ("openai", [heard(("stream", "true"))]),
    "translation": ("openai", [form("/audio/translations", ("model", None, b"whisper-1"), SOUND)]),
    "images": ("openai", [post("/images/generations", {"model": "m", "prompt": "A wall", "n": 2})]),
    "images stream": (
        "openai",
        [post("/images/generations", {"model": "m", "prompt": "A wall", "stream": True})],
    ),
    "image edit": (
        "openai",
        [form("/images/edits", ("prompt", None, b"Taller"), ("image", "a.png", b"\x89PNG"))],
    ),
    "moderations": ("openai", [post("/moderations", {"input": ["a", "b"]})]),
    "files": (
        "openai",
        [
            UPLOAD,
            Asked(GET, "/files/{id}/content"),
            UPLOAD,
            Asked(GET, "/files?limit=10&after=&order=desc"),
            UPLOAD,
            Asked("HEAD", "/files/{id}"),
            UPLOAD,
            Asked("DELETE", "/files/{id}"),
            Asked(GET, "/files/{id}"),
        ],
    ),
    "batches": ("openai", [BATCH, Asked(GET, "/batches"), BATCH, Asked(GET, "/batches/{id}")]),
    "batch cancelled": ("openai", [BATCH, Asked("POST", "/batches/{id}/cancel", (), b"")]),
    "models": ("openai", [Asked(GET, "/models"), Asked(GET, "/models/gpt-4o")]),
    "messages": ("anthropic", [claude("/v1/messages", MESSAGE)]),
    "messages stream": ("anthropic", [claude("/v1/messages", {**MESSAGE, "stream": True})]),
    "messages thinking": (
        "anthropic",
        [
            claude(
                "/v1/messages",
                {**MESSAGE, "stream": True, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            )
        ],
    ),
    "messages tools": (
        "anthropic",
        [
            claude(
                "/v1/messages",
                {**MESSAGE, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
            )
        ],
    ),
    "count tokens": ("anthropic", [claude("/v1/messages/count_tokens", MESSAGE)]),
    "message batches": (
        "anthropic",
        [CLAUDE_BATCH, Asked(GET, "/v1/messages/batches/{id}", BY_CLAUDE)],
    ),
    "message batch results": (
        "anthropic",
        [CLAUDE_BATCH, Asked(GET, "/v1/messages/batches/{id}/results", BY_CLAUDE)],
    ),
    "models of Anthropic": ("anthropic", [Asked(GET, "/v1/models", BY_CLAUDE)]),
    "generateContent": ("gemini", [gemini(f"{GEMINI}:generateContent")]),
    "streamGenerateContent": ("gemini", [gemini(f"{GEMINI}:streamGenerateContent?alt=sse")]),
    "streamGenerateContent as an array": ("gemini", [gemini(f"{GEMINI}:streamGenerateContent")]),
    "generateContent by query key": (
        "gemini",
        [post(f"{GEMINI}:generateContent?key=caller-key", CONTENTS)],
    ),
    "countTokens": ("gemini", [gemini(f"{GEMINI}:countTokens")]),
    "embedContent": ("gemini", [gemini(f"{GEMINI}:embedContent", {"content": {"parts": []}})]),
    "batchEmbedContents": (
        "gemini",
        [gemini(f"{GEMINI}:batchEmbedContents", {"requests": [{"content": {"parts": []}}]})],
    ),
    "models of Gemini": (
        "gemini",
        [Asked(GET, "/v1beta/models?pageSize=5", (GOOGLE,)), Asked(GET, GEMINI, (GOOGLE,))],
    ),
    "HEAD and OPTIONS": (
        "openai",
        [Asked("HEAD", "/models"), Asked("OPTIONS", "/models"), Asked("OPTIONS", "/files")],
    ),
    "nothing there": ("openai", [Asked(GET, "/files/none"), Asked("PATCH", "/files", (), b"{}")]),
    "MCP": (
        "http",
        [
            post("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "initialize"}),
            post("/mcp", {"jsonrpc": "2.0", "method": "notifications/initialized"}),
            post("/mcp", {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}),
            Asked("DELETE", "/mcp"),
        ],
    ),
}


async def asked_twice(both: Doubles, dialect: str, asked: Asked) -> tuple[Got, Got]:
    """The answers to one request, directly and through Steer."""
    bare, steered = BASES[dialect]
    # Some answers name the host they were asked by: it is the second one's in both cases.
    host = f"127.0.0.1:{both.behind.port}"
    direct = await ask(both.direct.port, asked, path=bare + asked.path, host=host)
    proxied = await ask(both.port, asked, path=steered + asked.path)
    return direct, proxied


def same_answer(
    direct: Got, proxied: Got, *, ignoring: set[str] = HOP_BY_HOP, framing: bool = True
) -> None:
    """All that is not allowed to differ is equal."""
    assert proxied.first_line == direct.first_line
    theirs = [pair for pair in direct.fields if pair[0].lower() not in ignoring]
    ours = [
        pair
        for pair in proxied.fields
        if pair[0].lower() not in ignoring and not pair[0].lower().startswith(ADDED_TO_ANSWERS)
    ]
    assert ours == theirs
    assert proxied.body == direct.body
    if framing:
        assert proxied.framing == direct.framing


def same_request(direct: Attempt, behind: Attempt) -> None:
    """What reached the provider is what was asked, but for what Steer writes anew."""
    assert (behind.method, behind.target) == (direct.method, direct.target)
    assert behind.body == direct.body
    kept = [pair for pair in direct.headers if pair[0].lower() not in WRITTEN_ANEW]
    came = [pair for pair in behind.headers if pair[0].lower() not in WRITTEN_ANEW]
    assert came == kept


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_every_endpoint(tmp_path: Path, name: str) -> None:
    """Status, reason, fields in order and spelling, framing and body of every endpoint."""
    dialect, requests = ENDPOINTS[name]
    async with doubles(tmp_path) as both:
        identifier = ""
        for asked in requests:
            step = Asked(asked.method, asked.path.format(id=identifier), asked.fields, asked.body)
            direct, proxied = await asked_twice(both, dialect, step)
            same_answer(direct, proxied)
            with contextlib.suppress(ValueError, AttributeError):
                identifier = json.loads(direct.body).get("id", identifier)
        assert len(both.behind.attempts) == len(requests)
        for one, other in zip(both.direct.attempts, both.behind.attempts, strict=True):
            same_request(one, other)


PLAIN = [
    ("openai", post("/chat/completions", CHAT)),
    ("anthropic", claude("/v1/messages", MESSAGE)),
    ("gemini", gemini(f"{GEMINI}:generateContent")),
    ("http", post("/tool", {"ask": 1})),
]
STREAMED = [
    ("openai", post("/chat/completions", {**CHAT, "stream": True})),
    ("anthropic", claude("/v1/messages", {**MESSAGE, "stream": True})),
    ("gemini", gemini(f"{GEMINI}:streamGenerateContent?alt=sse")),
    ("gemini", gemini(f"{GEMINI}:streamGenerateContent")),
]
STATUSES = [
    *(300, 301, 302, 304, 307, 308),
    *(
        400,
        401,
        402,
        403,
        404,
        405,
        406,
        408,
        409,
        410,
        413,
        415,
        418,
        422,
        425,
        426,
        429,
        431,
        451,
    ),
    *(500, 501, 502, 503, 504, 520, 524, 529, 599),
]


@pytest.mark.parametrize("status", STATUSES)
async def test_every_status(tmp_path: Path, status: int) -> None:
    """An answer of any status is the caller's, whatever attempts it took; redirects included."""
    async with doubles(tmp_path) as both:
        location = (("Location", "/elsewhere"), ("location", "twice"))
        both.both(faults.status(status, headers=location if status < 400 else ()))
        # Who asked for a stream is answered alike: it is enough to see that with a few.
        streamed = STREAMED if status in (301, 400, 401, 429, 503) else ()
        for dialect, asked in (*PLAIN, *streamed):
            direct, proxied = await asked_twice(both, dialect, asked)
            ignoring = HOP_BY_HOP | (ADVICE if status >= 400 else set())
            same_answer(direct, proxied, ignoring=ignoring)


@pytest.mark.parametrize("status", [200, 201, 202, 203, 204, 205, 206, 207])
async def test_every_success(tmp_path: Path, status: int) -> None:
    """Successes with and without a body, partial ones too."""
    async with doubles(tmp_path) as both:
        body = b"" if status == 205 else b"\x00\xffsome bytes"
        fields = (("Content-Range", "bytes 0-11/12"), ("ETag", '"x"'))
        both.both(faults.status(status, None if status == 204 else body, fields))
        for asked in (Asked(GET, "/thing"), Asked("HEAD", "/thing"), Asked("PUT", "/t", (), b"x")):
            same_answer(*await asked_twice(both, "http", asked))


SHAPES: dict[str, Behaviour] = {
    "as sent": faults.healthy(),
    "byte by byte": faults.one_byte_writes(),
    "after an interim answer": faults.informational_first(),
    "with a slow head": faults.slow_header(1.0, 100),
    "closed after": faults.then_close(),
    "closed after, announced": faults.then_close(announced=True),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_however_it_is_written(tmp_path: Path, shape: str) -> None:
    """The way in which a provider writes its answers changes nothing."""
    async with doubles(tmp_path) as both:
        both.both(SHAPES[shape])
        both.direct.tokens = both.behind.tokens = 3
        for dialect, asked in (PLAIN[0], *STREAMED[1:]):
            direct, proxied = await asked_twice(both, dialect, asked)
            if asked.path.endswith(":streamGenerateContent"):
                # Line ends after an array's closing bracket may be left off: they say nothing.
                assert proxied.body in (direct.body, direct.body.rstrip())
                proxied = replace(proxied, body=direct.body)
            same_answer(direct, proxied)


async def test_a_body_that_ends_with_its_connection(tmp_path: Path) -> None:
    """It has the same bytes; only the framing differs, since Steer's connection goes on."""
    async with doubles(tmp_path) as both:
        both.both(faults.until_close())
        for dialect, asked in (*PLAIN[:3], *STREAMED):
            direct, proxied = await asked_twice(both, dialect, asked)
            same_answer(direct, proxied, framing=False)
            assert (direct.framing, proxied.framing) == ("close", "chunked")


GZIP = ("Accept-Encoding", "gzip")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_answer_stays_compressed(tmp_path: Path, coding: Any) -> None:
    """Who asks for a coding gets the provider's bytes in it, and `Content-Encoding` with them."""
    async with doubles(tmp_path) as both:
        both.both(faults.compressed(coding))
        for dialect, asked in PLAIN[:3]:
            fields = (*asked.fields, ("Accept-Encoding", coding))
            compressed = Asked(asked.method, asked.path, fields, asked.body)
            direct, proxied = await asked_twice(both, dialect, compressed)
            assert direct.value("content-encoding") == coding
            same_answer(direct, proxied)


async def test_a_stream_is_asked_for_uncompressed(tmp_path: Path) -> None:
    """Steer has to look into a stream: it comes as it would to who accepts no coding."""
    async with doubles(tmp_path) as both:
        both.both(faults.compressed())
        for dialect, asked in STREAMED:
            fields = (*asked.fields, GZIP)
            direct, _ = await asked_twice(both, dialect, asked)
            _, proxied = await asked_twice(
                both, dialect, Asked(asked.method, asked.path, fields, asked.body)
            )
            same_answer(direct, proxied)
            assert both.behind.attempts[-1].header("accept-encoding") == "identity"


async def test_a_stream_compressed_unasked_passes_as_it_is(tmp_path: Path) -> None:
    """A provider that compresses in spite of that is relayed by its framing alone."""
    async with doubles(tmp_path) as both:
        both.both(faults.compressed("gzip", unasked=True))
        for dialect, asked in STREAMED:
            same_answer(*await asked_twice(both, dialect, asked))


MIB = 1024 * 1024


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 3 * MIB])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_answers(tmp_path: Path, size: int, framing: Any) -> None:
    """What is held whole and what is not: the caller cannot tell."""
    piece = bytes(range(256)) * 256
    whole = (piece * (size // len(piece) + 1))[:size]
    steps = [Data(whole[at : at + len(piece)]) for at in range(0, size, len(piece))]
    for kind in ("application/json", "application/octet-stream", "audio/mpeg"):
        head = Head(200, (("Content-Type", kind),), framing, size if framing == "length" else 0)
        async with doubles(tmp_path) as both:
            both.both(Answer((head, *steps, Finish())))
            same_answer(*await asked_twice(both, "openai", speech()))
            same_answer(*await asked_twice(both, "http", Asked(GET, "/large")))


async def test_large_streams(tmp_path: Path) -> None:
    """A stream of a thousand words, and one with a huge event."""
    async with doubles(tmp_path) as both:
        both.direct.tokens = both.behind.tokens = 1000
        for dialect, asked in STREAMED:
            same_answer(*await asked_twice(both, dialect, asked))
    async with doubles(tmp_path) as both:
        both.direct.text = both.behind.text = "word" * (MIB // 3)
        for dialect, asked in (STREAMED[0], STREAMED[3], PLAIN[1]):
            same_answer(*await asked_twice(both, dialect, asked))


async def test_fields_of_every_kind(tmp_path: Path) -> None:
    """Spelling, order, repetition, bytes that are no ASCII and no UTF-8, empty values, reasons."""
    fields = (
        b"CONTENT-type: text/plain\r\nsErVeR: wall\r\nvary: a\r\nVary: b\r\nset-cookie: a=1\r\n"
        b"X-Empty:\r\nSet-Cookie: b=2\r\nx-latin: caf\xe9\r\nx-utf8: caf\xc3\xa9\r\n"
        b"X-Tab: a\tb\r\nvia: 1.1 google\r\nDATE: today\r\nx-request-id: req_1\r\n"
        b"X-Long: " + b"y" * 12_000 + b"\r\n"
    )
    for status in (b"200 Fine by me", b"200 ", b"404 \xc3\xa9t\xc3\xa9", b"299 Odd"):
        answer = b"HTTP/1.1 " + status + b"\r\n" + fields + b"content-LENGTH: 2\r\n\r\nok"
        async with doubles(tmp_path) as both:
            both.both(Answer((Send(answer),)))
            direct, proxied = await asked_twice(both, "http", Asked(GET, "/x"))
            assert len(direct.fields) == 15
            same_answer(direct, proxied)


async def test_what_belongs_to_a_connection_stays_on_it(tmp_path: Path) -> None:
    """Hop-by-hop fields, those `Connection` lists, and another Steer's are not passed on."""
    hop = (
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: X-T\r\nUpgrade: h2c\r\n"
        b"X-Steer-Upstream: theirs\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"
    )
    async with doubles(tmp_path) as both:
        both.both(Answer((Send(hop),)))
        proxied = await ask(both.port, Asked(GET, "/tools/x"))
        ours = {name for name, _ in proxied.fields if not name.startswith("X-Steer-")}
        assert ours == {"X-Kept", "Transfer-Encoding"}
        assert proxied.value("X-Steer-Upstream") == "tools"
        assert proxied.body == b"ok"


TARGETS = [
    "/a%20b/c%2Bd/%C3%A9",
    "/x?a=1&a=2&b=&c&=d&e=%26%3D+",
    "/x?q=a;b,c:d@e!$'()*~",
    "/x?q=%zz&utf=%C3%a9",
    "/sp%c3%a9cial/%7Euser",
    "/a//b",
    "/colon:verb",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_targets_pass_as_they_are_spelled(tmp_path: Path, target: str) -> None:
    """Nobody decodes and encodes a path or query anew."""
    async with doubles(tmp_path) as both:
        await asked_twice(both, "http", Asked(GET, target))
        same_request(both.direct.attempts[0], both.behind.attempts[0])


async def test_requests_pass_as_they_are(tmp_path: Path) -> None:
    """Repeated fields, odd bytes, cookies and methods: what is asked arrives."""
    fields = (
        ("User-Agent", "caf\udce9/1"),
        ("X-Many", "1"),
        ("x-many", "2"),
        ("Cookie", "a=1; b=2"),
        ("cookie", "c=3"),
        ("Accept", "*/*"),
        ("X-Empty", ""),
        ("x-stainless-lang", "python"),
        ("Authorization", "Bearer caller-key"),
        ("Range", "bytes=0-1"),
        ("Referer", "http://localhost/"),
    )
    async with doubles(tmp_path) as both:
        for method in ("GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT", "PATCH", "PROPFIND"):
            body = b"\x00\r\n\xff" if method not in ("GET", "HEAD", "OPTIONS") else None
            await asked_twice(both, "http", Asked(method, "/thing", fields, body))
        assert len(both.behind.attempts) == 8
        for one, other in zip(both.direct.attempts, both.behind.attempts, strict=True):
            same_request(one, other)


async def test_a_body_in_chunks_arrives_whole(tmp_path: Path) -> None:
    """The caller's chunks and `Expect` end here; the provider sees a length."""
    chunked = (
        b"POST /tools/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Expect: 100-continue\r\nTrailer: X-T\r\n\r\n"
    )
    async with doubles(tmp_path) as both, ExactClient(both.port) as client:
        client.writer.write(chunked)
        first, _ = await client.head()
        assert first == b"HTTP/1.1 100 Continue"
        client.writer.write(b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-T: 1\r\n\r\n")
        assert (await client.answer("POST")).status == 200
        (attempt,) = both.behind.attempts
        assert attempt.body == b"abcde"
        assert attempt.header_values("content-length") == ["5"]
        for name in ("transfer-encoding", "expect", "trailer", "x-t"):
            assert attempt.header(name) is None
