"""`ledger.redact`: what callers chose is in no row that it took it from, keyed calls included."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from steer_proxy.ledger.memory import MemoryLedger
from steer_proxy.ledger.values import CallRow
from tests.provider import faults
from tests.support.raw import Stage, ask, chat, stage

#: In every field that a caller has a say in.
WORD = "alice"
FIELDS = (
    f"Idempotency-Key: {WORD}-1",
    f"X-Request-ID: {WORD}-request",
    f'X-Steer-Metadata: {{"team": "{WORD}"}}',
    "Authorization: Bearer caller-key",
)


def nothing(_: Mapping[str, str]) -> dict[str, str]:
    """An operator who wants none of it."""
    return {}


async def rows(one: Stage) -> list[CallRow]:
    """What is in the ledger when Steer has ended."""
    books = one.steer.sidecar.books
    await books.stop()
    assert isinstance(books.ledger, MemoryLedger)
    return list(books.ledger.calls.values())


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_owners_and_duplicates(tmp_path: Path, stream: bool) -> None:
    """Joined and replayed ones, too; the key itself works all the same."""
    redact = {"redact": f"{__name__}:nothing"}
    async with stage(tmp_path, ledger=redact) as one:
        one.provider.always(faults.silence(0.5))
        data = chat(*FIELDS, stream=stream, user=WORD)
        await asyncio.gather(ask(one.port, data, "POST"), ask(one.port, data, "POST"))
        reply = await ask(one.port, data, "POST")
        assert reply.status == 200
        assert len(one.provider.attempts) == 1
        written = await rows(one)
        assert sorted(row.idem_role or "" for row in written) == ["joined", "owner", "replayed"]
        for row in written:
            assert WORD not in str(row)
            assert (row.idem_key, row.path, row.labels) == (None, None, None)
            assert (row.model_requested, row.model_answered) == (None, None)
            assert row.request_id == row.id


@pytest.mark.parametrize("status", [400, 504])
async def test_calls_that_failed(tmp_path: Path, status: int) -> None:
    """Released or uncertain: nothing more than of one that went well."""
    redact = {"redact": f"{__name__}:nothing"}
    async with stage(tmp_path, ledger=redact) as one:
        one.provider.always(faults.status(status))
        assert (await ask(one.port, chat(*FIELDS), "POST")).status == status
        (row,) = await rows(one)
        assert row.idem_state == ("uncertain" if status == 504 else "released")
        assert WORD not in str(row)
        assert (row.idem_key, row.path, row.model_requested) == (None, None, None)
