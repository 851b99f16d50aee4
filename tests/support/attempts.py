"""The attempts of a call, wherever the log has written them."""

from __future__ import annotations

from collections.abc import Iterable

from steer_proxy.ledger.values import AttemptRow, CallRow, only_attempt


def every_attempt(call: CallRow, rows: Iterable[AttemptRow]) -> list[AttemptRow]:
    """Those with rows of their own, and the one that the call's own row tells of."""
    only = only_attempt(call)
    own = [row for row in rows if row.request == call.id]
    return own if only is None else [only, *own]
