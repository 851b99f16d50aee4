"""Every way a provider has of saying when to come back.

Values are given as numbers or as text; text goes out as it is, so that nonsense ("-1", "soon") can
be sent too. Times are relative to the answer's own Date header.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import TypedDict

from tests.provider.steps import Headers


class Hints(TypedDict, total=False):
    """The hints an error can carry; any number of them, also contradicting ones."""

    retry_after: float | str
    """`retry-after` in seconds (RFC 9110 section 10.2.3; providers also send fractions)."""
    retry_after_date: float | str
    """`retry-after` as an HTTP-date so many seconds after the answer's Date."""
    retry_after_ms: float | str
    """`retry-after-ms`: OpenAI, Azure."""
    x_ms_retry_after_ms: float | str
    """`x-ms-retry-after-ms`: Azure."""
    reset_requests: str
    """`x-ratelimit-reset-requests` as a Go duration ("6m0s"), with nothing remaining."""
    reset_tokens: str
    """`x-ratelimit-reset-tokens`, likewise."""
    remaining: int
    """What the reset headers say is left, 0 when not given: a reset counts only then."""
    anthropic_reset: float | str
    """`anthropic-ratelimit-requests-reset` so many seconds after the Date, as RFC 3339."""
    anthropic_tokens_reset: float | str
    """`anthropic-ratelimit-input-tokens-reset`, likewise."""
    retry_info: str
    """Gemini's `error.details[].retryDelay`, e.g. "37s": goes into the body."""
    amazon_retry_after: float | str
    """`x-amz-retry-after` in milliseconds: Bedrock."""


def hint_headers(hints: Hints, date: str) -> Headers:
    """The header lines of the hints, given the answer's Date."""
    lines: list[tuple[str, str]] = []
    if "retry_after" in hints:
        lines.append(("retry-after", _text(hints["retry_after"])))
    if "retry_after_date" in hints:
        lines.append(("retry-after", _http_date(hints["retry_after_date"], date)))
    if "retry_after_ms" in hints:
        lines.append(("retry-after-ms", _text(hints["retry_after_ms"])))
    if "x_ms_retry_after_ms" in hints:
        lines.append(("x-ms-retry-after-ms", _text(hints["x_ms_retry_after_ms"])))
    if "amazon_retry_after" in hints:
        lines.append(("x-amz-retry-after", _text(hints["amazon_retry_after"])))
    remaining = str(hints.get("remaining", 0))
    for kind, reset in (
        ("requests", hints.get("reset_requests")),
        ("tokens", hints.get("reset_tokens")),
    ):
        if reset is not None:
            lines.append((f"x-ratelimit-limit-{kind}", "10000"))
            lines.append((f"x-ratelimit-remaining-{kind}", remaining))
            lines.append((f"x-ratelimit-reset-{kind}", reset))
    for kind, when in (
        ("requests", hints.get("anthropic_reset")),
        ("input-tokens", hints.get("anthropic_tokens_reset")),
    ):
        if when is not None:
            name = f"anthropic-ratelimit-{kind}"
            lines.append((f"{name}-limit", "50"))
            lines.append((f"{name}-remaining", remaining))
            lines.append((f"{name}-reset", _rfc3339(when, date)))
    return tuple(lines)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _moment(seconds: float, date: str) -> datetime:
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return now + timedelta(seconds=seconds)


def _http_date(value: float | str, date: str) -> str:
    if isinstance(value, str):
        return value
    return format_datetime(_moment(value, date).astimezone(UTC), usegmt=True)


def _rfc3339(value: float | str, date: str) -> str:
    if isinstance(value, str):
        return value
    return _moment(value, date).strftime("%Y-%m-%dT%H:%M:%SZ")
