"""A run and the call it makes through a sidecar, on one database: one query, one trace."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from steer_llm_sdk.orchestration import OrchestrationConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.tools.http import HttpTool
from tests.support.world import world

QUERY = """
    SELECT route, dialect, idem_role, idem_state, trace_id, request_id
    FROM requests WHERE idem_key IS NOT NULL ORDER BY started_us
"""


ATTEMPTS = """
    SELECT r.route, a.n, a.upstream, a.outcome, a.failure_class, a.executed, a.wait_source, a.wasted
    FROM requests AS r JOIN v_attempts AS a ON a.request = r.id
    WHERE r.idem_key IS NOT NULL ORDER BY r.started_us, a.n
"""


@pytest.mark.real_time
async def test_one_query_sees_both(postgres_url: str, tmp_path: Path) -> None:
    """The run's duplicate is replayed in the process; the sidecar sees the call once."""
    async with (
        world(tmp_path, "http", database={"url": postgres_url}) as w,
        IdempotencyManager(database_url=postgres_url) as manager,
    ):
        registry = ToolRegistry()
        registry.register_tool(HttpTool("relay", f"{w.steer.url}/route/tool"))
        orchestrator = ReliableOrchestrator(idempotency_manager=manager, registry=registry)
        outputs = [
            await orchestrator.run(
                {"ask": "something"},
                tool_name="relay",
                options=OrchestrationConfig(
                    idempotency_key="both", trace_id="trail", request_id="req-1"
                ),
            )
            for _ in range(2)
        ]
        assert len(w.primary.attempts) == 1
    assert outputs[0] == outputs[1]
    connection = await asyncpg.connect(postgres_url)
    try:
        run, call, duplicate = await connection.fetch(QUERY)
        attempts = [tuple(row) for row in await connection.fetch(ATTEMPTS)]
    finally:
        await connection.close()
    assert tuple(run)[:4] == ("sdk", "python", "owner", "completed")
    assert tuple(call)[:4] == ("route", "http", "owner", "completed")
    assert tuple(duplicate)[:3] == ("sdk", "python", "replayed")
    assert run["trace_id"] == call["trace_id"] == duplicate["trace_id"]
    assert run["request_id"] == call["request_id"] == "req-1"
    assert attempts == [
        ("sdk", 1, "relay", "ok", None, "yes", "none", 0),
        ("route", 1, "primary", "ok", None, "yes", "none", 0),
    ]
