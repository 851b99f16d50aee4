"""Request ids and trace contexts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.trace_context import (
    MAX_TRACESTATE,
    TraceContext,
    read_trace_context,
    safe_request_id,
    trace_id_from,
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("traceparent", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-00", 0),
        (f"00-{TRACE}-{PARENT}-01", 1),
        (f"00-{TRACE}-{PARENT}-03", 3),
        (f"00-{TRACE}-{PARENT}-ff", 3),
        (f" 00-{TRACE}-{PARENT}-01\t", 1),
        (f"cc-{TRACE}-{PARENT}-01", 1),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-holds", 1),
    ],
)
def test_valid_parents(traceparent: str, flags: int) -> None:
    """Later versions are read as far as they are known; unknown flags are not passed on."""
    assert read_trace_context(traceparent) == TraceContext(TRACE, PARENT, flags)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"cc-{TRACE}-{PARENT}-01more",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}0-01",
        f"00_{TRACE}_{PARENT}_01",
        f"00-{TRACE}-{PARENT}-01\n",
        f"cc-{TRACE}-{PARENT}-01-é",
    ],
)
def test_invalid_parents(traceparent: str) -> None:
    """None, and the state is not looked at."""
    assert read_trace_context(traceparent, ["a=b"]) is None


def state(*lines: str) -> str:
    context = read_trace_context(f"00-{TRACE}-{PARENT}-01", lines)
    assert context is not None
    return context.state


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        (["a=1"], "a=1"),
        (["a=1, b=2 ,,\tc=3", "d=4"], "a=1,b=2,c=3,d=4"),
        (["t@s=x y=z"], ""),
        (["1t@s=x y"], "1t@s=x y"),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a"], ""),
        (["a="], ""),
        (["a=é"], ""),
        (
            [",".join(f"k{number}=v" for number in range(32))],
            ",".join(f"k{n}=v" for n in range(32)),
        ),
        ([",".join(f"k{number}=v" for number in range(33))], ""),
    ],
)
def test_state(lines: list[str], expected: str) -> None:
    """All of it or none."""
    assert state(*lines) == expected


def test_a_long_state_is_shortened() -> None:
    """Long members go first, then those at the end."""
    long, short = "long=" + "x" * 200, [f"k{number}={'y' * 50}" for number in range(8)]
    assert state(long, *short[:4]) == ",".join([long, *short[:4]])
    assert state(long, *short) == ",".join(short)
    many = [f"k{number}={'y' * 60}" for number in range(9)]
    assert state(*many) == ",".join(many[:8])


@given(st.text(max_size=80), st.lists(st.text(max_size=600), max_size=3))
def test_anything_is_taken(traceparent: str, lines: list[str]) -> None:
    """Nothing raises, and what is passed on is bounded."""
    read_trace_context(traceparent, lines)
    assert len(state(*lines)) <= MAX_TRACESTATE


def test_what_is_sent_on() -> None:
    """The same trace, our own span, the caller's state."""
    assert TraceContext(TRACE, PARENT, 3, "a=1").headers(SPAN) == [
        ("traceparent", f"00-{TRACE}-{SPAN}-03"),
        ("tracestate", "a=1"),
    ]
    assert TraceContext(TRACE).headers(SPAN) == [("traceparent", f"00-{TRACE}-{SPAN}-00")]
    assert TraceContext(TRACE, flags=1).sampled
    assert not TraceContext(TRACE, flags=2).sampled


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a", True),
        ("req_1.2:3/4+5=6@7-8", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("a\n", False),
        ("ä", False),
        ("a,b", False),
        ("<script>", False),
    ],
)
def test_request_ids(text: str, safe: bool) -> None:
    """Bounded, and of characters that harm no log."""
    assert safe_request_id(text) == (text if safe else None)


@given(st.text(max_size=200))
def test_a_trace_id_for_any_request_id(request_id: str) -> None:
    """Always valid, and the same for the same id."""
    made = trace_id_from(request_id)
    assert re.fullmatch(r"(?!0{32})[0-9a-f]{32}", made)
    assert made == trace_id_from(request_id)


def test_a_uuid_is_its_own_trace_id() -> None:
    """With and without dashes; not the one of all zeros."""
    dashed = "0AF76519-16cd-43dd-8448-eb211c80319c"
    assert trace_id_from(dashed) == trace_id_from(TRACE) == TRACE
    assert trace_id_from("0" * 32).strip("0")
    assert trace_id_from("\ud800")
