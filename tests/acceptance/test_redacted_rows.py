"""`ledger.redact`: what callers chose is in no row that it took it from, keyed calls included."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from steer_proxy.engine.redaction import ATTEMPT_COLUMNS, CALL_COLUMNS, EVENT_COLUMNS
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
            assert (row.attempt_model, row.attempt_upstream_request_id) == (None, None)
            assert row.request_id == row.id
        assert sum(row.attempt_started_us is not None for row in written) == 1


async def test_a_call_without_a_key(tmp_path: Path) -> None:
    """What is told of its only attempt is the caller's and the provider's word as well."""
    async with stage(tmp_path, ledger={"redact": f"{__name__}:nothing"}) as one:
        assert (
            await ask(one.port, chat(f"X-Request-ID: {WORD}", model=WORD), "POST")
        ).status == 200
        (row,) = await rows(one)
        assert row.attempt_started_us is not None
        assert (row.attempt_model, row.attempt_upstream_request_id) == (None, None)
        assert WORD not in str(row)


def test_the_handbook_names_what_is_given() -> None:
    """Who writes a function has to know every name."""
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
    told = text.partition("`redact` names a function")[2].partition("###")[0]
    for name in (*CALL_COLUMNS, *ATTEMPT_COLUMNS, *EVENT_COLUMNS):
        assert f"`{name}`" in told


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
