"""What an OpenAI request asks for, and how a plan's options are put into it.

Only generation is steered: these calls leave nothing behind that a later call could refer to, so
that they may run again or elsewhere. Everything else belongs to the home upstream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from steer_policies.dialects.base import RequestFacts, Rewritten, Where
from steer_policies.dialects.multipart import set_form_field
from steer_policies.dialects.rewriting import patch_body, query_parameter, set_query_parameter
from steer_policies.foreign import count, items, label, mapping

_GENERATION: Final = {
    "/chat/completions": "chat.completions",
    "/completions": "completions",
    "/fim/completions": "completions",  # Mistral's: the middle of a text
    "/responses": "responses",
    "/embeddings": "embeddings",
    "/audio/speech": "audio.speech",
    "/audio/transcriptions": "audio.transcriptions",
    "/audio/translations": "audio.translations",
    "/images/generations": "images.generations",
    "/images/edits": "images.edits",
    "/images/variations": "images.variations",
    "/moderations": "moderations",
}

CHOICES: Final = frozenset({"chat.completions", "completions"})
"""Operations whose streams carry `choices`."""

TYPED: Final = frozenset(
    {
        "responses",
        "audio.speech",
        "audio.transcriptions",
        "audio.translations",
        "images.generations",
        "images.edits",
        "images.variations",
    }
)
"""Operations whose streams carry typed events."""

# Names for the ledger; whatever else a path begins with is foreign, and "other".
_STORED: Final = frozenset(
    "assistants batches chat completions containers conversations evals files fine_tuning images "
    "models moderations organization realtime responses skills threads uploads vector_stores "
    "videos webhooks".split()
)

# Each ties a response to something the provider keeps.
_PINS: Final = ("background", "previous_response_id", "conversation", "prompt")

# Each makes an answer more than one text, or decorates it.
_NOT_PLAIN: Final = (
    "tools",
    "functions",
    "audio",
    "logprobs",
    "web_search_options",
    "moderation",
)

_MAX_CHOICES: Final = 128
"""The API's own limit of `n`."""

# Azure's dated addresses name a deployment, which stands for the model:
# https://learn.microsoft.com/azure/ai-foundry/openai/reference.
_DEPLOYMENT: Final = re.compile(r"(/(?:openai/)?deployments/)([^/]+)(/.*)")


def describe(method: str, path: str, query: str, content_type: str, body: Any) -> RequestFacts:
    """Read a request; `path` is canonical."""
    if path.endswith("/realtime") and method == "GET":
        # A `call_id` joins a conversation that runs already.
        steered = query_parameter(query, "call_id") is None
        model = label(query_parameter(query, "model"))
        return RequestFacts("realtime", steered, model, Where.QUERY)
    deployment = _DEPLOYMENT.fullmatch(path)
    operation = _GENERATION.get(path if deployment is None else deployment[3])
    fields = mapping(body)
    if operation is None or method != "POST":
        return RequestFacts(_stored(path), False, stream=_streams(fields))
    model_in = Where.NOWHERE
    model = label(fields.get("model"))
    if deployment is not None:
        model_in, model = Where.PATH, label(unquote(deployment[2]))
    elif content_type[:19].lower() == "multipart/form-data":
        model_in = Where.FORM
    elif fields:
        model_in = Where.BODY
    return RequestFacts(
        operation,
        not (operation == "responses" and any(fields.get(name) for name in _PINS)),
        model,
        model_in,
        stream=_streams(fields),
        max_tokens=_max_tokens(fields),
        resumable=operation == "chat.completions" and _is_plain_text(fields),
        choices=_choices(operation, fields),
    )


def rewrite(
    facts: RequestFacts,
    path: str,
    query: str,
    content_type: str,
    raw: bytes,
    body: Any,
    options: Mapping[str, Any],
) -> Rewritten:
    """Apply options; a form takes only `model`."""
    model = options.get("model")
    new = model if isinstance(model, str) and model != facts.model else None
    if facts.model_in is Where.QUERY:
        if new is not None:
            query = set_query_parameter(query, "model", new)
        return Rewritten(path, query, None)
    if facts.model_in is Where.FORM:
        form = None if new is None else set_form_field(content_type, raw, "model", new)
        return Rewritten(path, query, form)
    if facts.model_in is Where.PATH:
        options = {name: value for name, value in options.items() if name != "model"}
        if new is not None and (match := _DEPLOYMENT.fullmatch(path)) is not None:
            path = f"{match[1]}{quote(new, safe='')}{match[3]}"
    return Rewritten(path, query, patch_body(raw, body, options))


def _stored(path: str) -> str:
    name = path[1:].partition("/")[0]
    return name if name in _STORED else "other"


def _streams(fields: Mapping[str, Any]) -> bool:
    """`stream` is text in a form; speech asks for events by `stream_format`."""
    stream = fields.get("stream")
    return stream is True or stream == "true" or fields.get("stream_format") == "sse"


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if (limit := count(fields.get(name))) is not None:
            return limit
    return None


def _choices(operation: str, fields: Mapping[str, Any]) -> int:
    """`n`, which is text in a form; legacy completions give `n` for each of several prompts."""
    value = fields.get("n")
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 4:
        value = int(value)
    choices = min(count(value) or 1, _MAX_CHOICES)
    prompts = items(fields.get("prompt")) if operation == "completions" else []
    if prompts and isinstance(prompts[0], (str, list)):
        choices *= len(prompts)
    return choices


def _is_plain_text(fields: Mapping[str, Any]) -> bool:
    """Whether the answer is one text and nothing else."""
    return (
        fields.get("stream") is True
        and fields.get("n") in (None, 1)
        and fields.get("modalities") in (None, ["text"])
        and not any(fields.get(name) for name in _NOT_PLAIN)
    )
