"""The plain fields of a multipart form: reading them, and changing one (RFC 7578, RFC 2046)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

# RFC 2046, section 5.1.1: at most 70 characters of a bounded set.
_BOUNDARY: Final = re.compile(
    r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s;",]{1,70}))""", re.IGNORECASE
)
_DISPOSITION: Final = re.compile(
    rb"(?:^|\r\n)content-disposition:[ \t]*form-data([^\r\n]*)", re.IGNORECASE
)
# Quoted values are consumed whole, so that a name inside a file name is not taken for the field's.
_PARAMETER: Final = re.compile(rb';[ \t]*([\w*-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;]*))')

#: Bounds of what `form_fields` reads: fields, and bytes of each.
MAX_FIELDS: Final = 64
MAX_FIELD: Final = 16 * 1024


def set_form_field(content_type: str, raw: bytes, name: str, value: str) -> bytes | None:
    """The form with the field set, added in front when it has none; None when it is not a form.

    The boundary stays; a value that would contain it is refused with None, too.
    """
    delimiter = form_delimiter(content_type)
    if delimiter is None or not raw.startswith(delimiter) or not form_takes(content_type, value):
        return None
    content = value.encode()
    pieces: list[bytes] = []
    copied = 0
    for start, end in _parts(raw, delimiter):
        head = raw.find(b"\r\n\r\n", start, end)
        if head >= 0 and _field_name(raw[start:head]) == name.encode():
            pieces += (raw[copied : head + 4], content)
            copied = end
    if not pieces:
        disposition = f'Content-Disposition: form-data; name="{name}"'.encode()
        pieces = [delimiter, b"\r\n", disposition, b"\r\n\r\n", content, b"\r\n"]
    return b"".join((*pieces, raw[copied:]))


def form_takes(content_type: str, value: str) -> bool:
    """Whether a field of a form with this content type could have the value."""
    delimiter = form_delimiter(content_type)
    content = value.encode()
    return delimiter is not None and delimiter not in content and b"\r\n" not in content


def form_fields(content_type: str, raw: bytes) -> dict[str, str] | None:
    """The plain (non-file) fields of a form, the last of each name; None when it is not a form.

    At most `MAX_FIELDS` fields of at most `MAX_FIELD` bytes each are read; the rest is passed over,
    as no decision hangs on it.
    """
    delimiter = form_delimiter(content_type)
    if delimiter is None or not raw.startswith(delimiter):
        return None
    fields: dict[str, str] = {}
    for start, end in islice(_parts(raw, delimiter), MAX_FIELDS):
        head = raw.find(b"\r\n\r\n", start, min(end, start + MAX_FIELD))
        if head >= 0 and end - head - 4 <= MAX_FIELD and (name := _field_name(raw[start:head])):
            fields[name.decode("utf-8", "replace")] = raw[head + 4 : end].decode("utf-8", "replace")
    return fields


def form_delimiter(content_type: str) -> bytes | None:
    """What begins each part of a form with this content type; None when it has no boundary."""
    match = _BOUNDARY.search(content_type)
    return None if match is None else b"--" + (match[1] or match[2]).encode("latin-1", "replace")


def _parts(raw: bytes, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Where each part's head begins (at the CRLF before it) and its content ends."""
    between = b"\r\n" + delimiter
    start = len(delimiter)
    while (end := raw.find(between, start)) >= 0:
        yield start, end
        start = end + len(between)


def _field_name(head: bytes) -> bytes | None:
    """The name of a plain field; None for a file."""
    disposition = _DISPOSITION.search(head)
    if disposition is None:
        return None
    name: bytes | None = None
    for parameter, quoted, bare in _PARAMETER.findall(disposition[1]):
        if parameter.lower() == b"name":
            name = quoted or bare
        elif parameter.lower() in {b"filename", b"filename*"}:
            return None
    return name
