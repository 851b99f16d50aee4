"""What a ledger gives of an answer, with the key that its record says it is encrypted with.

The pieces of an answer say themselves which key they need. Whoever may write the database could
put others in their place that need none: the record's word stands against that.
"""

from __future__ import annotations

from dataclasses import dataclass

from steer_proxy.ledger.values import Following, StoredAnswer


@dataclass(frozen=True, slots=True)
class KeptAnswer(StoredAnswer):
    """A completed record's answer without its body, and the key of its head and its chunks."""

    keyring_id: str | None = None
    """None: it was stored without keys."""


@dataclass(frozen=True, slots=True)
class Followed(Following):
    """How a call that another process runs has come along, and the key of what it has brought."""

    keyring_id: str | None = None
    """None: it is stored without keys, has no head yet, or is written by a version that names the
    key with the end alone."""
