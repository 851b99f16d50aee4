"""Redaction: what a function of the operator's makes of text that came from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import orjson

from steer_proxy.engine.trouble import LOGGER, Seldom
from steer_proxy.ledger.redaction import Redact
from steer_proxy.ledger.values import AttemptRow, Batch, BreakerEventRow, CallRow

#: The columns with text that callers or providers chose. All others hold words of Steer's own or of
#: its configuration, identifiers, and keyed digests.
CALL_COLUMNS: Final = (
    "request_id",
    "trace_id",
    "parent_id",
    "labels",
    "path",
    "model_requested",
    "model_answered",
    "attempt_model",
    "attempt_upstream_request_id",
    "idem_key",
)
ATTEMPT_COLUMNS: Final = ("model", "upstream_request_id")
EVENT_COLUMNS: Final = ("model", "reason")

_Row = TypeVar("_Row", CallRow, AttemptRow, BreakerEventRow)


class Redaction:
    """Applies the configured function to rows; without one, rows stay as they are.

    The function is given those text columns of a row that have a value, and what it returns for
    them is written; what it leaves out, or what is no text, is written as NULL. When it fails they
    all are: nothing is written that it has not seen. It may be called in a thread.

    Attributes:
        failures: how often it failed.
    """

    def __init__(self, redact: Redact | None, now: Callable[[], float]) -> None:
        self._redact = redact
        self._seldom = Seldom(now)
        self.failures = 0

    @property
    def active(self) -> bool:
        """Whether there is a function to apply."""
        return self._redact is not None

    def call(self, row: CallRow) -> CallRow:
        """A call's row as it may be written."""
        row = self._applied(row, CALL_COLUMNS)
        # The column is never NULL; the row's own id says nothing.
        return row if row.request_id else row._replace(request_id=row.id)

    def batch(self, batch: Batch) -> Batch:
        """Rows of the log as they may be written."""
        if self._redact is None:
            return batch
        return Batch(
            [self.call(row) for row in batch.calls],
            [self._applied(row, ATTEMPT_COLUMNS) for row in batch.attempts],
            [self._applied(row, EVENT_COLUMNS) for row in batch.events],
        )

    def _applied(self, row: _Row, columns: tuple[str, ...]) -> _Row:
        if self._redact is None:
            return row
        given = {name: value for name in columns if (value := getattr(row, name)) is not None}
        if not given:
            return row
        values: dict[str, Any] = dict.fromkeys(given)
        try:
            values |= _kept(self._redact(dict(given)), given)
        except Exception as error:  # noqa: BLE001 - the operator's own code
            self.failures += 1
            if self._seldom.due():
                # Its message may quote what must not be written.
                LOGGER.error(
                    "ledger.redact failed (%s): the columns it was given are written as NULL",
                    type(error).__name__,
                )
        return row._replace(**values)


def _kept(returned: Mapping[str, str | None], given: Mapping[str, str]) -> dict[str, str]:
    """The values to write.

    Raises:
        Exception: whatever comes of using something that is no mapping, or no JSON, as if it were.
    """
    kept = {name: value for name in given if isinstance(value := returned.get(name), str)}
    if "labels" in kept and not isinstance(orjson.loads(kept["labels"]), dict):
        raise TypeError("labels are a JSON object")
    return kept
