"""What Gemini complains about: ai.google.dev/gemini-api/docs/troubleshooting and AIP-193."""

from __future__ import annotations

import re
from typing import Any, Final

from steer_policies.classify import Complaint, Rules, complaint
from steer_policies.config import DialectName
from steer_policies.foreign import items, mapping
from steer_policies.outcome import Failure

_NO_QUOTA: Final = "quota_limit_zero"
"""Our name for a quota of nothing: a model or region the project may not use at all."""

_ZERO_LIMIT: Final = re.compile(r"\blimit: 0(?![0-9.])")
_MAX_DETAILS: Final = 16

_REASONS: Final = {
    _NO_QUOTA: Failure.QUOTA,
    "billing_disabled": Failure.QUOTA,
    "api_key_invalid": Failure.CREDENTIAL,  # arrives as a 400
}

_PHRASES: Final = (
    ("input token count", Failure.CONTEXT_LENGTH),  # "... exceeds the maximum number of tokens"
    ("have a free quota tier", Failure.QUOTA),  # "this model doesn't", with a delay all the same
    ("location is not supported", Failure.CREDENTIAL),  # a 400: about the caller, not the request
    ("responsible ai", Failure.CONTENT_POLICY),  # images
    ("safety filter", Failure.CONTENT_POLICY),
)

# https://cloud.google.com/apis/design/errors: the names of `google.rpc.Code`.
_IN_BAND: Final = {
    "resource_exhausted": Failure.THROTTLED,
    "unavailable": Failure.OVERLOADED,
    "internal": Failure.SERVER_ERROR,
    "unknown": Failure.SERVER_ERROR,
    "deadline_exceeded": Failure.SERVER_ERROR,
    "cancelled": Failure.SERVER_ERROR,
    "aborted": Failure.BUSY,
    "unauthenticated": Failure.CREDENTIAL,
    "permission_denied": Failure.CREDENTIAL,
    "invalid_argument": Failure.REJECTED,
    "failed_precondition": Failure.REJECTED,
    "out_of_range": Failure.REJECTED,
    "not_found": Failure.REJECTED,
}


def read_error(document: Any) -> Complaint:
    """A complaint from `{"error": {"code", "message", "status", "details"}}`, or a list of one."""
    if isinstance(document, list) and document:
        document = document[0]
    error = mapping(mapping(document).get("error"))
    message = error.get("message")
    reasons = [
        mapping(detail).get("reason") for detail in items(error.get("details"))[:_MAX_DETAILS]
    ]
    if isinstance(message, str) and _ZERO_LIMIT.search(message):
        reasons.insert(0, _NO_QUOTA)
    return complaint(*reasons, error.get("status"), message=message, statuses=(error.get("code"),))


RULES: Final = Rules(DialectName.GEMINI, read_error, _REASONS, _PHRASES, _IN_BAND)
