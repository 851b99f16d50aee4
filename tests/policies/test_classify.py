"""What answers mean, whatever the dialect."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from steer_policies.classify import by_status, classify_answer, classify_event, complaint
from steer_policies.config import DialectName
from steer_policies.dialects import anthropic_errors, dialect, gemini_errors, http, openai_errors
from steer_policies.dialects.base import RequestFacts
from steer_policies.outcome import SUCCESS, TRAITS, Executed, Failure, HintSource, RetryHint

RULES = [openai_errors.RULES, anthropic_errors.RULES, gemini_errors.RULES, http.RULES]

_NO, _MAYBE = Executed.NO, Executed.MAYBE


@pytest.mark.parametrize("status", [101, 200, 201, 204, 206, 301, 302, 304, 307, 399])
@pytest.mark.parametrize("rules", RULES)
def test_answers_to_keep(rules: Any, status: int) -> None:
    """Successes and redirects, also when a body looks like an error."""
    assert by_status(status) is None
    body = b'{"error": {"code": "insufficient_quota"}}'
    assert classify_answer(rules, status, {"x-should-retry": "true"}, body, 0.0) is SUCCESS


@pytest.mark.parametrize(
    ("status", "failure", "executed"),
    [
        (400, Failure.REJECTED, _NO),
        (401, Failure.CREDENTIAL, _NO),
        (402, Failure.QUOTA, _NO),
        (403, Failure.CREDENTIAL, _NO),
        (404, Failure.REJECTED, _NO),
        (407, Failure.REJECTED, _NO),
        (408, Failure.BUSY, _MAYBE),
        (409, Failure.BUSY, _NO),
        (413, Failure.REJECTED, _NO),
        (422, Failure.REJECTED, _NO),
        (425, Failure.BUSY, _NO),
        (429, Failure.THROTTLED, _NO),
        (499, Failure.REJECTED, _NO),
        (500, Failure.SERVER_ERROR, _NO),
        (501, Failure.SERVER_ERROR, _NO),
        (502, Failure.SERVER_ERROR, _MAYBE),
        (503, Failure.OVERLOADED, _NO),
        (504, Failure.SERVER_ERROR, _MAYBE),
        (520, Failure.SERVER_ERROR, _MAYBE),
        (521, Failure.SERVER_ERROR, _NO),
        (522, Failure.SERVER_ERROR, _MAYBE),
        (523, Failure.SERVER_ERROR, _NO),
        (524, Failure.SERVER_ERROR, _MAYBE),
        (525, Failure.SERVER_ERROR, _NO),
        (526, Failure.SERVER_ERROR, _NO),
        (527, Failure.SERVER_ERROR, _MAYBE),
        (529, Failure.OVERLOADED, _NO),
        (530, Failure.SERVER_ERROR, _NO),
        (598, Failure.SERVER_ERROR, _MAYBE),
        (599, Failure.SERVER_ERROR, _MAYBE),
        (999, Failure.SERVER_ERROR, _NO),
    ],
)
@pytest.mark.parametrize("rules", RULES)
def test_failures_by_status(rules: Any, status: int, failure: Failure, executed: Executed) -> None:
    """The same for every dialect, when the body says nothing."""
    for body in (b"", b"<html>Bad Gateway</html>", b"[]", b"null", b'{"error": null}'):
        verdict = classify_answer(rules, status, {}, body, 0.0)
        assert (verdict.failure, verdict.executed) == (failure, executed)
        assert verdict.code is None
        assert verdict.hint is None
        assert verdict.again


@pytest.mark.parametrize(
    "name",
    [
        "insufficient_quota",
        "INSUFFICIENT_QUOTA",
        "credit_balance_exhausted",
        "spend_limit_exceeded",
        "organization_spend_limit_exceeded",
        "daily_usage_limit_exceeded",
        "usage_limit_reached",
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
    ],
)
def test_no_waiting_mends_a_quota(name: str) -> None:
    """Whatever the status, and also where nothing else is known of the API."""
    for rules in (openai_errors.RULES, http.RULES):
        for status in (400, 403, 429):
            body = orjson.dumps({"error": {"code": name}})
            verdict = classify_answer(rules, status, {"retry-after": "5"}, body, 0.0)
            assert verdict.failure is Failure.QUOTA
            assert verdict.hint is None
            assert verdict.code == name


@pytest.mark.parametrize(
    "name", ["rate_limit_exceeded", "x_limit_reached", "my-usage_limit_exceeded"]
)
def test_names_like_it_are_none(name: str) -> None:
    """Only the families that are known to be permanent."""
    body = orjson.dumps({"error": {"code": name}})
    assert classify_answer(openai_errors.RULES, 429, {}, body, 0.0).failure is Failure.THROTTLED


@pytest.mark.parametrize(
    ("status", "asked", "failure", "again"),
    [
        (400, "true", Failure.BUSY, True),
        (401, "true", Failure.BUSY, True),
        (404, " TRUE ", Failure.BUSY, True),
        (402, "true", Failure.QUOTA, True),
        (429, "true", Failure.THROTTLED, True),
        (500, "true", Failure.SERVER_ERROR, True),
        (429, "false", Failure.THROTTLED, False),
        (503, "False", Failure.OVERLOADED, False),
        (400, "false", Failure.REJECTED, False),
        (429, "maybe", Failure.THROTTLED, True),
    ],
)
def test_x_should_retry(status: int, asked: str, failure: Failure, again: bool) -> None:
    """Obeyed, as all official SDKs do, but for an empty purse."""
    headers = CIMultiDictProxy(CIMultiDict({"X-Should-Retry": asked}))
    verdict = classify_answer(openai_errors.RULES, status, headers, b"", 0.0)
    assert (verdict.failure, verdict.again) == (failure, again)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_a_delay_is_read_where_waiting_helps(status: int) -> None:
    """From the headers."""
    verdict = classify_answer(openai_errors.RULES, status, {"retry-after-ms": "1500"}, b"", 0.0)
    assert verdict.hint == RetryHint(1.5, HintSource.RETRY_AFTER)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_no_delay_where_it_does_not(status: int) -> None:
    """A stray header changes nothing."""
    assert classify_answer(openai_errors.RULES, status, {"retry-after": "5"}, b"", 0.0).hint is None


def test_a_delay_for_one_who_may_ask_again() -> None:
    """`x-should-retry: true` makes the delay count."""
    headers = {"x-should-retry": "true", "retry-after": "5"}
    verdict = classify_answer(openai_errors.RULES, 400, headers, b"", 0.0)
    assert verdict.hint == RetryHint(5.0, HintSource.RETRY_AFTER)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (429, 429),
        ("503", 503),
        (True, None),
        (200, None),
        (600, None),
        ("4290", None),
        ("\u0664\u0662\u0669", None),
        ("x29", None),
        (None, None),
        (4.5, None),
    ],
)
def test_a_status_inside_an_error(value: Any, status: int | None) -> None:
    """A number or its text, of an error's range."""
    assert complaint(statuses=(None, value, 500)).status == (status or 500)
    assert complaint(statuses=(value,)).status == status


def test_a_complaint_is_bounded() -> None:
    """In names and in words; the first name is reported as it is written."""
    said = complaint(None, "Two Words", "Quota_X", "y", message="A" * 5000)
    assert said.reasons == ("quota_x", "y")
    assert said.code == "Quota_X"
    assert said.message == "a" * 2000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 600)
    | st.sampled_from(["insufficient_quota", "503", "overloaded_error", "limit: 0", "x y"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["error", "code", "type", "status", "message", "details", "innererror"]
            ),
            inner,
        )
    ),
    max_leaves=10,
)


@given(JSON, st.integers(100, 999), st.sampled_from(RULES), st.booleans())
def test_any_error_is_classified(
    document: Any, status: int, rules: Any, content_seen: bool
) -> None:
    """Whatever the body, there is a verdict, and its code is safe."""
    answer = classify_answer(rules, status, {}, orjson.dumps(document), 0.0)
    assert answer.ok is (status < 400)
    event = classify_event(rules, document, content_seen=content_seen)
    assert event.failure is not None
    assert event.executed is not Executed.YES
    for verdict in (answer, event):
        assert verdict.code is None or len(verdict.code) <= 64


@given(st.binary(max_size=80), st.sampled_from(DialectName))
def test_any_bytes_are_classified(body: bytes, name: DialectName) -> None:
    """A body cut short or garbled leaves the status."""
    verdict = dialect(name).classify(RequestFacts("x", True), 503, {}, body, 0.0)
    assert verdict.failure in TRAITS
