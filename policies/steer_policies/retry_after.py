"""Reading a provider's "not now": how long it asks us to stay away.

Everything here is foreign input. A value that is negative or cannot be read counts as absent, and
its name is reported so that a metric can show a provider's mistake. A long value is kept: whoever
decides gives up rather than come back too early.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from steer_policies.config import DialectName
from steer_policies.outcome import HintSource, RetryHint

MAX_HINT: Final = 10 * 365.25 * 86_400.0
"""Ten years in seconds: longer ones are cut to it, so that no sum with them can overflow."""

SKEW_TOLERANCE: Final = 60.0
"""A date at most this many seconds past means "now": clocks differ, and answers lie in caches."""

_MAX_LENGTH: Final = 64
_MAX_DETAILS: Final = 16
_MAX_BARE_RESET: Final = 86_400.0

_NUMBER: Final = r"(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})"
_DECIMAL: Final = re.compile(_NUMBER)
# https://pkg.go.dev/time#ParseDuration; both code points that stand for micro.
_GO_PART: Final = re.compile(rf"({_NUMBER})(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_GO_DURATION: Final = re.compile(rf"(?:{_GO_PART.pattern})+")
_GO_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,
    "\u03bcs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
# https://protobuf.dev/reference/protobuf/google.protobuf/#duration in its JSON form.
_PROTO_DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)s")
_RETRY_INFO: Final = "google.rpc.RetryInfo"

_MONTHS: Final = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# RFC 9110, section 5.6.7: IMF-fixdate, and the two forms that recipients must still accept. The day
# of the week is redundant, and not worth refusing a date for.
_HTTP_DATES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)
_RFC3339: Final = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})[Tt ]"
    rf"{_TIME}(?P<fraction>\.[0-9]{{1,12}})?"
    r"(?:[Zz]|(?P<sign>[+-])(?P<off_hours>[0-9]{2}):(?P<off_minutes>[0-9]{2}))"
)

# Which `remaining` header gives a `reset` header its meaning.
_OPENAI_RESETS: Final = tuple(
    (f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}")
    for kind in ("requests", "tokens")
)
_ANTHROPIC_RESETS: Final = tuple(
    (f"anthropic-ratelimit-{kind}-remaining", f"anthropic-ratelimit-{kind}-reset")
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
)


@dataclass(frozen=True, slots=True)
class HintReading:
    """What was found: the delay asked for, if any, and the names of what could not be read.

    `malformed` holds lower-case header names, and `retryDelay` for the member of the body: a closed
    set, fit for a metric's label.
    """

    hint: RetryHint | None
    malformed: tuple[str, ...] = ()


_NOTHING: Final = HintReading(None)


def read_retry_hint(
    dialect: DialectName, headers: Mapping[str, str], wall: float, body: Any = None
) -> HintReading:
    """The delay an answer asks for.

    `headers` is case-insensitive or has lower-case names; `wall` is Unix time in seconds, used only
    where the answer has no `Date` of its own; `body` is the parsed JSON value of an error, if any.

    In this order, the first that can be read: `retry-after-ms` and `x-ms-retry-after-ms` (Azure);
    `retry-after` (RFC 9110, section 10.2.3; fractions are tolerated); the reset headers of OpenAI
    and Anthropic whose `remaining` is 0, the largest of them; a `google.rpc.RetryInfo` in the body
    (Gemini, also behind its OpenAI-compatible address); `x-amz-retry-after`, in milliseconds.
    """
    malformed: list[str] = []
    source = HintSource.RETRY_AFTER
    seconds = _retry_after(headers, wall, malformed)
    if seconds is None and (seconds := _reset(dialect, headers, wall, malformed)) is not None:
        source = HintSource.RESET
    if seconds is None and (seconds := _retry_info(body, malformed)) is not None:
        source = HintSource.BODY_HINT
    if seconds is None:
        seconds = _milliseconds("x-amz-retry-after", headers, malformed)
    if seconds is None:
        return HintReading(None, tuple(malformed)) if malformed else _NOTHING
    return HintReading(RetryHint(min(seconds, MAX_HINT), source), tuple(malformed))


def _retry_after(headers: Mapping[str, str], wall: float, malformed: list[str]) -> float | None:
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (seconds := _milliseconds(name, headers, malformed)) is not None:
            return seconds
    if (text := headers.get("retry-after")) is None:
        return None
    seconds = _decimal(text)
    if seconds is None and (at := _http_date(text, wall)) is not None:
        seconds = _until(at, headers, wall, malformed)
    if seconds is None:
        malformed.append("retry-after")
    return seconds


def _milliseconds(name: str, headers: Mapping[str, str], malformed: list[str]) -> float | None:
    if (text := headers.get(name)) is None:
        return None
    value = _decimal(text)
    if value is None:
        malformed.append(name)
        return None
    return value / 1000.0


def _reset(
    dialect: DialectName, headers: Mapping[str, str], wall: float, malformed: list[str]
) -> float | None:
    """The largest reset of a limit that is used up; None when no such limit says when."""
    if dialect is DialectName.OPENAI:
        pairs = _OPENAI_RESETS
    elif dialect is DialectName.ANTHROPIC:
        pairs = _ANTHROPIC_RESETS
    else:
        return None
    largest = 0.0
    for remaining, name in pairs:
        left, text = headers.get(remaining), headers.get(name)
        if left is None or text is None or _decimal(left) != 0.0:
            continue
        if dialect is DialectName.ANTHROPIC:
            at = _rfc3339(text)
            seconds = None if at is None else _until(at, headers, wall, malformed)
        elif text == "-1":  # Azure's "no such limit", as in openai-dotnet #838
            continue
        else:
            seconds = _go_duration(text)
        if seconds is None:
            malformed.append(name)
        else:
            largest = max(largest, seconds)
    # A reset of zero asks for nothing, and is Azure's other way to say "no such limit".
    return largest or None


def _retry_info(body: Any, malformed: list[str]) -> float | None:
    """The `retryDelay` of an error's details; Google's OpenAI-compatible API sends a list."""
    if isinstance(body, list):
        body = body[0] if body else None
    error = body.get("error") if isinstance(body, Mapping) else None
    details = error.get("details") if isinstance(error, Mapping) else None
    largest: float | None = None
    for detail in details[:_MAX_DETAILS] if isinstance(details, list) else ():
        kind = detail.get("@type") if isinstance(detail, Mapping) else None
        if not isinstance(kind, str) or not kind.endswith(_RETRY_INFO):
            continue
        if (delay := detail.get("retryDelay")) is None:
            continue
        if isinstance(delay, str) and (match := _PROTO_DURATION.fullmatch(delay)):
            largest = max(largest or 0.0, float(match[1]))
        else:
            malformed.append("retryDelay")
    return largest


def _decimal(text: str) -> float | None:
    # float() alone would take "nan", "1_0" and other scripts' digits.
    return float(text) if _DECIMAL.fullmatch(text) else None


def _go_duration(text: str) -> float | None:
    """Seconds of a Go duration, or of a bare number as Azure sends it.

    Some compatible providers send a Unix time instead. A bare number beyond a day is taken for
    that, or for a unit we cannot know, and not read at all.
    """
    if len(text) > _MAX_LENGTH:
        return None
    if (bare := _decimal(text)) is not None:
        return bare if bare <= _MAX_BARE_RESET else None
    if not _GO_DURATION.fullmatch(text):
        return None
    return sum(float(number) * _GO_UNITS[unit] for number, unit in _GO_PART.findall(text))


def _until(
    at: float, headers: Mapping[str, str], wall: float, malformed: list[str]
) -> float | None:
    """Seconds from the answer's own `Date` (else `wall`) to `at`; None when that is long past."""
    sent: float | None = None
    if (date := headers.get("date")) is not None:
        sent = _http_date(date, wall)
        if sent is None and "date" not in malformed:
            malformed.append("date")
    seconds = at - (wall if sent is None else sent)
    return max(0.0, seconds) if seconds >= -SKEW_TOLERANCE else None


def _http_date(text: str, wall: float) -> float | None:
    """Unix time of an HTTP-date in any of its three forms."""
    for pattern in _HTTP_DATES:
        if match := pattern.fullmatch(text):
            year = int(match["year"])
            if len(match["year"]) == 2:
                # RFC 9110, section 5.6.7: more than 50 years ahead means the century before. The
                # mean Gregorian year is exact enough to know which year it is.
                this_year = 1970 + int(wall // 31_556_952)
                year += this_year - this_year % 100
                if year > this_year + 50:
                    year -= 100
            return _unix(match, year, _MONTHS.index(match["month"]) + 1)
    return None


def _rfc3339(text: str) -> float | None:
    """Unix time of an RFC 3339 date-time."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    at = _unix(match, int(match["year"]), int(match["month"]))
    if at is None:
        return None
    at += float(match["fraction"] or 0)
    if match["sign"] is not None:
        hours, minutes = int(match["off_hours"]), int(match["off_minutes"])
        if hours > 23 or minutes > 59:
            return None
        offset = 3600.0 * hours + 60.0 * minutes
        at += offset if match["sign"] == "-" else -offset
    return at


def _unix(match: re.Match[str], year: int, month: int) -> float | None:
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    leap = second == 60  # both grammars allow a leap second, datetime does not
    try:
        moment = datetime(year, month, int(match["day"]), hour, minute, second - leap, tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp() + leap
