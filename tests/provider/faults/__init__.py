"""Every way to misbehave, each a function that returns a `Fault`.

A fault is a change to the healthy answer of the request it meets. `one | other` applies one, then
the other to its result: `cut_after(events=3) | one_byte_writes()`. Errors and statuses are whole
answers, so they come first: `status(500) | silence(2)`.
"""

from tests.provider.faults.before_answer import (
    before_body,
    close_before_answer,
    early_answer_then_close,
    garbage,
    informational_first,
    reset_before_answer,
    reset_before_reading_body,
    silence,
    steps_first,
    without_continue,
)
from tests.provider.faults.breaking import (
    bad_chunk_size,
    huge_answer,
    malformed_event,
    malformed_json,
    wrong_length,
)
from tests.provider.faults.cutting import (
    at_byte,
    at_event,
    cut_after,
    pings_before_first_token,
    slow_first_token,
    stall_after,
    without_done_but_open,
    without_terminal_marker,
)
from tests.provider.faults.encoding import compressed
from tests.provider.faults.error_answers import (
    authentication_failed,
    billing,
    content_policy,
    context_length_exceeded,
    error,
    healthy,
    insufficient_quota,
    overloaded,
    permission_denied,
    rate_limit,
    server_error,
    status,
)
from tests.provider.faults.head import (
    headers_then_silence,
    one_byte_writes,
    slow_header,
    then_close,
    until_close,
    with_headers,
)
from tests.provider.faults.in_band import in_band_error
from tests.provider.faults.websocket import (
    websocket_breaks,
    websocket_cut_frame,
    websocket_session,
)

__all__ = [
    "at_byte",
    "at_event",
    "authentication_failed",
    "bad_chunk_size",
    "before_body",
    "billing",
    "close_before_answer",
    "compressed",
    "content_policy",
    "context_length_exceeded",
    "cut_after",
    "early_answer_then_close",
    "error",
    "garbage",
    "headers_then_silence",
    "healthy",
    "huge_answer",
    "in_band_error",
    "informational_first",
    "insufficient_quota",
    "malformed_event",
    "malformed_json",
    "one_byte_writes",
    "overloaded",
    "permission_denied",
    "pings_before_first_token",
    "rate_limit",
    "reset_before_answer",
    "reset_before_reading_body",
    "server_error",
    "silence",
    "slow_first_token",
    "slow_header",
    "stall_after",
    "status",
    "steps_first",
    "then_close",
    "until_close",
    "websocket_breaks",
    "websocket_cut_frame",
    "websocket_session",
    "with_headers",
    "without_continue",
    "without_done_but_open",
    "without_terminal_marker",
    "wrong_length",
]
