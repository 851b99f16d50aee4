"""An answer as the ledger keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_proxy.http.recording import RecordedHead
from steer_proxy.http.stored import AT_ONCE, CHUNK, Chunker, head_text, read_head
from steer_proxy.ledger.sealing import Sealer

SEALERS = {"plain": Sealer(), "sealed": Sealer([("key", b"k" * 32)])}

FIELDS = [
    (b"Content-Type", b"application/json"),
    (b"X-Twice", b"one"),
    (b"X-Name", "caf\u00e9".encode("latin-1")),
    (b"x-twice", b"two"),
    (b"X-Bytes", bytes(range(0x80, 0x100))),
    (b"X-Empty", b""),
    (b"X-Colon", b"a: b: c"),
    (b"Content-Length", b"12"),
]


def test_a_head_comes_back_as_it_was() -> None:
    """Order, case, repetition and bytes of the fields; lines of our own."""
    own = [b"X-Steer-Upstream: openai\r\n", b"X-Steer-Rule: a: b\r\n", b"X-None: \r\n"]
    head = RecordedHead(201, "Well made", FIELDS, own, "application/json")
    assert read_head(201, head_text(head)) == head


def test_a_head_without_a_reason() -> None:
    """One of Steer's own."""
    head = RecordedHead(409, None, [], [])
    assert read_head(409, head_text(head)) == head


@pytest.mark.parametrize("value", ["gr\u00f6\u00dfe-\u00e0", "m\udcff\udcfe", "\u0085", "\u6a21"])
def test_any_text_of_a_head_comes_back(value: str) -> None:
    """Bytes that are no UTF-8, names of rules and models that are no ASCII."""
    own = [f"X-Steer-Rule: {value}\r\n".encode("utf-8", "surrogateescape")]
    head = RecordedHead(200, value, FIELDS, own, f"text/plain; name={value}")
    assert read_head(200, head_text(head)) == head


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\n", "\r"])
def test_a_line_of_ours_is_one_line(value: str) -> None:
    """Whoever may write to the ledger writes no lines into answers."""
    text = orjson.dumps(
        {"reason": None, "fields": [], "own": [["X-Steer-Rule", value]], "content_type": ""}
    ).decode()
    with pytest.raises(ValueError, match="control character"):
        read_head(200, text)


@pytest.mark.parametrize(
    "name",
    [
        b"Set-Cookie",
        b"set-cookie2",
        b"Date",
        b"DATE",
        b"Age",
        b"CF-Ray",
        b"X-RateLimit-Remaining-Requests",
        b"RateLimit",
        b"RateLimit-Policy",
        b"anthropic-ratelimit-tokens-reset",
        b"Retry-After",
        b"retry-after-ms",
    ],
)
def test_what_was_meant_for_that_moment_is_left_out(name: bytes) -> None:
    """Whatever its case; the rest stays."""
    head = RecordedHead(200, "OK", [(name, b"1"), *FIELDS], [])
    assert read_head(200, head_text(head)).fields == FIELDS


@pytest.mark.parametrize("name", [b"X-Date", b"Last-Modified", b"Cookie-Policy", b"X-Retry"])
def test_nothing_else_is_left_out(name: bytes) -> None:
    """Names that only look alike."""
    head = RecordedHead(200, "OK", [(name, b"1")], [])
    assert read_head(200, head_text(head)).fields == [(name, b"1")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"reason":null,"fields":[["a"]],"own":[],"content_type":""}',
        '{"reason":null,"fields":[[1,2]],"own":[],"content_type":""}',
        '{"reason":null,"fields":7,"own":[],"content_type":""}',
        '{"reason":null,"fields":[["a","\u20ac"]],"own":[],"content_type":""}',
        '{"reason":null,"fields":[],"own":[["a"]],"content_type":""}',
    ],
)
def test_what_is_no_head_is_refused(text: str) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(ValueError):  # noqa: PT011 - that is the promise
        read_head(200, text)


@given(
    st.lists(
        st.tuples(
            st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,9}", fullmatch=True).filter(
                lambda name: name.lower() not in {b"date", b"age", b"cf-ray"}
            ),
            st.binary(max_size=9),
        )
    )
)
def test_any_field_comes_back(fields: list[tuple[bytes, bytes]]) -> None:
    """Byte for byte."""
    found = read_head(200, head_text(RecordedHead(200, "OK", fields, []))).fields
    assert found == fields


@pytest.mark.parametrize("kind", list(SEALERS))
@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1],
        [CHUNK],
        [CHUNK + 1],
        [AT_ONCE + 1, 5],
        [3 * CHUNK + 7, 0, 2],
        [10, 20, 30],
    ],
)
async def test_chunks_are_the_answer(kind: str, sizes: Sequence[int]) -> None:
    """In order, without a gap, none too large; digest and size are those of the whole."""
    sealer = SEALERS[kind]
    chunker = Chunker(sealer, "call-1")
    answer = [hashlib.shake_128(bytes([n])).digest(size) for n, size in enumerate(sizes)]
    rows = []
    for piece in answer:
        rows += await chunker.cut([piece[: len(piece) // 2], piece[len(piece) // 2 :]], 7)
    whole = b"".join(answer)
    assert b"".join(sealer.open(row) for row in rows) == whole
    assert [row.seq for row in rows] == list(range(chunker.count))
    assert all(0 < row.raw_bytes <= CHUNK for row in rows)
    offsets = [sum(row.raw_bytes for row in rows[:n]) for n in range(len(rows))]
    assert [row.byte_offset for row in rows] == offsets
    assert (chunker.size, chunker.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert {row.key_id for row in rows} <= {sealer.key_id}


def test_no_credential_is_in_a_head() -> None:
    """Cookies are, of all a provider's fields, the only ones that are."""
    fields = [(b"Set-Cookie", b"session=secret"), *FIELDS]
    text = head_text(RecordedHead(200, "OK", fields, []))
    assert "secret" not in text
    assert len(orjson.loads(text)["fields"]) == len(FIELDS)
