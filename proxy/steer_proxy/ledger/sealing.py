"""Compresses and encrypts what is stored of an answer, and gives it back.

Bodies are compressed with zstd where that makes them smaller. With keys, bodies and heads are then
encrypted with AES-256-GCM under a random nonce of 12 bytes; a piece says which key it needs, and
what it belongs to is authenticated with it, so that pieces cannot change places. A key is good for
2^32 pieces (NIST SP 800-38D, section 8.3).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from steer_proxy.ledger.values import ChunkRow

if TYPE_CHECKING:
    import zstandard
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32

#: The largest piece of an answer, in bytes before compression.
MAX_CHUNK: Final = 64 * 1024

#: Pieces smaller than this are not worth a frame of zstd.
WORTH_COMPRESSING: Final = 128

#: zstd's own default; higher levels cost more than they save on pieces this small.
LEVEL: Final = 3

_NONCE: Final = 12
_SEALED: Final = "+aesgcm"
_CHECK: Final = b"Steer's check value of an encryption key"
_CODECS: Final = frozenset({"identity", "zstd"})
_OTHERWISE: Final = "it is not encrypted with the key that its record names"
_HEX: Final = re.compile(rf"[0-9A-Fa-f]{{{2 * KEY_BYTES}}}")


class Unreadable(Exception):
    """A stored piece that cannot be given back: its key is missing, or it was changed or damaged.

    `key_id` names the key it needs, None for one that is not encrypted.
    """

    def __init__(self, key_id: str | None, reason: str) -> None:
        super().__init__(reason)
        self.key_id = key_id


def key_bytes(text: str) -> bytes:
    """An encryption key from its text: 32 bytes as hexadecimal, or as base64 of either alphabet.

    Raises:
        ValueError: saying what was expected; the text is not quoted.
    """
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            "must hold 32 bytes as base64 or hexadecimal, such as `openssl rand -base64 32` prints"
        )
    return key


class Sealer:
    """Seals with the first of its keys and opens with any; without keys it only compresses.

    May be used by several threads at once.
    """

    def __init__(self, keys: Sequence[tuple[str, bytes]] = (), *, plaintext: bool = True) -> None:
        """Take a ring of names and keys of 32 bytes; without `plaintext`, open nothing that was
        stored without keys.

        Raises:
            ValueError: for a key of another length, or a name that appears twice.
        """
        self._keys = dict(keys)
        if len(self._keys) != len(keys):
            raise ValueError("two keys of the ring have the same name")
        if any(len(key) != KEY_BYTES for key in self._keys.values()):
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self.key_id: Final = keys[0][0] if keys else None
        """The key that seals, None when nothing is encrypted."""
        self._plaintext = plaintext
        self._ciphers: dict[str, AESGCM] = {}
        self._contexts = threading.local()

    def checks(self) -> dict[str, str]:
        """A value for each key, by name, that tells it from others and nothing about it."""
        return {
            name: hmac.new(key, _CHECK, hashlib.sha256).hexdigest()
            for name, key in self._keys.items()
        }

    def seal(self, request: str, seq: int, byte_offset: int, at_us: int, raw: bytes) -> ChunkRow:
        """A piece of an answer as it is stored.

        Raises:
            ValueError: for a piece larger than `MAX_CHUNK`.
        """
        if len(raw) > MAX_CHUNK:
            raise ValueError(f"a piece has at most {MAX_CHUNK} bytes")
        codec, body = "identity", raw
        if len(raw) >= WORTH_COMPRESSING:
            smaller = self._compressor().compress(raw)
            if len(smaller) < len(raw):
                codec, body = "zstd", smaller
        if self.key_id is not None:
            codec += _SEALED
            bound = _bound("chunk", request, seq, byte_offset, len(raw), codec, self.key_id)
            body = self._encrypt(self.key_id, body, bound)
        return ChunkRow(request, seq, byte_offset, at_us, codec, self.key_id, len(raw), body)

    def open(self, row: ChunkRow, keyring_id: str | None = None) -> bytes:
        """The piece itself.

        `keyring_id` is the key that its record names: with one, a piece in the clear is refused, as
        one that was encrypted with another key.

        Raises:
            Unreadable: see there.
        """
        if keyring_id not in (None, row.key_id):
            raise Unreadable(keyring_id, _OTHERWISE)
        codec, body = row.codec, bytes(row.body)
        base = codec.removesuffix(_SEALED)
        if base not in _CODECS or not 0 <= row.raw_bytes <= MAX_CHUNK:
            raise Unreadable(row.key_id, "the piece is of no kind this version knows")
        if codec == base:
            if row.key_id is not None:
                raise Unreadable(row.key_id, "the piece names a key and is not encrypted")
            self._in_the_clear()
        else:
            bound = _bound(
                "chunk", row.request, row.seq, row.byte_offset, row.raw_bytes, codec, row.key_id
            )
            body = self._decrypt(row.key_id, body, bound)
        if base == "zstd":
            body = self._decompress(body, row)
        if len(body) != row.raw_bytes:
            raise Unreadable(row.key_id, "the piece is not as long as it was")
        return body

    def seal_head(self, request: str, head: str) -> str:
        """An answer's head (the JSON of `resp_headers`) as it is stored: an envelope with keys.

        A provider's headers name organisations and projects.
        """
        if self.key_id is None:
            return head
        sealed = self._encrypt(self.key_id, head.encode(), _bound("head", request, self.key_id))
        data = base64.b64encode(sealed).decode("ascii")
        return json.dumps({"codec": "aesgcm", "key": self.key_id, "data": data})

    def open_head(self, request: str, stored: str, keyring_id: str | None = None) -> str:
        """The head itself; one that was stored without keys comes as it is.

        `keyring_id` as for `open`.

        Raises:
            Unreadable: see there.
        """
        try:
            envelope: Any = orjson.loads(stored)
        except ValueError:
            raise Unreadable(None, "the answer's head is damaged") from None
        if not isinstance(envelope, dict) or "codec" not in envelope:
            if keyring_id is not None:
                raise Unreadable(keyring_id, _OTHERWISE)
            self._in_the_clear()
            return stored
        key_id, data = envelope.get("key"), envelope.get("data")
        if (
            envelope["codec"] != "aesgcm"
            or not isinstance(key_id, str)
            or not isinstance(data, str)
        ):
            raise Unreadable(None, "the answer's head is of no kind this version knows")
        try:
            sealed = base64.b64decode(data, validate=True)
        except ValueError:
            raise Unreadable(key_id, "the answer's head is damaged") from None
        if keyring_id not in (None, key_id):
            raise Unreadable(keyring_id, _OTHERWISE)
        return self._decrypt(key_id, sealed, _bound("head", request, key_id)).decode()

    def _in_the_clear(self) -> None:
        """Something was stored without keys: is that to be opened?"""
        if not self._plaintext:
            raise Unreadable(
                None, "it is not encrypted, and database.encryption.plaintext is refuse"
            )

    def _encrypt(self, key_id: str, plain: bytes, bound: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher(key_id).encrypt(nonce, plain, bound)

    def _decrypt(self, key_id: str | None, sealed: bytes, bound: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        if key_id is None or key_id not in self._keys:
            raise Unreadable(key_id, f"the encryption key {key_id!r} is not in the ring")
        try:
            return self._cipher(key_id).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
        except (InvalidTag, ValueError):  # ValueError: cut shorter than a nonce
            raise Unreadable(
                key_id, f"the encryption key {key_id!r} is another one, or the piece was changed"
            ) from None

    def _cipher(self, key_id: str) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        cipher = self._ciphers.get(key_id)
        if cipher is None:
            cipher = self._ciphers[key_id] = AESGCM(self._keys[key_id])
        return cipher

    def _compressor(self) -> zstandard.ZstdCompressor:
        """This thread's own: a context serves one at a time, and making one costs its memory."""
        found: zstandard.ZstdCompressor | None = getattr(self._contexts, "compressor", None)
        if found is None:
            import zstandard

            found = self._contexts.compressor = zstandard.ZstdCompressor(level=LEVEL)
        return found

    def _decompress(self, body: bytes, row: ChunkRow) -> bytes:
        import zstandard

        found = getattr(self._contexts, "decompressor", None)
        if found is None:
            found = self._contexts.decompressor = zstandard.ZstdDecompressor()
        try:
            # The library believes a frame about its size, and allocates it: ask first.
            if zstandard.frame_content_size(body) != row.raw_bytes:
                raise Unreadable(row.key_id, "the piece is not as long as it was")
            raw: bytes = found.decompress(
                body, max_output_size=row.raw_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError:
            raise Unreadable(row.key_id, "the piece is damaged") from None
        return raw


def _bound(*parts: object) -> bytes:
    """What a piece belongs to, unambiguous."""
    return json.dumps(parts).encode()
