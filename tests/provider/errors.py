"""The bodies of provider errors, dialect by dialect.

Sources: https://platform.openai.com/docs/guides/error-codes,
https://docs.anthropic.com/en/api/errors, https://ai.google.dev/gemini-api/docs/troubleshooting,
google.rpc.Status; wordings as the providers send them, since clients match on them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from tests.provider.answers import json_answer
from tests.provider.attempt import Attempt
from tests.provider.dialects import Dialect, dialect_of, is_json_array
from tests.provider.steps import Answer, Headers

ErrorKind = Literal[
    "rate_limit",
    "insufficient_quota",
    "overloaded",
    "server_error",
    "context_length",
    "content_policy",
    "authentication",
    "permission",
    "billing",
    "not_found",
    "invalid_request",
]


class ErrorShape(NamedTuple):
    """Status, kind (OpenAI's and Anthropic's type, Gemini's status), code, message, parameter."""

    status: int
    kind: str
    code: str | None
    message: str
    parameter: str | None = None


_OPENAI: dict[str, ErrorShape] = {
    "rate_limit": ErrorShape(
        429,
        "tokens",
        "rate_limit_exceeded",
        "Rate limit reached for gpt-4o in organization org-wall on tokens per min (TPM): Limit"
        " 30000, Used 29500, Requested 1000. Please try again in 1s.",
    ),
    "insufficient_quota": ErrorShape(
        429,
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "overloaded": ErrorShape(
        503, "server_error", None, "The engine is currently overloaded, please try again later"
    ),
    "server_error": ErrorShape(
        500,
        "server_error",
        None,
        "The server had an error while processing your request. Sorry about that!",
    ),
    "context_length": ErrorShape(
        400,
        "invalid_request_error",
        "context_length_exceeded",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in"
        " 150000 tokens. Please reduce the length of the messages.",
        "messages",
    ),
    "content_policy": ErrorShape(
        400,
        "invalid_request_error",
        "content_policy_violation",
        "Your request was rejected as a result of our safety system.",
    ),
    "authentication": ErrorShape(
        401,
        "invalid_request_error",
        "invalid_api_key",
        "Incorrect API key provided. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
    ),
    "permission": ErrorShape(
        403,
        "request_forbidden",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    "billing": ErrorShape(
        429,
        "billing_not_active",
        "billing_not_active",
        "Your account is not active, please check your billing details on our website.",
    ),
    "not_found": ErrorShape(
        404,
        "invalid_request_error",
        "model_not_found",
        "The model does not exist or you do not have access to it.",
    ),
    "invalid_request": ErrorShape(
        400, "invalid_request_error", None, "We could not parse the JSON body of your request."
    ),
}
_ANTHROPIC: dict[str, ErrorShape] = {
    "rate_limit": ErrorShape(
        429,
        "rate_limit_error",
        None,
        "This request would exceed your organization's rate limit of 50,000 input tokens per"
        " minute.",
    ),
    "insufficient_quota": ErrorShape(
        429,
        "rate_limit_error",
        "enforced_spend_limit_reached",
        "You have reached your organization's monthly usage limit.",
    ),
    "overloaded": ErrorShape(529, "overloaded_error", None, "Overloaded"),
    "server_error": ErrorShape(500, "api_error", None, "Internal server error"),
    "context_length": ErrorShape(
        400, "invalid_request_error", None, "prompt is too long: 210000 tokens > 200000 maximum"
    ),
    "content_policy": ErrorShape(
        400, "invalid_request_error", None, "Output blocked by content filtering policy"
    ),
    "authentication": ErrorShape(401, "authentication_error", None, "invalid x-api-key"),
    "permission": ErrorShape(
        403,
        "permission_error",
        None,
        "Your API key does not have permission to use the specified resource.",
    ),
    "billing": ErrorShape(
        400,
        "invalid_request_error",
        None,
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing"
        " to upgrade or purchase credits.",
    ),
    "not_found": ErrorShape(404, "not_found_error", None, "model: claude-none"),
    "invalid_request": ErrorShape(
        400, "invalid_request_error", None, "messages: at least one message is required"
    ),
}
_GEMINI: dict[str, ErrorShape] = {
    "rate_limit": ErrorShape(
        429,
        "RESOURCE_EXHAUSTED",
        "15",
        "You exceeded your current quota, please check your plan and billing details. Quota"
        " exceeded for metric: generativelanguage.googleapis.com/generate_content_requests,"
        " limit: 15",
    ),
    "insufficient_quota": ErrorShape(
        429,
        "RESOURCE_EXHAUSTED",
        "0",
        "You exceeded your current quota, please check your plan and billing details. Quota"
        " exceeded for metric: generativelanguage.googleapis.com/generate_content_requests,"
        " limit: 0",
    ),
    "overloaded": ErrorShape(
        503, "UNAVAILABLE", None, "The model is overloaded. Please try again later."
    ),
    "server_error": ErrorShape(500, "INTERNAL", None, "An internal error has occurred."),
    "context_length": ErrorShape(
        400,
        "INVALID_ARGUMENT",
        None,
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "authentication": ErrorShape(
        400,
        "INVALID_ARGUMENT",
        "API_KEY_INVALID",
        "API key not valid. Please pass a valid API key.",
    ),
    "permission": ErrorShape(
        403,
        "PERMISSION_DENIED",
        "API_KEY_SERVICE_BLOCKED",
        "Requests to this API generativelanguage.googleapis.com are blocked.",
    ),
    "billing": ErrorShape(
        403,
        "PERMISSION_DENIED",
        "BILLING_DISABLED",
        "This API method requires billing to be enabled.",
    ),
    "not_found": ErrorShape(
        404, "NOT_FOUND", None, "models/none is not found for API version v1beta."
    ),
    "invalid_request": ErrorShape(400, "INVALID_ARGUMENT", None, "Invalid JSON payload received."),
}
_HTTP: dict[str, ErrorShape] = {
    kind: ErrorShape(shape.status, kind, None, shape.message) for kind, shape in _OPENAI.items()
}
_SHAPES: dict[Dialect, dict[str, ErrorShape]] = {
    "openai": _OPENAI,
    "anthropic": _ANTHROPIC,
    "gemini": _GEMINI,
    "http": _HTTP,
}
_BY_STATUS: dict[int, ErrorKind] = {
    400: "invalid_request",
    401: "authentication",
    402: "billing",
    403: "permission",
    404: "not_found",
    429: "rate_limit",
    503: "overloaded",
    529: "overloaded",
}
_ANTHROPIC_TYPES = {402: "billing_error", 408: "timeout_error", 409: "conflict_error"}
_ANTHROPIC_TYPES |= {413: "request_too_large", 504: "timeout_error"}
_GEMINI_STATUSES = {408: "DEADLINE_EXCEEDED", 409: "ABORTED", 499: "CANCELLED"}
_GEMINI_STATUSES |= {501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


def error_shape(dialect: Dialect, kind: ErrorKind) -> ErrorShape:
    """An error as its dialect has it; Gemini has no error for content policy (see `faults`)."""
    return _SHAPES[dialect].get(kind) or _SHAPES[dialect]["invalid_request"]


def shape_of_status(dialect: Dialect, status: int) -> ErrorShape:
    """The usual error for a status, under exactly that status."""
    kind = _BY_STATUS.get(status, "server_error" if status >= 500 else "invalid_request")
    shape = error_shape(dialect, kind)
    if status == 401 and dialect == "gemini":
        shape = ErrorShape(401, "UNAUTHENTICATED", None, "Request had invalid credentials.")
    names = {"anthropic": _ANTHROPIC_TYPES, "gemini": _GEMINI_STATUSES}.get(dialect, {})
    return shape._replace(status=status, kind=names.get(status, shape.kind))


def error_value(
    dialect: Dialect,
    shape: ErrorShape,
    *,
    retry_delay: str | None = None,
    request_id: str | None = None,
) -> Any:
    """The JSON of an error.

    `retry_delay` is Gemini's RetryInfo ("37s"), `request_id` Anthropic's; ignored elsewhere.
    """
    match dialect:
        case "openai":
            error = {"message": shape.message, "type": shape.kind}
            return {"error": {**error, "param": shape.parameter, "code": shape.code}}
        case "anthropic":
            inner: dict[str, Any] = {"type": shape.kind, "message": shape.message}
            if shape.code is not None:
                inner["details"] = {"error_code": shape.code}
            return {"type": "error", "error": inner, "request_id": request_id}
        case "gemini":
            status = {"code": shape.status, "message": shape.message, "status": shape.kind}
            details = _gemini_details(shape, retry_delay)
            return {"error": {**status, "details": details} if details else status}
        case "http":
            return {"error": shape.kind, "message": shape.message}


def _gemini_details(shape: ErrorShape, retry_delay: str | None) -> list[dict[str, Any]]:
    types = "type.googleapis.com/google.rpc"
    details: list[dict[str, Any]] = []
    if shape.status == 429:
        violation = {
            "quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
            "quotaId": "GenerateRequestsPerMinutePerProjectPerModel",
            "quotaDimensions": {"model": "gemini-2.5-flash", "location": "global"},
            "quotaValue": shape.code,
        }
        details.append({"@type": f"{types}.QuotaFailure", "violations": [violation]})
    elif shape.code is not None:
        domain = "googleapis.com"
        details.append({"@type": f"{types}.ErrorInfo", "reason": shape.code, "domain": domain})
    if retry_delay is not None:
        details.append({"@type": f"{types}.RetryInfo", "retryDelay": retry_delay})
    return details


def error_answer(
    attempt: Attempt,
    shape: ErrorShape,
    headers: Headers = (),
    *,
    retry_delay: str | None = None,
) -> Answer:
    """A whole error answer in the dialect of the request."""
    dialect = dialect_of(attempt)
    request_id = next((value for name, value in headers if name == "request-id"), None)
    value = error_value(dialect, shape, retry_delay=retry_delay, request_id=request_id)
    return json_answer(shape.status, [value] if is_json_array(attempt) else value, headers)
