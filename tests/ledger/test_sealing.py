"""Compression and encryption of stored answers."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from steer_proxy.ledger.sealing import MAX_CHUNK, Sealer, Unreadable, key_bytes
from steer_proxy.ledger.values import ChunkRow

ONE, TWO = bytes(range(32)), bytes(range(1, 33))
PLAIN, SEALED = Sealer(), Sealer([("one", ONE)])
TEXT = b'data: {"delta": "hello"}\n\n' * 100
RAW = st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda each: each * 500)


@pytest.mark.parametrize("sealer", [PLAIN, SEALED])
@given(raw=RAW, seq=st.integers(0, 2**31), offset=st.integers(0, 2**62))
def test_what_was_sealed_opens(sealer: Sealer, raw: bytes, seq: int, offset: int) -> None:
    """Byte for byte, and never larger than it was by more than what encryption adds."""
    row = sealer.seal("id", seq, offset, 5, raw)
    assert row[:4] == ("id", seq, offset, 5)
    assert (row.key_id, row.raw_bytes) == (sealer.key_id, len(raw))
    assert sealer.open(row) == raw
    assert len(row.body) <= len(raw) + (28 if sealer.key_id else 0)


@pytest.mark.parametrize(
    ("sealer", "raw", "codec"),
    [
        (PLAIN, b"", "identity"),
        (PLAIN, b"x" * 127, "identity"),
        (PLAIN, b"x" * 128, "zstd"),
        (PLAIN, os.urandom(1000), "identity"),
        (SEALED, b"x", "identity+aesgcm"),
        (SEALED, TEXT, "zstd+aesgcm"),
    ],
)
def test_codecs(sealer: Sealer, raw: bytes, codec: str) -> None:
    """Compressed where that helps, encrypted where there is a key."""
    assert sealer.seal("id", 0, 0, 0, raw).codec == codec


def test_nothing_is_legible() -> None:
    """Neither the text nor, on a second time, the same bytes."""
    one, two = (SEALED.seal("id", 0, 0, 0, b"attack at dawn") for _ in range(2))
    assert b"attack" not in one.body
    assert one.body != two.body


def test_what_names_a_key_is_encrypted() -> None:
    """Who may write the database cannot put words in place of what was sealed."""
    row = PLAIN.seal("id", 0, 0, 0, TEXT)._replace(key_id="one")
    with pytest.raises(Unreadable, match="not encrypted"):
        SEALED.open(row)
    assert SEALED.open_head("id", "{}") == "{}"


def test_what_its_record_says_is_encrypted_is_so_with_that_key() -> None:
    """Neither in the clear, nor under another key of the ring."""
    ring = Sealer([("one", ONE), ("two", TWO)])
    other = Sealer([("two", TWO)])
    for sealer in (PLAIN, other):
        with pytest.raises(Unreadable, match="not encrypted with the key that its record names"):
            ring.open(sealer.seal("id", 0, 0, 0, TEXT), "one")
        with pytest.raises(Unreadable, match="not encrypted with the key that its record names"):
            ring.open_head("id", sealer.seal_head("id", "{}"), "one")
    assert ring.open(SEALED.seal("id", 0, 0, 0, TEXT), "one") == TEXT
    assert ring.open_head("id", SEALED.seal_head("id", "{}"), "one") == "{}"


def test_plaintext_can_be_refused() -> None:
    """Whatever the record says; what is encrypted opens."""
    strict = Sealer([("one", ONE)], plaintext=False)
    with pytest.raises(Unreadable, match="plaintext is refuse"):
        strict.open(PLAIN.seal("id", 0, 0, 0, TEXT))
    with pytest.raises(Unreadable, match="plaintext is refuse"):
        strict.open_head("id", "{}")
    assert strict.open(SEALED.seal("id", 0, 0, 0, TEXT)) == TEXT
    assert strict.open_head("id", SEALED.seal_head("id", "{}")) == "{}"


def test_rotation() -> None:
    """The first key seals, all open; what was stored without keys opens, too."""
    ring = Sealer([("two", TWO), ("one", ONE)])
    assert ring.open(SEALED.seal("id", 0, 0, 0, TEXT)) == TEXT
    assert ring.open(PLAIN.seal("id", 0, 0, 0, TEXT)) == TEXT
    assert ring.seal("id", 0, 0, 0, TEXT).key_id == "two"


@pytest.mark.parametrize("sealer", [PLAIN, Sealer([("two", TWO)]), Sealer([("one", TWO)])])
def test_a_key_that_is_missing_or_another(sealer: Sealer) -> None:
    """Names the key that is needed."""
    with pytest.raises(Unreadable, match="'one'") as caught:
        sealer.open(SEALED.seal("id", 0, 0, 0, TEXT))
    assert caught.value.key_id == "one"
    with pytest.raises(Unreadable, match="'one'") as caught:
        sealer.open_head("id", SEALED.seal_head("id", "{}"))
    assert caught.value.key_id == "one"


@pytest.mark.parametrize(
    "change",
    [
        {"request": "other"},
        {"seq": 8},
        {"byte_offset": 1},
        {"raw_bytes": 41},
        {"codec": "zstd+aesgcm"},
        {"codec": "identity"},
        {"key_id": "two"},
        {"key_id": None},
        {"body": b""},
        {"body": b"short"},
    ],
)
def test_pieces_do_not_change_places(change: dict[str, Any]) -> None:
    """What a piece belongs to is authenticated with it."""
    ring = Sealer([("one", ONE), ("two", ONE)])
    row = ring.seal("id", 7, 0, 0, b"x" * 40)
    assert ring.open(row) == b"x" * 40
    with pytest.raises(Unreadable):
        ring.open(row._replace(**change))


@given(position=st.integers(0, 67), bit=st.integers(0, 7))
def test_no_bit_can_be_changed(position: int, bit: int) -> None:
    """Of nonce, text and tag."""
    row = SEALED.seal("id", 0, 0, 0, b"y" * 40)
    body = bytearray(row.body)
    body[position] ^= 1 << bit
    with pytest.raises(Unreadable):
        SEALED.open(row._replace(body=bytes(body)))


def _frame(raw: bytes, **terms: Any) -> bytes:
    return zstandard.ZstdCompressor(**terms).compress(raw)


@pytest.mark.parametrize(
    ("body", "raw_bytes", "codec"),
    [
        # A bomb: 1 GiB of zeros in 33 KB. It is refused by its own word, before memory is taken.
        (_frame(bytes(2**26)), 10, "zstd"),
        (_frame(bytes(2**26)), 2**26, "zstd"),
        (_frame(TEXT, write_content_size=False), len(TEXT), "zstd"),
        (_frame(TEXT), len(TEXT) - 1, "zstd"),
        (_frame(TEXT)[:-3], len(TEXT), "zstd"),
        (_frame(TEXT) + b"more", len(TEXT), "zstd"),
        (b"", 0, "zstd"),
        (b"nonsense", 8, "zstd"),
        (b"abc", 4, "identity"),
        (b"abc", -1, "identity"),
        (b"abc", 3, "brotli"),
        (b"abc", 3, "identity+aesgcm+aesgcm"),
        (b"abc", 3, ""),
    ],
)
def test_damage(body: bytes, raw_bytes: int, codec: str) -> None:
    """Is no crash, no wrong answer and no bomb."""
    with pytest.raises(Unreadable) as caught:
        PLAIN.open(ChunkRow("id", 0, 0, 0, codec, None, raw_bytes, body))
    assert caught.value.key_id is None


@given(body=st.binary(max_size=200), raw_bytes=st.integers(-1, 300))
def test_opening_is_total(body: bytes, raw_bytes: int) -> None:
    """Bytes of the length that was said, or Unreadable."""
    try:
        found = PLAIN.open(ChunkRow("id", 0, 0, 0, "zstd", None, raw_bytes, body))
    except Unreadable:
        return
    assert len(found) == raw_bytes


def test_a_piece_has_a_bound() -> None:
    """The one it is opened with."""
    largest = bytes(MAX_CHUNK)
    assert PLAIN.open(PLAIN.seal("id", 0, 0, 0, largest)) == largest
    with pytest.raises(ValueError, match="at most"):
        PLAIN.seal("id", 0, 0, 0, bytes(MAX_CHUNK + 1))


def test_rings_that_cannot_be() -> None:
    """Found when they are made."""
    with pytest.raises(ValueError, match="same name"):
        Sealer([("a", ONE), ("a", TWO)])
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer([("a", b"short")])


@given(st.dictionaries(st.text(), st.text()).map(json.dumps))
def test_heads(head: str) -> None:
    """Stored as they are without keys, in an envelope with them."""
    assert PLAIN.seal_head("id", head) == head
    sealed = SEALED.seal_head("id", head)
    envelope = json.loads(sealed)
    assert (envelope["codec"], envelope["key"]) == ("aesgcm", "one")
    assert SEALED.open_head("id", sealed) == head
    with pytest.raises(Unreadable):
        SEALED.open_head("other", sealed)


def test_a_head_from_before_there_were_keys() -> None:
    """Comes as it is."""
    assert SEALED.open_head("id", '{"reason": "OK", "fields": []}').startswith('{"reason"')


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "{",
        "[" * 100_000,
        '{"codec": "rot13", "key": "one", "data": ""}',
        '{"codec": "aesgcm", "key": 1, "data": ""}',
        '{"codec": "aesgcm", "key": "one"}',
        '{"codec": "aesgcm", "key": "one", "data": "?"}',
        '{"codec": "aesgcm", "key": "one", "data": "AAAA"}',
    ],
)
def test_damaged_heads(stored: str) -> None:
    """Are said to be."""
    with pytest.raises(Unreadable):
        SEALED.open_head("id", stored)


@pytest.mark.parametrize(
    "text",
    [
        ONE.hex(),
        ONE.hex().upper(),
        base64.b64encode(b"\xfb" * 32).decode(),
        base64.urlsafe_b64encode(b"\xfb" * 32).decode(),
        base64.b64encode(ONE).decode().rstrip("="),
    ],
)
def test_keys_as_text(text: str) -> None:
    """Hexadecimal, or base64 of either alphabet."""
    assert key_bytes(text) in {ONE, b"\xfb" * 32}


@given(st.text(max_size=80) | st.binary(max_size=40).map(bytes.hex))
def test_keys_are_read_totally(text: str) -> None:
    """32 bytes, or a refusal."""
    with contextlib.suppress(ValueError):
        assert len(key_bytes(text)) == 32


def test_a_key_that_is_none() -> None:
    """Is not quoted: it may be a secret."""
    with pytest.raises(ValueError, match="32 bytes as base64") as caught:
        key_bytes("correct horse battery staple")
    assert "horse" not in str(caught.value)


def test_threads_share_a_sealer() -> None:
    """A compressor serves one at a time: each thread has its own."""
    found: list[bool] = []

    def work() -> None:
        found.append(
            all(SEALED.open(SEALED.seal("id", n, 0, 0, TEXT * 9)) == TEXT * 9 for n in range(50))
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=10)
    assert found == [True] * 4


def test_libraries_are_loaded_when_used() -> None:
    """Not when the module is: most processes encrypt nothing."""
    code = (
        "import sys; from steer_proxy.ledger.sealing import Sealer; s = Sealer([('a', bytes(32))]);"
        "Sealer().open(Sealer().seal('i', 0, 0, 0, b'x'));"
        "print([m for m in ('cryptography', 'zstandard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_values_tell_keys_apart_and_nothing_about_them() -> None:
    """The same for the same secret, whatever its name; no part of it is in there."""
    one, other = bytes(range(32)), bytes(32)
    checks = Sealer([("a", one), ("b", other)]).checks()
    assert checks == {"a": Sealer([("x", one)]).checks()["x"], "b": checks["b"]}
    assert checks["a"] != checks["b"]
    assert all(len(bytes.fromhex(check)) == 32 for check in checks.values())
    assert one.hex()[:8] not in checks["a"]
    assert Sealer().checks() == {}
