"""What a provider's answer means: one table by status, refined by the provider's own words.

Statuses follow RFC 9110, section 15; what is worth another try is what all official SDKs agree on
(408, 409, 425, 429 and 5xx), less the refusals that no waiting mends. A dialect brings `Rules`: how
its errors are read and which of their reasons say more than the status does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from steer_policies.config import DialectName
from steer_policies.foreign import code, load, mapping
from steer_policies.outcome import SUCCESS, TRAITS, Executed, Failure, RetryHint, Verdict, failed
from steer_policies.retry_after import read_retry_hint

_STATUS: Final[Mapping[int, Failure]] = {
    401: Failure.CREDENTIAL,
    402: Failure.QUOTA,
    403: Failure.CREDENTIAL,
    408: Failure.BUSY,
    409: Failure.BUSY,
    425: Failure.BUSY,
    429: Failure.THROTTLED,
    503: Failure.OVERLOADED,
    529: Failure.OVERLOADED,
}

#: Somebody between us and the model lost sight of the call while it ran: RFC 9110, sections 15.5.9,
#: 15.6.3 and 15.6.5. Of Cloudflare's own (support page "Cloudflare 5xx errors") those that also
#: come after the origin took the connection: 520 no answer to speak of, 522 no acknowledgement of
#: the request, 524 no answer in time, 527 the same behind a Railgun. Not those before it: 521
#: refused, 523 no way there, 525 and 526 TLS, 530 no name or tunnel to go to. 598 and 599 are
#: other proxies' time-outs, of reading and, with some, of anything.
MAYBE_EXECUTED: Final = frozenset({408, 502, 504, 520, 522, 524, 527, 598, 599})

# OpenAI's and Anthropic's permanent refusals, mostly sent with 429. The names with a prefix are
# families: `project_spend_limit_exceeded`, `monthly_usage_limit_exceeded`, and so on.
_QUOTA: Final = re.compile(
    r"insufficient_quota|credit_balance_exhausted|billing_(?:error|hard_limit_reached|not_active)"
    r"|(?:[a-z0-9_]+_)?(?:spend|usage)_limit_(?:exceeded|reached)"
    r"|linked_organization_billing_unavailable|exceeded_current_quota_error|insufficient_balance"
)

# Failures that another try, here or elsewhere, may mend: only for these a delay is read.
_WAITING_HELPS: Final = frozenset(
    {Failure.THROTTLED, Failure.OVERLOADED, Failure.SERVER_ERROR, Failure.BUSY}
)

# A message is prose, and a 5xx's may quote anything: phrases count only in a refusal.
_PHRASED: Final = frozenset({Failure.REJECTED, Failure.THROTTLED, Failure.CREDENTIAL})


@dataclass(frozen=True, slots=True)
class Complaint:
    """What an error object says.

    `reasons` are its machine-readable names (code, type, status), lower-case, the most specific
    first; `message` is lower-case, bounded, compared with known phrases and never kept; `status` is
    an HTTP status named inside the object; `code` is the reason to report; `headers` are those that
    an error inside a stream repeats, as far as they tell a delay.
    """

    reasons: tuple[str, ...] = ()
    message: str = ""
    status: int | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


NO_COMPLAINT: Final = Complaint()
_MAX_MESSAGE: Final = 2000
# With numbers only: what a date counts from, the answer's own `Date`, is not repeated.
_DELAY_HEADER: Final = re.compile(
    r"retry-after(?:-ms)?|x-ratelimit-(?:remaining|reset)-(?:requests|tokens)", re.IGNORECASE
)


def complaint(
    *names: Any, message: Any = None, statuses: Iterable[Any] = (), headers: Any = None
) -> Complaint:
    """A complaint from foreign values; whatever is not of its kind is left out.

    The first of `statuses` that is one counts.
    """
    found = [name for name in map(code, names) if name is not None]
    return Complaint(
        tuple(name.lower() for name in found),
        message[:_MAX_MESSAGE].lower() if isinstance(message, str) else "",
        next(filter(None, map(_status, statuses)), None),
        found[0] if found else None,
        {
            name.lower(): value
            for name, value in mapping(headers).items()
            if isinstance(value, str) and value[:1].isdecimal() and _DELAY_HEADER.fullmatch(name)
        },
    )


def _status(value: Any) -> int | None:
    """An HTTP status from a number or its text, as gateways put it where a code belongs."""
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and 400 <= value <= 599 else None


@dataclass(frozen=True, slots=True)
class Rules:
    """How a dialect's errors are read.

    `read` turns a parsed error body or event into a complaint. `reasons` say more than the status.
    `phrases` do where a provider names no reason. `in_band` is what reasons mean inside a stream,
    where there is no status.
    """

    dialect: DialectName
    read: Callable[[Any], Complaint]
    reasons: Mapping[str, Failure]
    phrases: tuple[tuple[str, Failure], ...]
    in_band: Mapping[str, Failure]


def by_status(status: int) -> Failure | None:
    """What a status alone means; None for one to keep (redirects are passed on to the caller)."""
    if status < 400:
        return None
    return _STATUS.get(status, Failure.SERVER_ERROR if status >= 500 else Failure.REJECTED)


def classify_answer(
    rules: Rules, status: int, headers: Mapping[str, str], body: bytes, wall: float
) -> Verdict:
    """The verdict on a finished answer.

    `headers` is case-insensitive or lower-cased; `body` is what came of a non-2xx answer, decoded;
    `wall` is Unix time in seconds. `x-should-retry` is obeyed as the official SDKs obey it, but for
    an exhausted quota, which a retry cannot mend.
    """
    failure = by_status(status)
    if failure is None:
        return SUCCESS
    document = load(body)
    said = rules.read(document)
    failure = _refine(rules, failure, said)
    asked = headers.get("x-should-retry", "").strip().lower()
    if asked == "true" and not TRAITS[failure].here and failure is not Failure.QUOTA:
        failure = Failure.BUSY
    return failed(
        failure,
        executed=Executed.MAYBE if status in MAYBE_EXECUTED else None,
        hint=_hint(rules, failure, headers, wall, document),
        code=said.code,
        again=asked != "false",
    )


def classify_event(rules: Rules, document: Any, *, content_seen: bool) -> Verdict:
    """The verdict on an error inside a stream.

    Once content was seen, or counted, the provider has run, and may bill, the call.
    """
    said = rules.read(document)
    failure = next((rules.in_band[name] for name in said.reasons if name in rules.in_band), None)
    if failure is None:
        failure = by_status(said.status or 500) or Failure.SERVER_ERROR
    failure = _refine(rules, failure, said)
    return failed(
        failure,
        executed=Executed.MAYBE if content_seen or said.status in MAYBE_EXECUTED else None,
        hint=_hint(rules, failure, said.headers, 0.0, document),
        code=said.code,
    )


def _refine(rules: Rules, failure: Failure, said: Complaint) -> Failure:
    """What the provider's own words add to a status."""
    for name in said.reasons:
        if name in rules.reasons:
            return rules.reasons[name]
        if _QUOTA.fullmatch(name):
            return Failure.QUOTA
    if failure in _PHRASED:
        for phrase, meaning in rules.phrases:
            if phrase in said.message:
                return meaning
    return failure


def _hint(
    rules: Rules, failure: Failure, headers: Mapping[str, str], wall: float, document: Any
) -> RetryHint | None:
    if failure not in _WAITING_HELPS:
        return None
    return read_retry_hint(rules.dialect, headers, wall, document).hint
