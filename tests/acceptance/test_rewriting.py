"""A plan's model is put where the model lives; every other byte stays as the caller wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.exact import Asked, ask, form, post
from tests.support.world import world

KEY = ("Authorization", "Bearer caller-key")
JSON = ("Content-Type", "application/json")
GEMINI = "/v1beta/models/"


def raw(path: str, body: str) -> Asked:
    """JSON in the caller's own spelling."""
    return Asked("POST", path, (JSON, KEY), body.encode())


def rule(**options: Any) -> dict[str, Any]:
    """A route that gives every call these options."""
    use = {"upstream": "primary", "options": options}
    return {"rules": [{"name": "rewrite", "use": use}]}


TAIL = '  "n": 1.0, "seed": 12345678901234567890,\t"model" :  "%s" , "x": 1e2}\n'
PLAIN = '{ "messages" : [{"role":"user","content":"café"}],\n' + TAIL
# Escapes, and something that looks like the member: a splice could hit the wrong place.
ESCAPED = '{"messages": [{"content": "caf\\u00e9 \\"model\\": \\"gpt-4o\\""}],\n' + TAIL


async def asked_and_seen(
    tmp_path: Path, dialect: str, asked: Asked, route: dict[str, Any]
) -> tuple[Any, Any]:
    """The answer, and the only request the provider saw."""
    async with world(tmp_path, dialect, route=route) as parties:
        got = await ask(parties.steer.sidecar.port, asked, path=f"/route{asked.path}")
        assert parties.fallback.attempts == []
        assert len(parties.primary.attempts) == 1, got
        return got, parties.primary.attempts[0]


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("openai", "/chat/completions"),
        ("openai", "/responses"),
        ("openai", "/embeddings"),
        ("anthropic", "/v1/messages"),
    ],
)
async def test_in_a_body(tmp_path: Path, dialect: str, path: str) -> None:
    """Only the name between its quotes changes: spaces, order and numbers stay."""
    asked = raw(path, PLAIN % "gpt-4o")
    got, attempt = await asked_and_seen(tmp_path, dialect, asked, rule(model="other/model-2"))
    assert attempt.body == (PLAIN % "other/model-2").encode()
    assert attempt.header_values("content-length") == [str(len(attempt.body))]
    assert got.value("X-Steer-Model") == "other/model-2"
    assert got.value("X-Steer-Rule") == "rewrite"


async def test_in_a_body_that_cannot_be_spliced(tmp_path: Path) -> None:
    """Where the name cannot be found for certain, the body is written anew, of the same values."""
    asked = raw("/chat/completions", ESCAPED % "gpt-4o")
    _, attempt = await asked_and_seen(tmp_path, "openai", asked, rule(model="other"))
    assert attempt.json["model"] == "other"
    assert attempt.json["messages"][0]["content"] == 'café "model": "gpt-4o"'
    assert list(attempt.json) == ["messages", "n", "seed", "model", "x"]
    assert attempt.json["seed"] == 12345678901234567890


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent", "countTokens"])
async def test_in_a_path(tmp_path: Path, verb: str) -> None:
    """Gemini's model is a segment; query and body stay."""
    body = '{"contents": [ {"parts":[{"text":"Hi"}]} ], "model": 7}'
    asked = raw(f"{GEMINI}gemini-2.5-pro:{verb}?alt=sse&x=%20", body)
    got, attempt = await asked_and_seen(tmp_path, "gemini", asked, rule(model="gemini-2.5-flash"))
    assert attempt.target == f"{GEMINI}gemini-2.5-flash:{verb}?alt=sse&x=%20"
    assert attempt.body == body.encode()
    assert got.value("X-Steer-Model") == "gemini-2.5-flash"


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/audio/translations", "/images/edits"])
async def test_in_a_form(tmp_path: Path, path: str) -> None:
    """The field's content changes; file, boundary and headers of the parts stay."""
    sound = bytes(range(256)) * 300 + b'\r\n--steer\r\nname="model"\r\n\r\nnot-a-model'[:20]
    parts = [("file", "a.mp3", sound), ("model", None, b"whisper-1"), ("prompt", None, b"Hi")]
    asked = form(path, *parts)
    expected = form(path, parts[0], ("model", None, b"whisper-large"), parts[2]).body
    got, attempt = await asked_and_seen(tmp_path, "openai", asked, rule(model="whisper-large"))
    assert attempt.body == expected
    assert attempt.header("content-type") == asked.fields[0][1]
    assert got.value("X-Steer-Model") == "whisper-large"


async def test_in_a_large_form(tmp_path: Path) -> None:
    """A body beyond memory is rewritten just the same."""
    sound = b"\x00\xff" * 2_000_000
    parts = [("model", None, b"whisper-1"), ("file", "a.mp3", sound)]
    asked = form("/audio/transcriptions", *parts)
    expected = form("/audio/transcriptions", ("model", None, b"w"), parts[1]).body
    _, attempt = await asked_and_seen(tmp_path, "openai", asked, rule(model="w"))
    assert attempt.body == expected


UNCHANGED: dict[str, tuple[str, Asked, dict[str, Any]]] = {
    "the same model": ("openai", raw("/chat/completions", PLAIN % "m"), {"model": "m"}),
    "the same option": ("openai", raw("/chat/completions", PLAIN % "m"), {"x": 1e2}),
    "the same model in a path": (
        "gemini",
        raw(f"{GEMINI}m:generateContent", '{"contents":  []}'),
        {"model": "m"},
    ),
    "the same model in a form": (
        "openai",
        form("/audio/transcriptions", ("model", None, b"m"), ("file", "a", b"\x00")),
        {"model": "m"},
    ),
    "no body at all": ("openai", Asked("POST", "/chat/completions", (JSON, KEY), b""), {"x": 1}),
}


@pytest.mark.parametrize("name", UNCHANGED)
async def test_no_effective_change_means_the_original_bytes(tmp_path: Path, name: str) -> None:
    """Options that change nothing touch nothing."""
    dialect, asked, options = UNCHANGED[name]
    got, attempt = await asked_and_seen(tmp_path, dialect, asked, rule(**options))
    assert attempt.body == asked.body
    assert attempt.target.endswith(asked.path)
    if "same" in name:
        assert got.values("X-Steer-Model") == []


@pytest.mark.parametrize("body", ['{"model": "m",', '["model"]', "\ufeff{}", '{"model": NaN}'])
async def test_a_body_that_cannot_be_rewritten(tmp_path: Path, body: str) -> None:
    """Sent as it is it would do something else than was planned, so it is not sent at all."""
    async with world(tmp_path, route=rule(model="x")) as parties:
        asked = raw("/chat/completions", body)
        got = await ask(parties.steer.sidecar.port, asked, path=f"/route{asked.path}")
        assert (got.status, got.json["error"]["code"]) == (400, "steer_bad_body")
        assert parties.primary.attempts == []


async def test_other_options_are_merged(tmp_path: Path) -> None:
    """RFC 7396: members are set, null removes, objects are merged; the model beside them."""
    options = {"model": "other", "temperature": 0, "seed": None, "response_format": {"type": "x"}}
    body = '{"model": "m", "seed": 1, "response_format": {"type": "text", "strict": true}}'
    asked = raw("/chat/completions", body)
    _, attempt = await asked_and_seen(tmp_path, "openai", asked, rule(**options))
    assert attempt.json == {
        "model": "other",
        "temperature": 0,
        "response_format": {"type": "x", "strict": True},
    }


async def test_each_candidate_gets_its_own(tmp_path: Path) -> None:
    """A fallback's options do not touch what home is asked, nor the other way round."""
    body = post("/route/chat/completions", {"model": "gpt-4o", "messages": []}, KEY)
    async with world(tmp_path, fallback_options={"model": "mini", "seed": 7}) as parties:
        await parties.primary.stop_listening()
        got = await ask(parties.steer.sidecar.port, body)
        assert got.value("X-Steer-Model") == "mini"
        assert parties.fallback.attempts[0].json == {"model": "mini", "messages": [], "seed": 7}
        await parties.primary.start_listening()
        got = await ask(parties.steer.sidecar.port, body)
        assert got.values("X-Steer-Model") == []
        assert parties.primary.attempts[0].body == body.body
