"""What Anthropic complains about.

Types: https://docs.anthropic.com/en/api/errors; `error.details.error_code` names causes, as listed
by the official SDK's `ErrorDetails`.
"""

from __future__ import annotations

from typing import Any, Final

from steer_policies.classify import Complaint, Rules, complaint
from steer_policies.config import DialectName
from steer_policies.foreign import mapping
from steer_policies.outcome import Failure

_REASONS: Final = {
    # Accounts: another candidate may have one in order.
    "organization_on_hold": Failure.CREDENTIAL,
    "user_profile_not_billable": Failure.QUOTA,
    "user_profile_billing_not_authorized": Failure.QUOTA,
}

_PHRASES: Final = (
    ("credit balance is too low", Failure.QUOTA),  # arrives as a 400
    ("specified api usage limits", Failure.QUOTA),  # a 400, too: a limit set in the console
    ("workspace api usage limits", Failure.QUOTA),
    ("prompt is too long", Failure.CONTEXT_LENGTH),
    ("exceed context limit", Failure.CONTEXT_LENGTH),  # input length and `max_tokens` together
    ("required for long context requests", Failure.CONTEXT_LENGTH),  # a 429, however long one waits
    ("blocked by content filtering policy", Failure.CONTENT_POLICY),
)

_IN_BAND: Final = {
    "overloaded_error": Failure.OVERLOADED,
    "rate_limit_error": Failure.THROTTLED,
    "api_error": Failure.SERVER_ERROR,
    "timeout_error": Failure.SERVER_ERROR,
    "invalid_request_error": Failure.REJECTED,
    "not_found_error": Failure.REJECTED,
    "request_too_large": Failure.REJECTED,
    "conflict_error": Failure.BUSY,
    "authentication_error": Failure.CREDENTIAL,
    "permission_error": Failure.CREDENTIAL,
    "billing_error": Failure.QUOTA,
}


def read_error(document: Any) -> Complaint:
    """A complaint from `{"type": "error", "error": {"type", "message", "details"}}`."""
    error = mapping(mapping(document).get("error"))
    details = mapping(error.get("details"))
    return complaint(details.get("error_code"), error.get("type"), message=error.get("message"))


RULES: Final = Rules(DialectName.ANTHROPIC, read_error, _REASONS, _PHRASES, _IN_BAND)
