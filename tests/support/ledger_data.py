"""A small ledger with known sums, for the views and the cookbook: three days of made-up calls.

What it holds is told where it is made; `test_views` and `test_cookbook` know the figures.
Everything is long ago but for leases and expiries, which are long over or far off: no test depends
on the day it runs.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from steer_proxy.ledger.values import (
    MICROSECONDS,
    AttemptRow,
    BreakerEventRow,
    CallRow,
    ChunkRow,
)

#: 2026-03-02T00:00:00Z, a Monday.
BASE_US: Final = 1_772_409_600 * MICROSECONDS
HOUR: Final = 3600 * MICROSECONDS
DAY: Final = 24 * HOUR
#: 2100-01-01.
FAR_OFF_US: Final = 4_102_444_800 * MICROSECONDS

MILLI: Final = 1_000
SECOND: Final = MICROSECONDS
#: A thousandth of a dollar, in nano-dollars.
MILLI_USD: Final = 1_000_000

ALIVE: Final = "00000000-0000-7000-9000-000000000001"
DEAD: Final = "00000000-0000-7000-9000-000000000002"


class OwnerRow(NamedTuple):
    """One row of `owners`."""

    id: str
    instance: str
    version: str
    started_us: int
    lease_until_us: int


@dataclass
class LedgerData:
    """Rows by table; `tables` gives them in one form."""

    owners: list[OwnerRow] = field(default_factory=list)
    calls: list[CallRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    chunks: list[ChunkRow] = field(default_factory=list)
    events: list[BreakerEventRow] = field(default_factory=list)

    def tables(self) -> dict[str, list[Any]]:
        return {
            "owners": self.owners,
            "requests": self.calls,
            "attempts": self.attempts,
            "response_chunks": self.chunks,
            "breaker_events": self.events,
        }

    def filled(self) -> dict[str, list[Any]]:
        """The tables that have rows."""
        return {table: rows for table, rows in self.tables().items() if rows}

    # --- Making -----------------------------------------------------------------------------------

    def call(self, at: int, **columns: Any) -> str:
        """A call `at` microseconds after the base: a healthy one, unless told otherwise."""
        number = len(self.calls) + 1
        id_ = f"00000000-0000-7000-8000-{number:012d}"
        duration = columns.pop("duration_us", 2 * SECOND)
        usual = {
            "instance": "steer-1",
            "caller": "caller-a",
            "labels": json.dumps({"team": "search"}),
            "route": "chat",
            "dialect": "openai",
            "operation": "chat",
            "method": "POST",
            "path": "/v1/chat/completions",
            "stream": 0,
            "model_requested": "gpt-4o",
            "model_answered": "gpt-4o",
            "upstream": "openai",
            "ended_us": BASE_US + at + duration,
            "wait_us": 0,
            "status": 200,
            "outcome": "ok",
            "attempts": 1,
            "ambiguous": 0,
            "sdk_retry": 0,
            "bytes_in": 1_000,
            "bytes_out": 500,
            "tokens_in": 1_000,
            "tokens_cached": 0,
            "tokens_out": 100,
            "cost_source": "reported",
            "wasted_nusd": 0,
        }
        self.calls.append(
            CallRow(
                id=id_,
                request_id=f"req-{number}",
                started_us=BASE_US + at,
                duration_us=duration,
                **(usual | columns),
            )
        )
        return id_

    def attempt(self, request: str, n: int = 1, **columns: Any) -> None:
        """An attempt of a call: a healthy one, unless told otherwise."""
        call = next(row for row in self.calls if row.id == request)
        ok = columns.get("outcome", "ok") == "ok"
        usual: dict[str, Any] = {
            "upstream": call.upstream or "openai",
            "model": call.model_answered or call.model_requested,
            "upstream_request_id": f"up-{call.request_id}-{n}",
            "started_us": call.started_us,
            "duration_us": call.duration_us,
            "connect_us": None if n > 1 else 20 * MILLI,
            "headers_us": 200 * MILLI,
            "wait_us": 0,
            "wait_source": "none",
            "status": 200,
            "outcome": "ok",
            "executed": "yes" if ok else "no",
            "reused_conn": 0 if n == 1 else 1,
            "bytes_sent": 1_000,
            "bytes_received": 500 if ok else 0,
            "cost_nusd": call.cost_nusd if ok else 0,
            "cost_source": call.cost_source if ok else None,
            "wasted": 0,
        }
        self.attempts.append(AttemptRow(request=request, n=n, **(usual | columns)))

    def tell(self) -> None:
        """Let calls tell of their only attempts themselves, as Steer writes them; every third stays
        as the version before wrote it."""
        tried: dict[str, list[AttemptRow]] = {}
        for row in self.attempts:
            tried.setdefault(row.request, []).append(row)
        for place, call in enumerate(self.calls):
            (only, *others) = tried.get(call.id, [None])
            if only is None or others or place % 3 == 0:
                continue
            if (only.outcome, only.wait_us) != (call.outcome, call.wait_us) or only.outcome != "ok":
                continue
            moved = {
                name: getattr(only, name.removeprefix("attempt_"))
                for name in CallRow._fields
                if name.startswith("attempt_")
            }
            self.calls[place] = call._replace(**moved)
            self.attempts.remove(only)

    def keyed(self, key: str, at: int, **columns: Any) -> str:
        """A call that owns its key; completed, unless told otherwise."""
        usual = {
            "idem_key": key,
            "idem_scope": f"scope-{key}",
            "idem_fp": f"fingerprint-{key}",
            "idem_role": "owner",
            "idem_state": "completed",
            "idem_live": 1,
            "idem_epoch": 1,
            "owner_id": ALIVE,
            "sent_us": BASE_US + at + MILLI,
            "expires_us": FAR_OFF_US,
        }
        return self.call(at, **(usual | columns))

    def duplicate(self, of: str, role: str, at: int, avoided: int | None) -> str:
        """A call that was given another one's answer."""
        owner = next(row for row in self.calls if row.id == of)
        return self.call(
            at,
            idem_key=owner.idem_key,
            idem_scope=owner.idem_scope,
            idem_fp=owner.idem_fp,
            idem_role=role,
            served_from=of,
            upstream=owner.upstream,
            attempts=0,
            duration_us=10 * MILLI,
            tokens_in=None,
            tokens_cached=None,
            tokens_out=None,
            cost_source=None,
            cost_nusd=0,
            avoided_nusd=avoided,
        )


def made_up() -> LedgerData:
    """The whole of it."""
    data = LedgerData()
    data.owners += [
        OwnerRow(ALIVE, "steer-1", "0.1.0", BASE_US, FAR_OFF_US),
        OwnerRow(DEAD, "steer-2", "0.1.0", BASE_US, BASE_US + DAY),
    ]
    _monday(data)
    _tuesday(data)
    _keys(data)
    _wednesday(data)
    data.tell()
    return data


def _monday(data: LedgerData) -> None:
    """Ten plain calls of gpt-4o for 10 m$ each, lasting 1 to 10 s, in two hours; five streams of
    claude-sonnet for 20 m$ each, first tokens after 100 to 500 ms; half of the prompts cached."""
    for number in range(1, 11):
        call = data.call(
            8 * HOUR + (number - 1) // 5 * HOUR + number * SECOND,
            duration_us=number * SECOND,
            cost_nusd=10 * MILLI_USD,
        )
        data.attempt(call, reused_conn=0 if number == 1 else 1)
    for number in range(1, 6):
        call = data.call(
            10 * HOUR + number * SECOND,
            route="claude",
            dialect="anthropic",
            operation="messages",
            path="/v1/messages",
            caller="caller-b",
            labels=json.dumps({"team": "support"}),
            stream=1,
            model_requested="claude-sonnet",
            model_answered="claude-sonnet",
            upstream="anthropic",
            duration_us=4 * SECOND,
            first_token_us=number * 100 * MILLI,
            tokens_cached=500,
            tokens_reasoning=20,
            cost_nusd=20 * MILLI_USD,
        )
        data.attempt(call, first_token_us=number * 100 * MILLI)


def _tuesday(data: LedgerData) -> None:
    """Trouble: retries that helped, one that did not, waste, throttling, events."""
    # 500 at home, then the other upstream answers, for 12 m$.
    call = data.call(
        DAY + 9 * HOUR, upstream="azure-eu", attempts=2, wait_us=500 * MILLI,
        cost_nusd=12 * MILLI_USD, sdk_retry=0,
    )  # fmt: skip
    data.attempt(
        call, 1, upstream="openai", status=500, outcome="upstream_5xx",
        failure_class="server_error", duration_us=300 * MILLI,
    )  # fmt: skip
    data.attempt(call, 2, wait_us=500 * MILLI, wait_source="backoff", duration_us=SECOND)
    # A silence that may have cost 8 m$, then the other upstream answers.
    call = data.call(
        DAY + 9 * HOUR + 60 * SECOND, upstream="azure-eu", attempts=2, ambiguous=1,
        cost_nusd=12 * MILLI_USD, wasted_nusd=8 * MILLI_USD, sdk_retry=1,
    )  # fmt: skip
    data.attempt(
        call, 1, upstream="openai", status=None, outcome="timeout",
        failure_class="first_byte_timeout", executed="maybe", duration_us=60 * SECOND,
        cost_nusd=8 * MILLI_USD, cost_source="estimated", wasted=1, upstream_request_id=None,
    )  # fmt: skip
    data.attempt(call, 2, duration_us=SECOND)
    # 429 with a delay of 2 s, then the same upstream answers, for 10 m$.
    call = data.call(
        DAY + 10 * HOUR, attempts=2, wait_us=2 * SECOND, cost_nusd=10 * MILLI_USD, sdk_retry=1
    )
    data.attempt(
        call, 1, status=429, outcome="throttled", failure_class="throttled",
        duration_us=50 * MILLI,
    )  # fmt: skip
    data.attempt(call, 2, wait_us=2 * SECOND, wait_source="retry_after", duration_us=SECOND)
    # Nobody answers: three attempts, nothing billed.
    call = data.call(
        DAY + 11 * HOUR, status=502, outcome="network", error_class="connect", attempts=3,
        wait_us=1_500 * MILLI, tokens_in=None, tokens_out=None, tokens_cached=None,
        cost_source=None, cost_nusd=0, model_answered=None, sdk_retry=2,
    )  # fmt: skip
    for n in (1, 2, 3):
        data.attempt(
            call, n, status=None, outcome="network", failure_class="connect",
            wait_us=0 if n == 1 else 750 * MILLI, wait_source="none" if n == 1 else "backoff",
            duration_us=5 * SECOND, upstream_request_id=None,
        )  # fmt: skip
    # The caller goes away in the middle of a stream; 3 m$ are gone.
    call = data.call(
        DAY + 12 * HOUR, stream=1, status=200, outcome="cancelled", error_class="cancelled",
        cost_source=None, cost_nusd=0, wasted_nusd=3 * MILLI_USD,
        first_token_us=800 * MILLI,
    )  # fmt: skip
    data.attempt(
        call, 1, outcome="cancelled", failure_class="cancelled", executed="yes", wasted=1,
        cost_nusd=3 * MILLI_USD, cost_source="estimated", first_token_us=800 * MILLI,
    )  # fmt: skip
    for number, (kind, model, before, after, reason, until) in enumerate(
        (
            ("breaker", "gpt-4o", "closed", "open", "5 failures in a row", 30 * SECOND),
            ("breaker", "gpt-4o", "open", "half_open", "time", None),
            ("breaker", "gpt-4o", "half_open", "open", "probe failed", 60 * SECOND),
            ("breaker", "gpt-4o", "open", "half_open", "time", None),
            ("breaker", "gpt-4o", "half_open", "closed", "probe succeeded", None),
            ("gate", "gpt-4o", "open", "shut", "429", 2 * SECOND),
            ("breaker", None, "closed", "open", "5 failures in a row", 30 * SECOND),
        ),
        start=1,
    ):
        at = BASE_US + DAY + 11 * HOUR + number * SECOND
        data.events.append(
            BreakerEventRow(
                id=f"00000000-0000-7000-a000-{number:012d}",
                at_us=at,
                instance="steer-1",
                kind=kind,
                upstream="openai",
                model=model,
                from_state=before,
                to_state=after,
                reason=reason,
                generation=number,
                until_us=None if until is None else at + until,
            )
        )


def _keys(data: LedgerData) -> None:
    """Tuesday afternoon: every state a key can be in, and every way of being served by it."""
    afternoon = DAY + 14 * HOUR
    unknown: dict[str, Any] = {
        "status": None,
        "outcome": None,
        "model_answered": None,
        "ended_us": None,
        "tokens_in": None,
        "tokens_cached": None,
        "tokens_out": None,
        "cost_source": None,
        "wasted_nusd": None,
    }
    # One paid call of 50 m$, three duplicates.
    order = data.keyed(
        "order-1", afternoon, cost_nusd=50 * MILLI_USD, resp_headers='{"reason": "OK"}',
        resp_bytes=700, resp_chunks=2, resp_sha256="00",
    )  # fmt: skip
    data.attempt(order)
    for seq, size in enumerate((400, 300)):
        data.chunks.append(
            ChunkRow(
                order, seq, 400 * seq, BASE_US + afternoon, "identity", None, size, b"x" * size
            )
        )
    data.duplicate(order, "joined", afternoon + SECOND, 50 * MILLI_USD)
    data.duplicate(order, "replayed", afternoon + 60 * SECOND, 50 * MILLI_USD)
    data.duplicate(order, "replayed", afternoon + 120 * SECOND, 50 * MILLI_USD)
    # Its process died while the provider may have been at work; nobody has written so.
    data.keyed(
        "order-2", afternoon + 2 * SECOND, **(unknown | {"idem_state": "sent", "owner_id": DEAD})
    )
    # Its process died before anything was sent.
    data.keyed(
        "order-3", afternoon + 3 * SECOND, sent_us=None,
        **(unknown | {"idem_state": "claimed", "owner_id": DEAD, "attempts": None}),
    )  # fmt: skip
    # At work.
    data.keyed("order-4", afternoon + 4 * SECOND, **(unknown | {"idem_state": "sent"}))
    # Reset after bytes were written: may have cost 5 m$.
    call = data.keyed(
        "order-5", afternoon + 5 * SECOND, idem_state="uncertain", status=504, outcome="network",
        error_class="reset", ambiguous=1, cost_source=None, cost_nusd=0, wasted_nusd=5 * MILLI_USD,
        tokens_in=None, tokens_out=None, tokens_cached=None,
    )  # fmt: skip
    data.attempt(
        call, 1, status=None, outcome="network", failure_class="reset", executed="maybe",
        wasted=1, cost_nusd=5 * MILLI_USD, cost_source="estimated", duration_us=SECOND,
        upstream_request_id=None,
    )  # fmt: skip
    # The provider said no: the key is free again.
    call = data.keyed(
        "order-6", afternoon + 6 * SECOND, idem_state="released", idem_live=None, status=400,
        outcome="client_4xx", error_class="rejected", cost_source=None, cost_nusd=0,
        tokens_in=None, tokens_out=None, tokens_cached=None,
    )  # fmt: skip
    data.attempt(call, 1, status=400, outcome="client_4xx", failure_class="rejected")
    # Lost, and run again on purpose, for 30 m$; then asked for once more.
    data.keyed(
        "order-7", afternoon + 7 * SECOND,
        **(unknown | {"idem_state": "uncertain", "idem_live": None, "owner_id": DEAD}),
    )  # fmt: skip
    rerun = data.keyed(
        "order-7", afternoon + 600 * SECOND, idem_epoch=2, cost_nusd=30 * MILLI_USD,
        resp_headers='{"reason": "OK"}', resp_bytes=100, resp_chunks=1, resp_sha256="00",
    )  # fmt: skip
    data.attempt(rerun)
    data.duplicate(rerun, "replayed", afternoon + 700 * SECOND, 30 * MILLI_USD)
    # Over long ago, not yet purged; too large to be stored.
    data.keyed(
        "order-8", afternoon + 8 * SECOND, cost_nusd=10 * MILLI_USD, expires_us=BASE_US + 2 * DAY
    )
    # An SDK gave up waiting without any key; its retry was given the same call's answer.
    orphan = data.call(afternoon + 9 * SECOND, cost_nusd=10 * MILLI_USD)
    data.attempt(orphan)
    data.duplicate(orphan, "adopted", afternoon + 15 * SECOND, 10 * MILLI_USD)


def _wednesday(data: LedgerData) -> None:
    """Four calls chosen by a rule, of a model whose price nobody knows; one without labels."""
    for number in range(1, 5):
        call = data.call(
            2 * DAY + number * HOUR,
            instance="steer-2",
            caller="caller-c",
            labels=None if number == 4 else json.dumps({"team": "support"}),
            model_requested="gpt-4o",
            model_answered="house-model",
            upstream="vllm",
            rule="cheap-when-poor",
            cost_source="unknown",
        )
        data.attempt(call)


# --- Filling --------------------------------------------------------------------------------------


def statement(table: str, row: Any, placeholder: str) -> str:
    """The INSERT for a row's type; `placeholder` is `?` or `$`, which is numbered."""
    names = row._fields
    marks = [f"${place}" if placeholder == "$" else "?" for place in range(1, len(names) + 1)]
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(marks)})"


def fill_sqlite(connection: sqlite3.Connection, data: LedgerData) -> None:
    """Write everything into a SQLite ledger."""
    with connection:
        for table, rows in data.filled().items():
            connection.executemany(statement(table, rows[0], "?"), rows)


async def fill_postgres(connection: Any, data: LedgerData) -> None:
    """Write everything into a PostgreSQL ledger, by an asyncpg connection."""
    for table, rows in data.filled().items():
        await connection.executemany(statement(table, rows[0], "$"), rows)
