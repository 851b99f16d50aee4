"""Reading a provider's "not now"."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from steer_policies.config import DialectName
from steer_policies.outcome import HintSource, RetryHint
from steer_policies.retry_after import MAX_HINT, HintReading, read_retry_hint

OPENAI, ANTHROPIC = DialectName.OPENAI, DialectName.ANTHROPIC
GEMINI, HTTP = DialectName.GEMINI, DialectName.HTTP

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110's own example
WALL = 784_111_777.0  # the same moment


def read(
    headers: dict[str, str],
    body: Any = None,
    *,
    dialect: DialectName = OPENAI,
    wall: float = WALL,
) -> HintReading:
    return read_retry_hint(dialect, headers, wall, body)


def hint(seconds: float, source: HintSource = HintSource.RETRY_AFTER) -> HintReading:
    near: Any = pytest.approx(seconds)
    return HintReading(RetryHint(near, source))


def details(*members: Any) -> dict[str, Any]:
    return {"error": {"code": 429, "details": list(members)}}


def retry_info(delay: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def test_an_answer_that_asks_for_nothing() -> None:
    """No header, no body, no hint, nothing malformed."""
    for dialect in DialectName:
        assert read({}, dialect=dialect) == HintReading(None)


@pytest.mark.parametrize("dialect", DialectName)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"retry-after-ms": "1500"}, 1.5, id="milliseconds"),
        pytest.param({"retry-after-ms": "0.5"}, 0.0005, id="a fraction of one"),
        pytest.param({"x-ms-retry-after-ms": "250"}, 0.25, id="Azure's"),
        pytest.param({"retry-after": "20"}, 20.0, id="delta-seconds"),
        pytest.param({"retry-after": "0"}, 0.0, id="now"),
        pytest.param({"retry-after": "1.25"}, 1.25, id="a fraction"),
        pytest.param({"retry-after": ".5"}, 0.5, id="a bare fraction"),
        pytest.param({"retry-after": "2."}, 2.0, id="a bare point"),
        pytest.param({"retry-after": "86401"}, 86_401.0, id="more than a day is kept"),
        pytest.param({"retry-after": "1700000000"}, MAX_HINT, id="a Unix time, by mistake"),
        pytest.param({"retry-after": "9" * 15}, MAX_HINT, id="capped at ten years"),
        pytest.param({"x-amz-retry-after": "750"}, 0.75, id="AWS, in milliseconds"),
        pytest.param(
            {"retry-after-ms": "100", "x-ms-retry-after-ms": "200", "retry-after": "3"},
            0.1,
            id="retry-after-ms comes first",
        ),
        pytest.param(
            {"x-ms-retry-after-ms": "200", "retry-after": "3"}, 0.2, id="then x-ms-retry-after-ms"
        ),
        pytest.param(
            {"retry-after": "3", "x-amz-retry-after": "1"}, 3.0, id="x-amz-retry-after last"
        ),
    ],
)
def test_the_headers_that_name_a_delay(
    dialect: DialectName, headers: dict[str, str], seconds: float
) -> None:
    """Read in their order, for every dialect."""
    assert read(headers, dialect=dialect) == hint(seconds)


@pytest.mark.parametrize(
    "date",
    [
        pytest.param("Sun, 06 Nov 1994 08:50:37 GMT", id="IMF-fixdate"),
        pytest.param("Sunday, 06-Nov-94 08:50:37 GMT", id="RFC 850"),
        pytest.param("Sun Nov  6 08:50:37 1994", id="asctime"),
        pytest.param("Mon, 06 Nov 1994 08:50:37 GMT", id="the day of the week is not checked"),
    ],
)
def test_the_three_forms_of_an_http_date(date: str) -> None:
    """RFC 9110, section 5.6.7."""
    assert read({"retry-after": date}) == hint(60.0)


def test_a_date_is_relative_to_the_answers_own_date() -> None:
    """Our clock may be hours off; the provider's two dates agree with each other."""
    later = "Sun, 06 Nov 1994 08:50:07 GMT"
    assert read({"retry-after": later, "date": DATE}, wall=WALL + 5000.0) == hint(30.0)


def test_an_unreadable_date_falls_back_to_our_clock() -> None:
    """And is reported, as any malformed value is."""
    reading = read({"retry-after": DATE, "date": "yesterday"}, wall=WALL - 10.0)
    assert reading == HintReading(RetryHint(10.0, HintSource.RETRY_AFTER), ("date",))


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        pytest.param(0.0, hint(0.0), id="now"),
        pytest.param(60.0, hint(0.0), id="within the tolerance"),
        pytest.param(60.5, HintReading(None, ("retry-after",)), id="long past"),
    ],
)
def test_a_date_just_past_means_now(behind: float, expected: HintReading) -> None:
    """Clocks differ a little; a date long past is a negative delay, and so malformed."""
    assert read({"retry-after": DATE}, wall=WALL + behind) == expected


@pytest.mark.parametrize(
    ("year", "wall_year", "expected"),
    [("26", 2026, 2026), ("76", 2026, 2076), ("77", 2026, 1977), ("94", 1994, 1994)],
)
def test_a_two_digit_year_is_at_most_fifty_years_ahead(
    year: str, wall_year: int, expected: int
) -> None:
    """RFC 9110, section 5.6.7: else it means the most recent such year."""
    wall = datetime(wall_year, 6, 1, tzinfo=UTC).timestamp()
    date = format_datetime(datetime(expected, 6, 1, tzinfo=UTC) - timedelta(seconds=9), usegmt=True)
    reading = read({"retry-after": f"Monday, 01-Jun-{year} 00:00:00 GMT", "date": date}, wall=wall)
    assert reading == hint(9.0)


@pytest.mark.parametrize(
    ("date", "seconds"),
    [("Sun, 31 Dec 1995 23:59:60 GMT", 1.0), ("Mon, 01 Jan 1996 00:00:00 GMT", 1.0)],
)
def test_a_leap_second_is_the_next_minutes_first(date: str, seconds: float) -> None:
    """HTTP-dates may say :60."""
    assert read({"retry-after": date, "date": "Sun, 31 Dec 1995 23:59:59 GMT"}) == hint(seconds)


MALFORMED = (
    *("", " ", "-1", "-0.5", "+5", "nan", "inf", "Infinity", "1e3", "0x10", "1_0", "soon"),
    *("\u0661\u0662", ".", "1.2.3", "5 s", "5, 6", "9" * 16, "1" * 5000, "0." + "0" * 16, "5\n"),
)
BAD_DATES = (
    "Sun, 31 Feb 1994 08:49:37 GMT",
    "Sun, 06 Nov 1994 24:00:00 GMT",
    "Sun, 06 Nov 1994 08:49:61 GMT",
    "Sun, 06 Nov 0000 08:49:37 GMT",
    "Sun, 06 Nov 1994 08:49:37 +0100",
    "Sun, 06 Nvo 1994 08:49:37 GMT",
    "Sun Nov    08:49:37 1994",
    "1994-11-06T08:49:37Z",
)


@pytest.mark.parametrize("value", MALFORMED)
@pytest.mark.parametrize(
    "name", ["retry-after-ms", "x-ms-retry-after-ms", "retry-after", "x-amz-retry-after"]
)
def test_a_value_that_cannot_be_read_is_absent_and_reported(name: str, value: str) -> None:
    """Negative, not finite, too long or not a number: the name tells a metric."""
    assert read({name: value}) == HintReading(None, (name,))


@pytest.mark.parametrize("value", BAD_DATES)
def test_a_date_that_cannot_be_read_is_absent_and_reported(value: str) -> None:
    """No such day, no such time, no such form."""
    assert read({"retry-after": value}) == HintReading(None, ("retry-after",))


def test_the_next_header_stands_in_for_a_malformed_one() -> None:
    """Every mistake on the way is reported."""
    reading = read({"retry-after-ms": "soon", "x-ms-retry-after-ms": "-1", "retry-after": "7"})
    assert reading == HintReading(
        RetryHint(7.0, HintSource.RETRY_AFTER), ("retry-after-ms", "x-ms-retry-after-ms")
    )


def spent(reset: str, kind: str = "requests") -> dict[str, str]:
    return {f"x-ratelimit-remaining-{kind}": "0", f"x-ratelimit-reset-{kind}": reset}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1m30s500ms", 90.5),
        ("900us", 0.0009),
        ("900\u00b5s", 0.0009),
        ("900\u03bcs", 0.0009),
        ("5000ns", 5e-6),
        ("48h0m0s", 172_800.0),
        ("999999999999999h", MAX_HINT),
        pytest.param("60", 60.0, id="a bare number: Azure's seconds"),
        pytest.param("86400", 86_400.0, id="a day, as a bare number"),
    ],
)
def test_openai_resets_are_go_durations(reset: str, seconds: float) -> None:
    """Every unit of Go's time.ParseDuration, several at once."""
    assert read(spent(reset)) == hint(seconds, HintSource.RESET)


@pytest.mark.parametrize("reset", ["-1", "0", "0s", "0ms", "0h0m0s"])
def test_azures_sentinels_are_ignored(reset: str) -> None:
    """-1 and 0 stand for a limit that does not exist (openai-dotnet #838): no hint, no error."""
    assert read(spent(reset)) == HintReading(None)


@pytest.mark.parametrize(
    "reset",
    [
        *("", "s", "-5s", "+5s", "1d", "1m 5s", "1s1", "infs", "nan", "-2", "soon", "1,5s"),
        *("1722556800", "86401", "9" * 16 + "s", "1s" * 40, "1s" * 5000),
    ],
)
def test_a_malformed_openai_reset(reset: str) -> None:
    """Go would refuse these too; a bare number beyond a day is a Unix time or an unknown unit."""
    assert read(spent(reset)) == HintReading(None, ("x-ratelimit-reset-requests",))


@pytest.mark.parametrize("remaining", [None, "1", "-1", "many", "", "0.5"])
def test_a_reset_counts_only_when_nothing_remains(remaining: str | None) -> None:
    """Every answer carries resets; they bind only where the limit is used up."""
    headers = {"x-ratelimit-reset-requests": "20s"}
    if remaining is not None:
        headers["x-ratelimit-remaining-requests"] = remaining
    assert read(headers) == HintReading(None)


def test_a_spent_limit_without_a_reset_tells_nothing() -> None:
    """There is no time to read."""
    assert read({"x-ratelimit-remaining-tokens": "0"}) == HintReading(None)


def test_the_largest_of_several_resets_counts() -> None:
    """All of the limits must be free again."""
    assert read(spent("2s") | spent("6m0s", "tokens")) == hint(360.0, HintSource.RESET)


def test_one_malformed_reset_does_not_hide_the_other() -> None:
    """It is reported beside the hint."""
    assert read(spent("2s") | spent("soon", "tokens")) == HintReading(
        RetryHint(2.0, HintSource.RESET), ("x-ratelimit-reset-tokens",)
    )


def test_a_named_delay_comes_before_resets() -> None:
    """A reset is an upper bound; retry-after is the provider's word."""
    assert read(spent("6m0s") | {"retry-after": "2"}) == hint(2.0)


@pytest.mark.parametrize("dialect", [ANTHROPIC, GEMINI, HTTP])
def test_resets_are_read_for_their_own_dialect_only(dialect: DialectName) -> None:
    """Elsewhere the same names may mean anything."""
    assert read(spent("20s"), dialect=dialect) == HintReading(None)


@pytest.mark.parametrize("kind", ["requests", "tokens", "input-tokens", "output-tokens"])
@pytest.mark.parametrize(
    "reset",
    [
        "1994-11-06T08:50:37Z",
        "1994-11-06t08:50:37z",
        "1994-11-06 08:50:37.000Z",
        "1994-11-06T10:50:37+02:00",
        "1994-11-06T03:20:37-05:30",
    ],
)
def test_anthropic_resets_are_rfc_3339(kind: str, reset: str) -> None:
    """Relative to the answer's own Date."""
    headers = {
        f"anthropic-ratelimit-{kind}-remaining": "0",
        f"anthropic-ratelimit-{kind}-reset": reset,
        "date": DATE,
    }
    assert read(headers, dialect=ANTHROPIC, wall=0.0) == hint(60.0, HintSource.RESET)


def anthropic(reset: str, kind: str = "tokens") -> dict[str, str]:
    return {
        f"anthropic-ratelimit-{kind}-remaining": "0",
        f"anthropic-ratelimit-{kind}-reset": reset,
    }


@pytest.mark.parametrize(
    "reset",
    [
        "",
        "60",
        "soon",
        "1994-11-06",
        "1994-11-06T08:50:37",
        "1994-02-30T08:50:37Z",
        "1994-11-06T08:50:37+24:00",
        "1994-11-06T08:50:37+00:60",
        "1994-11-06T08:50:37." + "0" * 13 + "Z",
        "1994-11-06T08:48:36Z",  # a minute and a second ago
    ],
)
def test_a_malformed_anthropic_reset(reset: str) -> None:
    """Not RFC 3339, or long past."""
    reading = read(anthropic(reset), dialect=ANTHROPIC)
    assert reading == HintReading(None, ("anthropic-ratelimit-tokens-reset",))


def test_an_anthropic_reset_just_past_asks_for_nothing() -> None:
    """The limit is free again by now."""
    reading = read(anthropic("1994-11-06T08:49:07Z"), dialect=ANTHROPIC)
    assert reading == HintReading(None)


def test_a_malformed_date_is_reported_once() -> None:
    """Though every reset looks at it."""
    headers = anthropic("1994-11-06T08:49:47Z") | anthropic("1994-11-06T08:49:57Z", "requests")
    reading = read(headers | {"date": "?"}, dialect=ANTHROPIC)
    assert reading == HintReading(RetryHint(20.0, HintSource.RESET), ("date",))


@pytest.mark.parametrize("dialect", DialectName)
@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        pytest.param(details(retry_info("37s")), 37.0, id="whole seconds"),
        pytest.param(details(retry_info("0.5s")), 0.5, id="a fraction"),
        pytest.param(details(retry_info("34.074824224s")), 34.074824224, id="nanoseconds"),
        pytest.param(details(retry_info("0s")), 0.0, id="now"),
        pytest.param([details(retry_info("37s"))], 37.0, id="the OpenAI-compatible list"),
        pytest.param(details({"@type": "x"}, retry_info("2s")), 2.0, id="among other details"),
        pytest.param(details(retry_info("2s"), retry_info("5s")), 5.0, id="the largest"),
        pytest.param(details(retry_info("999999999999999s")), MAX_HINT, id="capped"),
    ],
)
def test_a_retry_info_in_the_body(dialect: DialectName, body: Any, seconds: float) -> None:
    """Gemini's error.details[]; its type says for itself what it is."""
    assert read({}, body, dialect=dialect) == hint(seconds, HintSource.BODY_HINT)


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], [[]], {}, "text", 7, {"error": None}, {"error": []}, {"error": {}}),
        *({"error": {"details": {}}}, details(), details(None, 7, "x", {}, {"@type": 7})),
        details({"@type": "type.googleapis.com/google.rpc.Help", "retryDelay": "37s"}),
        details({"@type": "type.googleapis.com/google.rpc.RetryInfo"}),
        details(*[{}] * 16, retry_info("37s")),
    ],
)
def test_a_body_without_a_retry_info(body: Any) -> None:
    """Any other shape tells nothing; only the first 16 details are looked at."""
    assert read({}, body, dialect=GEMINI) == HintReading(None)


@pytest.mark.parametrize(
    "delay", ["", "37", "-37s", "37ms", "infs", "1e3s", "9" * 16 + "s", 37, {"seconds": 37}]
)
def test_a_malformed_retry_delay(delay: Any) -> None:
    """Not a protobuf duration in its JSON form."""
    assert read({}, details(retry_info(delay)), dialect=GEMINI) == HintReading(
        None, ("retryDelay",)
    )


def test_the_headers_come_before_the_body_and_the_body_before_amazons() -> None:
    """The order of all four sources."""
    body = details(retry_info("37s"))
    assert read({"retry-after": "2"}, body) == hint(2.0)
    assert read(spent("6s"), body) == hint(6.0, HintSource.RESET)
    assert read({"x-amz-retry-after": "1"}, body) == hint(37.0, HintSource.BODY_HINT)


def test_case_insensitive_headers_will_do() -> None:
    """As aiohttp hands them over."""
    headers = CIMultiDictProxy(CIMultiDict({"Retry-After": "4"}))
    assert read_retry_hint(HTTP, headers, WALL) == hint(4.0)


NAMES = (
    *("retry-after-ms", "x-ms-retry-after-ms", "retry-after", "date", "x-amz-retry-after"),
    *spent("", "requests"),
    *spent("", "tokens"),
    *anthropic("", "tokens"),
    *anthropic("", "input-tokens"),
)
VALUES = (
    st.text(max_size=80)
    | st.from_regex(r"-?[0-9]{0,20}(\.[0-9]{0,20})?", fullmatch=True)
    | st.from_regex(r"([0-9.]{0,5}(h|m|s|ms|us|ns)){0,5}", fullmatch=True)
    | st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", fullmatch=True)
    | st.from_regex(
        r"(Sun, [0-3][0-9] Nov [0-9]{4}|Sunday, [0-3][0-9]-Nov-[0-9]{2}) [0-9:]{8} GMT",
        fullmatch=True,
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["error", "details", "@type", "retryDelay"]), inner)
    ),
)


@given(
    st.sampled_from(DialectName),
    st.dictionaries(st.sampled_from(NAMES), VALUES),
    JSON | st.lists(VALUES.map(retry_info)).map(lambda infos: details(*infos)),
    st.floats(0.0, 1e11),
)
def test_any_answer_gives_a_bounded_hint_or_none(
    dialect: DialectName, headers: dict[str, str], body: Any, wall: float
) -> None:
    """The reader is total, its delay within bounds, and only known names are reported."""
    reading = read_retry_hint(dialect, headers, wall, body)
    assert reading.hint is None or 0.0 <= reading.hint.seconds <= MAX_HINT
    assert set(reading.malformed) <= {*headers, "retryDelay"}


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(9998, 1, 1)),  # noqa: DTZ001 - a zone follows
    st.integers(0, 10**7),
    st.integers(-1439, 1439),
)
def test_dates_written_by_others_are_read_back(
    moment: datetime, delay: int, offset_minutes: int
) -> None:
    """What the standard library writes comes back to the second."""
    sent = moment.replace(microsecond=0, tzinfo=UTC)
    later = sent + timedelta(seconds=delay)
    date = format_datetime(sent, usegmt=True)
    assert read({"date": date, "retry-after": format_datetime(later, usegmt=True)}) == hint(delay)
    zone = timezone(timedelta(minutes=offset_minutes))
    reset = anthropic(later.astimezone(zone).isoformat()) | {"date": date}
    expected = hint(delay, HintSource.RESET) if delay else HintReading(None)
    assert read(reset, dialect=ANTHROPIC) == expected
