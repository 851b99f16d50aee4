"""A run's rows in the ledger: the columns that a sidecar fills for a call, as far as a run has
them.

`route` is `sdk`, `dialect` `python`, `method` `RUN`; `operation` is the tool named explicitly.
`upstream` is a tool: the one that gave the result or was asked last, and in `attempts` the one that
was asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

from steer_llm_sdk.errors import ToolExecutionError
from steer_llm_sdk.reliability.forms import METHOD, ROUTE
from steer_llm_sdk.reliability.once import Caller
from steer_policies.idempotency import Role, State
from steer_policies.outcome import Executed, Outcome
from steer_policies.trace_context import safe_request_id, trace_id_from
from steer_proxy.engine.attempt import AttemptRecord
from steer_proxy.engine.clock import Clock
from steer_proxy.ledger.values import MICROSECONDS, NANO_USD, AttemptRow, CallRow

DIALECT: Final = "python"

#: The longest text taken from foreign values, and labels as JSON, in characters.
MAX_TEXT: Final = 256
MAX_LABELS: Final = 4 * 1024

#: The names that providers' SDKs, and so tools, have for the same counts.
_TOKENS_IN: Final = ("prompt_tokens", "input_tokens", "tokens_in")
_TOKENS_OUT: Final = ("completion_tokens", "output_tokens", "tokens_out")


#: Of what a result reports, the columns that its attempt has, too.
_TOLD: Final = ("tokens_in", "tokens_out", "cost_nusd", "cost_source")


class RunRow:
    """Makes the rows of one run; `began` and all durations by the loop's clock."""

    def __init__(self, id: str, instance: str, caller: Caller, clock: Clock, size: int) -> None:  # noqa: A002 - the column's name
        self._clock = clock
        self._began = clock.now()
        self._records = caller.records
        self._opening = CallRow(
            id=id,
            request_id=_text(caller.request_id) or id,
            trace_id=_trace_id(caller),
            instance=instance,
            labels=_labels(caller.labels),
            route=ROUTE,
            dialect=DIALECT,
            operation=_text(caller.tool),
            method=METHOD,
            stream=0,
            started_us=self.now_us(),
            bytes_in=size,
        )

    def now_us(self) -> int:
        """Unix time in microseconds."""
        return int(self._clock.wall() * MICROSECONDS)

    def claim(self, key: str, scope: str, print_: str, owner: str, ttl: float) -> CallRow:
        """The row that takes a key. The tool is called at once, so it counts as sent."""
        now_us = self.now_us()
        return self._opening._replace(
            idem_key=key,
            idem_scope=scope,
            idem_fp=print_,
            idem_role=Role.OWNER.value,
            idem_state=State.SENT.value,
            idem_live=1,
            idem_epoch=1,
            owner_id=owner,
            sent_us=now_us,
            expires_us=now_us + int(ttl * MICROSECONDS),
        )

    def completed(self, ttl: float, value: Any, size: int, status: int) -> CallRow:
        """The row of a run that gave a result."""
        return self._ended(ttl)._replace(
            status=status, outcome=Outcome.OK.value, bytes_out=size, **_reported(value)
        )

    def attempts(self, value: Any) -> list[AttemptRow]:
        """The rows of its attempts; `value` is the run's result, None when it gave none.

        What the tool says of tokens and cost is that of the attempt that brought the result.
        """
        reported = _reported(value)
        told = {name: reported[name] for name in _TOLD}
        return [self._attempt(each, told if each.verdict.ok else {}) for each in self._records]

    def _attempt(self, record: AttemptRecord, told: Mapping[str, Any]) -> AttemptRow:
        verdict = record.verdict
        began_us = int((record.started - self._began) * MICROSECONDS)
        return AttemptRow(
            request=self._opening.id,
            n=record.number,
            upstream=_text(record.upstream) or "",
            started_us=self._opening.started_us + began_us,
            duration_us=int(record.seconds * MICROSECONDS),
            wait_us=int(record.waited * MICROSECONDS),
            wait_source=record.wait_source.value,
            status=record.status,
            outcome=verdict.outcome.value,
            failure_class=None if verdict.failure is None else verdict.failure.value,
            executed=verdict.executed.value,
            wasted=int(not verdict.ok and verdict.executed is not Executed.NO),
            **told,
        )

    def failed(self, ttl: float, error: BaseException) -> CallRow:
        """The row of a run that ended with an error."""
        last = self._records[-1] if self._records else None
        kind = type(error).__name__
        if isinstance(error, asyncio.CancelledError):
            ended = Outcome.CANCELLED
        elif isinstance(error, ToolExecutionError) and last is not None and last.verdict.failure:
            ended, kind = last.verdict.outcome, last.verdict.failure.value
        else:
            # To those who look at calls, the tool is the upstream, and it has failed.
            timed_out = isinstance(error, TimeoutError)
            ended = Outcome.TIMEOUT if timed_out else Outcome.UPSTREAM_5XX
        return self._ended(ttl)._replace(
            outcome=ended.value,
            error_class=_text(kind),
            upstream=None if last is None else _text(last.upstream),
            attempts=len(self._records),
        )

    def duplicate(
        self, key: str, scope: str, print_: str, role: Role, source: str, cost_nusd: int | None
    ) -> CallRow:
        """The row of a run that was given another one's result."""
        return self._ended(None)._replace(
            status=200,
            outcome=Outcome.OK.value,
            attempts=0,
            idem_key=key,
            idem_scope=scope,
            idem_fp=print_,
            idem_role=role.value,
            served_from=source,
            avoided_nusd=cost_nusd,
        )

    def _ended(self, ttl: float | None) -> CallRow:
        now_us = self.now_us()
        return self._opening._replace(
            ended_us=now_us,
            wait_us=int(sum(each.waited for each in self._records) * MICROSECONDS),
            ambiguous=int(any(each.verdict.executed is Executed.MAYBE for each in self._records)),
            duration_us=int((self._clock.now() - self._began) * MICROSECONDS),
            expires_us=None if ttl is None else now_us + int(ttl * MICROSECONDS),
        )


def _reported(value: Any) -> dict[str, Any]:
    """What an output tells of itself; whatever is not as expected is left out."""
    output: Mapping[str, Any] = value if isinstance(value, dict) else {}
    usage, metadata = _object(output, "usage"), _object(output, "metadata")
    cost = _cost_nusd(output.get("cost_usd"))
    return {
        "upstream": _text(metadata.get("tool_name")),
        "rule": _text(metadata.get("matched_rule")),
        "attempts": _count(metadata.get("retry_attempts")),
        "tokens_in": _first(usage, _TOKENS_IN),
        "tokens_out": _first(usage, _TOKENS_OUT),
        "cost_nusd": cost,
        "cost_source": None if cost is None else "reported",
    }


def _object(output: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = output.get(name)
    return found if isinstance(found, dict) else {}


def _first(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := _count(usage.get(name))) is not None), None)


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        return None
    return value


def _cost_nusd(usd: Any) -> int | None:
    if isinstance(usd, bool) or not isinstance(usd, (int, float)) or not 0 <= usd < 2**33:
        return None
    return round(usd * NANO_USD)


def _text(value: Any) -> str | None:
    """Foreign text as a column takes it."""
    if not isinstance(value, str) or not value:
        return None
    return _whole(value[:MAX_TEXT])


def _whole(text: str) -> str:
    """Foreign text without halves of surrogate pairs, which no database takes."""
    return text.encode("utf-8", "replace").decode()


def _trace_id(caller: Caller) -> str | None:
    """The trace as a sidecar's rows have it that was called with the same ids (`HttpTool`)."""
    for text in (caller.trace_id, caller.request_id):
        if text is not None and (safe := safe_request_id(text)) is not None:
            return trace_id_from(safe)
    return None


def _labels(labels: Mapping[str, str]) -> str | None:
    if not labels:
        return None
    text = json.dumps({_whole(str(name)): _whole(str(each)) for name, each in labels.items()})
    return text if len(text) <= MAX_LABELS else None
