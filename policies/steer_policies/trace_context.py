"""Request ids and W3C trace contexts: read from strangers, passed on.

Rules are those of W3C Trace Context, level 1, with level 2's random flag passed along
(https://www.w3.org/TR/trace-context-2/).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

MAX_TRACESTATE: Final = 512
"""Characters of `tracestate` passed on: the least that the standard asks for, and our most."""

_MAX_MEMBERS: Final = 32
_LONG_MEMBER: Final = 128
_KNOWN_FLAGS: Final = 0x03  # sampled, random trace id

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
_TRACEPARENT: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-[!-~]*)?"
)
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One trace, as 32 lower-case hexadecimal digits, and the caller's place in it.

    `parent_id` is the caller's span (16 digits), None when the trace begins here. `flags` are bits:
    1 sampled, 2 random trace id.
    """

    trace_id: str
    parent_id: str | None = None
    flags: int = 0
    state: str = ""

    @property
    def sampled(self) -> bool:
        """Whether the caller recorded the trace."""
        return bool(self.flags & 1)

    def headers(self, span_id: str) -> list[tuple[str, str]]:
        """What to send on, with the sender's own span (16 hexadecimal digits) as parent."""
        pairs = [("traceparent", f"00-{self.trace_id}-{span_id}-{self.flags:02x}")]
        if self.state:
            pairs.append(("tracestate", self.state))
        return pairs


def read_trace_context(traceparent: str, tracestate: Sequence[str] = ()) -> TraceContext | None:
    """The caller's context; None when `traceparent` is not valid, and then there is no state.

    Refused are version ff, all-zero ids, upper case, and in version 00 anything after the flags; of
    later versions the known part is taken. `tracestate` is the values of all its header lines.
    """
    match = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["rest"]):
        return None
    if not match["trace"].strip("0") or not match["parent"].strip("0"):
        return None
    flags = int(match["flags"], 16) & _KNOWN_FLAGS
    return TraceContext(match["trace"], match["parent"], flags, _state(tracestate))


def _state(lines: Sequence[str]) -> str:
    """The list's members, shortened as the standard says; "" when any of it is not valid."""
    members = [part for line in lines for item in line.split(",") if (part := item.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MAX_MEMBERS or len(keys) < len(members):
        return ""
    if not all(map(_MEMBER.fullmatch, members)):
        return ""
    # Section 3.3.1.5: long members go first, then members from the end.
    if _length(members) > MAX_TRACESTATE:
        members = [member for member in members if len(member) <= _LONG_MEMBER]
    while _length(members) > MAX_TRACESTATE:
        members.pop()
    return ",".join(members)


def _length(members: Sequence[str]) -> int:
    return sum(map(len, members)) + max(0, len(members) - 1)


def safe_request_id(text: str) -> str | None:
    """The caller's request id if it is at most 128 of `A-Za-z0-9._:/+=@-`, else None."""
    return text if _REQUEST_ID.fullmatch(text) else None


def trace_id_from(request_id: str) -> str:
    """A trace id for a call that brings none: a UUID's own digits, else a digest of the text.

    The digest is the same wherever the same request id is seen.
    """
    if _UUID.fullmatch(request_id) and (digits := request_id.replace("-", "").lower()).strip("0"):
        return digits
    return blake2b(request_id.encode("utf-8", "replace"), digest_size=16).hexdigest()
