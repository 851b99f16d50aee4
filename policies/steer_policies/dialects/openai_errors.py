"""What OpenAI and its many compatible servers complain about.

Codes: https://platform.openai.com/docs/guides/error-codes, the `ResponseError` of the official SDK,
and Azure's content filter (https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter).
"""

from __future__ import annotations

from typing import Any, Final

from steer_policies.classify import NO_COMPLAINT, Complaint, Rules, complaint
from steer_policies.config import DialectName
from steer_policies.foreign import mapping
from steer_policies.outcome import Failure

_REASONS: Final = {
    "context_length_exceeded": Failure.CONTEXT_LENGTH,
    "context_window_exceeded": Failure.CONTEXT_LENGTH,
    "exceed_context_size_error": Failure.CONTEXT_LENGTH,  # llama.cpp
    "content_policy_violation": Failure.CONTENT_POLICY,
    "content_filter": Failure.CONTENT_POLICY,  # Azure
    "responsibleaipolicyviolation": Failure.CONTENT_POLICY,  # Azure, in `innererror`
    "moderation_blocked": Failure.CONTENT_POLICY,  # images
    "image_content_policy_violation": Failure.CONTENT_POLICY,
    "misalignment_policy_violation": Failure.CONTENT_POLICY,
    "bio_policy": Failure.CONTENT_POLICY,
    "cyber_policy": Failure.CONTENT_POLICY,
    "invalid_prompt": Failure.CONTENT_POLICY,  # reasoning models' word for a flagged prompt
}

_PHRASES: Final = (
    ("maximum context length", Failure.CONTEXT_LENGTH),  # embeddings, vLLM, Mistral
    ("context length exceeded", Failure.CONTEXT_LENGTH),
    ("exceeds the context window", Failure.CONTEXT_LENGTH),
    # A 429 for one request above the per-minute limit: no waiting mends it, another model may.
    ("request too large for", Failure.CONTEXT_LENGTH),
    ("safety system", Failure.CONTENT_POLICY),  # images without a code
    ("input was flagged", Failure.CONTENT_POLICY),  # OpenRouter, with 403
)

_IN_BAND: Final = {
    "rate_limit_exceeded": Failure.THROTTLED,
    "rate_limit_error": Failure.THROTTLED,
    "too_many_requests": Failure.THROTTLED,
    "server_error": Failure.SERVER_ERROR,
    "internal_error": Failure.SERVER_ERROR,
    "api_error": Failure.SERVER_ERROR,
    "vector_store_timeout": Failure.SERVER_ERROR,
    "overloaded": Failure.OVERLOADED,
    "overloaded_error": Failure.OVERLOADED,
    "engine_overloaded": Failure.OVERLOADED,
    "engine_overloaded_error": Failure.OVERLOADED,
    "service_unavailable": Failure.OVERLOADED,
    "service_unavailable_error": Failure.OVERLOADED,
    "server_is_overloaded": Failure.OVERLOADED,
    "slow_down": Failure.OVERLOADED,
    "invalid_api_key": Failure.CREDENTIAL,
    "authentication_error": Failure.CREDENTIAL,
    "permission_error": Failure.CREDENTIAL,
    "invalid_image": Failure.REJECTED,
    "invalid_image_format": Failure.REJECTED,
    "invalid_base64_image": Failure.REJECTED,
    "invalid_image_url": Failure.REJECTED,
    "invalid_image_mode": Failure.REJECTED,
    "image_too_large": Failure.REJECTED,
    "image_too_small": Failure.REJECTED,
    "image_parse_error": Failure.REJECTED,
    "image_file_too_large": Failure.REJECTED,
    "image_file_not_found": Failure.REJECTED,
    "empty_image_file": Failure.REJECTED,
    "unsupported_image_media_type": Failure.REJECTED,
    "failed_to_download_image": Failure.REJECTED,
    "data_residency_mismatch": Failure.REJECTED,
    "model_not_found": Failure.REJECTED,
    "invalid_request_error": Failure.REJECTED,
}


def read_error(document: Any) -> Complaint:
    """A complaint from an error body or event: `{"error": {...}}`, or the bare object.

    Gateways differ: `error` may be text, `code` a status number, and Google's compatible address
    wraps it all in a list of one.
    """
    if isinstance(document, list) and document:
        document = document[0]
    body = mapping(document)
    error = body.get("error") or body
    if isinstance(error, str):
        return complaint(body.get("code"), body.get("type"), message=error)
    error = mapping(error)
    if not error:
        return NO_COMPLAINT
    inner = mapping(error.get("innererror"))
    return complaint(
        inner.get("code"),
        error.get("code"),
        error.get("type"),
        error.get("status"),
        message=error.get("message"),
        statuses=(error.get("code"), error.get("status"), body.get("status")),
        headers=error.get("headers"),  # responses repeat them in a stream's error
    )


RULES: Final = Rules(DialectName.OPENAI, read_error, _REASONS, _PHRASES, _IN_BAND)
