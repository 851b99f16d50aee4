"""The wall as a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.provider_tests.raw import RawClient, request, streamed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.real_time
async def test_it_says_its_port_serves_and_stops() -> None:
    """One JSON line, then as many words as asked for at the pace asked for, until SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.provider", "--pace", "0.001", "--events", "20"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    port = json.loads(await process.stdout.readline())["port"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = RawClient(reader, writer)
    client.send(streamed())
    await client.head()
    assert len(await client.chunks()) == 20 + 3
    client.send(request())
    assert (await client.plain())[0] == 200
    process.terminate()
    assert await process.wait() == 0
    writer.close()
    await writer.wait_closed()
