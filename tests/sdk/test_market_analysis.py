"""The example runs anywhere, says the same each time, and shows what it promises."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from steer_llm_sdk.examples import market_analysis

GUIDE: Final = Path(__file__).resolve().parents[2] / "docs" / "guide" / "README.md"


async def told(capsys: pytest.CaptureFixture[str]) -> str:
    await market_analysis.analyse()
    return capsys.readouterr().out


async def test_it_shows_what_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """A plan with reasons, attempts, a fallback, circuits, a replay, a conflict, the cost."""
    text = await told(capsys)
    lines = [re.split(r"\s+", line.strip(), maxsplit=1) for line in text.splitlines() if line]
    kinds = {line[0] for line in lines}
    assert kinds >= {
        "plan",
        "because",
        "again",
        "instead",
        "circuit",
        "answer",
        "replay",
        "conflict",
        "calls",
        "spent",
        "spared",
    }
    circuits = [line[1] for line in lines if line[0] == "circuit"]
    changes = [each.partition(" ")[2] for each in circuits if " -> " in each]
    assert changes == ["closed -> open", "open -> half_open", "half_open -> closed"]
    assert "northwind:deep_survey is open" in circuits


async def test_the_sum_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    """Every answer once, but for the replayed one."""
    text = await told(capsys)
    costs = [float(cost) for cost in re.findall(r"([\d.]+) USD$", text, re.MULTILINE)]
    spent = re.search(r"spent +([\d.]+) USD", text)
    spared = re.search(r"spared +([\d.]+) USD", text)
    assert spent is not None
    assert spared is not None
    paid = sum(costs[: -1 if costs[-1] == float(spent[1]) else None])
    assert paid == pytest.approx(float(spent[1]) + float(spared[1]))
    assert float(spared[1]) > 0


async def test_it_says_the_same_each_time_and_soon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a second of waiting, and without a socket."""

    def refused(*_: Any) -> None:
        raise AssertionError("the example is not to use the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    began = asyncio.get_running_loop().time()
    first = await told(capsys)
    assert asyncio.get_running_loop().time() - began < 1.0
    assert await told(capsys) == first


def test_it_runs_as_a_program() -> None:
    """As the guide says, with the same output on the real clock."""
    command = "python -m steer_llm_sdk.examples.market_analysis"
    assert command in GUIDE.read_text("utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = [
        subprocess.run(
            [sys.executable, "-W", "error", *command.split()[1:]],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=environment,
        )
        for _ in range(2)
    ]
    assert [(each.returncode, each.stderr) for each in done] == [(0, ""), (0, "")]
    assert done[0].stdout == done[1].stdout != ""
