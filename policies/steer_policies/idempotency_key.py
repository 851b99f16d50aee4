"""The request header `Idempotency-Key`, read strictly.

A key that two readers take for different ones costs a second call, so nothing is guessed: what is
not clearly one key is refused, with the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: Most characters of a key, its quotes not counted; as Stripe has it.
MAX_KEY: Final = 255

# RFC 8941, section 3.3.3; a quote or backslash is escaped, nothing else may be. Then what follows.
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*+)"(.*)', re.DOTALL)
_VISIBLE: Final = re.compile(r"[ -~]*")
_ESCAPED: Final = re.compile(r'\\(["\\])')


class KeySyntaxError(ValueError):
    """An `Idempotency-Key` that cannot be used; the message says what is wrong, and the remedy."""


def read_key(lines: Sequence[str]) -> str | None:
    """The key of a request, from all its `Idempotency-Key` field lines; None when there is none.

    A key is written as an RFC 8941 string (draft-ietf-httpapi-idempotency-key-header, section 2.1)
    or, as most callers do it, bare: 1 to 255 of the characters %x21-7E except `"` and `,`. A quoted
    and a bare spelling of the same text are the same key.

    Raises:
        KeySyntaxError: for anything else.
    """
    if not lines:
        return None
    if len(lines) > 1:
        raise KeySyntaxError(f"Idempotency-Key is given {len(lines)} times; send it once.")
    text = lines[0].strip(" \t")
    if not _VISIBLE.fullmatch(text):
        raise KeySyntaxError(
            "Idempotency-Key has a control character or one that is not ASCII; "
            "use visible ASCII characters, a UUID for instance."
        )
    key = _quoted(text) if text.startswith('"') else _bare(text)
    if not key:
        raise KeySyntaxError("Idempotency-Key is empty; send a key, or leave the header out.")
    if len(key) > MAX_KEY:
        raise KeySyntaxError(
            f"Idempotency-Key has {len(key)} characters; use at most {MAX_KEY}, "
            "a hash of it for instance."
        )
    return key


def _quoted(text: str) -> str:
    match = _QUOTED.fullmatch(text)
    if match is None:
        raise KeySyntaxError(
            "Idempotency-Key has broken quoting; end it with a quote, and within it "
            'write \\" for a quote and \\\\ for a backslash, and escape nothing else.'
        )
    after = match[2].lstrip(" \t")
    if after.startswith(";"):
        raise KeySyntaxError(
            "Idempotency-Key has parameters after the quoted key; send the key alone."
        )
    if after.startswith(","):
        raise KeySyntaxError("Idempotency-Key lists more than one key; send one.")
    if after:
        raise KeySyntaxError(
            "Idempotency-Key has text after the closing quote; send the quoted key alone."
        )
    return _ESCAPED.sub(r"\1", match[1])


def _bare(text: str) -> str:
    for character, name in (('"', "a quote"), (",", "a comma"), (" ", "a space")):
        if character in text:
            raise KeySyntaxError(
                f"Idempotency-Key has {name}; leave it out, "
                'or send one key as a quoted string: "...".'
            )
    return text
