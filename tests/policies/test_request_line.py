"""The request line of a request that is not valid HTTP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.request_line import RequestLine, read_request_line


@pytest.mark.parametrize(
    ("head", "method", "target"),
    [
        (b"POST /v1/chat HTTP/1.1\r\nA: \x01", "POST", "/v1/chat"),
        (b"GET /?a=b HTTP/1.0\r\n", "GET", "/?a=b"),
        (b"\r\n\r\nPUT //x HTTP/1.1\r\n\r\n", "PUT", "//x"),
    ],
)
def test_what_is_read(head: bytes, method: str, target: str) -> None:
    """Whatever follows it."""
    assert read_request_line(head) == RequestLine(method, target)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"POST /v1/chat HTTP/1.1",
        b"POST /v1/chat HTTP/1.1\n",
        b"POST /v1/chat HTTP/2.0\r\n",
        b"POST  /v1/chat HTTP/1.1\r\n",
        b"POST http://localhost/v1/chat HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"post /v1/chat HTTP/1.1\r\n",
        b"POST /v1/\xff HTTP/1.1\r\n",
        b"POST /v1/ch at HTTP/1.1\r\n",
        b"POST /v1/ch\x01at HTTP/1.1\r\n",
        b"x\r\nPOST /v1/chat HTTP/1.1\r\n",
        b"X" * 21 + b" / HTTP/1.1\r\n",
    ],
)
def test_what_is_in_doubt(head: bytes) -> None:
    """Is not guessed at."""
    assert read_request_line(head) is None


@given(
    st.binary(max_size=60) | st.binary(max_size=9).map(lambda x: b"GET /" + x + b" HTTP/1.1\r\n")
)
def test_any_bytes(head: bytes) -> None:
    """A target is visible ASCII, and bytes never raise."""
    if (line := read_request_line(head)) is not None:
        assert line.target.startswith("/")
        assert line.target.isascii()
        assert " " not in line.target
