"""Requests are read whole, whatever pieces they come in, and bad ones are refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.provider.multipart import parse_multipart
from tests.provider.wire import BadRequest, RequestHead, RequestReader

PIPELINED = (
    b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    b"\r\nPOST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX-Word: \xe9\r\n\r\n"
    b"5;name=value\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
    b"GET /last HTTP/1.0\r\n\r\n"
)


def read_all(pieces: list[bytes]) -> list[tuple[RequestHead, bytes, list[tuple[str, str]]]]:
    reader, found, head = RequestReader(), [], None
    for piece in pieces:
        reader.feed(piece)
        while True:
            head = head or reader.read_head()
            if head is None or not reader.read_body():
                break
            found.append((head, bytes(reader.body), reader.trailers))
            head = None
    return found


@given(st.lists(st.integers(0, len(PIPELINED)), max_size=12))
def test_any_cut_reads_the_same(cuts: list[int]) -> None:
    """Three pipelined requests come out alike however the network cut them."""
    edges = [0, *sorted(cuts), len(PIPELINED)]
    pieces = [PIPELINED[start:end] for start, end in itertools.pairwise(edges)]
    first, second, third = read_all(pieces)
    assert (first[0].method, first[0].target, first[1]) == ("POST", "/a?b=c", b"hello")
    assert second[0].headers[1] == ("X-Word", "\xe9")
    assert second[1:] == (b"hello world", [("X-Trailer", "1")])
    assert (third[0].target, third[0].wants_close, third[1]) == ("/last", True, b"")


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"GET  / HTTP/1.1\r\n\r\n", "request line"),
        (b"GET / HTTP/2.0\r\n\r\n", "request line"),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", "header line"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", "header line"),
        (b"GET / HTTP/1.1\r\nHost: a\nEvil: b\r\n\r\n", "control character"),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "both Content-Length",
        ),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "Content-Length"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "Transfer-Encoding"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "chunk size"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "longer than"),
    ],
)
def test_what_no_proxy_may_forward_is_refused(request_bytes: bytes, reason: str) -> None:
    """Ambiguous framing and malformed heads are errors that say what is wrong."""
    with pytest.raises(BadRequest, match=reason):
        read_all([request_bytes])


def test_form_parts_are_read_without_their_boundary() -> None:
    """A multipart body gives names, file names, types and exact bytes."""
    body = (
        b'--zz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--zz\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\n\r\n--not the end\r\n\r\n--zz--\r\n"
    )
    purpose, file = parse_multipart("multipart/form-data; boundary=zz", body)
    assert (purpose.name, purpose.filename, purpose.data) == ("purpose", None, b"batch")
    assert (file.filename, file.content_type) == ("a.txt", "text/plain")
    assert file.data == b"\r\n--not the end\r\n"
    assert parse_multipart("application/json", body) == []
