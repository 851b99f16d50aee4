"""Rows as the proxy would write them."""

from __future__ import annotations

import itertools
from typing import Any

from steer_policies.idempotency import State
from steer_proxy.engine.clock import new_id
from steer_proxy.ledger.values import (
    MICROSECONDS,
    AttemptRow,
    BreakerEventRow,
    CallRow,
    ChunkRow,
    Claim,
    Finish,
    Record,
    Ref,
)
from tests.ledger_contract.subject import EPOCH, Subject

DAY = 86_400.0
LEASE = 15.0
ME, OTHER = "owner-1", "owner-2"

_count = itertools.count()


def fresh_id() -> str:
    """An id that sorts after every one made before it."""
    return new_id(EPOCH + next(_count) / 1000)


def call(subject: Subject, **values: Any) -> CallRow:
    """A row of the log."""
    id_ = values.pop("id", None) or fresh_id()
    row = CallRow(id=id_, request_id=f"request-{id_}", started_us=subject.now_us())
    return row._replace(**values)


def claim(
    subject: Subject,
    scope: str = "scope-1",
    *,
    sent: bool = False,
    owner: str = ME,
    retention: float = DAY,
    **values: Any,
) -> Claim:
    """A wish to run a keyed call."""
    now = subject.now_us()
    row = call(
        subject,
        idem_key=f"key of {scope}",
        idem_scope=scope,
        idem_fp="fingerprint-1",
        idem_role="owner",
        idem_state="sent" if sent else "claimed",
        idem_live=1,
        idem_epoch=1,
        owner_id=owner,
        sent_us=now if sent else None,
        expires_us=now + int(retention * MICROSECONDS),
        **values,
    )
    return Claim(row)


def ref(claim: Claim, epoch: int = 1) -> Ref:
    """What a write of a claim's owner means."""
    return Ref(claim.row.id, epoch)


def chunks(claim: Claim, *bodies: bytes, start: int = 0) -> tuple[ChunkRow, ...]:
    """Chunks of a claim's answer, from number `start` on."""
    offset = 0
    made = []
    for seq, body in enumerate(bodies, start):
        made.append(
            ChunkRow(claim.row.id, seq, offset, 1_000 + seq, "identity", None, len(body), body)
        )
        offset += len(body)
    return tuple(made)


def ending(
    subject: Subject,
    claim: Claim,
    state: State = State.COMPLETED,
    *bodies: bytes,
    epoch: int = 1,
    stored: bool | None = None,
    retention: float = DAY,
    written: int = 0,
    **values: Any,
) -> Finish:
    """How a call ended; with bodies its answer is stored, `written` of its chunks already."""
    now = subject.now_us()
    row = claim.row._replace(
        model_answered="gpt-4o-2024-08-06",
        upstream="openai",
        ended_us=now + 1_000,
        duration_us=1_000,
        status=200,
        outcome="ok",
        attempts=1,
        tokens_in=3,
        cost_nusd=1_500,
        cost_source="estimated",
        expires_us=now + int(retention * MICROSECONDS),
    )
    if stored or (stored is None and bodies):
        row = row._replace(
            resp_headers='{"reason": "OK", "fields": []}',
            resp_bytes=sum(map(len, bodies)),
            resp_chunks=len(bodies),
            resp_sha256="5" * 64,
        )
    rest = chunks(claim, *bodies)[written:]
    return Finish(Ref(claim.row.id, epoch), state, row._replace(**values), rest)


def attempt(call: CallRow, n: int = 1, **values: Any) -> AttemptRow:
    """An attempt of a call."""
    row = AttemptRow(call.id, n, "openai", started_us=call.started_us, outcome="ok", executed="yes")
    return row._replace(**values)


def event(subject: Subject, **values: Any) -> BreakerEventRow:
    """A breaker's change."""
    return BreakerEventRow(fresh_id(), subject.now_us(), kind="breaker")._replace(**values)


async def made(subject: Subject, claim: Claim) -> Claim:
    """Claim a key that is free."""
    assert await subject.ledger.claim(claim) is None
    return claim


async def alive(subject: Subject, owner: str = ME, *held: str) -> None:
    """Register an owner, or renew its lease."""
    await subject.ledger.renew(owner, "instance", LEASE, held)


async def found(subject: Subject, scope: str = "scope-1") -> Record:
    """The key's live record, which there must be."""
    record = await subject.ledger.find(scope)
    assert record is not None
    return record
