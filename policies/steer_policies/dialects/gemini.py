"""The Gemini dialect: generation, embeddings and token counts; all else is pinned.

Paths are relative to a base URL without a version: `/v1beta/models/{model}:generateContent`.
Vertex AI's longer paths are understood, too.
"""

# ruff: noqa: ARG002 - a dialect is handed all that any dialect needs

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from steer_policies.classify import classify_answer
from steer_policies.config import DialectName
from steer_policies.dialects.base import (
    ErrorAnswer,
    RequestFacts,
    Rewritten,
    StreamReader,
    Usage,
    Where,
)
from steer_policies.dialects.gemini_errors import RULES
from steer_policies.dialects.gemini_stream import GeminiArrayReader, GeminiReader
from steer_policies.dialects.rewriting import dump, patch_body
from steer_policies.dialects.special import is_grounded
from steer_policies.dialects.sse import is_event_stream
from steer_policies.dialects.usage import gemini_usage
from steer_policies.foreign import count, items, label, load, mapping
from steer_policies.outcome import Verdict
from steer_policies.paths import collapse_slashes

_GENERATION: Final = frozenset(
    "generateContent streamGenerateContent countTokens embedContent batchEmbedContents "
    "predict".split()
)

_METHOD: Final = re.compile(
    r"(/v1(?:beta1?|alpha)?/(?:projects/[^/]+/locations/[^/]+/(?:publishers/[^/]+/)?)?)"
    r"(models|tunedModels)/([^/:]+)(:([A-Za-z]+))"
)

# Names for the ledger; whatever else a path begins with is foreign, and "other".
_STORED: Final = frozenset(
    "batches cachedContents corpora files fileSearchStores interactions models operations "
    "tunedModels upload".split()
)

# https://cloud.google.com/apis/design/errors, "HTTP mapping"; 502 is nobody's there.
_STATUS_NAMES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_STREAM_BROKE: Final = 503


class Gemini:
    """Stateless; see `Dialect`."""

    name = DialectName.GEMINI

    def canonical_path(self, path: str) -> str:
        """The path without empty segments."""
        return collapse_slashes(path)

    def describe(
        self, method: str, path: str, query: str, content_type: str, body: Any
    ) -> RequestFacts:
        """Read a request. Cached content is kept by the provider, and pins."""
        match = _METHOD.fullmatch(path)
        if match is None or method != "POST" or match[5] not in _GENERATION:
            return RequestFacts(_stored(path), False)
        fields = mapping(body)
        request = mapping(fields.get("generateContentRequest")) or fields  # of countTokens
        config = mapping(_either(request, "generationConfig", "generation_config"))
        return RequestFacts(
            match[5],
            not _either(request, "cachedContent", "cached_content"),
            label(_model_name(match[2], unquote(match[3]))),
            Where.PATH,
            stream=match[5] == "streamGenerateContent",
            max_tokens=count(_either(config, "maxOutputTokens", "max_output_tokens")),
            choices=min(count(_either(config, "candidateCount", "candidate_count")) or 1, 128),
        )

    def rewrite(
        self,
        facts: RequestFacts,
        path: str,
        query: str,
        content_type: str,
        raw: bytes,
        body: Any,
        options: Mapping[str, Any],
    ) -> Rewritten:
        """Apply a plan's options. The model is in the path, and some bodies repeat it."""
        patch = {name: value for name, value in options.items() if name != "model"}
        model = options.get("model")
        match = _METHOD.fullmatch(path)
        if isinstance(model, str) and model != facts.model and match is not None:
            collection, _, name = model.rpartition("/")
            collection = "tunedModels" if collection == "tunedModels" else "models"
            path = f"{match[1]}{collection}/{quote(name, safe='')}{match[4]}"
            patch = {**patch, **_repeated_model(mapping(body), f"{collection}/{name}")}
        return Rewritten(path, query, patch_body(raw, body, patch))

    def classify(
        self, facts: RequestFacts, status: int, headers: Mapping[str, str], body: bytes, wall: float
    ) -> Verdict:
        """What a finished answer means. A 200 with a blocked prompt is an answer."""
        return classify_answer(RULES, status, headers, body, wall)

    def usage_options(self, facts: RequestFacts, body: Any) -> Mapping[str, Any]:
        """None: every stream counts."""
        return {}

    def read_stream(
        self,
        facts: RequestFacts,
        content_type: str,
        *,
        keep_text: bool = False,
        strip_usage: bool = False,
    ) -> StreamReader | None:
        """A reader for either form of stream."""
        if facts.operation != "streamGenerateContent":
            return None
        if is_event_stream(content_type):
            return GeminiReader(facts.choices)
        return GeminiArrayReader(facts.choices) if _is_json(content_type) else None

    def read_answer(self, facts: RequestFacts, body: bytes) -> tuple[str | None, Usage | None]:
        """The model and usage a plain answer reports; a token count is no usage."""
        document = mapping(load(body))
        return label(document.get("modelVersion")), gemini_usage(
            document.get("usageMetadata"), grounded=is_grounded(document)
        )

    def error(self, status: int, code: str, message: str) -> ErrorAnswer:
        """The API's error body, of which the official SDK makes `ClientError` or `ServerError`."""
        return ErrorAnswer(dump(_error_body(status, code, message)))

    def error_event(self, facts: RequestFacts, content_type: str, code: str, message: str) -> bytes:
        """An event with the error; in an array its last element, and the closing bracket.

        In an array at least one element must have gone before it.
        """
        body = dump(_error_body(_STREAM_BROKE, code, message))
        if is_event_stream(content_type):
            return b"data: " + body + b"\r\n\r\n"
        return b",\r\n" + body + b"\n]\n" if _is_json(content_type) else b""

    def resumed(self, facts: RequestFacts, first: bytes, text: str) -> bytes | None:
        """Never: a part may carry thoughts and signatures that no other stream continues."""
        return None

    def adopted(self, facts: RequestFacts, first: bytes, event: bytes) -> bytes | None:
        """Never."""
        return None


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _either(value: Mapping[str, Any], camel: str, snake: str) -> Any:
    """A member by either name: proto3's JSON mapping lets clients write both."""
    found = value.get(camel)
    return value.get(snake) if found is None else found


def _model_name(collection: str, name: str) -> str:
    return name if collection == "models" else f"{collection}/{name}"


def _repeated_model(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A patch for the bodies that repeat the path's model, and are refused when it differs."""
    patch: dict[str, Any] = {}
    if isinstance(body.get("model"), str):  # embedContent
        patch["model"] = model
    if "model" in mapping(body.get("generateContentRequest")):  # countTokens
        patch["generateContentRequest"] = {"model": model}
    if requests := items(body.get("requests")):  # batchEmbedContents
        patch["requests"] = [
            {**request, "model": model} if "model" in mapping(request) else request
            for request in requests
        ]
    return patch


def _error_body(status: int, code: str, message: str) -> dict[str, Any]:
    reason = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": code,
        "domain": "steer",
    }
    name = _STATUS_NAMES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
    return {"error": {"code": status, "message": message, "status": name, "details": [reason]}}


def _stored(path: str) -> str:
    segments = path.split("/")
    return next((name for name in segments[1:4] if name in _STORED), "other")
