"""OpenAI's embeddings, audio, images and moderations."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any

from tests.provider.answers import (
    json_answer,
    sse_answer,
    sse_event,
    stream_answer,
    text_answer,
)
from tests.provider.attempt import Attempt
from tests.provider.openai.headers import openai_headers
from tests.provider.steps import Answer, Event
from tests.provider.world import CREATED, World, count_tokens

DIMENSIONS = 8
_AUDIO_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_MP3_FRAME = b"\xff\xfb\x90\x64" + bytes(range(256)) + bytes(157)  # 417 bytes: 128 kbit/s, 44.1 kHz
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_CATEGORIES = (
    "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm"
    " self-harm/instructions self-harm/intent sexual sexual/minors violence violence/graphic"
).split()


def embeddings(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/embeddings`: floats, or little-endian float32 in base64 (what the SDK asks for)."""
    asked = attempt.object
    given = asked.get("input", "")
    texts = (
        given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]
    )
    dimensions = int(asked.get("dimensions") or DIMENSIONS)
    data = []
    for index, text in enumerate(texts):
        vector: Any = _vector(text, dimensions)
        if asked.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = count_tokens(given)
    answer = {
        "object": "list",
        "data": data,
        "model": asked.get("model", ""),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_answer(200, answer, openai_headers(attempt, world))


def _vector(text: Any, dimensions: int) -> list[float]:
    """Numbers that float32 holds exactly, so that both encodings give the same."""
    seed = hashlib.sha256(repr(text).encode()).digest()
    return [(seed[index % len(seed)] - 128) / 128 for index in range(dimensions)]


def speech(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/audio/speech`: chunked audio, or events of base64 with `stream_format: sse`."""
    asked = attempt.object
    headers = openai_headers(attempt, world)
    frames = [_MP3_FRAME] * max(1, min(64, len(str(asked.get("input", "")).split())))
    if asked.get("stream_format") == "sse":
        events = [
            sse_event({"type": "speech.audio.delta", "audio": base64.b64encode(frame).decode()})
            for frame in frames
        ]
        usage = {
            "input_tokens": len(frames),
            "output_tokens": 100,
            "total_tokens": len(frames) + 100,
        }
        done = sse_event({"type": "speech.audio.done", "usage": usage}, role="terminal")
        return sse_answer([*events, done], headers, pace=world.pace)
    kind = _AUDIO_TYPES.get(str(asked.get("response_format", "mp3")), "audio/mpeg")
    return stream_answer(map(Event, frames), headers, content_type=kind, pace=world.pace)


def transcriptions(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/audio/transcriptions` and `translations`: JSON, text, subtitles or events."""
    headers = openai_headers(attempt, world)
    model = attempt.field("model")
    text = world.answer_text(attempt, model)
    if attempt.field("stream") == "true":
        events = [
            sse_event({"type": "transcript.text.delta", "delta": word})
            for word in world.words(model)
        ]
        done = sse_event({"type": "transcript.text.done", "text": text}, role="terminal")
        return sse_answer([*events, done], headers, pace=world.pace)
    match attempt.field("response_format", "json"):
        case "text":
            return text_answer(200, text + "\n", headers)
        case "srt":
            return text_answer(200, f"1\n00:00:00,000 --> 00:00:03,000\n{text}\n\n", headers)
        case "vtt":
            return text_answer(200, f"WEBVTT\n\n00:00:00.000 --> 00:00:03.000\n{text}\n\n", headers)
        case "verbose_json":
            usage: dict[str, Any] = {"type": "duration", "seconds": 3}
            spoken = {"task": "transcribe", "language": "english", "duration": 3.0, "text": text}
            return json_answer(200, {**spoken, "segments": [], "usage": usage}, headers)
        case _:
            usage = {"type": "tokens", "input_tokens": 30, "output_tokens": 11, "total_tokens": 41}
            return json_answer(200, {"text": text, "usage": usage}, headers)


def images(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/images/generations`, `edits` (multipart) and `variations`; plain or streamed."""
    headers = openai_headers(attempt, world)
    asked = attempt.object or {part.name: part.data.decode("latin-1") for part in attempt.form}
    image = base64.b64encode(_PNG).decode()
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 10},
        "output_tokens": 272,
        "total_tokens": 282,
    }
    settings = {
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
    }
    if asked.get("stream") in (True, "true"):
        kind = "image_edit" if attempt.path.endswith("edits") else "image_generation"
        shared = {"created_at": CREATED, "b64_json": image, **settings}
        partial = {"type": f"{kind}.partial_image", "partial_image_index": 0, **shared}
        whole = {"type": f"{kind}.completed", "usage": usage, **shared}
        events = [
            sse_event(partial, f"{kind}.partial_image"),
            sse_event(whole, f"{kind}.completed", "terminal"),
        ]
        return sse_answer(events, headers, pace=world.pace)
    made = [{"b64_json": image}] * int(asked.get("n") or 1)
    answer = {"created": CREATED, **settings, "data": made, "usage": usage}
    return json_answer(200, answer, headers)


def moderations(attempt: Attempt, world: World) -> Answer:
    """`POST /v1/moderations`: nothing is ever flagged."""
    asked = attempt.object
    given = asked.get("input", "")
    texts = given if isinstance(given, list) else [given]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0001),
        "category_applied_input_types": {category: ["text"] for category in _CATEGORIES},
    }
    answer = {
        "id": f"modr-{world.digest(attempt)}",
        "model": asked.get("model", "omni-moderation-latest"),
        "results": [result] * len(texts),
    }
    return json_answer(200, answer, openai_headers(attempt, world))
