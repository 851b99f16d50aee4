"""The callers' own reading of answers, and their manners."""

from __future__ import annotations

import random

import pytest

from tests.torture.caller import Answer, parse, wait_before_retry
from tests.torture.history import Call, End, Try

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
_LENGTH = (("Content-Length", "2"),)
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNKS = (("Transfer-Encoding", "chunked"),)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", Answer()),
        (_HEAD[:-1], Answer()),
        (_HEAD, Answer(200, _LENGTH, b"")),
        (_HEAD + b"a", Answer(200, _LENGTH, b"a")),
        (_HEAD + b"ab", Answer(200, _LENGTH, b"ab", whole=True)),
        (_CHUNKED, Answer(200, _CHUNKS, b"")),
        (_CHUNKED + b"2\r\na", Answer(200, _CHUNKS, b"a")),
        (_CHUNKED + b"2\r\nab\r\n", Answer(200, _CHUNKS, b"ab")),
        (_CHUNKED + b"2\r\nab\r\n0\r\n", Answer(200, _CHUNKS, b"ab")),
        (_CHUNKED + b"2\r\nab\r\n0\r\n\r\n", Answer(200, _CHUNKS, b"ab", whole=True)),
    ],
)
def test_answers(data: bytes, answer: Answer) -> None:
    """However much has come, it is read as far as it goes, and is whole only at its end."""
    assert parse(data) == answer


def _tried(status: int | None, end: End = End.COMPLETE, **fields: str) -> Try:
    pairs = tuple((name.replace("_", "-"), value) for name, value in fields.items())
    return Try(Call("k", "ann"), 0, "one", 1.0, 2.0, end, status, pairs)


@pytest.mark.parametrize(
    ("tried", "shortest", "longest"),
    [
        (_tried(200), None, None),
        (_tried(422), None, None),
        (_tried(409, x_should_retry="false"), None, None),
        (_tried(409), 0.03, 0.06),
        (_tried(500), 0.03, 0.06),
        (_tried(422, x_should_retry="true"), 0.03, 0.06),
        (_tried(503, retry_after="1"), 1.0, 1.0),
        (_tried(503, retry_after="1", retry_after_ms="250"), 0.25, 0.25),
        (_tried(503, retry_after="60"), 2.0, 2.0),
        (_tried(None, End.REFUSED), 0.03, 0.06),
        (_tried(200, End.CUT), 0.03, 0.06),
        (_tried(200, End.LEFT), 0.03, 0.06),
    ],
    ids=lambda value: (
        f"{value.status} {value.end} {value.fields}" if isinstance(value, Try) else ""
    ),
)
def test_trying_again(tried: Try, shortest: float | None, longest: float | None) -> None:
    """As the official SDKs do, only sooner."""
    wait = wait_before_retry(tried, 0, random.Random(1))
    if shortest is None or longest is None:
        assert wait is None
    else:
        assert wait is not None
        assert shortest <= wait <= longest
