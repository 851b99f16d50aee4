"""Which dialect and which endpoint a request means, whatever prefix the path carries.

Prefixes occur in the wild: `/openai/v1` (Groq, Azure), `/api/v1` (OpenRouter), `/inference/v1`
(Fireworks), `/openai/deployments/NAME` (Azure classic).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from tests.provider.attempt import Attempt

Dialect = Literal["openai", "anthropic", "gemini", "http"]


class Endpoint(NamedTuple):
    """A dialect, the name of an endpoint in it, and the identifiers in the path."""

    dialect: Dialect
    name: str
    arguments: tuple[str, ...] = ()


_TABLE: tuple[tuple[Dialect, str, str], ...] = (
    ("anthropic", "message_batch_results", r"/v1/messages/batches/([^/]+)/results"),
    ("anthropic", "message_batch_cancel", r"/v1/messages/batches/([^/]+)/cancel"),
    ("anthropic", "message_batch", r"/v1/messages/batches/([^/]+)"),
    ("anthropic", "message_batches", r"/v1/messages/batches"),
    ("anthropic", "count_tokens", r"/v1/messages/count_tokens"),
    ("anthropic", "messages", r"/v1/messages"),
    ("gemini", "model_action", r"/v1(?:beta|alpha)?/((?:models|tunedModels)/[^/:]+):(\w+)"),
    ("gemini", "models", r"/v1(?:beta|alpha)/models"),
    ("gemini", "model", r"/v1(?:beta|alpha)/models/([^/:]+)"),
    ("openai", "chat_completions", r"/chat/completions"),
    ("openai", "completions", r"/v1/completions"),
    ("openai", "responses", r"/v1/responses"),
    ("openai", "response", r"/v1/responses/([^/]+)"),
    ("openai", "embeddings", r"/(?:v1|deployments/[^/]+)/embeddings"),
    ("openai", "speech", r"/v1/audio/speech"),
    ("openai", "transcriptions", r"/v1/audio/transcriptions"),
    ("openai", "translations", r"/v1/audio/translations"),
    ("openai", "images", r"/v1/images/(?:generations|edits|variations)"),
    ("openai", "moderations", r"/v1/moderations"),
    ("openai", "realtime", r"/v1/realtime"),
    ("openai", "files", r"/v1/files"),
    ("openai", "file_content", r"/v1/files/([^/]+)/content"),
    ("openai", "file", r"/v1/files/([^/]+)"),
    ("openai", "batches", r"/v1/batches"),
    ("openai", "batch_cancel", r"/v1/batches/([^/]+)/cancel"),
    ("openai", "batch", r"/v1/batches/([^/]+)"),
    ("openai", "models", r"/v1/models"),
    ("openai", "model", r"/v1/models/([^/]+)"),
)
_ENDPOINTS = tuple(
    (dialect, name, re.compile(rf"(?:/[^/]+)*?{path}")) for dialect, name, path in _TABLE
)
_GENERATION = frozenset(
    "messages chat_completions completions responses embeddings speech transcriptions translations"
    " images moderations realtime".split()
)
_GEMINI_GENERATION = frozenset(
    "generateContent streamGenerateContent embedContent batchEmbedContents".split()
)


@lru_cache(maxsize=4096)
def _endpoint_of_path(path: str) -> Endpoint:
    for dialect, name, pattern in _ENDPOINTS:
        found = pattern.fullmatch(path)
        if found is not None:
            return Endpoint(dialect, name, tuple(found.groups()))
    return Endpoint("http", "any")


def endpoint_of(attempt: Attempt) -> Endpoint:
    """The endpoint; the model lists of three vendors share a path and differ by a header."""
    endpoint = _endpoint_of_path(attempt.path)
    shared = endpoint.dialect == "openai" and endpoint.name in ("models", "model")
    if shared and attempt.header("anthropic-version") is not None:
        return endpoint._replace(dialect="anthropic")
    if shared and (attempt.header("x-goog-api-key") or "key" in attempt.query_parameters):
        return endpoint._replace(dialect="gemini")
    return endpoint


def dialect_of(attempt: Attempt) -> Dialect:
    """The dialect in which to answer, errors included."""
    return endpoint_of(attempt).dialect


def is_json_array(attempt: Attempt) -> bool:
    """Whether Gemini streams, and fails, as one JSON array: unless asked for `alt=sse`."""
    streams = endpoint_of(attempt).arguments[1:] == ("streamGenerateContent",)
    return streams and attempt.query_parameters.get("alt") != ["sse"]


def is_generation(attempt: Attempt) -> bool:
    """Whether the request asks for generation; of plain HTTP, everything but HEAD and OPTIONS."""
    endpoint = endpoint_of(attempt)
    if endpoint.dialect == "http":
        return attempt.method not in ("HEAD", "OPTIONS")
    if endpoint.name == "realtime":
        return attempt.method == "GET"
    if endpoint.name == "model_action":
        return endpoint.arguments[1] in _GEMINI_GENERATION
    return endpoint.name in _GENERATION and attempt.method == "POST"
